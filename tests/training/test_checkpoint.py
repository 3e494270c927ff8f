"""What is read of a checkpoint, and checkpoints of before there were heads."""

import dataclasses
import pathlib
import zipfile

import jax
import numpy as np
import pytest

from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.training.checkpoint import Checkpoints
from spatialvlm.types import UserError
from tests.training import fakes
from tests.training.helpers import make_config, make_parts, run, same
from tests.training.test_fit import rows

# Four of eight steps on the fake model, written before a run had heads; and the losses of all eight.
RECORDED = pathlib.Path(__file__).parent / "recorded" / "checkpoint_of_model_alone.zip"
LOSSES = (3.250663, 3.041064, 2.810948, 2.751166, 2.485341, 2.347485, 2.357637, 2.294322)


def recorded_config():
  return make_config(optim={"ema": 0.9}, steps=8, log_every=1, checkpoint_every=4, keep=1)


def test_a_checkpoint_of_before_heads_is_continued(tmp_path):
  zipfile.ZipFile(RECORDED).extractall(tmp_path)
  outcome = run(recorded_config(), tmp_path, stream=fakes.Stream(16))
  assert int(outcome.state.step) == 8
  assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))
  np.testing.assert_allclose([row["loss"] for row in rows(tmp_path)], LOSSES, rtol=1e-4)


def test_a_checkpoint_of_before_heads_is_read_as_a_model(tmp_path):
  zipfile.ZipFile(RECORDED).extractall(tmp_path)
  _, state = make_parts(recorded_config())
  kept = Checkpoints(tmp_path / "checkpoints", keep=1, reads=True)
  found = kept.weights(4, step_lib.abstract(state.params))
  assert same(found, kept.restore(4, state).ema)


@pytest.mark.parametrize(
  "optim", [{}, {"ema": 0.9}, {"name": "schedule_free_adamw"}, {"name": "muon"}], ids=str
)
def test_weights_alone_are_those_that_count(tmp_path, optim):
  config = make_config(optim=optim, steps=3, checkpoint_every=3)
  outcome = run(config, tmp_path)
  kept = Checkpoints(tmp_path / "checkpoints", keep=1, reads=True)
  expected = state_lib.weights(outcome.state)
  found = kept.weights(3, step_lib.abstract(outcome.state.params))
  assert found.keys() == expected.keys()
  for name in expected:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-7)
    assert found[name].sharding.is_equivalent_to(outcome.state.params[name].sharding, found[name].ndim)
  if optim and "muon" not in optim.values():
    assert not same(found, outcome.state.params)
  part = {"up.kernel": step_lib.abstract(outcome.state.params)["up.kernel"]}
  np.testing.assert_array_equal(kept.weights(3, part)["up.kernel"], found["up.kernel"])


def test_what_a_checkpoint_lacks_is_named(tmp_path):
  outcome = run(make_config(steps=1, checkpoint_every=1), tmp_path)
  kept = Checkpoints(tmp_path / "checkpoints", keep=1, reads=True)
  like = step_lib.abstract(outcome.state.params)
  kernel = like.pop("up.kernel")
  with pytest.raises(UserError, match=r"checkpoints/1: checkpoint holds no heads\.depth\.kernel; it is of"):
    kept.weights(1, like | {"heads.depth.kernel": kernel})
  wide = jax.ShapeDtypeStruct((8, 99), kernel.dtype, sharding=kernel.sharding)
  with pytest.raises(UserError, match=r"up\.kernel is \(8, 16\) in the checkpoint, \(8, 99\) in this model"):
    kept.weights(1, like | {"up.kernel": wide})
  with pytest.raises(UserError, match="cannot be restored"):
    kept.restore(1, dataclasses.replace(outcome.state, ema={"up.kernel": outcome.state.params["up.kernel"]}))
