"""Real processes joined by jax.distributed on loopback."""

import os
import subprocess
import sys

import jax
import pytest
from jax.experimental import multihost_utils

from spatialvlm.cli import processes
from spatialvlm.training import metrics as metrics_lib
from spatialvlm.training import step as step_lib
from spatialvlm.training.checkpoint import Checkpoints
from spatialvlm.types import UserError
from tests.training import fakes, two_processes
from tests.training.helpers import make_config, make_parts, run

SCRIPT = """
import pathlib, sys
from spatialvlm.cli import processes
processes.join()
import jax
from tests.training import fakes
from tests.training.test_processes import fall_back, parts_of
assert jax.process_count() == 2 and len(jax.devices()) == 2
folder = pathlib.Path(sys.argv[1])
parts_of(folder, jax.process_index(), 2)
fall_back(folder)
"""


def config(steps=4):
  return make_config(steps=steps, checkpoint_every=2, validate_every=4)


def parts_of(folder, process, processes, steps=4):
  share = {"process": process, "processes": processes}
  held_out = fakes.Stream(16, seed=5, count=2, **share)
  return run(config(steps), folder, stream=fakes.Stream(16, **share), validation=held_out)


def fall_back(folder):
  """The last checkpoint is damaged: all processes go on from the one before."""
  if jax.process_index() == 0:
    (file,) = (folder / "checkpoints" / "4" / "state" / "d").iterdir()
    file.write_bytes(file.read_bytes()[:999])
  multihost_utils.sync_global_devices("damaged")
  stream, kept = fakes.Stream(16), Checkpoints(folder / "checkpoints", keep=2)
  state, _, (said,) = kept.newest(step_lib.abstract(make_parts(config())[1]), stream)
  assert int(state.step) == stream.next == 2 and kept.steps == [2]
  assert "/4: checkpoint is damaged (" in said and said.endswith(f"{folder}/damaged_checkpoints/4")


def test_two_processes_give_the_losses_of_one(tmp_path):
  two_processes.start(SCRIPT, str(tmp_path / "two"))
  parts_of(tmp_path / "one", 0, 1)
  one, two = (metrics_lib.read(tmp_path / name / metrics_lib.FILE) for name in ("one", "two"))
  assert [row["step"] for row in two] == [row["step"] for row in one] == [1, 2, 3, 4, 4]
  for a, b in zip(one, two, strict=True):
    for key in set(a) - set(metrics_lib.TIMED):
      assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)
  # What two processes saved together, one restores.
  kept = Checkpoints(tmp_path / "two" / "checkpoints", keep=2)
  assert kept.steps == [2] and (tmp_path / "two" / "damaged_checkpoints" / "4").is_dir()
  assert int(kept.newest(step_lib.abstract(make_parts(config())[1]), fakes.Stream(16))[0].step) == 2
  # Rows are counted over both.
  memory = kept.memory(2)
  assert memory["seen"] == {"fake": [2 * 16, 2 * 4]}
  assert memory["changes"] == {"fake": {"flip": 2 * 16, "flip left": 2 * 2}}
  assert memory["skipped"] == {f"fake[{16 * step + 9}]": "broken" for step in range(2)}


@pytest.mark.parametrize("flags, devices", [("", 3), ("--xla_force_host_platform_device_count=2", 2)])
def test_the_processor_counts_as_several_devices_unless_the_environment_says_how_many(flags, devices):
  script = "from spatialvlm.cli import processes; processes.divide(3); import jax; print(jax.device_count())"
  env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
  assert int(done.stdout) == devices


def test_a_processor_cannot_count_as_fewer_than_no_devices():
  with pytest.raises(UserError, match=r"mesh\.cpu_devices=-1"):
    processes.divide(-1)
