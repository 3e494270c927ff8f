"""Other wordings of the four kinds: the same question, asked in turn, in words that small tokenizers know."""

import re
import string

import pytest
from tokenizers import Tokenizer

from spatialvlm.config import ScenesConfig
from spatialvlm.data.sources import registry
from spatialvlm.types import UserError
from spatialvlm.worlds import wordings
from spatialvlm.worlds.questions import KINDS, SceneQuestions

SIZE = 48


def test_each_wording_says_all_that_the_first_one_says():
  """And in words of which the small tokenizer knows nearly all as a whole."""
  tokenizer = Tokenizer.from_file("checkpoints/smolvlm-tiny/tokenizer.json")
  assert set(wordings.WORDINGS) == set(KINDS) and wordings.MOST == 4
  for lines in wordings.WORDINGS.values():
    names = [{name for _, name, *_ in string.Formatter().parse(line) if name} for line in lines]
    assert all(own == names[0] for own in names) and len(set(lines)) == len(lines)
    for line in lines:
      words = [w.strip("?.,:()") for w in line.split() if "{" not in w]
      assert sum(len(tokenizer.encode(" " + word).ids) for word in words) <= 1.6 * len(words), line


def test_they_come_in_turn_and_ask_the_same():
  """Groups keep one text; pictures, options and answers are those of CV-Bench's wording."""
  plain, worded = SceneQuestions(9, image_size=SIZE), SceneQuestions(9, image_size=SIZE, wordings=4)
  seen = {kind: set() for kind in KINDS}
  for index in range(144):
    one, other = plain[index], worded[index]
    assert (one.choices, one.answer, one.bbox, one.asked) == (
      other.choices,
      other.answer,
      other.bbox,
      other.asked,
    )
    assert (one.images[0] == other.images[0]).all()
    assert other.prompt.startswith(other.question) and all(word in other.question for word in named(one))
    (number,) = [n for n, line in enumerate(wordings.WORDINGS[one.task]) if fits(line, other.question)]
    seen[one.task].add(number)
    assert (other.question == one.question) == (number == 0)
  # Of two neighbours of one kind, a group, the text is one.
  texts = [q.question for q in (worded[i] for i in range(144)) if q.task == "Depth"]
  assert all(a == b for a, b in zip(texts[::2], texts[1::2], strict=True))
  assert seen["Depth"] == seen["Distance"] == seen["Relation"] == {0, 1, 2, 3}


def fits(line, question):
  """Whether a question is of a wording, whatever it names."""
  parts = re.split(r"\{\w+\}", line)
  return bool(re.fullmatch(".*".join(map(re.escape, parts)), question))


def named(question):
  """The things that an object question speaks of."""
  return [] if question.task == "Count" else [question.target_class]


@pytest.mark.parametrize("count", [0, 5])
def test_there_are_only_so_many(count):
  with pytest.raises(UserError, match=f"wordings: {count}: there are 4 of each kind"):
    registry.open_source(ScenesConfig(wordings=count))


def test_pictures_are_asked_about_in_one():
  with pytest.raises(UserError, match="wordings: 2: pictures are asked about in CV-Bench's own"):
    registry.open_source(ScenesConfig(wordings=2, pictures=9))
  source = registry.open_source(ScenesConfig(wordings=2, size=9, image_size=SIZE, tasks={"Depth": 1.0}))
  assert len(source) == 9 and len({e.turns[0].prompt.split()[1] for e in source}) == 2
