"""Results that several prompts share, kept on the device in a fixed number of slots."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding


class SlotPool:
  """Rows of arrays on the device, by key; each is computed once, for as long as it stays.

  What is placed waits until a full chunk has come together or somebody needs it. Entries that nobody holds
  go first, the least recently used first of all. The arrays keep one shape, so what points into them compiles
  once.
  """

  def __init__(
    self,
    slots: int,
    chunk: int,
    compute: Callable[[Sequence[Any]], Any],
    restore: Callable[[Sequence[Any]], Any] | None = None,
  ):
    """`compute` turns up to `chunk` items into a tree of arrays of `chunk` rows, the items' rows first.

    `restore` does the same with items that are known results.
    """
    self.slots = slots
    self._chunk = chunk
    self._compute, self._restore = compute, restore
    self._free = list(range(slots - 1, -1, -1))
    self._entries: collections.OrderedDict[Hashable, tuple[int, ...]] = collections.OrderedDict()
    self._holds: collections.Counter = collections.Counter()
    self._staged: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._known: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._arrays: Any = None

  def __contains__(self, key: Hashable) -> bool:
    return key in self._entries

  def hold(self, key: Hashable) -> tuple[int, ...] | None:
    """An entry's slots, kept until `release`; None where there is no such entry."""
    if key not in self._entries:
      return None
    self._entries.move_to_end(key)
    self._holds[key] += 1
    return self._entries[key]

  def place(self, key: Hashable, items: Sequence[Any], known: bool = False) -> tuple[int, ...] | None:
    """Makes an entry of one slot for each item, and holds it; None where too many slots are held.

    `known` items are results, for `restore`.
    """
    full = len(self._free) < len(items)
    for idle in [k for k in self._entries if not self._holds[k]] if full else ():
      if len(self._free) >= len(items):
        break
      slots = self._entries.pop(idle)
      for slot in slots:
        self._staged.pop(slot, None)
        self._known.pop(slot, None)
      self._free.extend(slots)
    if len(self._free) < len(items):
      return None
    self._entries[key] = tuple(self._free.pop() for _ in items)
    self._holds[key] += 1
    waiting = self._known if known else self._staged
    waiting.update(zip(self._entries[key], items, strict=True))
    # At once, where a full chunk has come together: pixels are large, what becomes of them is small.
    self._drain(self._chunk)
    return self._entries[key]

  def release(self, key: Hashable) -> None:
    """One holder less."""
    self._holds[key] -= 1

  def ready(self, slots: Sequence[int]) -> bool:
    """Whether none of these slots waits to be computed."""
    return not any(slot in self._staged or slot in self._known for slot in slots)

  def arrays(self, slots: Sequence[int]) -> Any:
    """The pool's arrays, these slots computed."""
    while any(slot in self._staged for slot in slots):
      self._write_chunk(self._staged, self._compute)
    while any(slot in self._known for slot in slots):
      self._write_chunk(self._known, self._restore)
    return self._arrays

  def flush(self) -> None:
    """Computes all that waits."""
    self._drain(1)

  def _drain(self, least: int) -> None:
    while len(self._staged) >= least:
      self._write_chunk(self._staged, self._compute)
    while len(self._known) >= least:
      self._write_chunk(self._known, self._restore)

  def _write_chunk(self, waiting: collections.OrderedDict[int, Any], rows_of: Callable) -> None:
    taken = [waiting.popitem(last=False) for _ in range(min(self._chunk, len(waiting)))]
    # Padding is written past the end, where the scatter drops it.
    index = np.full(self._chunk, self.slots, np.int32)
    index[: len(taken)] = [slot for slot, _ in taken]
    rows = rows_of([item for _, item in taken])
    if self._arrays is None:
      leaves, tree = jax.tree.flatten(rows)
      self._arrays = tree.unflatten(_zeros(tuple((self.slots, *_like(leaf)) for leaf in leaves))())
    self._arrays = _write(self._arrays, index, rows)


def _like(row: Any) -> tuple[tuple[int, ...], Any, NamedSharding | None]:
  """Shape, dtype and sharding of an array's rows."""
  sharding = getattr(row, "sharding", None)
  return row.shape[1:], row.dtype, sharding if isinstance(sharding, NamedSharding) else None


@functools.lru_cache(maxsize=64)
def _zeros(leaves: tuple[tuple[int, tuple[int, ...], Any, NamedSharding | None], ...]) -> Callable[[], list]:
  """What makes empty arrays (slots, ...): one program for all, the same for every pool of such arrays."""
  make = lambda: [jnp.zeros((slots, *shape), dtype) for slots, shape, dtype, _ in leaves]
  return jax.jit(make, out_shardings=[sharding for *_, sharding in leaves])


@functools.partial(jax.jit, donate_argnums=0)
def _write(arrays, index_N, rows):
  return jax.tree.map(lambda array, row: array.at[index_N].set(row, mode="drop"), arrays, rows)
