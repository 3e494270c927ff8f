"""The depth probe on a small SmolVLM, against NumPy; its head on disk."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm.config import LossConfig
from spatialvlm.training import objectives
from spatialvlm.training.objectives import DepthProbe, Models, heads, make_objectives
from spatialvlm.training.objectives.depth_probe import DepthProbeSettings, mean_depth
from spatialvlm.types import Batch, Extra, UserError
from tests.peft import support


@pytest.fixture(scope="module")
def batch():
  """Two pictures of 16 pixels; of the first the upper left is sky, of the second a part is far away."""
  depth = np.random.default_rng(0).uniform(1, 6, (2, 16, 16)).astype(np.float32)
  depth[0, :8, :8] = 0
  depth[0, 8:, :3] = np.nan
  depth[1, :, 8:] += 20
  return dataclasses.replace(support.batch(), extra={"depth": Extra(jnp.asarray(depth), "tile")})


def probe(vlm, **settings):
  objective = DepthProbe(DepthProbeSettings(**settings))
  objective.check(vlm.config)
  head = objective.head(vlm.config, nnx.Rngs(0))
  rng = np.random.default_rng(1)
  head.kernel.set_raw_value(jnp.asarray(0.3 * rng.normal(size=head.kernel.shape), jnp.float32))
  head.bias.set_raw_value(jnp.full((1,), 1.2, jnp.float32))
  return objective, head


def cells(pixels, side):
  size = 16 // side
  return [pixels[r : r + size, c : c + size].ravel() for r in range(0, 16, size) for c in range(0, 16, size)]


@pytest.mark.parametrize(
  ("settings", "side"),
  [
    ({}, 2),
    ({"share": 0.9}, 2),
    ({"read": "encoder", "layer": 1}, 4),
    ({"read": "encoder", "layer": 0}, 4),
    ({"read": "decoder", "layer": -1}, 2),
    ({"read": "decoder", "layer": 1}, 2),
  ],
)
def test_loss_and_metrics_are_those_of_the_tokens_with_a_depth(vlm, batch, settings, side):
  objective, head = probe(vlm, **settings)

  @jax.jit
  def run(batch):
    outputs = vlm.read(batch, objective.wants)
    return objective(outputs, Models(vlm, head), batch, jax.random.key(0)), outputs

  (total, weight, metrics), outputs = run(batch)
  if objective.settings.read == "image":
    tokens = np.asarray(outputs.image)
  elif objective.settings.read == "encoder":
    tokens = np.asarray(outputs.encoder_layers[objective.settings.layer])
  else:  # image tokens stand at positions 1 to 4
    tokens = np.asarray(outputs.decoder_layers[objective.settings.layer])[:, 1:5]
  kernel, bias = np.asarray(head.kernel[...])[:, 0], float(head.bias[...][0])
  errors, found, truth = [], [], []
  for n, pixels in enumerate(np.asarray(batch.extra["depth"].array)):
    for p, cell in enumerate(cells(pixels, side)):
      seen = cell[cell > 0]
      if len(seen) < objective.settings.share * len(cell) or seen.mean() > 10:
        continue
      x = tokens[n, p] / np.sqrt((tokens[n, p] ** 2).mean() + 1e-6)
      log = x @ kernel + bias
      off = abs(log - np.log(seen.mean()))
      errors.append(0.5 * off**2 if off < 1 else off - 0.5)
      found.append(np.exp(log))
      truth.append(seen.mean())
  found, truth = np.array(found), np.array(truth)
  assert float(weight) == len(truth) and 0 < len(truth) < 2 * side**2
  np.testing.assert_allclose(total, np.sum(errors), rtol=1e-4)
  averages = {name: float(value / count) for name, (value, count) in metrics.items()}
  assert averages["abs_rel"] == pytest.approx(np.mean(abs(found - truth) / truth), rel=1e-4)
  assert averages["rmse"] == pytest.approx(np.mean((found - truth) ** 2), rel=1e-4)
  assert averages["delta1"] == pytest.approx(np.mean(np.maximum(found / truth, truth / found) < 1.25))


def test_a_detached_probe_teaches_the_model_nothing(vlm, batch):
  graphdef, params = nnx.split(vlm)

  def gradient(detach):
    objective, head = probe(vlm, detach=detach)

    def loss(params):
      model = nnx.merge(graphdef, params)
      outputs = model.read(batch, objective.wants)
      return objective(outputs, Models(model, head), batch, jax.random.key(0))[0]

    return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

  assert all(not np.any(np.asarray(g)) for g in gradient(True))
  assert any(np.any(np.asarray(g)) for g in gradient(False))


def test_a_fresh_head_says_one_depth_everywhere(vlm, batch):
  objective = DepthProbe()
  head = objective.head(vlm.config, nnx.Rngs(0))
  outputs = vlm.read(batch, objective.wants)
  np.testing.assert_allclose(objective.predict(outputs, head), np.full((2, 4), 4.0), rtol=1e-6)


def test_nothing_to_say_weighs_nothing(vlm, batch):
  for read in ("image", "encoder", "decoder"):
    objective, head = probe(vlm, read=read)
    text = Batch(batch.tokens_BT, batch.valid_BT)
    for given in (text, dataclasses.replace(batch, extra={})):
      outputs = vlm.read(given, objective.wants)
      total, weight, metrics = objective(outputs, Models(vlm, head), given, jax.random.key(0))
      assert float(total) == float(weight) == 0 and set(metrics) == {"abs_rel", "rmse", "delta1"}
  depth, weight = mean_depth(jnp.full((1, 4, 4), jnp.nan), 4, 0.5, 10.0)
  assert not weight.any() and np.isfinite(depth).all()


def test_what_cannot_be_read_is_refused(vlm):
  for settings, message in (
    (
      {"read": "decoder", "layer": 3},
      r"losses\.depth\.kwargs\.layer: the decoder has 2 blocks; 3 is outside",
    ),
    ({"read": "encoder", "layer": -4}, r"the encoder has 2 blocks; -4 is outside -3 \.\. 2"),
    (
      {"read": "pixels"},
      r"losses\.depth\.kwargs\.read: 'pixels' is not one of 'image', 'encoder', 'decoder'",
    ),
    ({"laier": 1}, r"losses\.depth\.kwargs\.laier: unknown key; did you mean 'layer'"),
    ({"layer": 1}, r"losses\.depth\.kwargs\.layer: image tokens have no layers"),
    ({"share": 0.0}, r"share in \(0, 1\]"),
    ({"detach": 2}, r"kwargs\.detach: expected bool, got 2"),
  ):
    with pytest.raises(UserError, match=message):
      terms = make_objectives({"depth": LossConfig("depth_probe", kwargs=settings)})
      objectives.make_heads(terms, vlm.config, 0)


def test_a_head_is_read_back_and_says_the_same(vlm, batch, tmp_path):
  objective, head = probe(vlm, read="decoder", layer=1, detach=False)
  heads.save_head(tmp_path / "heads", "depth", head, objective, "some/base")
  about = json.loads((tmp_path / "heads" / "depth.json").read_text())
  assert (about["kind"], about["base"]) == ("depth_probe", "some/base")
  found = heads.load_head(tmp_path / "heads" / "depth.safetensors", vlm.config)
  assert found.name == "depth" and found.objective.settings == objective.settings
  outputs = vlm.read(batch, found.objective.wants)
  metres_BT = found.objective.predict(outputs, found.module)
  assert metres_BT.shape == batch.tokens_BT.shape
  np.testing.assert_array_equal(metres_BT, objective.predict(outputs, head))


def test_a_head_that_does_not_fit_is_refused(vlm, tmp_path):
  objective, head = probe(vlm)
  heads.save_head(tmp_path, "depth", head, objective, "some/base")
  file = tmp_path / "depth.json"
  with pytest.raises(UserError, match=r"other\.json: no such head"):
    heads.load_head(tmp_path / "other.safetensors", vlm.config)
  block = vlm.config.text.block
  block = dataclasses.replace(block, attention=dataclasses.replace(block.attention, width=48))
  wider = dataclasses.replace(vlm.config, text=dataclasses.replace(vlm.config.text, block=block))
  assert wider.text.block.width == 48
  with pytest.raises(UserError, match=r"holds bias \[1\], kernel \[24, 1\], but on this model .* \[48, 1\]"):
    heads.load_head(file, wider)
  about = json.loads(file.read_text())
  for change, message in (
    ({"kind": "answer", "settings": {}}, "a loss of kind 'answer' has no head"),
    ({"kind": "depth"}, r"depth\.json: config\.losses\.depth\.kind: unknown 'depth'"),
    ({"format": "spatialvlm-head-9"}, "describes no head of this version"),
  ):
    file.write_text(json.dumps(about | change))
    with pytest.raises(UserError, match=message):
      heads.load_head(file, vlm.config)
  file.write_text("{")
  with pytest.raises(UserError, match="is no JSON"):
    heads.load_head(file, vlm.config)
