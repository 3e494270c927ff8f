"""Cells of typed columns as what their type says: classes by name, short floats as they were written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from spatialvlm.data.sources.cells import Label, Written

_SHORT = {"float16": np.float16, "float32": np.float32}


def reader(feature: Any) -> Callable[[Any], Any] | None:
  """What reads the cells of a feature of `datasets`, however deep in lists and objects; None: as they are.

  Cells of a `ClassLabel` become `cells.Label`: numbers, and, in files of text, names. Numbers of 16 and 32
  bits become `cells.Written` with the shortest text that means them: 1.1, not 1.100000023841858.

  The reader raises ValueError for a cell that is none of the classes.
  """
  import datasets

  if isinstance(feature, datasets.ClassLabel):
    return _classes(feature.names)
  if isinstance(feature, datasets.Value):
    short = _SHORT.get(feature.dtype)
    return short and (lambda cell: Written(str(short(cell))) if type(cell) is float else cell)
  if isinstance(feature, dict):
    parts = {name: read for name, part in feature.items() if (read := reader(part))}
    if not parts:
      return None
    return lambda cell: cell | {k: f(cell[k]) for k, f in parts.items() if k in cell} if _is(cell) else cell
  inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
  if inner is not None and (read := reader(inner)):
    return lambda cell: [read(one) for one in cell] if isinstance(cell, list) else cell
  return None


def _is(cell: Any) -> bool:
  return isinstance(cell, dict)


def _classes(names: list[str]) -> Callable[[Any], Any]:
  numbers = {name: number for number, name in enumerate(names)}

  def read(cell: Any) -> Any:
    if cell is None or isinstance(cell, bool):
      return cell
    if cell in ("", -1):  # as `datasets` writes that there is none
      return Label("", -1)
    number = numbers.get(cell) if isinstance(cell, str) else cell
    if number is None and cell.isdecimal():
      number = int(cell)
    if isinstance(number, (int, float)) and number in range(len(names)):
      return Label(names[int(number)], int(number))
    raise ValueError(f"{cell!r:.80} is none of the classes {', '.join(names)}"[:300])

  return read
