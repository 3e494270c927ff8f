"""Whole steps of a model whose layers run as a loop, against the same steps layer by layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatialvlm import peft
from spatialvlm.config import MeshConfig, PeftConfig
from spatialvlm.core import axes
from spatialvlm.models import execution
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.training.objectives import Answer
from tests import tiny_model
from tests.peft import support

TERMS = {"answer": (1.0, Answer())}
LORA = PeftConfig(
  target=r".*(vision|text)_model.*\.(q_proj|fc1|up_proj)",
  full=r"model\.connector\..*",
  options={"rank": 2, "dropout": 0.5},
)
FULL = PeftConfig("none", full=".*")


def parts(config: PeftConfig, mesh, loop: bool, remat: bool = False):
  """A step of three layers a tower, its state and arrays; what is trained has moved from its start."""
  vlm = peft.apply(tiny_model.build(depth=3), config)
  execution.apply(vlm, execution.Execution(remat=remat, scan=loop))
  split = state_lib.Split(vlm, peft.trainable_filter(vlm, config), mesh)
  tx = optax.adamw(1e-2)
  state = state_lib.init_state(split.params, tx, ema=False, mesh=mesh)
  moved = {k: jax.device_put(v + 0.02, v.sharding) for k, v in state.params.items()}
  return split, tx, dataclasses.replace(state, params=moved)


def batch(count: int = 2):
  index = jnp.asarray([[6, 7], [7, -1]] * (count // 2), jnp.int32)
  found = dataclasses.replace(support.batch(), target_index_BK=index[:2])
  return jax.tree.map(lambda x: jnp.concatenate([x] * (count // 2)), found)


def gradients_of(config: PeftConfig, mesh, loop: bool, remat: bool = False, accumulation: int = 1):
  """Metrics of a step, and its gradients: of moments that began at zero, a tenth of them."""
  split, tx, state = parts(config, mesh, loop, remat)
  step = step_lib.make_train_step(split, tx, TERMS, accumulation=accumulation)
  programs = step_lib.Programs(
    step, mesh, donate=False, out_shardings=(step_lib.state_shardings(state), None)
  )
  sent = step_lib.to_devices(batch(4 * accumulation), mesh, accumulation)
  program, _ = programs.get(state, split.frozen, sent)
  new, metrics = program.run(state, split.frozen, sent)
  return metrics, {name: 10 * np.asarray(m) for name, m in new.opt_state[0].mu.items()}, program


def compare(one, other, rtol):
  for key, want in one[0].items():
    assert float(other[0][key]) == pytest.approx(float(want), rel=rtol), key
  assert other[1].keys() == one[1].keys()
  size = max(np.abs(g).max() for g in one[1].values())
  for name, want in one[1].items():
    np.testing.assert_allclose(other[1][name], want, rtol=0, atol=rtol * size, err_msg=name)


def alone():
  return axes.make_mesh(MeshConfig(data=1), jax.devices()[:1])


def test_a_step_of_adapters_with_dropout_and_microbatches_is_the_same():
  one, other = (gradients_of(LORA, alone(), loop, accumulation=2) for loop in (False, True))
  compare(one, other, 1e-5)
  # A loop counts as often as it turns; it makes the gradient of what the first block reads, too.
  assert one[2].flops < other[2].flops < 1.1 * one[2].flops


@pytest.mark.slow
def test_a_step_that_trains_everything_is_the_same_on_one_device_and_on_eight():
  one = gradients_of(FULL, alone(), loop=False)
  compare(one, gradients_of(FULL, alone(), loop=True, remat=True), 1e-5)
  mesh = axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  compare(one, gradients_of(FULL, mesh, loop=True, remat=True), 1e-4)
