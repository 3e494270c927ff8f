"""The order of a mixture: which example of which source stands at a position of the stream.

Everything is a function of the position, so random access, sharding and exact resume come free.
"""

from __future__ import annotations

import functools
import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from spatialvlm.types import UserError

ENDLESS = sys.maxsize
"""`len` of a source without an end."""


class Place(NamedTuple):
  """`index` within the source number `source`."""

  source: int
  index: int


class Mixture:
  """Sources interleaved exactly by weight; those with an end are shuffled, each epoch anew.

  Of the first n positions every source holds its weighted share, to within two at any n and exactly where
  the shares are whole: the recursion of grain's `MapDataset.mix`, with exact integers, not truncated ones.

  Args:
    lengths: name -> number of examples; `ENDLESS` sources are read in order of their index.
    weights: name -> relative share; a source of weight 0 is left out.

  Raises:
    UserError: no source, a negative weight, all weights 0, or an empty source.
  """

  def __init__(self, lengths: Mapping[str, int], weights: Mapping[str, float], *, shuffle: bool, seed: int):
    if not lengths:
      raise UserError("no data source is configured; add one, e.g. data.sources.scenes.kind='scenes'")
    for name, weight in weights.items():
      if not (math.isfinite(weight) and weight >= 0):
        raise UserError(f"data source {name!r}: weight {weight} is not a number of 0 or more")
    self.names = tuple(name for name in lengths if weights[name])
    if not self.names:
      raise UserError("every data source has weight 0; give at least one of them a share")
    for name in self.names:
      if not lengths[name]:
        raise UserError(f"data source {name!r} holds no example")
    self._shares = _integers([weights[name] for name in self.names])
    self._lengths = [lengths[name] for name in self.names]
    self._shuffle = shuffle
    self._seeds = [(seed, zlib.crc32(name.encode())) for name in self.names]

  def once(self) -> int:
    """How many positions there are before some source would repeat itself."""
    total = sum(self._shares)
    counts = [length * total // share for length, share in zip(self._lengths, self._shares, strict=True)]
    return min(min(counts), ENDLESS)

  def __getitem__(self, position: int) -> Place:
    source, count = self._turn(position)
    length = self._lengths[source]
    if length == ENDLESS:
      return Place(source, count)
    epoch, index = divmod(count, length)
    if self._shuffle:
      index = int(_permutation(self._seeds[source], epoch, length)[index])
    return Place(source, index)

  def epoch(self, position: int) -> dict[str, float]:
    """How often each source with an end was seen before `position`."""
    total = sum(self._shares)
    return {
      name: position * share / total / length
      for name, share, length in zip(self.names, self._shares, self._lengths, strict=True)
      if length != ENDLESS
    }

  def _turn(self, position: int) -> tuple[int, int]:
    remaining, here, after = sum(self._shares), position, position + 1
    for source, share in enumerate(self._shares[:-1]):
      rest_here = here * (remaining - share) // remaining
      rest_after = after * (remaining - share) // remaining
      if rest_after == rest_here:
        return source, here - rest_here
      remaining, here, after = remaining - share, rest_here, rest_after
    return len(self._shares) - 1, here


def _integers(weights: Sequence[float]) -> tuple[int, ...]:
  """The weights as they are written in decimal, as integers of the same ratios."""
  fractions = [Fraction(repr(float(w))) for w in weights]
  scale = math.lcm(*(f.denominator for f in fractions))
  return tuple(int(f * scale) for f in fractions)


@functools.lru_cache(maxsize=16)
def _permutation(seed: tuple[int, int], epoch: int, length: int) -> np.ndarray:
  return np.random.Generator(np.random.Philox([*seed, epoch])).permutation(length)
