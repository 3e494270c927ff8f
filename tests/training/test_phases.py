"""Phases between the stream and the step: hard examples, on the fake model."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialvlm.config import LossConfig, MeshConfig, PhaseConfig
from spatialvlm.core import axes
from spatialvlm.training import objectives, phases
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.training.fit import phase_key
from spatialvlm.training.phases.hard_examples import hardest
from spatialvlm.types import Extra, UserError
from tests.training import fakes
from tests.training.helpers import make_config, run, same
from tests.training.test_fit import rows

HARD = {"hard": PhaseConfig("hard_examples", {"keep": 0.5})}
READ, TAKEN = 32, 16


def parts_on(mesh_config, accumulation=1):
  size = mesh_config.data * mesh_config.fsdp * mesh_config.tensor
  mesh = axes.make_mesh(mesh_config, jax.devices()[:size])
  split = state_lib.Split(fakes.TinyVlm(), fakes.trainable, mesh)
  return phases.PhaseParts(split, mesh, accumulation, TAKEN)


def with_extras(batch):
  """Arrays of all three axes, from which an example's number can be told."""
  number = np.arange(READ, dtype=np.float32)
  extra = {
    "tile": Extra(np.repeat(number, 3)[:, None], "tile"),
    "sample": Extra(number, "sample"),
    "target": Extra(np.repeat(number[:, None], fakes.TARGETS, 1), "target"),
  }
  return dataclasses.replace(batch, extra=extra)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
  "mesh", [MeshConfig(data=1), MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str
)
def test_the_hardest_are_chosen_on_every_mesh(mesh, accumulation):
  parts, (batch, _) = parts_on(mesh, accumulation), fakes.Stream(READ).batch(0)
  model = fakes.TinyVlm()
  logits = np.asarray(model.unembed(model.hidden(batch)), np.float64)
  hardness = []
  for row in range(READ):
    places = [t for t in batch.target_index_BK[row] if t > 0]
    log_p = [
      logits[row, t - 1, batch.tokens_BT[row, t]] - np.logaddexp.reduce(logits[row, t - 1]) for t in places
    ]
    hardness.append(-np.mean(log_p))
  expected = np.sort(np.argsort(hardness)[-TAKEN:])
  (prepare,) = phases.start(phases.make_phases(HARD), parts)
  state = state_lib.TrainState(jnp.int32(0), parts.split.params, (), {})
  sent = step_lib.to_devices(with_extras(batch), parts.mesh, accumulation)
  out = prepare(state, parts.split.frozen, sent, None, phase_key(0, 0, 0))
  flat = lambda x: np.asarray(x).reshape(-1, *x.shape[2:]) if accumulation > 1 else np.asarray(x)
  np.testing.assert_array_equal(flat(out.tokens_BT), batch.tokens_BT[expected])
  np.testing.assert_array_equal(flat(out.target_index_BK), batch.target_index_BK[expected])
  np.testing.assert_array_equal(flat(out.extra["sample"].array), expected)
  np.testing.assert_array_equal(flat(out.extra["target"].array)[:, 0], expected)
  np.testing.assert_array_equal(
    flat(out.extra["tile"].array).reshape(TAKEN, 3), expected[:, None].repeat(3, 1)
  )
  plain = step_lib.to_devices(fakes.Stream(TAKEN).batch(0)[0], parts.mesh, accumulation)
  assert out.tokens_BT.sharding.is_equivalent_to(plain.tokens_BT.sharding, plain.tokens_BT.ndim)


def test_rows_that_pad_a_batch_are_never_chosen():
  parts, (batch, _) = parts_on(MeshConfig(data=1)), fakes.Stream(READ).batch(0)
  mask = np.arange(READ) % 2 == 0
  out = hardest(
    parts, parts.split.params, parts.split.frozen, dataclasses.replace(batch, example_mask_B=mask)
  )
  np.testing.assert_array_equal(out.tokens_BT, batch.tokens_BT[mask])


def hard_run(folder, **kwargs):
  at = kwargs.pop("at", lambda number: None)
  config = make_config(phases=kwargs.pop("phases", HARD), steps=6, checkpoint_every=2, **kwargs)
  return run(config, folder, stream=fakes.Stream(READ, at=at))


def test_it_trains_on_the_hard_half_and_continues_bit_equal(tmp_path):
  whole = hard_run(tmp_path / "whole")
  cut = hard_run(tmp_path / "cut", at=lambda n: n == 2 and os.kill(os.getpid(), signal.SIGTERM))
  assert cut.signal and int(cut.state.step) == 3
  again = hard_run(tmp_path / "cut")
  assert same(again.state.params, whole.state.params) and rows(tmp_path / "cut") == rows(tmp_path / "whole")
  plain = run(make_config(batch_size=READ, steps=1), tmp_path / "all", stream=fakes.Stream(READ))
  # Before the first update the model is the same: its loss on the hard half is larger than on all.
  first = [rows(tmp_path / name)[0]["answer/loss"] for name in ("whole", "all")]
  assert first[0] > first[1] + 0.05
  assert int(plain.state.step) == 1


def test_the_mesh_changes_nothing(tmp_path):
  one = hard_run(tmp_path / "one", mesh=MeshConfig(data=1))
  many = hard_run(tmp_path / "many", mesh=MeshConfig(data=4, fsdp=2), accumulation=2)
  for name in one.state.params:
    np.testing.assert_allclose(many.state.params[name], one.state.params[name], rtol=2e-4, atol=1e-5)


def test_none_is_the_plain_step(tmp_path):
  config = make_config(steps=3)
  assert config.phases == {} and phases.make_phases(config.phases) == ()
  assert phases.examples_read((), 16) == 16


def test_two_phases_follow_each_other(tmp_path):
  config = {"a": PhaseConfig("hard_examples", {"keep": 0.5}), "b": HARD["hard"]}
  made = phases.make_phases(config)
  assert phases.examples_read(made, 16) == 64
  outcome = run(make_config(phases=config, steps=2), tmp_path, stream=fakes.Stream(64))
  assert int(outcome.state.step) == 2 and outcome.compilations == 1


def test_mistakes_are_named():
  for config, message in (
    (
      PhaseConfig("hard_example"),
      r"config\.phases\.x\.kind: unknown 'hard_example'; did you mean 'hard_examples'",
    ),
    (PhaseConfig("hard_examples", {"kep": 1}), r"phases\.x\.kwargs\.kep: unknown key; did you mean 'keep'"),
    (PhaseConfig("hard_examples", {"keep": 0.0}), r"phases\.x\.kwargs\.keep: 0\.0 is no share"),
  ):
    with pytest.raises(UserError, match=message):
      phases.make_phases({"x": config})
  (phase,) = phases.make_phases({"x": PhaseConfig("hard_examples", {"keep": 0.7})})
  with pytest.raises(UserError, match=r"16 examples out of 22\.86 is no whole number; use a share such as"):
    phase.reads(16)
  terms = objectives.make_objectives({"depth": LossConfig("depth_probe")})
  with pytest.raises(UserError, match="ranked by their answers, but no loss is of kind 'answer'"):
    phase.check(terms)
