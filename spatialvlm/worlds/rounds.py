"""A few pictures that come again and again: which of them an index shows, without state."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from spatialvlm.types import UserError

Value = TypeVar("Value")


class Rounds:
  """Index i shows picture i in the first round; each further round shows all in an order of its own."""

  def __init__(self, seed: int, pictures: int):
    """`pictures`: how many there are; 0 for one to each index.

    Raises:
      UserError: fewer than none.
    """
    if pictures < 0:
      raise UserError(f"pictures: {pictures}; name how many there are, or 0 for one to each question")
    self._seed, self._pictures = seed, pictures

  def number(self, index: int) -> int:
    """The picture of an index."""
    if not self._pictures or index < self._pictures:
      return index
    turn, place = divmod(index, self._pictures)
    return int(_order(self._seed, turn, self._pictures)[place])


class Block(Generic[Value]):
  """Values by number that are made together, in one go, when the first of them is needed. Thread-safe."""

  def __init__(self, numbers: Sequence[int], make: Callable[[list[int]], list[Value]]):
    self._numbers, self._make = list(dict.fromkeys(numbers)), make
    self._made: dict[int, Value] | None = None
    self._lock = threading.Lock()

  def get(self, number: int) -> Value:
    """The value of one of the numbers."""
    with self._lock:
      if self._made is None:
        self._made = dict(zip(self._numbers, self._make(self._numbers), strict=True))
    return self._made[number]


@functools.lru_cache(maxsize=16)
def _order(seed: int, turn: int, count: int) -> np.ndarray:
  return np.random.Generator(np.random.Philox([seed, turn, count])).permutation(count)
