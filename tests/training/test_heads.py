"""Objectives with parameters of their own: trained, kept, continued, and out of the model's way."""

import jax
import numpy as np
import pytest

from spatialvlm.config import MeshConfig
from spatialvlm.training import metrics as metrics_lib
from spatialvlm.training import objectives
from spatialvlm.training import optim as optim_lib
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.training.checkpoint import Checkpoints
from tests.training import fakes
from tests.training.helpers import make_config, make_parts, run, same
from tests.training.test_fit import rows

HEAD = {"heads.size.bias", "heads.size.kernel"}
SETTINGS = dict(steps=7, checkpoint_every=3, keep=2, log_every=2)


def with_head(detach=True, weight=0.5):
  return {"size": (weight, fakes.Reader(detach))}


def test_a_head_is_trained_and_named_apart(tmp_path):
  _, fresh = make_parts(make_config(), more_terms=with_head())
  assert {name for name in fresh.params if name.startswith("heads.")} == HEAD
  before = {name: np.asarray(fresh.params[name]) for name in HEAD}
  outcome = run(make_config(**SETTINGS), tmp_path, more_terms=with_head())
  assert all(np.any(before[name] != np.asarray(outcome.state.params[name])) for name in HEAD)
  found = rows(tmp_path)
  assert found[-1]["size/loss"] < found[0]["size/loss"]
  # The root of the mean over a step, then the mean over steps.
  step = metrics_lib.read(tmp_path / metrics_lib.FILE)[-1]
  assert step["size/rmse"] == pytest.approx(step["size/loss"] ** 0.5, rel=1e-5)


def test_a_detached_head_changes_nothing_of_the_model(tmp_path):
  """Not through the gradient, not through its clipping, not through the moments of the optimizer."""
  config = make_config(optim={"clip_norm": 0.2}, steps=5)
  alone = run(config, tmp_path / "alone").state.params
  heavy = run(config, tmp_path / "heavy", more_terms=with_head(weight=100.0)).state.params
  through = run(config, tmp_path / "through", more_terms=with_head(detach=False, weight=100.0)).state.params
  for name in alone:
    np.testing.assert_allclose(heavy[name], alone[name], rtol=1e-5, atol=1e-6)
  assert any(np.abs(through[name] - alone[name]).max() > 1e-3 for name in alone)


@pytest.mark.parametrize("name", ["adamw", "muon", "schedule_free_adamw"])
def test_interrupted_it_continues_bit_equal(tmp_path, name):
  config = make_config(optim={"name": name, "ema": 0.9 if name == "adamw" else 0.0}, **SETTINGS)
  whole = run(config, tmp_path / "whole", more_terms=with_head(detach=False))

  def crash(number):
    if number == 5:
      raise InterruptedError

  stream = fakes.Stream(16, at=crash)
  with pytest.raises(InterruptedError):
    run(config, tmp_path / "cut", stream=stream, more_terms=with_head(detach=False))
  again = run(config, tmp_path / "cut", more_terms=with_head(detach=False))
  assert same(again.state.params, whole.state.params) and same(again.state.ema, whole.state.ema)
  for a, b in zip(*map(jax.tree.leaves, (again.state.opt_state, whole.state.opt_state)), strict=True):
    assert np.array_equal(np.asarray(a), np.asarray(b))
  assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_the_model_is_read_without_its_heads(tmp_path):
  outcome = run(make_config(**SETTINGS), tmp_path, more_terms=with_head())
  _, plain = make_parts(make_config())
  kept = Checkpoints(tmp_path / "checkpoints", keep=1, reads=True)
  found = kept.weights(7, step_lib.abstract(plain.params))
  assert set(found) == set(outcome.state.params) - HEAD
  assert all(np.array_equal(found[name], outcome.state.params[name]) for name in found)


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_mesh_and_accumulation_trains_the_same_head(tmp_path, mesh, accumulation):
  one = run(make_config(mesh=MeshConfig(data=1), steps=3), tmp_path / "one", more_terms=with_head())
  many = make_config(mesh=mesh, accumulation=accumulation, steps=3)
  many = run(many, tmp_path / "many", more_terms=with_head())
  for name in HEAD:
    np.testing.assert_allclose(many.state.params[name], one.state.params[name], rtol=1e-4, atol=1e-5)


def test_others_are_asked_and_never_trained():
  """A model under `others` is frozen whole, named apart, and handed to the objectives."""

  class Teacher(objectives.Objective):
    wants = fakes.Wants(logits=True)

    def __call__(self, outputs, models, batch, key):
      taught = models.others["teacher"].read(batch, self.wants).logits
      error = jax.numpy.square(outputs.logits - taught)
      return error.sum(), jax.numpy.float32(error.size), {}

  mesh = step_lib.axes.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  teacher = fakes.TinyVlm(seed=5)
  split = state_lib.Split(fakes.TinyVlm(), fakes.trainable, mesh, others={"teacher": teacher})
  assert not any("others" in name for name in split.params)
  assert {n for n in split.frozen if n.startswith("others.teacher.")} >= {"others.teacher.up.kernel"}
  rate = optim_lib.schedule(make_config().optim, optim_lib.span(make_config().optim, 8))
  tx = optim_lib.make_optimizer(make_config().optim, rate, split.params)
  state = state_lib.init_state(split.params, tx, ema=False, mesh=mesh)
  step = jax.jit(step_lib.make_train_step(split, tx, {"teacher": (1.0, Teacher())}))
  losses = []
  for number in range(12):
    state, metrics = step(state, split.frozen, fakes.Stream(16).batch(number % 2)[0])
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.5 * losses[0]


def test_a_run_may_train_a_head_alone():
  mesh = step_lib.axes.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  heads = objectives.make_heads(with_head(), None, 0)
  split = state_lib.Split(fakes.TinyVlm(), lambda path, variable: False, mesh, heads)
  assert set(split.params) == HEAD


def test_heads_are_drawn_by_seed_and_name():
  def kernel(seed, name):
    return np.asarray(objectives.make_heads({name: with_head()["size"]}, None, seed)[name].kernel[...])

  assert np.array_equal(kernel(0, "a"), kernel(0, "a"))
  assert not np.array_equal(kernel(0, "a"), kernel(0, "b"))
  assert not np.array_equal(kernel(0, "a"), kernel(1, "a"))
