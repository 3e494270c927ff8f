"""Kind "scenes": questions about rendered scenes (`worlds.questions`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from spatialvlm.config import ScenesConfig
from spatialvlm.data.sources.lettered import QuestionExamples, question_to_example
from spatialvlm.data.sources.registry import Source
from spatialvlm.types import Example
from spatialvlm.worlds.questions import SceneQuestions


def questions(config: ScenesConfig) -> SceneQuestions:
  tasks = dict(sorted(config.tasks.items()))  # equal configs draw alike, in whatever order they name kinds
  return SceneQuestions(config.seed, tasks, config.image_size, config.size)


def examples(config: ScenesConfig, *, defer: bool = False) -> Source:
  return SceneExamples(questions(config))


class SceneExamples(QuestionExamples):
  """Questions about rendered scenes as examples, each with its picture's `depth` in metres."""

  def __getitem__(self, index: int) -> Example:
    question, depth = self.questions.with_depth(index)
    return dataclasses.replace(question_to_example(question), dense={"depth": depth})

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    return [self[index] for index in indices]
