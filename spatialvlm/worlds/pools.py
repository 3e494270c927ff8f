"""Pools: blocks of rendered scenes with all that can be asked of them, kept while they are in use."""

from __future__ import annotations

import collections
import dataclasses
import threading
from concurrent import futures
from typing import NamedTuple

import numpy as np

from spatialvlm.worlds import candidates, world

SCENES = 64
# Bytes of pictures that stay in memory; a question may look through `questions.ATTEMPTS` pools in a row.
_BUDGET, _FEWEST = 256 << 20, 40


class AskedPool(NamedTuple):
  """`pool` without its depth maps, the candidates of each kind, and the number of its first scene."""

  pool: world.Pool
  tables: dict[str, candidates.Table]
  first: int


def _make(seed: int, number: int, size: int) -> AskedPool:
  first = number * SCENES
  pool = world.pool(seed, range(first, first + SCENES), size)
  scenes = candidates.Scenes(pool)
  tables = {
    "Count": scenes.count(),
    "Relation": scenes.relation(),
    "Depth": scenes.depth(),
    "Distance": scenes.distance(),
  }
  light = dataclasses.replace(
    pool.rendering, depth=np.zeros((SCENES, 0), np.float32), shade=pool.rendering.shade.astype(np.float16)
  )
  return AskedPool(dataclasses.replace(pool, rendering=light), tables, first)


class Pools:
  """The pools used last. Of several threads in need of one pool, one makes it and the others wait."""

  def __init__(self):
    self._pools: collections.OrderedDict[tuple[int, int, int], futures.Future] = collections.OrderedDict()
    self._lock = threading.Lock()

  def get(self, seed: int, number: int, size: int) -> AskedPool:
    key = (seed, number, size)
    with self._lock:
      entry = self._pools.get(key)
      mine = entry is None
      if mine:
        entry = self._pools[key] = futures.Future()
        while len(self._pools) > max(_BUDGET // (3 * SCENES * size * size), _FEWEST):
          self._pools.popitem(last=False)
      else:
        self._pools.move_to_end(key)
    if mine:
      try:
        entry.set_result(_make(seed, number, size))
      except BaseException as error:
        entry.set_exception(error)
        with self._lock:
          if self._pools.get(key) is entry:
            del self._pools[key]
    return entry.result()


_POOLS = Pools()
get = _POOLS.get
