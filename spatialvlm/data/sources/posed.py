"""Kind "posed": questions about depth in posed pictures with depth, as `launch/field.py` writes them.

Which of two places is nearer to the camera, in CV-Bench's template of Depth; what a place is called is not
known there, so that both are called "place". The pictures' depth goes with each example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from spatialvlm.config import FolderViewsConfig, PosedConfig
from spatialvlm.data.sources.lettered import question_to_example
from spatialvlm.data.sources.registry import Source
from spatialvlm.data.sources.rgbd_layouts import sampled
from spatialvlm.fields.posed import folder
from spatialvlm.fields.posed.cameras import View
from spatialvlm.mixture import ENDLESS
from spatialvlm.types import Example, Question, UserError, choice_prompt
from spatialvlm.worlds import world

QUESTION = (
  "Which object is closer to the camera taking this photo, the place (highlighted by a red box) or the place "
  "(highlighted by a blue box)?"
)
CHOICES = ("the place in the red box", "the place in the blue box")
# Of a box: its side as a share of the picture's shorter one, and the part of its pixels that must have depth.
_SIDE, _KNOWN = 1 / 10, 0.9
# Pairs of places that are drawn in one picture before the next is looked at.
_TRIES = 64


def questions(config: PosedConfig) -> PosedQuestions:
  return PosedQuestions(config)


def examples(config: PosedConfig, *, defer: bool = False) -> Source:
  return PosedExamples(PosedQuestions(config))


class PosedQuestions(Sequence[Question]):
  """Question i of a config is always the same. Thread-safe.

  The index fixes the picture that is looked at first, the answer, and whether the nearer place is the lower
  one in the picture, each half of the time.

  Raises:
    UserError: the folder cannot be read, no picture has depth, or none has two places that differ enough.
  """

  def __init__(self, config: PosedConfig):
    if config.size < 0:
      raise UserError(f"posed: a size of {config.size} questions; 0 means endless")
    if config.depth_size < 0:
      raise UserError(f"posed: depth_size: {config.depth_size} pixels; 0 means none")
    if not config.margin > 0:
      raise UserError(f"posed: margin: must be above 0, got {config.margin}")
    if not config.path:
      raise UserError("posed: path: is missing; name a folder with transforms.json, pictures and their depth")
    views = folder.read(FolderViewsConfig("folder", config.path, config.images, config.scale, config.metres))
    self.views = [v for v in views if v.depth is not None and (v.depth > 0).any()]
    self._config, self.depth_size = config, config.depth_size
    if not self.views:
      raise UserError(f"{config.path}: no picture has depth, which is what is asked for")
    self._sure = [self._search(kind, np.random.default_rng((config.seed, kind, 1)), 50) for kind in range(4)]

  def __len__(self) -> int:
    return self._config.size or ENDLESS

  def __getitem__(self, index: int) -> Question:
    return self.seen(index)[0]

  def seen(self, index: int) -> tuple[Question, View]:
    """A question, and the view that it is about."""
    index = int(index)
    if not 0 <= index < len(self):
      raise IndexError(index)
    rng = np.random.default_rng((self._config.seed, index, 0))
    view, boxes = self._search(index % 4, rng, 1) or self._sure[index % 4]
    image = view.image.copy()
    for box, color in zip(boxes, ("red", "blue"), strict=True):
      world.draw_box(image, box, color)
    question = Question(
      idx=index,
      type="3D",
      task="Depth",
      images=(image,),
      question=QUESTION,
      choices=CHOICES,
      answer=index % 2,
      prompt=choice_prompt(QUESTION, CHOICES),
      source="posed",
      filename=view.file,
    )
    return question, view

  def _search(self, kind: int, rng: np.random.Generator, rounds: int):
    """A view and two boxes, of which number `kind % 2` is nearer, and lower where `kind // 2`.

    None where no drawn pair fits; with many rounds, which are those of opening, a UserError.
    """
    for _ in range(rounds):
      for number in rng.permutation(len(self.views)):
        view = self.views[number]
        boxes = self._pair(view, kind, rng)
        if boxes is not None:
          return view, boxes
    if rounds == 1:
      return None
    raise UserError(
      f"{self._config.path}: no two places were found whose depths differ by {self._config.margin:.0%}; "
      "set a lower margin"
    )

  def _pair(self, view: View, kind: int, rng: np.random.Generator):
    height, width = view.depth.shape
    side = max(3, round(_SIDE * min(height, width)))
    for _ in range(_TRIES):
      rows, columns = rng.integers(0, height - side, 2), rng.integers(0, width - side, 2)
      down, across = abs(rows[0] - rows[1]), abs(columns[0] - columns[1])
      if down < side or max(down, across) < 2 * side:
        continue
      depths = [_depth(view.depth[r : r + side, c : c + side]) for r, c in zip(rows, columns, strict=True)]
      if min(depths) == 0 or max(depths) < min(depths) * (1 + self._config.margin):
        continue
      near = int(depths[1] < depths[0])
      if (rows[near] > rows[1 - near]) != bool(kind // 2):
        continue
      boxes = [(int(c), int(r), int(c) + side, int(r) + side) for r, c in zip(rows, columns, strict=True)]
      return boxes if near == kind % 2 else boxes[::-1]
    return None


class PosedExamples(Sequence[Example]):
  """The questions as examples, each with its picture's `depth` in metres, `depth_size` pixels square."""

  def __init__(self, questions: PosedQuestions):
    self._questions = questions

  def __len__(self) -> int:
    return len(self._questions)

  def __getitem__(self, index: int) -> Example:
    question, view = self._questions.seen(index)
    side = self._questions.depth_size
    dense = {"depth": sampled(view.depth, (side, side))} if side else {}
    return dataclasses.replace(question_to_example(question), dense=dense)


def _depth(patch: np.ndarray) -> float:
  """Median depth of a box; 0 where too little of it is known, or where it lies on an edge."""
  known = patch[patch > 0]
  if known.size < _KNOWN * patch.size or known.max() > 1.25 * known.min():
    return 0.0
  return float(np.median(known))
