"""A few pictures that come again and again: which of them an index shows, without state."""

from __future__ import annotations

import functools

import numpy as np

from spatialvlm.types import UserError


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


@functools.lru_cache(maxsize=16)
def _order(seed: int, turn: int, count: int) -> np.ndarray:
  return np.random.Generator(np.random.Philox([seed, turn, count])).permutation(count)
