"""Continuous batching: requests come at any time, share what they can, and leave when they have ended.

A `Scheduler` knows models by name, each with a `lane.Lane` of rows. One thread does all of the work, turn by
turn: it drops what nobody waits for, reads waiting requests into free rows, says a few tokens of all rows,
and tells listeners. It knows no sockets, no text and no pixels beyond what a `requests.Request` brings.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Mapping

from spatialvlm.serving.lane import Counts, Job, Lane, Listener, SchedulerConfig, Served
from spatialvlm.serving.requests import Request
from spatialvlm.types import UserError


class Full(Exception):
  """As many requests wait as may."""


class TooLate(Exception):
  """A request took longer than it may."""


class Stopped(Exception):
  """The scheduler stops, and what it had not finished has no answer."""


class Scheduler:
  """Answers requests to several models, many at a time.

  Guarantees: an answer is the one that its request has alone, up to the order of floating-point sums,
  whatever runs beside it, `SchedulerConfig` or what is kept; a listener is told of its end once (`ended`,
  `failed`), or has said itself that it has enough, or was cancelled; and then neither a row nor a place in
  the queue is taken. What goes wrong with one request fails that one; what goes wrong with a turn of a model
  fails those that had its rows, and the next ones begin anew.

  `submit`, `cancel` and the numbers are for any thread; `turn` is for the one that works: `start` makes it.
  """

  def __init__(
    self,
    models: Mapping[str, Served],
    config: SchedulerConfig,
    *,
    clock: Callable[[], float] = time.monotonic,
    on_error: Callable[[Exception], None] = lambda error: None,
  ):
    """`on_error` hears of turns that went wrong, in the thread that works."""
    self.config, self._clock, self._on_error = config, clock, on_error
    self._lanes = {name: Lane(model, config) for name, model in models.items()}
    self._waiting: dict[str, collections.deque[Job]] = {name: collections.deque() for name in models}
    self._changed = threading.Condition()
    self._stopping = False
    self._thread: threading.Thread | None = None

  # For any thread.

  @property
  def models(self) -> tuple[str, ...]:
    """Names, in the order in which they were given."""
    return tuple(self._lanes)

  @property
  def waiting(self) -> int:
    """Requests that have no row yet."""
    return sum(map(len, self._waiting.values()))

  @property
  def running(self) -> int:
    """Requests that have a row."""
    return sum(len(lane.running) for lane in self._lanes.values())

  @property
  def alive(self) -> bool:
    """Whether the thread that works is there."""
    return self._thread is not None and self._thread.is_alive()

  def lane(self, model: str) -> Lane:
    """A model's lane, to read its numbers."""
    return self._lanes[model]

  def counts(self, model: str) -> Counts:
    """What was done for a model so far."""
    return self._lanes[model].counts

  def submit(self, model: str, request: Request, listener: Listener, *, tells: bool = False) -> Job:
    """Takes a request whose one wish is a `Generated`; its `stop` is the model's own, whatever it says.

    Args:
      tells: whether log-probabilities are told, too.

    Raises:
      UserError: no such model, or a prompt that leaves no room for an answer.
      Full: too many wait already.
      Stopped: nothing is taken any more.
    """
    if model not in self._lanes:
      raise UserError(f"no model is called {model!r}; there are {', '.join(map(repr, self._lanes))}")
    limit = self._lanes[model].limit(request)
    job = Job(model, request, limit, tells, listener, self._clock() + self.config.seconds)
    with self._changed:
      if self._stopping:
        raise Stopped("the server stops")
      if self.waiting >= self.config.queue:
        raise Full(f"{self.config.queue} requests wait already; try again later")
      self._waiting[model].append(job)
      self._changed.notify()
    return job

  def cancel(self, job: Job) -> None:
    """Nobody waits for a job any more: it gives its place up at once, or its row before the next turn."""
    with self._changed:
      job.cancelled = True
      if job in self._waiting[job.model]:
        self._waiting[job.model].remove(job)
      self._changed.notify()

  def start(self) -> None:
    """Begins to work, in a thread of its own."""
    self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
    self._thread.start()

  def stop(self) -> None:
    """Ends the work; what has no answer yet fails with `Stopped`."""
    with self._changed:
      self._stopping = True
      self._changed.notify()
    if self._thread is not None:
      self._thread.join()
    with self._changed:
      left = [job for line in self._waiting.values() for job in line]
      for line in self._waiting.values():
        line.clear()
    for job in left + [job for lane in self._lanes.values() for job in lane.clear()]:
      job.listener.failed(Stopped("the server stops"))

  # For the thread that works.

  def turn(self) -> bool:
    """One turn of all models; whether there was anything to do."""
    busy = self._busy()
    now = self._clock()
    self._expire(now)
    for name, lane in self._lanes.items():
      try:
        lane.admit(lambda fits, name=name: self._take(name, fits))
        lane.advance()
      except Exception as error:  # nobody may wait for ever, and the next request finds rows again
        self._on_error(error)
        for job in lane.clear():
          job.listener.failed(error)
      if len(self._lanes) > 1:
        lane.rest()
    return busy

  def _work(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._stopping or self._busy())
        if self._stopping:
          return
      self.turn()

  def _busy(self) -> bool:
    return bool(self.waiting or self.running)

  def _take(self, model: str, fits: Callable[[Job], bool]) -> Job | None:
    """The first job that waits for a model, if it fits."""
    with self._changed:
      line = self._waiting[model]
      return line.popleft() if line and fits(line[0]) else None

  def _expire(self, now: float) -> None:
    """Lets go of what was cancelled, and of what is too late."""
    with self._changed:
      late = [job for line in self._waiting.values() for job in line if job.deadline <= now]
      for job in late:
        self._waiting[job.model].remove(job)
    for lane in self._lanes.values():
      late += [job for job in lane.drop(lambda j: j.cancelled or j.deadline <= now) if not job.cancelled]
    for job in late:
      job.listener.failed(TooLate(f"no answer within {self.config.seconds:g} seconds"))
