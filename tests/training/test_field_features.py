"""A field's descriptors as targets of image tokens: against NumPy, learned, refused where there are none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spatialvlm.config import LossConfig
from spatialvlm.training import objectives
from spatialvlm.training.objectives import FieldFeatures, Models
from spatialvlm.training.objectives.field_features import FieldFeaturesSettings
from spatialvlm.types import Batch, Extra, UserError
from tests.peft import support

CHANNELS = 3


@pytest.fixture(scope="module")
def batch():
  """Two pictures of 4 tokens, 8 x 8 cells; of the first a token is not known, of the second one in part."""
  field = np.random.default_rng(0).normal(size=(2, 8, 8, CHANNELS)).astype(np.float32)
  field[0, :4, :4] = np.nan
  field[1, 4:, :2] = np.nan
  field[1, 0, 4] = np.nan
  return dataclasses.replace(support.batch(), extra={"field": Extra(jnp.asarray(field), "tile")})


def made(vlm, **settings):
  objective = FieldFeatures(FieldFeaturesSettings(channels=CHANNELS, **settings))
  objective.check(vlm.config)
  return objective, objective.head(vlm.config, nnx.Rngs(0))


@pytest.mark.parametrize("share", [0.5, 0.6])
def test_loss_and_metrics_are_those_of_the_known_cells(vlm, batch, share):
  objective, head = made(vlm, share=share)
  rng = np.random.default_rng(1)
  head.kernel.set_raw_value(jnp.asarray(rng.normal(size=head.kernel.shape), jnp.float32))
  outputs = vlm.read(batch, objective.wants)
  total, weight, metrics = objective(outputs, Models(vlm, head), batch, None)
  tokens, kernel = np.asarray(outputs.image), np.asarray(head.kernel[...])
  losses, errors, means, cosines = [], [], [], []
  for n, field in enumerate(np.asarray(batch.extra["field"].array)):
    for p in range(4):
      r, c = divmod(p, 2)
      cells = field[4 * r : 4 * r + 4, 4 * c : 4 * c + 4].reshape(-1, CHANNELS)
      known = cells[~np.isnan(cells).any(-1)]
      if len(known) < 16 * share:
        continue
      truth, x = known.mean(0), tokens[n, p] / np.sqrt((tokens[n, p] ** 2).mean() + 1e-6)
      said = x @ kernel
      off = abs(said - truth)
      losses.append(np.where(off < 1, off**2 / 2, off - 0.5).mean())
      errors.append((off**2).mean())
      means.append((truth**2).mean())
      cosines.append(said @ truth / np.linalg.norm(said) / np.linalg.norm(truth))
  assert weight == len(losses) == (7 if share == 0.5 else 6)
  np.testing.assert_allclose(total, sum(losses), rtol=1e-4)
  for name, values in {"mse": errors, "mse_of_mean": means, "cosine": cosines}.items():
    np.testing.assert_allclose(metrics[name][0], sum(values), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("detach", [False, True])
def test_it_is_learned_and_the_model_learns_of_it_where_that_is_wanted(vlm, batch, detach):
  objective, head = made(vlm, detach=detach)
  graphdef, params, rest = nnx.split((vlm, head), nnx.Param, ...)
  tx = optax.adam(0.02)

  @jax.jit
  def step(params, state):
    def loss(params):
      vlm, head = nnx.merge(graphdef, params, rest)
      total, weight, metrics = objective(vlm.read(batch, objective.wants), Models(vlm, head), batch, None)
      return total / weight, metrics

    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state, value, metrics, grads

  state, values = tx.init(params), []
  for _ in range(30):
    params, state, value, metrics, grads = step(params, state)
    values.append(float(value))
  assert values[-1] < 0.5 * values[0] and metrics["mse"][0] < metrics["mse_of_mean"][0]
  of_model = sum(float(jnp.abs(g[...]).sum()) for path, g in nnx.to_flat_state(grads) if path[0] == 0)
  assert (of_model > 0) == (not detach)


def test_what_it_cannot_have_is_told_by_name(vlm, batch):
  terms = objectives.make_objectives({"room": LossConfig("field_features")})
  with pytest.raises(
    UserError, match=r"losses\.room: no data source gives the dense target 'field'; there are depth"
  ):
    objectives.check_data(terms, {"scenes": ["depth"]})
  objective, head = made(vlm)
  deep = dataclasses.replace(batch, extra={"field": Extra(jnp.zeros((2, 8, 8, 5)), "tile")})
  with pytest.raises(UserError, match=r"kwargs\.channels: 3, but 'field' has the shape 8x8x5"):
    objective(vlm.read(deep, objective.wants), Models(vlm, head), deep, None)
  with pytest.raises(UserError, match="channels at least 1"):
    objectives.make_objective("room", LossConfig("field_features", kwargs={"channels": 0}))
  text = Batch(batch.tokens_BT, batch.valid_BT)
  total, weight, metrics = objective(vlm.read(text, objective.wants), Models(vlm, head), text, None)
  assert total == weight == 0 and set(metrics) == {"mse", "mse_of_mean", "cosine"}
