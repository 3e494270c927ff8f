"""Workdirs that more than one process writes to, or did."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import warnings

import numpy as np
import pytest

from spatialvlm import workdir
from spatialvlm.config import EvaluateConfig
from spatialvlm.evaluation import records
from spatialvlm.types import UserError
from tests.evaluation import support

CONFIG = EvaluateConfig()
ROOT = pathlib.Path(__file__).parents[2]
# Holds the folder as a run does, without what takes a run so long to begin.
HOLDER = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
from spatialvlm import workdir
workdir._lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that has the folder."""
  folder = tmp_path / "run"
  script = HOLDER.format(root=str(ROOT))
  process = subprocess.Popen(
    [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True, env=os.environ
  )
  assert process.stdout.readline() == "held\n"
  yield folder, process
  process.kill()
  process.wait()


def test_a_second_run_in_a_live_runs_workdir_is_refused(holder):
  folder, process = holder
  expected = rf"{folder}: a run is writing there \(process {process.pid} on {socket.gethostname()}, since 20"
  for call in (lambda: workdir.check(folder, CONFIG), lambda: workdir.claim(folder, CONFIG)):
    with pytest.raises(UserError, match=expected) as error:
      call()
    assert "\n" not in str(error.value)
  assert [file.name for file in folder.iterdir()] == [workdir.LOCK_FILE]


def test_the_workdir_of_a_killed_run_is_taken_over(holder):
  folder, process = holder
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  assert (folder / workdir.LOCK_FILE).exists()
  with workdir.alone(folder):
    assert workdir.claim(folder, CONFIG) is False
    assert json.loads((folder / workdir.LOCK_FILE).read_text())["pid"] == os.getpid()
    assert workdir.claim(folder, CONFIG) is True  # this process itself may come again
  assert not (folder / workdir.LOCK_FILE).exists()
  with workdir.alone(folder):
    assert workdir.claim(folder, CONFIG) is True


def test_a_lock_of_another_machine_that_nobody_holds_is_no_obstacle(tmp_path):
  said = {"host": "node-17", "pid": 1, "since": "2020-01-01 00:00:00"}
  (tmp_path / workdir.LOCK_FILE).write_text(json.dumps(said))
  assert workdir.check(tmp_path, CONFIG) is False
  with workdir.alone(tmp_path):
    workdir.claim(tmp_path, CONFIG)


def test_a_run_that_fails_gives_its_workdir_free(tmp_path):
  with pytest.raises(ZeroDivisionError), workdir.alone(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    raise ZeroDivisionError
  assert not (tmp_path / workdir.LOCK_FILE).exists()


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(38, "Function not implemented")

  monkeypatch.setattr(workdir.fcntl, "lockf", refuse)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with workdir.alone(tmp_path):
      workdir.claim(tmp_path, CONFIG)
  assert "cannot be locked" in str(caught[0].message)


def test_answers_that_two_processes_wrote_alike_count_once(tmp_path):
  rows = [support.row(i) for i in range(3)]
  rounded = dataclasses.replace(rows[1], logprobs=tuple(v + 1e-5 for v in rows[1].logprobs))
  records.rewrite(tmp_path, [rows[0], rows[1], rows[0], rounded, rows[2]])
  assert records.read(tmp_path) == rows


def test_answers_that_differ_are_refused(tmp_path):
  row = support.row(0)
  other = dataclasses.replace(row, logprobs=tuple(np.array(row.logprobs) - 0.5))
  records.rewrite(tmp_path, [row, other])
  with pytest.raises(UserError, match="question 0 stands twice, with different answers"):
    records.read(tmp_path)


def test_reading_the_answers_of_a_live_run_leaves_its_file_alone(tmp_path):
  records.rewrite(tmp_path, [support.row(0)])
  with open(tmp_path / records.FILE, "a") as f:
    f.write('{"idx": 1, "ty')  # the rest is still in that process
  before = (tmp_path / records.FILE).read_bytes()
  assert records.read(tmp_path) == [support.row(0)]
  assert (tmp_path / records.FILE).read_bytes() == before
  records.Writer(tmp_path).close()
  assert records.read(tmp_path) == [support.row(0)]
  assert (tmp_path / records.FILE).read_bytes().endswith(b"}\n")
