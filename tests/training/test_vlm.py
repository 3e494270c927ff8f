"""The step on a real, small SmolVLM with adapters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import MeshConfig, PeftConfig
from spatialvlm.core import axes
from spatialvlm.models import execution
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.vlm import Vlm
from spatialvlm.training import fit as fit_lib
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.training.objectives import Answer
from spatialvlm.types import UserError
from tests import tiny_model
from tests.peft import support
from tests.training.helpers import make_config, run

TERMS = {"answer": (1.0, Answer())}
PEFT = PeftConfig(
  target=r".*(vision|text)_model.*\.[qv]_proj",
  full=r"model\.connector\..*",
  options={"rank": 2, "dropout": 0.5},
)


def shallow(dtype: str) -> Vlm:
  """A SmolVLM of one layer in each tower, every parameter random."""
  config = FAMILIES["smolvlm"].parse_config(tiny_model.config_json(depth=1), dtype=dtype, where="test")
  graphdef, state = nnx.split(nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0))))
  rng = np.random.default_rng(0)
  draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
  return nnx.merge(graphdef, jax.tree.map(draw, state))


def make(dtype: str, remat: bool):
  """A step, its state moved from where adapters do nothing, frozen arrays, a batch, and a loss step."""
  vlm = execution.apply(peft.apply(shallow(dtype), PEFT), execution.Execution(remat=remat))
  mesh = axes.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  split = state_lib.Split(vlm, peft.trainable_filter(vlm, PEFT), mesh)
  tx = optax.adamw(1e-2)
  state = state_lib.init_state(split.params, tx, ema=False, mesh=mesh)
  state = dataclasses.replace(state, params={k: v + 0.1 for k, v in state.params.items()})
  index = np.array([[6, 7], [7, -1]], np.int32)
  batch = dataclasses.replace(support.batch(jnp.dtype(dtype)), target_index_BK=jnp.asarray(index))
  step = jax.jit(step_lib.make_train_step(split, tx, TERMS))
  return step, state, split.frozen, batch, jax.jit(step_lib.make_loss_step(split, TERMS))


@pytest.fixture(scope="module")
def plain():
  return make("float32", remat=False)


@pytest.mark.slow
def test_recomputing_activations_changes_no_number(plain):
  step, state, frozen, batch, _ = plain
  new, metrics = step(state, frozen, batch)
  step, state, frozen, batch, _ = make("float32", remat=True)
  again, same = step(state, frozen, batch)
  assert float(same["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
  assert float(same["grad_norm"]) == pytest.approx(float(metrics["grad_norm"]), rel=1e-4)
  assert set(new.params) == set(again.params)


def test_dropout_draws_a_mask_of_its_own_in_every_step(plain):
  step, state, frozen, batch, loss_step = plain
  first = float(step(state, frozen, batch)[1]["loss"])
  assert float(step(state, frozen, batch)[1]["loss"]) == first
  later = dataclasses.replace(state, step=state.step + 1)
  assert float(step(later, frozen, batch)[1]["loss"]) != pytest.approx(first, rel=1e-4)
  # Validation drops nothing.
  total, weight = loss_step(state, frozen, batch)["answer/loss"]
  assert loss_step(later, frozen, batch)["answer/loss"][0] == total
  assert float(total / weight) != pytest.approx(first, rel=1e-4)


def test_a_bfloat16_base_keeps_float32_trainables_and_moments():
  step, state, frozen, batch, _ = make("bfloat16", remat=False)
  new, metrics = step(state, frozen, batch)
  assert {x.dtype for x in frozen.values()} == {jnp.dtype("bfloat16")}
  floats = [x for x in jax.tree.leaves((new.params, new.opt_state)) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert {x.dtype for x in floats} == {jnp.dtype("float32")}
  assert np.isfinite(float(metrics["loss"]))
  # A step far below bfloat16's resolution is not lost on the float32 master.
  assert all(np.any(np.asarray(new.params[k]) != np.asarray(state.params[k])) for k in new.params)
  assert "connector.proj.kernel" in new.params


def test_out_of_memory_names_the_settings_to_lower(tmp_path, monkeypatch):
  def exhausted(self, *args):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")

  monkeypatch.setattr(fit_lib.step_lib.Programs, "get", exhausted)
  message = r"lower train\.batch_size \(now 16\) or raise train\.accumulation \(now 1\).*train\.remat=True"
  with pytest.raises(UserError, match=message):
    run(make_config(steps=2), tmp_path)


def test_other_failures_of_a_device_are_not_taken_for_memory(tmp_path, monkeypatch):
  def broken(self, *args):
    raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

  monkeypatch.setattr(fit_lib.step_lib.Programs, "get", broken)
  with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
    run(make_config(steps=2), tmp_path)
