"""Generated answers that go on past the pauses, and numbers that break on the way."""

import dataclasses
import re

import pytest

from spatialvlm import generation
from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation.asking.protocols import ProcessorPrompter
from spatialvlm.evaluation.evaluate import evaluate
from spatialvlm.serving import engine, scorer
from spatialvlm.types import UserError
from tests.evaluation import support
from tests.evaluation.test_passes import Words

CONFIG = ScoreConfig(
  batch_size=2,
  protocols=("cambrian",),
  new_tokens=300,
  lengths=(192,),
  tiles=(1,),
  pool_tiles=8,
  bootstrap=20,
)


@pytest.fixture(scope="module")
def prompter(tmp_path_factory):
  full = support.processor(tmp_path_factory.mktemp("processor"))
  full.tiler = dataclasses.replace(full.tiler, split=False)
  return ProcessorPrompter(full)


def test_what_was_said_is_not_said_again(prompter):
  questions = support.questions(count=9)
  config = dataclasses.replace(CONFIG, new_tokens=0, protocols=("vlmevalkit",))
  scorer = Words(prompter._processor)
  scorer.longest = 10_000
  notes = []
  rows = evaluate(questions, scorer, prompter, config, on_note=notes.append).rows
  endless = [row for row in rows if not row.ended]
  for start, end in ((32, 256), (256, 2048)):
    found = [
      re.fullmatch(rf"answers longer than {start} tokens: (\d+), up to {end} tokens", n) for n in notes
    ]
    assert sum(int(match[1]) for match in found if match) == len(endless)
  assert 0 < len(endless) < len(rows)
  # Each of them was read again at every pause, with all that it had said so far.
  assert scorer.said == len(endless) * sum(engine.PAUSES)
  assert scorer.rows == len(rows) + len(endless) * len(engine.PAUSES)


class Broken(Words):
  """Its numbers break in the prompt, or in the middle of an answer."""

  def __init__(self, processor, after=None):
    super().__init__(processor)
    self.after = after

  def read(self, *arguments, **settings):
    read = super().read(*arguments, **settings)
    return read if self.after else scorer.Read(read.logits_BV, read.finite_B & False, read.cache)

  def generate(self, *arguments):
    new_BT = super().generate(*arguments)
    if self.after:
      new_BT[:, self.after :] = generation.BROKEN
    return new_BT


@pytest.mark.parametrize("protocol", ["native", "options", "cambrian"])
def test_numbers_that_break_in_the_prompt(prompter, protocol):
  config = dataclasses.replace(CONFIG, protocols=(protocol,))
  with pytest.raises(UserError, match=r"question 1\d\d: the logits are not finite; .*float32"):
    evaluate(support.questions(count=2), Broken(prompter._processor), prompter, config)


def test_numbers_that_break_in_an_answer(prompter):
  with pytest.raises(UserError, match=r"question 1\d\d: the logits are not finite"):
    evaluate(support.questions(count=2), Broken(prompter._processor, after=1), prompter, CONFIG)
