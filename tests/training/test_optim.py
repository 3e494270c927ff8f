import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spatialvlm.config import MeshConfig, OptimConfig
from spatialvlm.core import axes
from spatialvlm.core.axes import logical
from spatialvlm.training import optim
from spatialvlm.training import state as state_lib
from spatialvlm.types import UserError


class Two(nnx.Module):
  """A matrix and a vector."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.up = nnx.Linear(8, 16, rngs=rngs, use_bias=False, kernel_metadata=logical("embed", None))
    self.down = nnx.Linear(16, 8, rngs=rngs, kernel_metadata=logical(None, "embed"))


@pytest.fixture(scope="module")
def split():
  return state_lib.Split(Two(), nnx.Param, axes.make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2]))


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_every_optimizer_goes_downhill_with_its_state_beside_the_parameters(split, name):
  rate = {"prodigy": 1.0, "sgd": 0.3, "adagrad": 0.3, "sm3": 0.3, "schedule_free_sgd": 1.0, "adopt": 0.05}
  config = OptimConfig(name=name, learning_rate=rate.get(name, 0.02), warmup_steps=1, schedule="constant")
  tx = optim.make_optimizer(config, optim.schedule(config, optim.span(config, 30)), split.params)
  state = state_lib.init_state(split.params, tx, ema=False, mesh=split.mesh)
  loss = lambda params: sum(jnp.square(p - 0.1).mean() for p in params.values())

  def step(_, carry):
    params, opt_state = carry
    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  run = jax.jit(lambda *carry: jax.lax.fori_loop(0, 30, step, carry))
  params, _ = run(state.params, state.opt_state)
  assert loss(params) < 0.9 * loss(state.params)
  for leaf in jax.tree.leaves(state.opt_state):
    if leaf.shape == state.params["up.kernel"].shape:
      assert leaf.sharding.is_equivalent_to(state.params["up.kernel"].sharding, leaf.ndim)


def test_schedules():
  cosine = OptimConfig(learning_rate=2.0, schedule="cosine", warmup_steps=4, final_fraction=0.1)
  rates = [float(optim.schedule(cosine, optim.span(cosine, 12))(s)) for s in range(13)]
  np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
  theirs = optax.cosine_decay_schedule(2.0, 8, alpha=0.1)
  np.testing.assert_allclose(rates[4:], [float(theirs(s)) for s in range(9)], rtol=1e-5)
  wsd = OptimConfig(learning_rate=1.0, schedule="wsd", warmup_steps=2, decay_fraction=0.4)
  rates = [float(optim.schedule(wsd, optim.span(wsd, 10))(s)) for s in range(11)]
  np.testing.assert_allclose(rates, [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0], atol=1e-6)
  constant = OptimConfig(learning_rate=0.3, schedule="constant", warmup_steps=0)
  assert float(optim.schedule(constant, optim.span(constant, 10))(9)) == pytest.approx(0.3)
  with pytest.raises(UserError, match="did you mean 'cosine'"):
    optim.span(OptimConfig(schedule="cosin"), 10)


def test_a_schedule_longer_than_the_run_ends_it_before_the_decay_is_done():
  long, cut = OptimConfig(schedule="cosine"), OptimConfig(schedule="cosine", schedule_steps=100)
  for step in (0, 9, 25, 49):
    rates = [optim.schedule(one, optim.span(one, n))(step) for one, n in ((cut, 50), (long, 100))]
    assert float(rates[0]) == float(rates[1])


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "sgd", "adafactor", "schedule_free_adamw"])
def test_only_what_the_mask_names_decays(split, name):
  config = OptimConfig(
    name=name,
    learning_rate=0.1,
    warmup_steps=0,
    schedule="constant",
    weight_decay=0.1,
    weight_decay_mask=r"up\..*",
  )
  tx = optim.make_optimizer(config, optim.schedule(config, optim.span(config, 10)), split.params)
  params = {k: v + 1.0 for k, v in split.params.items()}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  for key, update in updates.items():
    # a schedule-free step rebuilds the parameters from their average, to the last bits only
    moved = float(jnp.abs(update).max()) > 1e-6
    assert moved == key.startswith("up."), key


def test_decay_of_matrices_and_bad_masks(split):
  mask = optim.decay_mask("matrices", split.params)
  assert mask["up.kernel"] and not mask["down.bias"]
  with pytest.raises(UserError, match="names no trained parameter"):
    optim.decay_mask("nothing", split.params)
  with pytest.raises(UserError, match="not a regular expression"):
    optim.decay_mask("(", split.params)


@pytest.mark.parametrize("steps", [3, 5])
def test_muon_in_a_loop_is_optax_s_own(split, steps):
  """Same updates, and a state of the same shapes, so that older runs can be continued."""
  config = OptimConfig(
    name="muon", schedule="constant", learning_rate=0.02, kwargs={"ns_steps": float(steps)}
  )
  rate = optim.schedule(config, optim.span(config, 10))
  matrix = lambda name: optax.contrib.MuonDimensionNumbers() if name.endswith("kernel") else None
  dims = lambda params: {name: matrix(name) for name in params} if isinstance(params, dict) else params
  theirs = optax.contrib.muon(rate, ns_steps=steps, muon_weight_dimension_numbers=dims)
  params, found = split.params, []
  for tx in (theirs, optim.make_optimizer(config, rate, params)):
    state, moved = tx.init(params), params
    for _ in range(3):
      updates, state = jax.jit(tx.update)(jax.tree.map(jnp.cos, moved), state, moved)
      moved = optax.apply_updates(moved, updates)
    found.append((moved, [leaf.shape for leaf in jax.tree.leaves(state)]))
  assert found[0][1] == found[1][1]
  for name, value in found[0][0].items():
    np.testing.assert_allclose(found[1][0][name], value, rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(value) - np.asarray(params[name])).max() > 1e-3


def test_arguments_by_name(split):
  rate = optim.schedule(OptimConfig(), optim.span(OptimConfig(), 10))
  config = OptimConfig(name="muon", kwargs={"ns_steps": 3.0, "beta": 0.9})
  optim.make_optimizer(config, rate, split.params)
  with pytest.raises(UserError, match="did you mean 'b2'"):
    optim.make_optimizer(OptimConfig(kwargs={"b3": 0.9}), rate, split.params)
  with pytest.raises(UserError, match="did you mean 'muon'"):
    optim.make_optimizer(OptimConfig(name="moun"), rate, split.params)


def test_schedule_free_is_evaluated_at_its_average(split):
  config = OptimConfig(name="schedule_free_adamw", learning_rate=0.1, warmup_steps=0, schedule="constant")
  tx = optim.make_optimizer(config, optim.schedule(config, optim.span(config, 10)), split.params)
  state = state_lib.init_state(split.params, tx, ema=False, mesh=split.mesh)
  grads = jax.tree.map(jnp.ones_like, state.params)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  updates, opt_state = tx.update(grads, opt_state, params)
  params = optax.apply_updates(params, updates)
  found = state_lib.weights(state_lib.TrainState(state.step, params, opt_state, {}))
  expected = optax.contrib.schedule_free_eval_params(opt_state, params)
  for name in found:
    np.testing.assert_array_equal(found[name], expected[name])
    assert not np.array_equal(found[name], params[name])


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_groups_have_rates_of_their_own(name):
  """As two optimizers would, one for each part, at the rates that the factors give."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {"a.lora_a": draw(4, 3), "a.lora_b": draw(3, 4), "norm.scale": draw(4)}
  grads = [{key: draw(*value.shape) for key, value in params.items()} for _ in range(3)]
  config = OptimConfig(
    name=name, learning_rate=0.1, warmup_steps=2, weight_decay=0.1, groups={".*lora_b": 16}
  )

  def after(config, params, keys):
    params = {key: params[key] for key in keys}
    tx = optim.make_optimizer(config, optim.schedule(config, optim.span(config, 3)), params)
    state = tx.init(params)
    for grad in grads:
      updates, state = tx.update({key: grad[key] for key in keys}, state, params)
      params = optax.apply_updates(params, updates)
    return params

  found = after(config, params, params)
  alone = dataclasses.replace(config, groups={})
  faster = dataclasses.replace(alone, learning_rate=1.6)
  expected = after(alone, params, ["a.lora_a", "norm.scale"]) | after(faster, params, ["a.lora_b"])
  for key, value in expected.items():
    np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
  ("groups", "name", "words"),
  [
    ({".*lora_b": 2, ".*lora_c": 2}, "adamw", "'.*lora_c' names no trained parameter; trained are a.lora_b"),
    ({".*": 2, ".*lora_b": 4}, "adamw", "names only parameters that earlier patterns name"),
    ({"(": 2}, "adamw", "not a regular expression"),
    ({".*": 0}, "adamw", "must be above 0"),
    ({".*": 2}, "prodigy", "prodigy sees all parameters as one"),
  ],
)
def test_groups_that_cannot_be(groups, name, words):
  config = OptimConfig(name=name, groups=groups)
  with pytest.raises(UserError) as caught:
    optim.make_optimizer(
      config, optim.schedule(config, optim.span(config, 3)), {"a.lora_b": jnp.zeros((2, 2))}
    )
  assert words in str(caught.value) and "\n" not in str(caught.value)
