"""Which scene answers which question: groups of one key that hold every option as the answer once.

There is no state. A group's number fixes the pools that it looks through; out of all keys of which these
have every answer of a window one is drawn, and each member takes a scene with its own answer. Pools are
added, up to ATTEMPTS, until there is such a key.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from spatialvlm.once import OnceCache
from spatialvlm.types import UserError
from spatialvlm.worlds.rooms import frames
from spatialvlm.worlds.rooms.questions.kind import Candidates, Kind, Measures
from spatialvlm.worlds.rooms.questions.table import TABLE

SCENES = 64
ATTEMPTS = 24
_KEPT = 40
# Pools are measured at the image's size up to this.
POOL_SIZE = 96


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
  """So many scenes, measured, and the candidates of each kind that was asked for."""

  measures: Measures
  tables: OnceCache[Candidates]

  def table(self, kind: Kind) -> Candidates:
    return self.tables.get(kind.name, lambda: kind.find(self.measures), len(TABLE))


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """What the questions of a group share.

  Attributes:
    pools: numbers of the pools looked through. start, stride: of the window of answers. key: of text and
      rules.
    rows: for each answer of the window, (R, 2 + roles): pool, scene and roles of what could be shown.
  """

  pools: tuple[int, ...]
  window: tuple[int, ...]
  key: int
  rows: tuple[np.ndarray, ...]


_POOLS: OnceCache[Pool] = OnceCache()


def pool(seed: int, number: int, size: int, difficulty: float) -> Pool:
  """Pool `number` of a world, measured at `size` pixels; made once for all threads in need of it."""

  def make() -> Pool:
    first = number * SCENES
    drawn = frames.draw(seed, range(first, first + SCENES), difficulty)
    return Pool(Measures(frames.measure(drawn, size, difficulty)), OnceCache())

  return _POOLS.get((seed, number, size, difficulty), make, _KEPT)


def group(
  seed: int, first: int, size: int, difficulty: float, kind: Kind, options: int, rng: np.random.Generator
) -> Group:
  """The group that pools from number `first` on give.

  Raises:
    UserError: no key has all answers in ATTEMPTS pools.
  """
  key, answer, rows, numbers = [], [], [], []
  for attempt in range(ATTEMPTS):
    number = (first + attempt) % (2**32 // SCENES)
    found = pool(seed, number, size, difficulty)
    table = found.table(kind)
    stride = kind.stride(found.measures.of)
    numbers.append(number)
    key.append(table.key)
    answer.append(table.answer)
    rows.append(np.concatenate([np.full((len(table.rows), 1), number), table.rows], 1))
    made = _drawn(np.concatenate(key), np.concatenate(answer), options, stride, rng)
    if made is not None:
      wanted, window = made
      keys, answers, places = np.concatenate(key), np.concatenate(answer), np.concatenate(rows)
      of = [places[(keys == wanted) & (answers == a)] for a in window]
      return Group(tuple(numbers), window, int(wanted), tuple(of))
  raise UserError(
    f"rooms: no {ATTEMPTS * SCENES} scenes give a question of kind {kind.name} each of {options} answers at"
    f" {size} pixels; choose a larger image_size, or leave the kind out"
  )


def _drawn(
  key: np.ndarray, answer: np.ndarray, options: int, stride: int, rng: np.random.Generator
) -> tuple[int, tuple[int, ...]] | None:
  """A key and a window of answers, drawn out of all that have them; None where none has."""
  if not len(key):
    return None
  names, number = np.unique(key, return_inverse=True)
  width = (options - 1) * stride + 1
  present = np.zeros((len(names), max(int(answer.max()) + 1, width)), bool)
  present[number, answer] = True
  starts = present.shape[1] - width + 1
  fits = np.stack([present[:, s : s + width : stride].all(1) for s in range(starts)], 1)
  places = np.argwhere(fits)
  if not len(places):
    return None
  k, start = places[int(rng.integers(len(places)))]
  return int(names[k]), tuple(int(start) + stride * i for i in range(options))


def pool_size(image_size: int) -> int:
  return min(image_size, POOL_SIZE)


def share_of_pools(weights: dict[str, float], kind: str) -> float:
  """Pools that one question of a kind moves on by: each scene is asked about once on average."""
  return sum(weights.values()) / weights[kind] / SCENES


def pool_of(index: int, weights: dict[str, float], kind: str) -> int:
  return math.floor(index * share_of_pools(weights, kind))
