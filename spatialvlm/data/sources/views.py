"""Kind "views": questions across several pictures of one rendered scene (`worlds.view_questions`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from spatialvlm.config import ViewsConfig
from spatialvlm.data.sources.lettered import question_to_example
from spatialvlm.data.sources.registry import Source
from spatialvlm.types import Deferred, Example, Question, Shot, UserError
from spatialvlm.worlds.view_questions import ViewQuestions


def questions(config: ViewsConfig) -> ShownQuestions:
  return ShownQuestions(config)


def examples(config: ViewsConfig, *, defer: bool = False) -> Source:
  return ViewExamples(ShownQuestions(config))


class ShownQuestions(Sequence[Question]):
  """The questions of a config, their pictures made; all but one of them grey where it wants that.

  Raises:
    UserError: as `ViewQuestions`, or no question has a picture of the number that alone is shown.
  """

  def __init__(self, config: ViewsConfig):
    tasks = dict(sorted(config.tasks.items()))  # equal configs draw alike, in whatever order they name kinds
    self._asked = ViewQuestions(config.seed, tasks, config.image_size, config.size, config.views)
    if not 0 <= config.only <= min(config.views):
      raise UserError(
        f"views: only: {config.only}, but questions have {min(config.views)} pictures or more; name one of"
        " those, or 0 for all"
      )
    self._only = config.only

  def __len__(self) -> int:
    return len(self._asked)

  def __getitem__(self, index: int) -> Question:
    question = self.deferred(index)
    images = tuple(i.make() if isinstance(i, Deferred) else i for i in question.images)
    return dataclasses.replace(question, images=images)

  def deferred(self, index: int) -> Question:
    """A question whose pictures are `ViewPicture`, but for those that are grey."""
    question = self._asked[index]
    if not self._only:
      return question
    shown = lambda n, image: image if n == self._only else np.full(image.shape, 128, np.uint8)
    images = tuple(shown(n, image) for n, image in enumerate(question.images, 1))
    shots = tuple(shot if n == self._only else Shot() for n, shot in enumerate(question.shots, 1))
    return dataclasses.replace(question, images=images, shots=shots)

  def depth(self, index: int) -> dict[str, np.ndarray]:
    """`depth` of the first picture in metres, by that name; none where it is grey."""
    return {"depth": self._asked[index].images[0].depth()} if self._only in (0, 1) else {}


class ViewExamples(Sequence[Example]):
  """The questions as examples, each with the `depth` of its first picture in metres."""

  def __init__(self, questions: ShownQuestions):
    self._questions = questions

  def __len__(self) -> int:
    return len(self._questions)

  def __getitem__(self, index: int) -> Example:
    example = question_to_example(self._questions[index])
    return dataclasses.replace(example, dense=self._questions.depth(index))

  def deferred(self, indices: Sequence[int]) -> list[Example]:
    """Examples without `depth`, whose pictures are made when they are needed."""
    return [question_to_example(self._questions.deferred(int(index))) for index in indices]
