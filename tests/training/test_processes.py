"""Real processes joined by jax.distributed on loopback."""

import asyncio
import json
import os
import subprocess
import sys

import jax
import pytest
from jax.experimental import multihost_utils

from spatialvlm import workdir
from spatialvlm.cli import processes, watch
from spatialvlm.config import EvaluateConfig, MeshConfig
from spatialvlm.training import metrics as metrics_lib
from spatialvlm.training import step as step_lib
from spatialvlm.training.checkpoint import Checkpoints
from spatialvlm.training.position import Position
from spatialvlm.types import UserError
from tests import joined
from tests.joined import until
from tests.training import fakes
from tests.training.helpers import make_config, make_parts, run

SCRIPT = """
import pathlib, sys
from spatialvlm.cli import processes
processes.join()
import jax
from tests.training import fakes
from tests.training.test_processes import fall_back, late, parts_of
folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
assert jax.process_count() == len(jax.devices()) == count
parts_of(folder, jax.process_index(), count)
fall_back(folder, count)
late(folder / "claimed")
"""


def config(steps=4, devices=2):
  return make_config(MeshConfig(data=devices), steps=steps, checkpoint_every=2, validate_every=4)


def parts_of(folder, process, processes, steps=4):
  share = {"process": process, "processes": processes}
  held_out = fakes.Stream(16, seed=5, count=2, **share)
  return run(config(steps, max(2, processes)), folder, stream=fakes.Stream(16, **share), validation=held_out)


def fall_back(folder, count):
  """The last checkpoint is damaged: all processes go on from the one before."""
  if jax.process_index() == 0:
    (file,) = (folder / "checkpoints" / "4" / "state" / "d").iterdir()
    file.write_bytes(file.read_bytes()[:999])
  multihost_utils.sync_global_devices("damaged")
  stream, kept = fakes.Stream(16), Checkpoints(folder / "checkpoints", keep=2)
  state, _, (said,) = kept.newest(step_lib.abstract(make_parts(config(devices=count))[1]), stream)
  assert int(state.step) == stream.next == 2 and kept.steps == [2]
  assert "/4: checkpoint is damaged (" in said and said.endswith(f"{folder}/damaged_checkpoints/4")


def late(folder):
  """All but the first come to a workdir that the first has already; all hear why another run is refused."""
  mine, others = EvaluateConfig(name="mine"), EvaluateConfig(name="others")
  until(lambda: jax.process_index() == 0 or (folder / workdir.CONFIG_FILE).exists())
  assert workdir.check(folder, mine) is False
  assert workdir.claim(folder, mine, lambda: {"of": jax.process_index()}) is False
  assert json.loads((folder / workdir.IDENTITY_FILE).read_text()) == {"of": 0}
  assert workdir.claim(folder, mine, {"of": 0}) is True
  with pytest.raises(UserError, match=r'other settings \(name: "mine", now "others"'):
    workdir.check(folder, others)


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_several_processes_give_the_losses_of_one(tmp_path, count):
  joined.start(SCRIPT, str(tmp_path / "two"), str(count), count=count)
  parts_of(tmp_path / "one", 0, 1)
  one, two = (metrics_lib.read(tmp_path / name / metrics_lib.FILE) for name in ("one", "two"))
  assert [row["step"] for row in two] == [row["step"] for row in one] == [1, 2, 3, 4, 4]
  for a, b in zip(one, two, strict=True):
    for key in set(a) - set(metrics_lib.TIMED):
      assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)
  # What several processes saved together, one restores.
  kept = Checkpoints(tmp_path / "two" / "checkpoints", keep=2)
  assert kept.steps == [2] and (tmp_path / "two" / "damaged_checkpoints" / "4").is_dir()
  assert int(kept.newest(step_lib.abstract(make_parts(config())[1]), fakes.Stream(16))[0].step) == 2
  # Rows are counted over both.
  memory = kept.memory(2)
  assert memory["seen"] == {"fake": [2 * 16, 2 * 4]}
  assert memory["changes"] == {"fake": {"flip": 2 * 16, "flip left": 2 * count}}
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


class _Later:
  """A folder that is made while something is saved, as Orbax hands it over."""

  def __init__(self, folder):
    self.folder = folder

  async def await_creation(self):
    return self.folder


async def _save(stream, folder):
  await (await Position(stream).save(_Later(folder)))


async def _load(stream, folder):
  await (await Position(stream).load(folder))


def test_the_place_in_the_data_is_one_for_any_number_of_processes(tmp_path):
  stream, other = fakes.Stream(16), fakes.Stream(16)
  stream.next = 7
  asyncio.run(_save(stream, tmp_path))
  assert [file.name for file in tmp_path.iterdir()] == ["position.json"]
  asyncio.run(_load(other, tmp_path))
  assert other.next == 7


def test_what_each_process_kept_for_itself_is_read_where_all_agree(tmp_path):
  stream = fakes.Stream(16)
  for process in range(2):
    (tmp_path / f"process_{process}-of-2.json").write_text('{"next": 5}')
  asyncio.run(_load(stream, tmp_path))
  assert stream.next == 5
  (tmp_path / "process_1-of-2.json").write_text('{"next": 6}')
  with pytest.raises(ValueError, match="do not agree"):
    asyncio.run(_load(stream, tmp_path))
  with pytest.raises(ValueError, match="no file"):
    asyncio.run(_load(stream, tmp_path / "nowhere"))


@pytest.mark.parametrize(
  "environment, hosts",
  [
    ({}, 1),
    ({"TPU_WORKER_HOSTNAMES": "10.0.0.1"}, 1),
    ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, 4),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}, 4),
    ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, 2),
  ],
)
def test_hosts_of_a_tpu_slice_are_counted(monkeypatch, environment, hosts):
  for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "MEGASCALE_NUM_SLICES"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(processes.glob, "glob", lambda pattern: [])
  assert processes._tpu_hosts() == hosts


def test_only_what_comes_of_others_that_are_gone_is_taken_for_it(monkeypatch):
  gone = jax.errors.JaxRuntimeError(
    "UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:4"
  )
  assert not processes.left_alone(gone)
  monkeypatch.setattr(processes._Joined, "watch", watch.Watch(1, 2))
  assert processes.left_alone(gone) and processes.joined()
  for other in (ValueError("shapes differ"), UserError("connection closed"), ZeroDivisionError()):
    assert not processes.left_alone(other)
