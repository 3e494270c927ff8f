"""Kind "scenes": questions about rendered scenes (`worlds.questions`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from spatialvlm.config import ScenesConfig
from spatialvlm.data.sources.lettered import QuestionExamples, question_to_example
from spatialvlm.data.sources.registry import Source
from spatialvlm.types import Example, UserError
from spatialvlm.worlds.picture_questions import PictureQuestions
from spatialvlm.worlds.questions import SceneQuestions


def questions(config: ScenesConfig) -> SceneQuestions:
  if config.pictures:
    raise UserError(
      f"pictures: {config.pictures}: questions that score a model have a picture each; leave it out"
    )
  tasks = dict(sorted(config.tasks.items()))  # equal configs draw alike, in whatever order they name kinds
  return SceneQuestions(config.seed, tasks, config.image_size, config.size)


def examples(config: ScenesConfig, *, defer: bool = False) -> Source:
  if not config.pictures:
    return SceneExamples(questions(config))
  tasks = dict(sorted(config.tasks.items()))
  return SceneExamples(PictureQuestions(config.seed, tasks, config.image_size, config.size, config.pictures))


class SceneExamples(QuestionExamples):
  """Questions about rendered scenes as examples, each with its picture's `depth` in metres.

  Attributes:
    pictures: how many there are; 0 where every question has its own.
  """

  @property
  def pictures(self) -> int:
    return getattr(self.questions, "pictures", 0)

  def __getitem__(self, index: int) -> Example:
    question, depth = self.questions.with_depth(index)
    return dataclasses.replace(question_to_example(question), dense={"depth": depth})

  def deferred(self, indices: Sequence[int]) -> list[Example]:
    """Examples without `depth`; their pictures, where they come again, are made when they are needed."""
    if not self.pictures:
      return [question_to_example(self.questions[index]) for index in indices]
    return [question_to_example(question) for question in self.questions.deferred(indices)]

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    return [self[index] for index in indices]
