"""Boxes that a row gives of what its questions name, so that its picture may be moved (`types.Geometry`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spatialvlm.data.sources.cells import is_empty
from spatialvlm.types import Asked, Geometry, UserError
from spatialvlm.worlds.questions import KINDS

NAME = "named_boxes"


def geometry(cell: Any, task: str, turns: int, images: Sequence[np.ndarray], where: str) -> Geometry | None:
  """What a row's boxes say of its questions: all of them stand for each.

  Only tasks of CV-Bench's names say what is asked; boxes of rows of other ones are not read.

  Args:
    cell: lists of four numbers, x0, y0, x1, y1 in pixels of the first picture.

  Raises:
    UserError: anything else, or boxes that reach out of the picture or are shares of it.
  """
  if is_empty(cell) or task not in KINDS:
    return None
  try:
    boxes = np.array([list(box) for box in cell], float)
    good = boxes.ndim == 2 and boxes.shape[1] == 4 and bool(np.isfinite(boxes).all())
  except (TypeError, ValueError):
    good = False
  if not good or (boxes < 0).any() or (boxes[:, :2] >= boxes[:, 2:]).any():
    raise UserError(
      f"{where}: expected boxes of four numbers, x0, y0, x1, y1 in pixels (x0 < x1, y0 < y1), got"
      f" {cell!r:.80}"
    )
  height, width = images[0].shape[:2] if images else (0, 0)
  if (boxes[:, 2:] > np.array([width, height]) + 1).any() or boxes.max() <= 1:
    raise UserError(
      f"{where}: boxes in pixels of a picture of {width} x {height} are expected, got {cell!r:.80}"
    )
  asked = Asked(task, tuple(map(tuple, boxes.tolist())))
  return Geometry((asked,) * turns)
