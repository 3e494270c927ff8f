"""Which runs are done, in which order, and what becomes of those that fail."""

import os
import signal

from spatialvlm import workdir
from spatialvlm.config import RunConfig
from spatialvlm.study import running
from spatialvlm.study.claims import Claims
from spatialvlm.study.grid import Run
from spatialvlm.study.running import Ended


def grid(folder, *names):
  return [Run(name, 0, RunConfig(), folder / name) for name in names]


def finish(run):
  run.folder.mkdir()
  (run.folder / "summary.json").write_text("{}")


def worker(folder, work, **more):
  return running.Worker(work, Claims(folder, 60), **{"wait": 0.01, "say": lambda text: None} | more)


def test_what_is_finished_is_skipped_and_a_bad_one_stops_nobody(tmp_path):
  runs, said, worked, now = grid(tmp_path, "a", "b", "c", "d"), [], [], [0.0]
  finish(runs[1])

  def work(run, received, lost):
    worked.append(run.cell)
    now[0] += 120
    if run.cell == "a":
      return Ended("data: no such file")
    finish(run)
    return Ended()

  ran = worker(tmp_path, work, say=said.append, clock=lambda: now[0]).do(runs)
  assert worked == ["a", "c", "d"]
  assert ran == running.Ran({"a, seed 0": "data: no such file"})
  assert said == [
    "1 of 4 runs are finished already",
    "run 1 of 4: a, seed 0",
    "run 1 of 4: a, seed 0 failed: data: no such file",
    "run 3 of 4: c, seed 0, about 4 min left",
    "run 4 of 4: d, seed 0, about 2 min left",
  ]
  worked.clear()
  again = worker(tmp_path, lambda run, *_: worked.append(run.cell) or Ended())
  assert not again.do(runs).failed and worked == ["a"]


def test_a_signal_ends_the_run_at_work_and_begins_no_other(tmp_path):
  runs, worked, handler = grid(tmp_path, "a", "b"), [], signal.getsignal(signal.SIGTERM)

  def work(run, received, lost):
    worked.append(run.cell)
    os.kill(os.getpid(), signal.SIGTERM)
    return Ended(signal=signal.SIGTERM)

  assert worker(tmp_path, work).do(runs) == running.Ran({}, signal.SIGTERM) and worked == ["a"]
  assert signal.getsignal(signal.SIGTERM) is handler
  # A run that was ended by itself is one that failed.
  ran = worker(tmp_path, lambda *_: Ended(signal=9)).do(runs)
  assert not ran.signal and "the same command continues it" in ran.failed["b, seed 0"]


def test_what_another_worker_has_is_left_and_waited_for(tmp_path):
  """What it finishes meanwhile is not done again; what it gives up is told of and not tried."""
  runs, said, worked = grid(tmp_path, "a", "b", "c"), [], []
  claims = Claims(tmp_path, 60)
  theirs = {run.cell: claims.take(run.key) for run in runs[:2]}

  def work(run, received, lost):
    worked.append(run.cell)
    finish(runs[0])
    theirs["a"].release()
    theirs["b"].release("no such file")
    finish(run)
    return Ended()

  ran = worker(tmp_path, work, say=said.append).do(runs)
  assert worked == ["c"] and ran.failed == {"b, seed 0": "no such file"}
  assert said[0].startswith(f"run 1 of 3: a, seed 0: process {os.getpid()} on ") and said[0].endswith(
    "is at it"
  )
  assert said[-1] == "run 2 of 3: b, seed 0 failed with another worker: no such file"
  # Without waiting it is theirs.
  theirs["b"] = claims.take(runs[1].key)
  assert worker(tmp_path, work, wait=None).do(runs[1:2]) == running.Ran({}) and worked == ["c"]


def test_a_worker_that_was_late_lets_go(tmp_path):
  """A run whose lease ran out at work is the next worker's, and no failure of anybody."""
  runs, said = grid(tmp_path, "a"), []

  def work(run, received, lost):
    (tmp_path / "claims" / "a.seed-0.001").write_text("{}")  # another worker's
    assert lost.wait(10)
    finish(run)
    return Ended("another worker has taken it")

  late = running.Worker(work, Claims(tmp_path, 0.2), wait=0.01, say=said.append)
  assert late.do(runs) == running.Ran({}) and "another worker has taken it" in said[-1]
  assert (tmp_path / "claims" / "a.seed-0.001").read_text() == "{}"


def test_a_folder_that_somebody_writes_in_is_left(tmp_path, monkeypatch):
  """A worker is gone and its lease with it, and its run writes its last checkpoint."""
  runs, worked, busy = grid(tmp_path, "a"), [], [True, True, False]
  monkeypatch.setattr(workdir, "busy", lambda folder: busy.pop(0))

  def work(run, *_):
    worked.append(run.cell)
    finish(run)
    return Ended()

  worker(tmp_path, work).do(runs)
  assert worked == ["a"] and not busy


def test_how_long():
  said = [running._duration(seconds) for seconds in (20, 89, 3600, 7470)]
  assert said == ["0 min", "1 min", "1 h 00 min", "2 h 04 min"]
