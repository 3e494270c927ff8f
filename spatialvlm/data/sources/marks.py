"""Points and boxes that a data set keeps beside its pictures, drawn into them as its questions name them.

SPAR (arXiv 2503.22976) writes them so: `red_point` [[x, y]], `blue_bbox` [[x0, y0, x1, y1]], in pixels, and
which of several pictures they stand in under `point_img_idx` and `bbox_img_idx`. A question about "the red
point" that shows none would teach to guess, so that what is not drawn is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from spatialvlm.config import nearest
from spatialvlm.data.sources.cells import is_empty
from spatialvlm.types import UserError
from spatialvlm.worlds.world import BOX_COLORS, draw_box

# Which of a row's pictures: by the numbers that a mark has.
NUMBERS = {2: "point_img_idx", 4: "bbox_img_idx"}
_SAYS_MARK = re.compile(r"(red|green|blue|yellow)_(point|bbox)s?|(point|bbox)_list")


class Mark(NamedTuple):
  """A point (x, y) or box (x0, y0, x1, y1), in pixels, and the picture that it stands in."""

  picture: int
  color: str
  place: tuple[float, ...]


def columns(names: Sequence[str], colors: Mapping[str, str], ignore: Sequence[str]) -> tuple[str, ...]:
  """Columns that have to do with marks: those that are drawn, those that must be empty, those of pictures.

  Raises:
    UserError: a colour that nothing is drawn in.
  """
  for column, color in colors.items():
    if color not in BOX_COLORS:
      raise UserError(f"marks.{column}={color!r}: no colour of marks; {nearest(color, BOX_COLORS)}")
  found = [n for n in names if n in colors or (_SAYS_MARK.fullmatch(n) and n not in ignore)]
  return (*found, *(n for n in NUMBERS.values() if n in names)) if found else ()


def undrawn(cells: Mapping[str, Any], drawn: Sequence[str]) -> str:
  """The first key that holds marks by its name and is not drawn; "" for none."""
  return next((k for k in cells if k not in drawn and _SAYS_MARK.fullmatch(k) and not is_empty(cells[k])), "")


def marks_of(cells: Mapping[str, Any], colors: Mapping[str, str], pictures: int) -> list[Mark]:
  """The marks of a row.

  Args:
    cells: of `columns`.
    colors: column -> colour.
    pictures: how many the row has.

  Raises:
    UserError: marks that are not drawn, that are none, or of which nothing says where they stand.
  """
  if key := undrawn(cells, [*colors]):
    raise UserError(
      f"{key!r} holds what is to be drawn into a picture, and is not: kind 'hf' draws it with "
      f'marks.{key}=red (or blue, green), or set ignore="({key!r},)" to do without'
    )
  found = []
  for column, color in colors.items():
    for place in _places(cells.get(column), column):
      found.append(Mark(_picture(cells, NUMBERS[len(place)], pictures, column), color, place))
  return found


def draw(image: np.ndarray, mark: Mark) -> None:
  """Draws a mark into `image`, uint8 (H, W, 3), in place: an outline, or a disc with a white rim.

  Raises:
    UserError: it lies outside of the picture.
  """
  height, width = image.shape[:2]
  x, y = mark.place[-2:]
  if not (min(mark.place) >= 0 and x <= width and y <= height):
    raise UserError(f"a {mark.color} mark at {mark.place} lies outside of a picture of {width} x {height}")
  if len(mark.place) == 4:
    return draw_box(image, mark.place, mark.color)
  radius = max(2.0, min(height, width) / 80)
  rows, cols = np.ogrid[:height, :width]
  away = np.hypot(cols + 0.5 - x, rows + 0.5 - y)
  image[away <= radius * 1.4] = 255
  image[away <= radius] = BOX_COLORS[mark.color]
  return None


def _places(cell: Any, column: str) -> list[tuple[float, ...]]:
  if is_empty(cell):
    return []
  listed = cell if isinstance(cell, list) and isinstance(cell[0], list) else [cell]
  numbers = lambda one: isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one)
  for one in listed:
    if not (isinstance(one, list) and len(one) in NUMBERS and all(map(numbers, one))):
      raise UserError(f"column {column!r}: neither a point [x, y] nor a box [x0, y0, x1, y1]: {one!r:.80}")
  return [tuple(map(float, one)) for one in listed]


def _picture(cells: Mapping[str, Any], name: str, pictures: int, column: str) -> int:
  if pictures == 1:
    return 0
  flat = list(_flat(cells.get(name)))
  if len(set(flat)) == 1 and isinstance(flat[0], int) and 0 <= flat[0] < pictures:
    return flat[0]
  raise UserError(
    f"column {column!r}: of {pictures} pictures nothing says which one its mark stands in ({name}: "
    f"{cells.get(name)!r:.60})"
  )


def _flat(cell: Any):
  if isinstance(cell, list):
    for one in cell:
      yield from _flat(one)
  elif cell is not None:
    yield cell
