"""The order of a mixture: which example of which source stands at a position of the stream.

Everything is a function of the position, so random access, sharding and exact resume come free.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
  """An order of rows that lie in shards, shuffled so that few of them are open at a time.

  Every epoch has an order of its own. The shards are put in an order drawn at random and read in groups of
  `at_once`, whose rows are interleaved by the shards' sizes; every `buffer` rows that follow one another in
  this are then shuffled among themselves. Nothing but the sizes is kept, and a row's place is computed, not
  reached, so that a stream goes on anywhere at once.

  Attributes:
    sizes: rows of each shard, int (N,), in the order of the source's indices.
    buffer: rows that are shuffled among themselves, 1 for none.
    at_once: shards that are read at the same time.
  """

  sizes: np.ndarray
  buffer: int = 1000
  at_once: int = 4

  def without(self, kept: np.ndarray) -> Shards:
    """The same order of fewer rows.

    Args:
      kept: the indices of those that are left, ascending. What `index` gives is then a place among these.
    """
    ends = np.searchsorted(kept, np.cumsum(self.sizes))
    return dataclasses.replace(self, sizes=np.diff(ends, prepend=0))

  def index(self, seed: tuple[int, ...], epoch: int, position: int) -> int:
    """The index of the row at a position of an epoch, both from 0."""
    window, inner = divmod(position, self.buffer)
    first = window * self.buffer
    count = min(self.buffer, int(self.sizes.sum()) - first)
    position = first + int(_permutation((*seed, window), epoch, count)[inner])
    order = _permutation((*seed, _SHARDS), epoch, len(self.sizes))
    ends = _ends(self, (*seed, _SHARDS), epoch)
    group = int(np.searchsorted(ends, position, side="right"))
    shards = order[group * self.at_once : (group + 1) * self.at_once]
    before = int(ends[group - 1]) if group else 0
    place = _turn([int(self.sizes[shard]) for shard in shards], position - before)
    shard = int(shards[place.source])
    return int(self.sizes[:shard].sum()) + place.index


# Tells the order of shards from those of windows, which are numbered from 0.
_SHARDS = 2**63


@functools.lru_cache(maxsize=16)
def _ends(shards: Shards, seed: tuple[int, ...], epoch: int) -> np.ndarray:
  """Behind which position each group of shards ends."""
  sizes = shards.sizes[_permutation(seed, epoch, len(shards.sizes))]
  return np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), shards.at_once)))


class Mixture:
  """Sources interleaved exactly by weight; those with an end are shuffled, each epoch anew.

  Of the first n positions every source holds its weighted share, to within two at any n and exactly where
  the shares are whole: the recursion of grain's `MapDataset.mix`, with exact integers, not truncated ones.

  Args:
    lengths: name -> number of examples; `ENDLESS` sources are read in order of their index.
    weights: name -> relative share; a source of weight 0 is left out.
    shards: name -> how a source that lies in shards is shuffled; any other is permuted as a whole.

  Raises:
    UserError: no source, a negative weight, all weights 0, or an empty source.
  """

  def __init__(
    self,
    lengths: Mapping[str, int],
    weights: Mapping[str, float],
    *,
    shuffle: bool,
    seed: int,
    shards: Mapping[str, Shards] | None = None,
  ):
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
    self._shards = [(shards or {}).get(name) for name in self.names]

  def once(self) -> int:
    """How many positions there are before some source would repeat itself."""
    total = sum(self._shares)
    counts = [length * total // share for length, share in zip(self._lengths, self._shares, strict=True)]
    return min(min(counts), ENDLESS)

  def __getitem__(self, position: int) -> Place:
    source, count = _turn(self._shares, position)
    length = self._lengths[source]
    if length == ENDLESS:
      return Place(source, count)
    epoch, index = divmod(count, length)
    if self._shuffle and (shards := self._shards[source]) is not None:
      index = shards.index(self._seeds[source], epoch, index)
    elif self._shuffle:
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


def _turn(shares: Sequence[int], position: int) -> Place:
  """Whose turn it is at a position, and which one of its own that is, where each has its share of turns."""
  remaining, here, after = sum(shares), position, position + 1
  for source, share in enumerate(shares[:-1]):
    rest_here = here * (remaining - share) // remaining
    rest_after = after * (remaining - share) // remaining
    if rest_after == rest_here:
      return Place(source, here - rest_here)
    remaining, here, after = remaining - share, rest_here, rest_after
  return Place(len(shares) - 1, here)


def _integers(weights: Sequence[float]) -> tuple[int, ...]:
  """The weights as they are written in decimal, as integers of the same ratios."""
  fractions = [Fraction(repr(float(w))) for w in weights]
  scale = math.lcm(*(f.denominator for f in fractions))
  return tuple(int(f * scale) for f in fractions)


@functools.lru_cache(maxsize=16)
def _permutation(seed: tuple[int, ...], epoch: int, length: int) -> np.ndarray:
  return np.random.Generator(np.random.Philox([*seed, epoch])).permutation(length)
