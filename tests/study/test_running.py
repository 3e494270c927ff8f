"""Which runs are done, in which order, and what becomes of those that fail."""

import os
import signal

from spatialvlm.config import RunConfig
from spatialvlm.study import running
from spatialvlm.study.grid import Run
from spatialvlm.study.running import Ended


def grid(folder, *names):
  return [Run(name, 0, RunConfig(), folder / name) for name in names]


def finish(run):
  run.folder.mkdir()
  (run.folder / "summary.json").write_text("{}")


def test_what_is_finished_is_skipped_and_a_bad_one_stops_nobody(tmp_path):
  runs, said, worked, now = grid(tmp_path, "a", "b", "c", "d"), [], [], [0.0]
  finish(runs[1])

  def work(run, received):
    worked.append(run.cell)
    now[0] += 120
    if run.cell == "a":
      return Ended("data: no such file")
    finish(run)
    return Ended()

  ran = running.all_runs(runs, work, say=said.append, clock=lambda: now[0])
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
  assert not running.all_runs(runs, lambda run, _: worked.append(run.cell) or Ended(), say=said.append).failed
  assert worked == ["a"]


def test_a_signal_ends_the_run_at_work_and_begins_no_other(tmp_path):
  runs, worked, handler = grid(tmp_path, "a", "b"), [], signal.getsignal(signal.SIGTERM)

  def work(run, received):
    worked.append(run.cell)
    os.kill(os.getpid(), signal.SIGTERM)
    return Ended(signal=signal.SIGTERM)

  ran = running.all_runs(runs, work, say=lambda text: None)
  assert ran == running.Ran({}, signal.SIGTERM) and worked == ["a"]
  assert signal.getsignal(signal.SIGTERM) is handler
  # A run that was ended by itself is one that failed.
  ran = running.all_runs(runs, lambda run, _: Ended(signal=9), say=lambda text: None)
  assert not ran.signal and "the same command continues it" in ran.failed["b, seed 0"]


def test_how_long():
  said = [running._duration(seconds) for seconds in (20, 89, 3600, 7470)]
  assert said == ["0 min", "1 min", "1 h 00 min", "2 h 04 min"]
