"""Kind "scenes": questions about rendered scenes (`worlds.questions`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from spatialvlm.config import ScenesConfig
from spatialvlm.data.sources.lettered import QuestionExamples, question_to_example
from spatialvlm.data.sources.registry import Source
from spatialvlm.types import Example, Geometry, UserError
from spatialvlm.worlds.false_answers import other_letters
from spatialvlm.worlds.picture_questions import PictureQuestions
from spatialvlm.worlds.questions import SceneQuestions


def questions(config: ScenesConfig) -> SceneQuestions:
  for name, none in (("pictures", 0), ("turns", 1), ("false_answers", 0)):
    if getattr(config, name) != none:
      raise UserError(
        f"{name}: {getattr(config, name)}: is for training, and no part of a score; leave it out"
      )
  return _questions(config)


def _questions(config: ScenesConfig) -> SceneQuestions:
  tasks = dict(sorted(config.tasks.items()))  # equal configs draw alike, in whatever order they name kinds
  more = {"shift": config.shift, "wordings": config.wordings}
  return SceneQuestions(config.seed, tasks, config.image_size, config.size, **more)


def examples(config: ScenesConfig, *, defer: bool = False) -> Source:
  if config.shift:
    raise UserError(f"shift: {config.shift!r}: what is trained on is no shift any more; leave it out")
  if config.false_answers < 0:
    raise UserError(f"false_answers: {config.false_answers}; 0 means none")
  if config.pictures:
    if config.wordings != 1:
      raise UserError(
        f"wordings: {config.wordings}: pictures are asked about in CV-Bench's own; leave one out"
      )
    tasks = dict(sorted(config.tasks.items()))
    sizes = config.image_size, config.size, config.pictures, config.turns
    return PictureExamples(PictureQuestions(config.seed, tasks, *sizes), config.false_answers)
  if config.turns != 1:
    raise UserError(f"turns: {config.turns}: several questions share a picture where pictures says how many")
  return SceneExamples(_questions(config), config.false_answers)


def _with_false(example: Example, most: int) -> Example:
  """The example with letters of its options that are wrong, those that stand next to the right one first."""
  if not most:
    return example
  near = lambda turn: sorted(
    other_letters(turn.prompt, turn.answer), key=lambda letter: abs(ord(letter) - ord(turn.answer))
  )
  turns = (dataclasses.replace(turn, false=tuple(near(turn)[:most])) for turn in example.turns)
  return dataclasses.replace(example, turns=tuple(turns))


class SceneExamples(QuestionExamples):
  """Questions about rendered scenes as examples, each with its picture's `depth` in metres, and in words."""

  def __init__(self, questions: SceneQuestions, false_answers: int = 0):
    super().__init__(questions)
    self._false_answers = false_answers

  def __getitem__(self, index: int) -> Example:
    found = self.questions.described(index)
    example = _with_false(question_to_example(found.question), self._false_answers)
    geometry = Geometry((found.question.asked,), found.focal)
    said = {"dense": {"depth": found.depth}, "facts": found.facts, "geometry": geometry}
    return dataclasses.replace(example, **said)

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    return [self[index] for index in indices]


class PictureExamples(Sequence[Example]):
  """Conversations about few pictures, each with its picture's `depth`.

  Attributes:
    pictures: how many there are.
  """

  def __init__(self, conversations: PictureQuestions, false_answers: int = 0):
    self._conversations, self.pictures = conversations, conversations.pictures
    self._false_answers = false_answers

  def __len__(self) -> int:
    return len(self._conversations)

  def __getitem__(self, index: int) -> Example:
    (example,) = self.deferred([index])
    (picture,) = example.images
    return dataclasses.replace(example, images=(picture.make(),), dense={"depth": picture.depth()})

  def deferred(self, indices: Sequence[int]) -> list[Example]:
    """Examples without `depth`, whose pictures are made when they are needed."""
    found = []
    for index in indices:
      asked = [question_to_example(question) for question in self._conversations[int(index)]]
      turns = tuple(turn for example in asked for turn in example.turns)
      (picture,) = asked[0].images
      geometry = Geometry(tuple(a for e in asked for a in e.geometry.asked), picture.focal)
      said = {"turns": turns, "facts": picture.facts, "geometry": geometry}
      example = dataclasses.replace(asked[0], id=str(index), **said)
      found.append(_with_false(example, self._false_answers))
    return found
