"""Wrong answers are wrong: each is held against the scene itself."""

import re

import numpy as np
import pytest

from spatialvlm.types import UserError
from spatialvlm.worlds import skills, statements, targets, world
from spatialvlm.worlds.false_answers import WRONG

COUNT = 120


@pytest.fixture(scope="module")
def frames():
  return world.frames(8, range(COUNT))


def holds(sentence: str, frame: world.Frame, slack: float = 0.0) -> bool:
  """Whether a statement is true of a frame; what names a thing that is not there is not."""
  if number := re.fullmatch(r"There (?:is|are) (\d) (\w+) objects?\.", sentence):
    return sum(o.color == number[2] for o in frame.objects) == int(number[1])
  a, word, b = re.fullmatch(r"The (\w+ \w+) is ([\w ]+) the (\w+ \w+)\.", sentence).groups()
  named = {o.name: o for o in frame.objects}
  if a not in named or b not in named:
    return False
  a, b = named[a], named[b]
  across, down = (lambda o: o.box[0] + o.box[2]), (lambda o: o.box[1] + o.box[3])
  depth = lambda o: float(o.center_camera[2])
  return {
    "left of": across(a) < across(b),
    "right of": across(a) > across(b),
    "above": down(a) < down(b),
    "below": down(a) > down(b),
    "nearer than": depth(a) < depth(b),
    "farther than": depth(a) > depth(b),
  }[word]


AXES = {"left": "across", "right": "across", "above": "down", "below": "down"}


def test_statements_are_true_and_their_twins_false(frames):
  rng = np.random.default_rng(0)
  words = []
  for frame in frames:
    found = statements.statement(targets.show(frame, rng), rng)
    if found is None:
      continue
    turn, named = found
    # What it hangs on: the two that it names, or all.
    if turn.answer.startswith("The "):
      assert (
        tuple(o.name for o in named)
        == re.fullmatch(r"The (\w+ \w+) is .* the (\w+ \w+)\.", turn.answer).groups()
      )
      assert statements.axis(turn.answer) == AXES.get(turn.answer.split()[4], "")
    else:
      assert list(named) == list(frame.objects) and not statements.axis(turn.answer)
    assert turn.prompt in statements.PROMPTS and holds(turn.answer, frame), turn
    assert turn.false and not any(holds(twin, frame) for twin in turn.false), turn
    words.append(turn.answer.split()[4] if turn.answer.startswith("The ") else "count")
  assert {"left", "right", "above", "below", "nearer", "farther", "count"} == set(words)


def test_every_skill_has_wrong_answers_that_are_not_the_right_one():
  assert set(WRONG) == set(skills.SKILLS)
  for name in skills.SKILLS:
    source = skills.SceneSkills(6, {name: 1.0}, turns=2, false_answers=3)
    turns = [t for e in source.__getitems__(range(12)) if e.task == name for t in e.turns]
    assert sum(len(t.false) for t in turns) > len(turns) / 2, name
    for turn in turns:
      assert turn.answer not in turn.false and len(set(turn.false)) == len(turn.false) <= 3


def test_names_and_places_that_are_wrong_are_not_there(frames):
  names = skills.SceneSkills(8, {"name": 1.0, "where": 1.0, "how_many": 1.0}, turns=4, false_answers=4)
  for frame, example in zip(frames[:40], names.__getitems__(range(40)), strict=True):
    for turn in example.turns:
      if turn.prompt.startswith("How many"):
        assert int(turn.answer) not in map(int, turn.false)
      if turn.prompt.startswith("Where is the ") and "box" not in turn.prompt:
        assert len(turn.false) == 4 and all(len(place.split()) == 2 for place in turn.false)
    assert frame.objects


def test_the_questions_are_the_same_with_and_without():
  plain, beside = skills.SceneSkills(5, turns=4), skills.SceneSkills(5, turns=4, false_answers=2)
  for a, b in zip(plain.__getitems__(range(6)), beside.__getitems__(range(6)), strict=True):
    assert [(t.prompt, t.answer) for t in a.turns] == [(t.prompt, t.answer) for t in b.turns]
    assert not any(t.false for t in a.turns) and any(t.false for t in b.turns)
  again = beside[4]
  assert again.turns == b.turns or again.turns == beside.__getitems__([4])[0].turns


def test_a_negative_number_is_refused():
  with pytest.raises(UserError, match="-1 false answers"):
    skills.SceneSkills(5, false_answers=-1)
