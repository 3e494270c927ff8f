"""Batches made by processes of their own, where threads would wait for Python and for each other.

A process is sent what the batches are made of once (settings, the processor), opens the sources itself, and
is then asked for batches by their numbers. Order, bits and the place in the data are those of threads.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import process as pools
from multiprocessing import connection, reduction
from typing import Any, NoReturn

import jax

from spatialvlm.types import Batch, Note, UserError

WHERE = "config.data.processes"


class Elsewhere:
  """The batches of a sequence, by number; a thread that asks for one waits for it."""

  def __init__(self, count: int, length: int, make: Callable[..., Any], parts: Mapping[str, Any]):
    """Starts `count` processes.

    Args:
      length: of the sequence.
      make: gives the sequence of `parts`, in each process; a function of a module.

    Raises:
      UserError: one of `parts` cannot be sent to a process (named).
    """
    sent = {name: _packed(name, part) for name, part in parts.items()}
    settings = {"jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir}
    self._length = length
    # JAX has threads, which no fork may copy. And no process may take a run's devices.
    spawned = multiprocessing.get_context("spawn")
    self._pool = pools.ProcessPoolExecutor(count, spawned, _begin, (make, sent, settings, list(sys.path)))
    # The pool forgets them when it breaks, and asks those that are left to end, which they do not hear.
    self._processes: dict[int, Any] = self._pool._processes
    self.close = weakref.finalize(self, _end, self._pool, self._processes)

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, number: int) -> tuple[Batch, Any]:
    """Raises a UserError where a process died; else what making the batch raises."""
    try:
      sent = self._pool.submit(_batch, number).result()
    except Exception as error:
      if isinstance(error, pools.BrokenProcessPool) or not self.close.alive:  # another thread saw it first
        self._killed()
      raise
    try:
      return _received(*sent)
    except (OSError, EOFError):  # it died with the batch in its hands
      self._killed()

  def _killed(self) -> NoReturn:
    self.close()
    raise UserError(
      f"{WHERE}: a process that makes batches was killed (by the system, where memory ran out); lower"
      " data.processes or data.prefetch; the same command goes on from the last checkpoint"
    ) from None


def _end(pool: pools.ProcessPoolExecutor, processes: Mapping[int, Any]) -> None:
  """Ends the processes of a sequence that nobody reads any more; what they are at is not waited for."""
  for worker in list(processes.values()):
    worker.kill()
  pool.shutdown(wait=False, cancel_futures=True)


def _packed(name: str, part: Any) -> bytes:
  try:
    return pickle.dumps(part)
  except Exception as error:  # whatever a part's own classes raise
    raise UserError(
      f"{WHERE}: the run's {name} cannot be sent to other processes ({' '.join(str(error).split())[:200]});"
      " set data.processes=0, and data.workers to a number of threads"
    ) from error


class _Here:
  """What a process makes batches of."""

  sequence: Any = None
  error: Exception | None = None


def _begin(
  make: Callable[..., Any], sent: Mapping[str, bytes], settings: Mapping[str, Any], path: list[str]
) -> None:
  """In a process, before its first batch."""
  # What asks the run to end is told to all of its processes; the run still needs its batches then.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()
  warnings.simplefilter("ignore", Note)  # the run says them itself
  sys.path[:] = path
  jax.config.update("jax_platforms", "cpu")
  for name, value in settings.items():
    jax.config.update(name, value)
  try:
    _Here.sequence = make(**{name: pickle.loads(part) for name, part in sent.items()})
  except Exception as error:  # here it would be a broken process, which says nothing
    _Here.error = error


def _end_with_parent() -> None:
  connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)


def _batch(number: int) -> tuple[bytes, list[int], Any]:
  if _Here.error:
    raise _Here.error
  return _sent(_Here.sequence[number])


# Arrays begin at its multiples, so that JAX may take them as they lie.
_ALIGNED = 64


def _sent(made: Any) -> tuple[bytes, list[int], Any]:
  """What is pickled, the bytes of each array in it, and a handle of the memory that they lie in.

  Arrays do not go through the pipe of the results, which took 130 MB a second, of all processes together.
  Where the system has no memory without a name (all but Linux), they are pickled with the rest.
  """
  if not hasattr(os, "memfd_create"):
    return pickle.dumps(made, protocol=5), [], None
  arrays: list[pickle.PickleBuffer] = []
  pickled = pickle.dumps(made, protocol=5, buffer_callback=arrays.append)
  raw = [array.raw() for array in arrays]
  memory = os.memfd_create("batch")
  try:
    with open(memory, "wb", closefd=False) as file:
      for one in raw:
        file.write(one)
        file.write(bytes(-one.nbytes % _ALIGNED))
    return pickled, [one.nbytes for one in raw], reduction.DupFd(memory)
  finally:
    os.close(memory)


def _received(pickled: bytes, sizes: list[int], handle: Any) -> Any:
  """What was sent; its arrays lie where the process wrote them, and go with the last of them."""
  if handle is None:
    return pickle.loads(pickled)
  memory = handle.detach()
  try:
    whole = memoryview(mmap.mmap(memory, 0, access=mmap.ACCESS_COPY) if any(sizes) else b"")
  finally:
    os.close(memory)
  arrays, start = [], 0
  for size in sizes:
    arrays.append(whole[start : start + size])
    start += size + -size % _ALIGNED
  return pickle.loads(pickled, buffers=arrays)
