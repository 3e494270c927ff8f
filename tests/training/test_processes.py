"""Real processes joined by jax.distributed on loopback."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from spatialvlm.training import metrics as metrics_lib
from spatialvlm.training.checkpoint import Checkpoints
from tests.training import fakes
from tests.training.helpers import make_config, run

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = """
import pathlib, sys
from spatialvlm.cli import processes
processes.join()
import jax
from tests.training import fakes
from tests.training.test_processes import config, parts_of
assert jax.process_count() == 2 and len(jax.devices()) == 2
parts_of(pathlib.Path(sys.argv[1]), jax.process_index(), 2)
"""


def config(steps=4):
  return make_config(steps=steps, checkpoint_every=2, validate_every=4)


def parts_of(folder, process, processes, steps=4):
  share = {"process": process, "processes": processes}
  held_out = fakes.Stream(16, seed=5, count=2, **share)
  return run(config(steps), folder, stream=fakes.Stream(16, **share), validation=held_out)


def test_two_processes_give_the_losses_of_one(tmp_path):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  started = []
  for process in range(2):
    environment = dict(
      os.environ,
      PYTHONPATH=str(ROOT),
      XLA_FLAGS="--xla_force_host_platform_device_count=1",
      JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
      JAX_NUM_PROCESSES="2",
      JAX_PROCESS_ID=str(process),
    )
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "two")]
    started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
  try:
    errors = [process.communicate(timeout=400)[1] for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], errors
  parts_of(tmp_path / "one", 0, 1)
  one, two = (metrics_lib.read(tmp_path / name / metrics_lib.FILE) for name in ("one", "two"))
  assert [row["step"] for row in two] == [row["step"] for row in one] == [1, 2, 3, 4, 4]
  for a, b in zip(one, two, strict=True):
    for key in set(a) - set(metrics_lib.TIMED):
      assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)
  # What two processes saved together, one restores.
  assert Checkpoints(tmp_path / "two" / "checkpoints", keep=2).steps == [2, 4]
