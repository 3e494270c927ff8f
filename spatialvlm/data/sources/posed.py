"""Kind "posed": questions about depth in posed pictures with depth, as `launch/field.py` writes them.

Which of two places is nearer to the camera, in CV-Bench's template of Depth, or how far ahead one is
(`worlds.spoken`); what a place is called is not known there, so that all are called "place". The pictures'
depth goes with each example.
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
from spatialvlm.shots import in_pixels
from spatialvlm.types import Asked, Example, Geometry, Question, Shot, Turn, UserError, choice_prompt
from spatialvlm.worlds import spoken, world

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
  if config.ask != "Depth":
    raise UserError(
      f"ask: {config.ask} has no options to choose from, and is for training alone; leave it out"
    )
  return PosedQuestions(Posed(config))


def examples(config: PosedConfig, *, defer: bool = False) -> Source:
  return EXAMPLES[config.ask](Posed(config))


class Posed:
  """The views of a folder that have depth.

  Attributes:
    config, views.

  Raises:
    UserError: a setting out of its range, the folder cannot be read, or no picture has depth.
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
    self.config = config
    if not self.views:
      raise UserError(f"{config.path}: no picture has depth, which is what is asked for")
    self._described = _described(config, self.views) if config.field else {}

  def __len__(self) -> int:
    return self.config.size or ENDLESS

  def dense(self, view: View) -> dict[str, np.ndarray]:
    """The maps that an example about a view brings."""
    side = self.config.depth_size
    maps = {"depth": sampled(view.depth, (side, side))} if side else {}
    return maps | ({"field": self._described[view.file]} if self._described else {})


class PosedQuestions(Sequence[Question]):
  """Question i of a config is always the same. Thread-safe.

  The index fixes the picture that is looked at first, the answer, and whether the nearer place is the lower
  one in the picture, each half of the time.

  Raises:
    UserError: as `Posed`, or no picture has two places that differ enough.
  """

  def __init__(self, posed: Posed):
    self.posed, self.views, self._config = posed, posed.views, posed.config
    seed = self._config.seed
    self._sure = [self._search(kind, np.random.default_rng((seed, kind, 1)), 50) for kind in range(4)]

  def __len__(self) -> int:
    return len(self.posed)

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
      shots=(_shot(view),),
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
  """The questions as examples, each with its picture's maps."""

  def __init__(self, posed: Posed):
    self._posed, self._questions = posed, PosedQuestions(posed)

  def __len__(self) -> int:
    return len(self._posed)

  def __getitem__(self, index: int) -> Example:
    question, view = self._questions.seen(index)
    return dataclasses.replace(question_to_example(question), dense=self._posed.dense(view))


class SpokenExamples(Sequence[Example]):
  """How far ahead a place in a red box is, near and far ones alike as far as a picture has them.

  Pictures without an even place are passed over.

  Raises:
    UserError: no picture has any.
  """

  def __init__(self, posed: Posed):
    self._posed = posed
    rng = np.random.default_rng((posed.config.seed, 3))
    sure = [(view, _place(view, rng)) for view in posed.views]
    self._sure = [(view, place) for view, place in sure if place]
    if not self._sure:
      raise UserError(
        f"{posed.config.path}: no picture has a place of even depth, which is what is asked for"
      )

  def __len__(self) -> int:
    return len(self._posed)

  def __getitem__(self, index: int) -> Example:
    index = int(index)
    if not 0 <= index < len(self):
      raise IndexError(index)
    rng = np.random.default_rng((self._posed.config.seed, index, 2))
    view, sure = self._sure[int(rng.integers(len(self._sure)))]
    depth, box = _place(view, rng) or sure
    image = view.image.copy()
    world.draw_box(image, box, "red")
    return Example(
      images=(image,),
      turns=(Turn(spoken.PROMPT.format("place in the red box"), spoken.metres(depth)),),
      id=str(index),
      task="Metres",
      source="posed",
      files=(view.file,),
      dense=self._posed.dense(view),
      shots=(_shot(view),),
      geometry=Geometry(
        (Asked("metres", (tuple(map(float, box)),), margin=world.thickness(min(image.shape[:2]))),)
      ),
    )


EXAMPLES = {"Depth": PosedExamples, "Metres": SpokenExamples}


def _place(view: View, rng: np.random.Generator) -> tuple[float, tuple[int, int, int, int]] | None:
  """Metres and the box of an even place, whose depth is the nearest to one that is drawn; None for none."""
  height, width = view.depth.shape
  side = max(3, round(_SIDE * min(height, width)))
  low, high = np.log(np.percentile(view.depth[view.depth > 0], (5, 95)))
  wanted, found = np.exp(rng.uniform(low, high)), []
  for _ in range(_TRIES):
    row, column = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
    depth = _depth(view.depth[row : row + side, column : column + side])
    if depth:
      found.append((abs(np.log(depth / wanted)), depth, (column, row, column + side, row + side)))
  return min(found)[1:] if found else None


def _shot(view: View) -> Shot:
  width, height = view.camera.size
  camera = view.camera
  return in_pixels((height, width), camera.focal, camera.middle, pose=camera.pose, depth=lambda: view.depth)


def _described(config: PosedConfig, views: Sequence[View]) -> dict[str, np.ndarray]:
  """By file, what the field says of what is seen, each number with a mean of 0 and a deviation of 1 over all.

  Raises:
    UserError: no field, a damaged one, or a size that is none.
  """
  from spatialvlm.fields import field as field_lib  # which needs a compiler

  if config.field_size < 1:
    raise UserError(f"posed: field_size: {config.field_size} cells; use 1 or more")
  field = field_lib.load(config.field)
  found = {view.file: field.described(view.camera, view.depth, config.field_size) for view in views}
  whole = np.concatenate([values.reshape(-1, values.shape[-1]) for values in found.values()])
  mean, deviation = np.nanmean(whole, 0), np.nanstd(whole, 0)
  return {file: (values - mean) / np.maximum(deviation, 1e-6) for file, values in found.items()}


def _depth(patch: np.ndarray) -> float:
  """Median depth of a box; 0 where too little of it is known, or where it lies on an edge."""
  known = patch[patch > 0]
  if known.size < _KNOWN * patch.size or known.max() > 1.25 * known.min():
    return 0.0
  return float(np.median(known))
