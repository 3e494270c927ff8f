"""The runs of a grid one after the other, each in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from spatialvlm.config import EvaluateConfig, RunConfig
from spatialvlm.evaluation import run as evaluation
from spatialvlm.study.grid import Run
from spatialvlm.training import guards, runs, stages
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class Ended:
  """How the work on one workdir ended: in order where neither is said.

  Attributes:
    error: what went wrong, in one line.
    signal: number of the signal that stopped it.
  """

  error: str = ""
  signal: int = 0


@dataclasses.dataclass(frozen=True)
class Ran:
  """How the work on a grid ended.

  Attributes:
    failed: what went wrong with whom.
    signal: number of the signal that stopped all of it, else 0.
  """

  failed: dict[str, str]
  signal: int = 0


# Does one run's work; told what signals this process was sent meanwhile.
Work = Callable[[Run, guards.Received], Ended]


def train(config: RunConfig, folder: pathlib.Path) -> Ended:
  """An ordinary training, as `launch/train.py` does it."""
  summary = stages.train(config, folder)
  return Ended() if summary["finished"] else Ended(signal=summary["signal"])


def score(config: EvaluateConfig, folder: pathlib.Path) -> Ended:
  """An ordinary evaluation, as `launch/evaluate.py` does it."""
  evaluation.run(config, folder, runs.find, show_tables=False)
  return Ended()


def all_runs(
  grid: Sequence[Run],
  work: Work,
  *,
  say: Callable[[str], None] = print,
  clock: Callable[[], float] = time.monotonic,
) -> Ran:
  """Does the runs that are not finished, in order; one that fails is told of, and the next one begins.

  A signal that this process was sent ends the run that is at work, in order, and begins no other.
  """
  failed: dict[str, str] = {}
  took: list[float] = []
  todo = [(number, run) for number, run in enumerate(grid, 1) if not run.finished]
  if len(todo) < len(grid):
    say(f"{len(grid) - len(todo)} of {len(grid)} runs are finished already")
  with guards.signals() as received:
    for number, run in todo:
      rest = len(todo) - len(took)
      left = f", about {_duration(rest * sum(took) / len(took))} left" if took else ""
      say(f"run {number} of {len(grid)}: {run.name}{left}")
      began = clock()
      ended = work(run, received)
      took.append(clock() - began)
      if received.number:
        say(f"stopped by signal {received.number} in {run.name}; the same command continues")
        return Ran(failed, received.number)
      if ended.error or ended.signal:
        failed[run.name] = ended.error or f"stopped by signal {ended.signal}; the same command continues it"
        say(f"run {number} of {len(grid)}: {run.name} failed: {failed[run.name]}")
  return Ran(failed)


def in_process(
  function: Callable[[Any, pathlib.Path], Ended],
  config: Any,
  folder: pathlib.Path,
  prepare: Callable[[Any], None],
  received: guards.Received,
) -> Ended:
  """Calls `function(config, folder)` in a process of its own, which prints where this one does.

  What it takes of memory is its own, and an accelerator is free again when it ends, however that is.

  Args:
    function, prepare: of a module's top, since the new process imports them; `prepare(config)` is called
      first there.
    received: a signal that this process was sent is handed on, as SIGTERM.
  """
  context = multiprocessing.get_context("spawn")
  reading, writing = context.Pipe(duplex=False)
  child = context.Process(target=_child, args=(function, config, folder, prepare, writing), daemon=True)
  child.start()
  writing.close()
  told = False
  while child.is_alive():
    child.join(0.2)
    if received.number and not told:
      child.terminate()
      told = True
  with contextlib.suppress(EOFError):
    if reading.poll():
      return reading.recv()
  code = child.exitcode or 0
  if code < 0:
    why = " (is there memory enough?)" if -code == signal.SIGKILL else ""
    return Ended(f"its process was ended by signal {-code}{why}")
  return Ended(f"its process ended with exit code {code}; what it printed stands above")


def _child(
  function: Callable[[Any, pathlib.Path], Ended],
  config: Any,
  folder: pathlib.Path,
  prepare: Callable[[Any], None],
  writing: Connection,
) -> None:
  threading.Thread(target=_end_with_parent, daemon=True).start()
  try:
    prepare(config)
    ended = function(config, folder)
  except UserError as error:
    ended = Ended(" ".join(str(error).split()))
  except KeyboardInterrupt:
    ended = Ended(signal=signal.SIGINT)
  except Exception as error:  # a mistake of ours, or of a library: the other runs are not to pay for it
    traceback.print_exc()
    ended = Ended(f"{type(error).__name__}: {' '.join(str(error).split())}")
  writing.send(ended)


def _end_with_parent() -> None:
  """A run whose study is gone, however that ended, ends in order: the same command could not take it over."""
  multiprocessing.parent_process().join()
  os.kill(os.getpid(), signal.SIGTERM)


def _duration(seconds: float) -> str:
  minutes = round(seconds / 60)
  return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
