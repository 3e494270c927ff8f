"""Batches made by other processes are those of threads; what cannot be made there is said in a line."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from spatialvlm.config import AugmentConfig, DataConfig, LlavaConfig, ScenesConfig
from spatialvlm.data import pipeline
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import UserError
from tests import joined
from tests.launch import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("world")
  tiny.write_all(folder)
  return folder


def stream_of(folder, processes, extras=None):
  sources = {"own": LlavaConfig(path=str(folder / "data.jsonl")), "made": ScenesConfig(turns=1)}
  shapes = {"lengths": (256,), "tiles": (1,), "prefetch": 2}
  augment = AugmentConfig(flip=0.5, sources=("made",))
  data = DataConfig(sources=sources, augment=augment, processes=processes, **shapes)
  processor = load_processor(folder / "model")
  return pipeline.training_stream(data, processor, 4, keys=True, seed=3, extras=extras, on_note=str)


def same(found, wanted):
  (batch, info), (other, told) = found, wanted
  assert info.ids == told.ids and info.changes == told.changes and info.turns == told.turns
  leaves, others = jax.tree.leaves(batch), jax.tree.leaves(other)
  assert len(leaves) == len(others) > 3
  for a, b in zip(leaves, others, strict=True):
    np.testing.assert_array_equal(a, b)


def workers():
  """The ids of this process's children that make batches."""
  made = (c for c in joined.children(os.getpid()) if b"spawn_main" in (c / "cmdline").read_bytes())
  return [int(child.name) for child in made]


def test_order_bits_and_resumption_are_those_of_threads(folder):
  threads, processes = stream_of(folder, 0), stream_of(folder, 2)
  for _ in range(2):
    same(next(processes), next(threads))
  state = json.loads(json.dumps(processes.get_state()))
  assert state == threads.get_state()
  wanted = [next(threads) for _ in range(3)]
  for one in wanted:
    same(next(processes), one)
  again = stream_of(folder, 1)
  again.set_state(state)
  for one in wanted:
    same(next(again), one)


def test_what_cannot_be_sent_is_refused_by_name(folder):
  with pytest.raises(UserError, match=r"data\.processes: the run's extras cannot be sent .*processes=0"):
    stream_of(folder, 1, extras=lambda sample, encoded: {})


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_a_killed_process_ends_the_stream_in_one_line(folder):
  before = workers()
  stream = stream_of(folder, 2)
  next(stream)
  mine = set(workers()) - set(before)
  assert len(mine) == 2
  for worker in mine:  # as a terminal and Slurm do to all of a run's processes: the run decides
    os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGINT)
  next(stream)
  os.kill(mine.pop(), signal.SIGKILL)
  with pytest.raises(UserError, match=r"config\.data\.processes: a process .* was killed .*last checkpoint"):
    for _ in range(10):
      next(stream)


SCRIPT = """
import pathlib, sys
from tests.data import test_elsewhere as here
if __name__ == "__main__":
  stream = here.stream_of(pathlib.Path(sys.argv[1]), 1)
  next(stream)
  print(*here.workers(), flush=True)
  if sys.argv[2] == "wait":
    input()
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
@pytest.mark.parametrize("ends", ["wait", "by itself"])
def test_processes_end_with_the_run(folder, tmp_path, ends):
  (tmp_path / "script.py").write_text(SCRIPT)
  pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  environment = {**os.environ, "PYTHONPATH": str(joined.ROOT)}
  command = [sys.executable, str(tmp_path / "script.py"), str(folder), ends]
  with subprocess.Popen(command, cwd=joined.ROOT, env=environment, **pipes) as run:
    worker = pathlib.Path("/proc") / run.stdout.readline().strip()
    if ends == "wait":
      assert worker.exists()
      run.kill()
    else:
      assert run.wait(100) == 0
    joined.until(lambda: not worker.exists() or "\nState:\tZ" in (worker / "status").read_text(), 60)
