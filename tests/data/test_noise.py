"""Wrong answers: as many as said, the same ones in every epoch, told of, and never of what is held out."""

import dataclasses

import pytest

from spatialvlm import cli
from spatialvlm.config import DataConfig, NoiseConfig, RunConfig, ScenesConfig, SkillsConfig
from spatialvlm.data import noise, pipeline
from spatialvlm.data.noise import NoisyAnswers
from spatialvlm.mixture import ENDLESS
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Example, Turn, UserError

QUESTION = "Which? Select from the following choices.\n(A) cone\n(B) block\n(C) sphere"


class Rows:
  """Questions of three options, two in a row, all answered B."""

  pictures = 5

  def __init__(self, count, answer="B"):
    self.count, self.answer = count, answer

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if not 0 <= index < self.count:
      raise IndexError(index)
    turn = Turn(QUESTION, self.answer, false=("C", "A"))
    return Example((), (turn, turn), id=str(index))

  def deferred(self, indices):
    return [self[index] for index in indices]


def said(source, count):
  return [tuple(turn.answer for turn in source[index].turns) for index in range(count)]


def test_of_each_hundred_rows_the_share_is_wrong():
  noisy = NoisyAnswers(Rows(400), NoiseConfig(0.3, seed=1), "scenes")
  answers = said(noisy, 400)
  for turn in (0, 1):
    for block in range(4):
      wrong = [row[turn] for row in answers[100 * block : 100 * block + 100] if row[turn] != "B"]
      assert len(wrong) == 30 and set(wrong) == {"A", "C"}
  assert [a != "B" for a, _ in answers] != [b != "B" for _, b in answers]
  assert [a for a, _ in answers[:100]] != [a for a, _ in answers[100:200]]
  assert said(noisy, 400) == answers and len(noisy) == 400
  assert [e.turns[0].answer for e in noisy.__getitems__([7, 3])] == [answers[7][0], answers[3][0]]
  for other in (NoiseConfig(0.3, seed=2), NoiseConfig(0.3, seed=1)):
    assert said(NoisyAnswers(Rows(400), other, "more"), 400) != answers
  # A share that is no whole number of a hundred is met on average.
  few = said(NoisyAnswers(Rows(ENDLESS), NoiseConfig(0.005), "scenes"), 4000)
  assert 8 <= sum(a != "B" for a, _ in few) <= 32
  assert all(a != "B" for row in said(NoisyAnswers(Rows(50), NoiseConfig(1.0), "x"), 50) for a in row)


def test_all_else_of_a_row_stays():
  rows = Rows(100)
  noisy = NoisyAnswers(rows, NoiseConfig(0.5), "scenes")
  assert noisy.pictures == 5 and not hasattr(noisy, "picture_counts")
  for index, example in enumerate(noisy.deferred(range(100))):
    assert example.turns == noisy[index].turns and example.id == str(index)
    for turn in example.turns:
      # The right letter is among those that are set against a wrong one.
      assert turn.prompt == QUESTION and {turn.answer, *turn.false} == {"A", "B", "C"}


def data(**more):
  scenes = ScenesConfig(seed=1, size=20, image_size=64)
  config = DataConfig(
    sources={"scenes": scenes}, validation={"scenes": scenes}, lengths=(136, 152), tiles=(1,)
  )
  return dataclasses.replace(config, **more)


def test_in_training_alone_and_told_of():
  plain, wrong = data(), data(noise=NoiseConfig(0.4))
  positions = range(20)
  answers = lambda mixed: {s.index: s.example.turns[0].answer for s in mixed.read(positions)}
  right, made = answers(pipeline.training_mixture(plain)), answers(pipeline.training_mixture(wrong))
  changed = {index for index in right if right[index] != made[index]}
  first = NoisyAnswers(Rows(100), wrong.noise, "scenes")
  assert changed == {index for index in range(20) if first.wrong(index)} and 2 < len(changed) < 16
  assert answers(pipeline.validation_mixture(wrong)) == right
  again = {s.index: s.example.turns[0].answer for s in pipeline.training_mixture(wrong).read(range(20, 40))}
  assert again == made
  told = []
  pipeline.training_stream(wrong, load_processor("checkpoints/smolvlm-tiny"), 4, on_note=told.append)
  assert told == noise.said(wrong.noise, wrong.sources)
  assert noise.said(wrong.noise, wrong.sources) == [
    "data source 'scenes': 40 % of its answers are made wrong (data.noise, seed 0)"
  ]
  assert not noise.said(None, wrong.sources) and not noise.said(NoiseConfig(), wrong.sources)
  assert noise.said(NoiseConfig(0.1, sources=("b",)), {"a": 0, "b": 0})[0].startswith("data source 'b': 10 %")


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (NoiseConfig(1.2), r"config\.data\.noise\.share: 1\.2 is out of range"),
    (NoiseConfig(0.1, sources=("scene",)), r"'scene' is no source of the data; did you mean 'scenes'"),
  ],
)
def test_what_is_refused(settings, message):
  with pytest.raises(UserError, match=message):
    pipeline.training_mixture(data(noise=settings))


def test_an_answer_in_words_has_no_other_option():
  for answer in ("cone", "D"):
    noisy = NoisyAnswers(Rows(9, answer), NoiseConfig(0.1), "talk")
    with pytest.raises(UserError, match=f"the answer '{answer}' is no letter of an option"):
      noisy[0]
  talk = SkillsConfig(seed=1, tasks={"name": 1.0}, size=4)
  mixed = pipeline.training_mixture(data(sources={"talk": talk}, noise=NoiseConfig(0.1)))
  with pytest.raises(
    UserError, match=r"name the sources of multiple-choice questions in config\.data\.noise"
  ):
    mixed.read([0])


def test_it_is_a_setting(tmp_path):
  config = cli.load(
    "lora:tiny", [("data.noise.share", "0.3"), ("data.noise.sources", "('scenes',)")], RunConfig
  )
  assert config.data.noise == NoiseConfig(0.3, 0, ("scenes",))
  with pytest.raises(UserError, match=r"config\.data\.noise\.shaer: unknown key; did you mean 'share'"):
    cli.load("lora:tiny", [("data.noise.shaer", "0.3")], RunConfig)
