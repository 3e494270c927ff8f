"""The runs of a grid one after the other, each in a process of its own, beside other workers."""

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

from spatialvlm import workdir
from spatialvlm.evaluation import run as evaluation
from spatialvlm.study import beside
from spatialvlm.study.claims import Claim, Claims
from spatialvlm.study.grid import Base, Run
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


# What is done: a run, or an untrained model.
Job = Run | Base
# Does one job's work; told what signals this process was sent meanwhile, and whether another worker took it.
Work = Callable[[Job, guards.Received, threading.Event], Ended]


def train(run: Run, folder: pathlib.Path) -> Ended:
  """An ordinary training, as `launch/train.py` does it, and what is asked beside its questions."""
  summary = stages.train(run.config, folder)
  if not summary["finished"]:
    return Ended(signal=summary["signal"])
  beside.ask(run.beside, folder)
  return Ended()


def score(base: Base, folder: pathlib.Path) -> Ended:
  """An ordinary evaluation, as `launch/evaluate.py` does it, and what is asked beside its questions."""
  evaluation.run(base.config, folder, runs.find, show_tables=False)
  beside.ask(base.beside, folder)
  return Ended()


class Worker:
  """One of any number that do the jobs of a study; each is done by one at a time (`claims`).

  Args:
    wait: seconds between two looks at what other workers hold; None to leave that to them.
    say: takes a line for the user. clock: seconds, of how long jobs take.
  """

  def __init__(
    self,
    work: Work,
    claims: Claims,
    *,
    wait: float | None = 5.0,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._work, self._claims, self._wait, self._say, self._clock = work, claims, wait, say, clock
    self._failed: dict[str, str] = {}
    self._took: list[float] = []
    self._told: set[str] = set()

  def do(self, jobs: Sequence[Job], what: str = "run") -> Ran:
    """Does what is not finished, in order; what fails is told of, and the next one begins.

    What another worker holds is left, and looked at again until it is finished, given up, or free because its
    worker is gone. A signal that this process was sent ends the job at work, in order, and begins no other.

    Args:
      what: what a job is called.
    """
    todo = [
      (f"{what} {n} of {len(jobs)}: {job.name}", job) for n, job in enumerate(jobs, 1) if not job.finished
    ]
    if len(todo) < len(jobs):
      self._say(f"{len(jobs) - len(todo)} of {len(jobs)} {what}s are finished already")
    with guards.signals() as received:
      while todo:
        held = []
        for place, (name, job) in enumerate(todo):
          if not self._settled(name, job, len(todo) - place, received):
            held.append((name, job))
          if received.number:
            self._say(f"stopped by signal {received.number} in {job.name}; the same command continues")
            return Ran(self._failed, received.number)
        if self._wait is None:
          break
        if len(held) == len(todo):
          time.sleep(self._wait)
        todo = held
    return Ran(self._failed)

  def _settled(self, name: str, job: Job, left: int, received: guards.Received) -> bool:
    """Whether there is nothing more to do of a job; else another worker holds it."""
    if job.finished:
      return True
    if workdir.busy(job.folder):  # a worker that is gone, and its run not yet
      return self._left(name, job, self._claims.holder(job.key))
    if why := self._claims.failed_elsewhere(job.key):
      self._failed[job.name] = why
      self._say(f"{name} failed with another worker: {why}")
      return True
    claim = self._claims.take(job.key)
    if claim is None:
      return self._left(name, job, self._claims.holder(job.key))
    if job.finished:  # just now, by another one
      claim.release()
      return True
    return self._done(name, job, claim, left, received)

  def _left(self, name: str, job: Job, holder: str) -> bool:
    if job.name not in self._told:
      self._say(f"{name}: {holder} is at it")
      self._told.add(job.name)
    return False

  def _done(self, name: str, job: Job, claim: Claim, left: int, received: guards.Received) -> bool:
    """Does what this worker holds; False where it was taken from it meanwhile."""
    took = self._took
    self._say(name + (f", about {_duration(left * sum(took) / len(took))} left" if took else ""))
    began, ended = self._clock(), Ended("its worker ended")
    try:
      ended = self._work(job, received, claim.lost)
    finally:
      claim.release("" if received.number or ended.signal else ended.error)
    took.append(self._clock() - began)
    if claim.lost.is_set():
      self._say(f"{name}: its lease ran out, and another worker has taken it")
      return False
    if (ended.error or ended.signal) and not received.number:
      why = ended.error or f"stopped by signal {ended.signal}; the same command continues it"
      self._failed[job.name] = why
      self._say(f"{name} failed: {why}")
    return True


def in_process(
  function: Callable[[Any, pathlib.Path], Ended],
  config: Any,
  folder: pathlib.Path,
  prepare: Callable[[Any], None],
  received: guards.Received,
  lost: threading.Event | None = None,
) -> Ended:
  """Calls `function(config, folder)` in a process of its own, which prints where this one does.

  What it takes of memory is its own, and an accelerator is free again when it ends, however that is.

  Args:
    function, prepare: of a module's top, since the new process imports them; `prepare(config)` is called
      first there.
    received: a signal that this process was sent is handed on, as SIGTERM.
    lost: once it is set the process is ended at once, wherever it is: its folder is another's.
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
    if lost is not None and lost.is_set():
      child.kill()
      child.join()
      return Ended("another worker has taken it")
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
