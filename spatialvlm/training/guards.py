"""What may befall a run from outside: signals that ask it to end, and memory that runs out."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from spatialvlm.config import RunConfig
from spatialvlm.types import UserError


class Received:
  """A signal that asked the run to end in order."""

  number = 0

  def now(self, step: int, every: int) -> int:
    """The signal to obey after this step; several processes agree on it, at steps that are logged."""
    if jax.process_count() == 1:
      return self.number
    if every <= 0 or step % every:
      return 0
    self.number = int(multihost_utils.process_allgather(np.int32(self.number)).max())
    return self.number


@contextlib.contextmanager
def signals() -> Iterator[Received]:
  """SIGTERM and the first Ctrl-C only take note; a second Ctrl-C ends at once."""
  received = Received()
  if threading.current_thread() is not threading.main_thread():
    yield received
    return

  def note(number, frame):
    if number == signal.SIGINT and received.number:
      raise KeyboardInterrupt
    received.number = number

  old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield received
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def memory_errors(config: RunConfig) -> Iterator[None]:
  """Device memory that is exhausted becomes a UserError that names what to lower."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e) and "out of memory" not in str(e).lower():
      raise
    remat = "" if config.train.remat else ", set train.remat=True"
    raise UserError(
      f"out of device memory: lower train.batch_size (now {config.train.batch_size}) or raise "
      f"train.accumulation (now {config.train.accumulation}){remat}, lower model.max_tiles or "
      f"data.lengths, use model.dtype=bfloat16, or more devices along mesh.fsdp"
    ) from e
