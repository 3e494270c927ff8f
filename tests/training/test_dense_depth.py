"""Dense depth: the losses against NumPy, tiles in their order, the head on disk, and a picture's own size."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm.config import LossConfig
from spatialvlm.depth.predict import resized
from spatialvlm.training import objectives
from spatialvlm.training.objectives import DenseDepth, Models, heads
from spatialvlm.training.objectives.dense_depth import (
  DenseDepthSettings,
  gradient_matching,
  of_tiles,
)
from spatialvlm.types import Batch, Extra, UserError
from tests.peft import support

# Two image tokens a side; four cells a side come of them.
SETTINGS = dict(width=8, upsample=2, farthest=50.0)


@pytest.fixture(scope="module")
def batch():
  """Two pictures of 16 pixels; of the first the upper left is sky, of the second a part says nothing."""
  depth = np.random.default_rng(0).uniform(1, 6, (2, 16, 16)).astype(np.float32)
  depth[0, :8, :8] = 0
  depth[1, 4:8, 8:] = np.nan
  return dataclasses.replace(support.batch(), extra={"depth": Extra(jnp.asarray(depth), "tile")})


def made(vlm, **settings):
  """An objective and a head whose map is not flat."""
  objective = DenseDepth(DenseDepthSettings(**{**SETTINGS, **settings}))
  objective.check(vlm.config)
  head = objective.head(vlm.config, nnx.Rngs(0))
  rng = np.random.default_rng(1)
  head.out.kernel.set_raw_value(jnp.asarray(0.4 * rng.normal(size=head.out.kernel.shape), jnp.float32))
  return objective, head


def cells(pixels, side):
  """Mean depth and whether most of a cell has one, (side, side)."""
  size = 16 // side
  mean, there = np.ones((side, side)), np.zeros((side, side), bool)
  for r in range(side):
    for c in range(side):
      part = pixels[r * size : (r + 1) * size, c * size : (c + 1) * size]
      good = part[part > 0]
      there[r, c] = len(good) >= part.size / 2
      mean[r, c] = good.mean() if there[r, c] else 1
  return mean, there


def neighbours(apart, there):
  """Gradient matching of one picture by loops."""
  total = 0.0
  for step in (1, 2, 4):
    x, w = apart[::step, ::step], there[::step, ::step]
    for axis in (0, 1):
      found = [
        abs(x[r + (axis == 0), c + (axis == 1)] - x[r, c])
        for r in range(x.shape[0] - (axis == 0))
        for c in range(x.shape[1] - (axis == 1))
        if w[r, c] and w[r + (axis == 0), c + (axis == 1)]
      ]
      total += np.mean(found) if found else 0.0
  return total / 3


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"silog": 0.0, "gradient": 0.0, "smooth_l1": 2.0},
    {"metric": False, "smooth_l1": 0.3},
    {"image": False, "encoder_layers": (1, -1)},
    {"decoder_layers": (1,), "variance_focus": 1.0},
  ],
)
def test_losses_and_metrics_are_those_of_numpy(vlm, batch, settings):
  objective, head = made(vlm, **settings)
  outputs = vlm.read(batch, objective.wants)
  total, weight, metrics = objective(outputs, Models(vlm, head), batch, jax.random.key(0))
  s = objective.settings
  maps = np.log(np.asarray(objective.predict(outputs, head, batch)))
  losses, errors = [], []
  for log_hw, pixels in zip(maps, np.asarray(batch.extra["depth"].array), strict=True):
    mean, there = cells(pixels, len(log_hw))
    apart = np.where(there, log_hw - np.log(mean), 0)
    shift = apart[there].mean() if not s.metric else 0.0
    apart = np.where(there, apart - shift, 0)
    d = apart[there]
    loss = s.silog * np.sqrt(max((d**2).mean() - s.variance_focus * d.mean() ** 2, 0) + 1e-6)
    loss += s.gradient * neighbours(apart, there)
    loss += s.smooth_l1 * np.where(abs(d) < 1, d**2 / 2, abs(d) - 0.5).mean()
    losses.append(loss)
    errors.append(np.stack([np.exp(log_hw - shift)[there], mean[there]]))
  found, truth = np.concatenate(errors, axis=1)
  assert weight == 2 and 4 < len(found) < maps.size
  np.testing.assert_allclose(total, sum(losses), rtol=1e-4)
  ratio = np.maximum(found / truth, truth / found)
  expected = {"abs_rel": abs(found - truth) / truth, "rmse": (found - truth) ** 2, "delta1": ratio < 1.25}
  for name, values in expected.items():
    np.testing.assert_allclose(metrics[name][0], values.sum(), rtol=1e-4, err_msg=name)
    assert metrics[name][1] == len(found)


def test_gradients_of_a_ramp():
  """A slope of 1 across: neighbours are 1, 2 and 4 apart across and the same down."""
  ramp = jnp.tile(jnp.arange(8.0), (1, 8, 1))
  np.testing.assert_allclose(gradient_matching(ramp, jnp.ones_like(ramp)), [(1 + 2 + 4) / 3], rtol=1e-6)
  np.testing.assert_array_equal(gradient_matching(ramp, jnp.zeros_like(ramp)), [0])


def test_tokens_of_the_decoder_stand_by_their_tiles():
  """Two samples of two tiles of two tokens, the slots not in the order of the text."""
  slots = np.array([[-1, 2, 3, 0, 1, -1], [0, 1, -1, 2, 3, -1]])
  x_BTD = np.where(slots[..., None] >= 0, slots[..., None] + 10 * np.arange(1, 3)[:, None, None], -1)
  batch = Batch(tokens_BT=slots, valid_BT=slots > -9, image_slot_BT=jnp.asarray(slots))
  found = of_tiles(jnp.asarray(x_BTD, jnp.float32), batch, (4, 2))
  np.testing.assert_array_equal(found[..., 0], [[10, 11], [12, 13], [20, 21], [22, 23]])
  with pytest.raises(UserError, match="share tiles"):
    of_tiles(jnp.asarray(x_BTD), dataclasses.replace(batch, tile_index_BI=slots), (4, 2))


@pytest.mark.parametrize("detach", [True, False])
def test_the_model_learns_of_it_where_that_is_wanted(vlm, batch, detach):
  objective, head = made(vlm, detach=detach)
  graphdef, params = nnx.split((vlm, head), nnx.Param)

  @jax.jit
  def slope(params):
    def loss(params):
      vlm, head = nnx.merge(graphdef, params)
      outputs = vlm.read(batch, objective.wants)
      return objective(outputs, Models(vlm, head), batch, jax.random.key(0))[0]

    return jax.grad(loss)(params)

  grads = dict(nnx.to_flat_state(slope(params)))
  size = lambda part: sum(float(jnp.abs(g[...]).sum()) for path, g in grads.items() if path[0] == part)
  assert size(1) > 0 and (size(0) > 0) == (not detach)


def test_a_batch_without_pictures_says_nothing(vlm, batch):
  objective, head = made(vlm)
  text = dataclasses.replace(batch, pixels_NHWC=None, image_slot_BT=None, extra={})
  outputs = vlm.read(text, objective.wants)
  total, weight, metrics = objective(outputs, Models(vlm, head), text, jax.random.key(0))
  assert total == weight == 0 and metrics["abs_rel"] == (0, 0)


def test_the_head_comes_back_from_disk(vlm, batch, tmp_path):
  objective, head = made(vlm, encoder_layers=(1,))
  heads.save_head(tmp_path, "depth", head, objective, "base")
  again = heads.load_head(tmp_path / "depth.json", vlm.config)
  outputs = vlm.read(batch, objective.wants)
  expected = objective.predict(outputs, head, batch)
  np.testing.assert_array_equal(again.objective.predict(outputs, again.module, batch), expected)
  assert json.loads((tmp_path / "depth.json").read_text())["kind"] == "dense_depth"


def test_a_map_at_a_pictures_size():
  found = resized(np.array([[1.0, 3.0]], np.float32), (4, 8))
  assert found.shape == (4, 8) and found.dtype == np.float32
  assert (np.diff(found, axis=1) >= 0).all() and found.min() == 1 and found.max() == 3


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    (dict(upsample=3), "a power of two"),
    (dict(silog=0, gradient=0), "nor all 0"),
    (dict(image=False), "nothing is read"),
    (dict(share=0), "share in"),
  ],
)
def test_settings_that_cannot_work(settings, says):
  with pytest.raises(UserError, match=says):
    objectives.make_objective("depth", LossConfig("dense_depth", kwargs=settings))


def test_a_layer_that_is_not_there(vlm):
  objective = DenseDepth(DenseDepthSettings(decoder_layers=(99,)))
  with pytest.raises(UserError, match="decoder has 2 blocks; 99 is outside"):
    objective.check(vlm.config)
