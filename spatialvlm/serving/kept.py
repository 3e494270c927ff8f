"""Values by key, as many as fit a budget."""

from __future__ import annotations

import collections
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
  """Keeps values until the sum of their sizes exceeds a budget; the least recently used go first.

  Belongs to one thread.

  Attributes:
    size: the sum of what is kept.
    found, missed: how often `get` had a value, and had none.
  """

  def __init__(self, budget: int):
    self._budget = budget
    self._values: collections.OrderedDict[Hashable, tuple[Value, int]] = collections.OrderedDict()
    self.size = self.found = self.missed = 0

  def __contains__(self, key: Hashable) -> bool:
    return key in self._values

  def get(self, key: Hashable) -> Value | None:
    """The value of a key, which now was used last; None where there is none."""
    if key not in self._values:
      self.missed += 1
      return None
    self.found += 1
    self._values.move_to_end(key)
    return self._values[key][0]

  def put(self, key: Hashable, value: Value, size: int) -> None:
    """Keeps a value of a new key; one that is larger than the budget is not kept."""
    if size > self._budget:
      return
    self._values[key] = value, size
    self.size += size
    while self.size > self._budget:
      _, (_, gone) = self._values.popitem(last=False)
      self.size -= gone
