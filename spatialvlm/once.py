"""A small cache whose values are each made once, however many threads ask for them at the same time."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable
from concurrent import futures
from typing import Generic, TypeVar

Value = TypeVar("Value")


class OnceCache(Generic[Value]):
  """The values used last, by key. Of several threads in need of one, one makes it and the others wait.

  A failure is handed on to all who wait for it and is not kept: whoever asks next tries again. A value that
  is evicted while it is being made still reaches those who wait for it.
  """

  def __init__(self):
    self._entries: collections.OrderedDict[Hashable, futures.Future] = collections.OrderedDict()
    self._lock = threading.Lock()

  def get(self, key: Hashable, make: Callable[[], Value], keep: int) -> Value:
    """The value of `key`, from `make` where it is not here.

    Args:
      make: called by this thread, without any lock; it may ask for other keys.
      keep: a new entry makes the least recently used go until so many are left, itself counted.

    Raises:
      Whatever `make` raises, here or in the thread that was waited for.
    """
    with self._lock:
      entry = self._entries.get(key)
      mine = entry is None
      if mine:
        entry = self._entries[key] = futures.Future()
        while len(self._entries) > max(keep, 1):
          self._entries.popitem(last=False)
      else:
        self._entries.move_to_end(key)
    if mine:
      try:
        entry.set_result(make())
      except BaseException as error:
        # Out first: who is told of the failure may ask again at once.
        with self._lock:
          if self._entries.get(key) is entry:
            del self._entries[key]
        entry.set_exception(error)
    return entry.result()

  def __len__(self) -> int:
    return len(self._entries)
