"""Kind "rooms": questions about rendered rooms and streets (`worlds.rooms`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from spatialvlm.config import RoomsConfig
from spatialvlm.data.sources.lettered import question_to_example
from spatialvlm.data.sources.registry import Source
from spatialvlm.types import LETTERS, Example, Geometry, Turn, UserError
from spatialvlm.worlds.rooms.questions.sequence import Described, RoomQuestions

_BRIEF = "Answer in a few words."
_REASONED = "Say briefly what you see, then answer."
_WAYS = ("letters", "words", "reasons")


def sequence(config: RoomsConfig) -> RoomQuestions:
  tasks = dict(sorted(config.tasks.items()))  # equal configs draw alike, in whatever order they name kinds
  return RoomQuestions(config.seed, tasks, config.image_size, config.size, config.difficulty)


def questions(config: RoomsConfig) -> RoomQuestions:
  if config.answers != "letters":
    raise UserError(f"answers: {config.answers!r}: a score is asked by letters; leave it out")
  if config.false_answers:
    raise UserError(
      f"false_answers: {config.false_answers}: is for training, and no part of a score; leave it out"
    )
  return sequence(config)


def examples(config: RoomsConfig, *, defer: bool = False) -> Source:
  del defer  # nothing here can be broken
  if config.false_answers < 0:
    raise UserError(f"false_answers: {config.false_answers}; 0 means none")
  return RoomExamples(sequence(config), config.answers, config.false_answers)


class RoomExamples(Sequence[Example]):
  """Questions about rooms as examples, each with its picture's `depth` in metres and its geometry."""

  def __init__(self, found: RoomQuestions, answers: str = "letters", false_answers: int = 0):
    self.questions, self._answers, self._false = found, answers, false_answers

  def __len__(self) -> int:
    return len(self.questions)

  def __getitem__(self, index: int) -> Example:
    index = int(index)
    found = self.questions.described(index)
    # By thirds of the index's runs, so that each kind is asked in each way.
    way = _WAYS[index // len(self.questions.weights) % 3] if self._answers == "mixed" else self._answers
    example = question_to_example(found.question)
    frame = found.frame
    geometry = Geometry(
      (found.question.asked,), float(frame.intrinsics[0, 0]), instances=lambda: frame.instance
    )
    return dataclasses.replace(
      example,
      turns=(_turn(found, way, self._false),),
      dense={"depth": frame.depth},
      facts=found.facts,
      geometry=geometry,
    )

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    return [self[index] for index in indices]


def _turn(found: Described, way: str, most: int) -> Turn:
  """The question asked in one of _WAYS, with at most `most` wrong answers of its other options."""
  question = found.question
  others = [k for k in range(len(question.choices)) if k != question.answer]
  others = sorted(others, key=lambda k: abs(k - question.answer))[:most]
  if way == "letters":
    return Turn(question.prompt, LETTERS[question.answer], tuple(LETTERS[k] for k in others))
  # What is asked for as "about 1.2 m" has options that say "1.2 m".
  right = question.choices[question.answer]
  worded = lambda k: (
    found.words.replace(right, question.choices[k]) if right in found.words else question.choices[k]
  )
  if way == "words":
    return Turn(f"{question.question} {_BRIEF}", found.words, tuple(worded(k) for k in others))
  said = lambda words: f"{found.reason} So the answer is: {words}."
  return Turn(f"{question.question} {_REASONED}", said(found.words), tuple(said(worded(k)) for k in others))
