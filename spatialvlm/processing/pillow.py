"""How Pillow resizes: its weights, and which axis comes first.

Source: `src/libImaging/Resample.c` of Pillow (`precompute_coeffs`, `normalize_coeffs_8bpc`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from spatialvlm.core.resample import BITS


class Filter(NamedTuple):
  """A filter of Pillow's.

  Attributes:
    weight: of a distance, in pixels of the larger grid.
    support: beyond which distance it is 0.
  """

  weight: Callable[[float], float]
  support: float


def _sinc(x: float) -> float:
  return 1.0 if x == 0 else math.sin(x * math.pi) / (x * math.pi)


def _lanczos(x: float) -> float:
  return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0


def _bilinear(x: float) -> float:
  return max(0.0, 1.0 - abs(x))


def _bicubic(x: float, a: float = -0.5) -> float:
  x = abs(x)
  if x < 1:
    return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
  return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


# By Pillow's numbers (`Image.Resampling`).
FILTERS = {1: Filter(_lanczos, 3.0), 2: Filter(_bilinear, 1.0), 3: Filter(_bicubic, 2.0)}


class Axis(NamedTuple):
  """How the pixels of one axis are made of those of another.

  Attributes:
    start: int32 (M,), the first source pixel of each.
    weights: int32 (M, K), of it and those behind it, in units of 2**-22; zeros behind the last one.
  """

  start: np.ndarray
  weights: np.ndarray


@functools.lru_cache(maxsize=256)
def axis(source: int, target: int, resample: int, *, room: int = 0, taps: int = 6) -> Axis:
  """Weights of `target` pixels made of `source` ones.

  Args:
    resample: a key of `FILTERS`.
    room: pixels of the result, 0 for `target`; those beyond are 0.
    taps: the weights of a pixel are a multiple of it, so that few shapes are compiled.
  """
  kernel, room = FILTERS[resample], room or target
  scale = source / target
  stretch = max(scale, 1.0)
  support = kernel.support * stretch
  rows = []
  for place in range(target):
    centre = (place + 0.5) * scale
    first = max(int(centre - support + 0.5), 0)
    last = min(int(centre + support + 0.5), source)
    weights = [kernel.weight((x - centre + 0.5) * (1.0 / stretch)) for x in range(first, last)]
    total = sum(weights)
    weights = [w / total for w in weights] if total else weights
    rows.append((first, [int(w * 2**BITS + (0.5 if w >= 0 else -0.5)) for w in weights]))
  needed = max(len(weights) for _, weights in rows)
  start, table = np.zeros(room, np.int32), np.zeros((room, -(-needed // taps) * taps), np.int32)
  for place, (first, weights) in enumerate(rows):
    start[place], table[place, : len(weights)] = first, weights
  while table.shape[1] > taps and not table[:, -taps:].any():
    table = table[:, :-taps]
  return Axis(start, np.ascontiguousarray(table))


def down_first(source: tuple[int, int], target: tuple[int, int]) -> bool:
  """Whether Pillow resizes heights before widths; found by trying Pillow 13 on some hundreds of sizes.

  Args:
    source, target: heights and widths, which both differ.
  """
  return target[0] < source[0] and 2 * (source[1] - target[1]) < source[0] - target[0]
