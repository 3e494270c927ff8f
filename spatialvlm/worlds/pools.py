"""Pools: blocks of rendered scenes with all that can be asked of them, kept while they are in use."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from spatialvlm.once import OnceCache
from spatialvlm.worlds import candidates, world
from spatialvlm.worlds.shifts import PLAIN, Look

SCENES = 64
# Of a scene's pixel: its surface, shade and depth.
_BYTES = 1 + 2 + 4
# Bytes of pictures that stay in memory; a question may look through `questions.ATTEMPTS` pools in a row.
_BUDGET, _FEWEST = 256 << 20, 40


class AskedPool(NamedTuple):
  """`pool` with its shades in half precision, the candidates of each kind, the number of its first scene."""

  pool: world.Pool
  tables: dict[str, candidates.Table]
  first: int


def _make(seed: int, number: int, size: int, look: Look) -> AskedPool:
  first = number * SCENES
  pool = world.pool(seed, range(first, first + SCENES), size, look)
  scenes = candidates.Scenes(pool)
  tables = {
    "Count": scenes.count(),
    "Relation": scenes.relation(),
    "Depth": scenes.depth(),
    "Distance": scenes.distance(),
  }
  light = dataclasses.replace(pool.rendering, shade=pool.rendering.shade.astype(np.float16))
  return AskedPool(dataclasses.replace(pool, rendering=light), tables, first)


class Pools:
  """The pools used last, each made once for all threads in need of it."""

  def __init__(self):
    self._pools: OnceCache[AskedPool] = OnceCache()

  def get(self, seed: int, number: int, size: int, look: Look = PLAIN) -> AskedPool:
    """Pool `number` of a seed, its pictures of `size` pixels."""
    keep = max(_BUDGET // (_BYTES * SCENES * size * size), _FEWEST)
    return self._pools.get((seed, number, size, look), lambda: _make(seed, number, size, look), keep)


_POOLS = Pools()
get = _POOLS.get
