import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from spatialvlm.config import MeshConfig
from spatialvlm.training import fit as fit_lib
from spatialvlm.training import metrics as metrics_lib
from spatialvlm.training.checkpoint import Checkpoints
from spatialvlm.types import UserError
from tests.training import fakes
from tests.training.helpers import make_config, make_parts, run, same

ROOT = pathlib.Path(__file__).parents[2]
# Steps, rows, validations, evaluations and checkpoints that do not divide each other.
SETTINGS = dict(steps=11, log_every=3, validate_every=5, evaluate_every=7, checkpoint_every=4, keep=2)


class Crash(Exception):
  pass


def rows(folder):
  found = metrics_lib.read(folder / metrics_lib.FILE)
  return [{k: v for k, v in row.items() if k not in metrics_lib.TIMED} for row in found]


def full_run(folder, at=lambda number: None, config=None):
  stream = fakes.Stream(16, at=at)
  held_out = fakes.Stream(16, seed=5, count=2)
  config = config or make_config(optim={"ema": 0.9}, **SETTINGS)
  score = lambda state: {"plain": float(np.abs(state.ema["up.kernel"]).mean())}
  return run(config, folder, stream=stream, validation=held_out, evaluate=score)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  return folder, full_run(folder)


def assert_equal_runs(folder, outcome, whole):
  assert same(outcome.state.params, whole[1].state.params)
  assert same(outcome.state.ema, whole[1].state.ema)
  for a, b in zip(*map(jax.tree.leaves, (outcome.state.opt_state, whole[1].state.opt_state)), strict=True):
    assert np.array_equal(np.asarray(a), np.asarray(b))
  assert rows(folder) == rows(whole[0])
  assert outcome.memory == whole[1].memory


def test_rows_checkpoints_and_memory_of_a_whole_run(whole):
  folder, outcome = whole
  assert [r["step"] for r in rows(folder) if "loss" in r] == [3, 6, 9, 11]
  assert [r["step"] for r in rows(folder) if "validation/loss" in r] == [5, 10, 11]
  assert [r["step"] for r in rows(folder) if "eval/plain" in r] == [7, 11]
  with_loss = {r["step"]: r["validation/loss"] for r in rows(folder) if "validation/loss" in r}
  assert outcome.memory.best == min(with_loss.values())
  assert Checkpoints(folder / "checkpoints", keep=2).steps == [8, 11]
  assert outcome.signal == 0 and int(outcome.state.step) == 11


def test_after_sigkill_the_run_ends_bit_equal(tmp_path, whole):
  script = (
    "import os, pathlib, signal, sys\n"
    "from tests.training.test_fit import full_run\n"
    "kill = lambda number: number == 9 and os.kill(os.getpid(), signal.SIGKILL)\n"
    "full_run(pathlib.Path(sys.argv[1]), at=kill)\n"
  )
  environment = dict(os.environ, PYTHONPATH=str(ROOT))
  killed = subprocess.run([sys.executable, "-c", script, tmp_path], env=environment, cwd=ROOT, timeout=500)
  assert killed.returncode == -signal.SIGKILL
  assert not any(row["step"] == 11 for row in rows(tmp_path))
  assert_equal_runs(tmp_path, full_run(tmp_path), whole)


def test_a_crash_before_the_first_checkpoint_and_half_a_row(tmp_path, whole):
  def crash(number):
    if number == 3:
      raise Crash

  with pytest.raises(Crash):
    full_run(tmp_path, at=crash)
  with open(tmp_path / metrics_lib.FILE, "a") as f:
    f.write('{"step": 3, "los')
  assert_equal_runs(tmp_path, full_run(tmp_path), whole)


def test_sigterm_saves_and_ends_in_order(tmp_path, whole):
  handler = signal.getsignal(signal.SIGTERM)
  outcome = full_run(tmp_path, at=lambda number: number == 6 and os.kill(os.getpid(), signal.SIGTERM))
  assert outcome.signal == signal.SIGTERM
  # The step that was being made is finished and saved, though no checkpoint was due.
  assert int(outcome.state.step) == 7
  assert Checkpoints(tmp_path / "checkpoints", keep=2).latest == 7
  assert signal.getsignal(signal.SIGTERM) is handler
  assert_equal_runs(tmp_path, full_run(tmp_path), whole)


def test_nan_stops_and_names_step_and_examples(tmp_path):
  config = make_config(steps=9, log_every=4, checkpoint_every=3)
  parts, state = make_parts(config)
  poisoned = parts.train_step

  def step(state, frozen, batch, span):
    # The loss of step 5 alone is NaN, though its gradient is not: nothing but the loss can tell.
    new, metrics = poisoned(state, frozen, batch, span)
    return new, metrics | {"loss": jax.numpy.where(state.step == 4, jax.numpy.nan, metrics["loss"])}

  parts = dataclasses.replace(parts, train_step=step)
  with pytest.raises(UserError, match=r"step 5: loss nan.*fake\[64\].*fake\[79\].*step 3 is kept"):
    fit_lib.fit(config, parts, state, tmp_path, {})
  assert Checkpoints(tmp_path / "checkpoints", keep=2).steps == [3]


def test_early_stopping_keeps_the_best(tmp_path):
  # A rate so high that the loss soon rises.
  config = make_config(
    optim={"learning_rate": 0.5, "schedule": "constant", "clip_norm": 0.0},
    steps=40, log_every=10, validate_every=1, patience=3, keep=1,
  )  # fmt: skip
  outcome = run(config, tmp_path, stream=fakes.Stream(16), validation=fakes.Stream(16, seed=5, count=1))
  losses = {r["step"]: r["validation/loss"] for r in rows(tmp_path) if "validation/loss" in r}
  best = min(losses, key=losses.get)
  assert outcome.memory.stopped and outcome.memory.best_step == best
  assert max(losses) == best + 3 < 40
  assert rows(tmp_path)[-1]["step"] == best + 3 and "loss" in rows(tmp_path)[-1]
  assert int(outcome.state.step) == best
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
  assert checkpoints.best == best and checkpoints.steps == [best, best + 3]
  # A run that has stopped early stays stopped.
  again = run(config, tmp_path, stream=fakes.Stream(16), validation=fakes.Stream(16, seed=5, count=1))
  assert max(r["step"] for r in rows(tmp_path)) == best + 3
  assert same(again.state.params, outcome.state.params)


def test_restoring_onto_another_mesh(tmp_path):
  config = make_config(mesh=MeshConfig(data=4), steps=4, checkpoint_every=4)
  outcome = run(config, tmp_path)
  other = make_config(mesh=MeshConfig(data=2, fsdp=2, tensor=2), steps=4)
  parts, fresh = make_parts(other)
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  found = checkpoints.restore(4, fresh, parts.stream)
  assert same(found.params, outcome.state.params)
  assert parts.stream.next == 4
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(fresh), strict=True):
    assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
  # What was restored can be donated: the step frees it.
  shardings = fit_lib.step_lib.state_shardings(found)
  jitted = jax.jit(parts.train_step, donate_argnums=0, out_shardings=(shardings, None))
  batch = parts.stream.batch(4)[0]
  jitted(found, parts.frozen, fit_lib.step_lib.to_devices(batch, parts.mesh))
  assert all(x.is_deleted() for x in found.params.values())


def test_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
  config = make_config(steps=6, checkpoint_every=2)
  real = shutil.disk_usage

  def fill_disk(number):
    if number == 3:
      monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))

  with pytest.raises(UserError, match=r"no space left on the disk.*earlier ones are whole"):
    run(config, tmp_path, stream=fakes.Stream(16, at=fill_disk))
  monkeypatch.undo()
  assert Checkpoints(tmp_path / "checkpoints", keep=2).latest == 2
  outcome = run(config, tmp_path)
  assert int(outcome.state.step) == 6


def test_rows_past_the_restored_step_are_cut(tmp_path):
  path = tmp_path / metrics_lib.FILE
  path.write_text("".join(json.dumps({"step": s, "loss": s / 7}) + "\n" for s in (1, 2, 3, 4)))
  metrics_lib.cut(path, 2)
  assert metrics_lib.read(path) == [{"step": 1, "loss": 1 / 7}, {"step": 2, "loss": 2 / 7}]
  path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
  with pytest.raises(UserError, match="line 2"):
    metrics_lib.read(path)


def test_a_save_begins_when_the_one_before_it_has_ended(tmp_path):
  """Orbax would hand the parts of the new save to the thread that still ends the old one."""
  _, state = make_parts(make_config())
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  calls, orbax = [], checkpoints._orbax

  class Spy:
    def __getattr__(self, name):
      calls.append(name)
      return getattr(orbax, name)

  checkpoints._orbax = Spy()
  for step in (1, 2):
    checkpoints.save(dataclasses.replace(state, step=state.step + step), fakes.Stream(16), {})
  checkpoints.close()
  calls = [name for name in calls if name in ("wait", "save_checkpointables_async")]
  assert calls == ["wait", "save_checkpointables_async"] * 2
  assert Checkpoints(tmp_path / "checkpoints", keep=2).steps == [1, 2]
