"""Bottleneck adapters by their formulas, and in generation with a cache."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import PeftConfig, from_config_dict
from spatialvlm.peft.bottleneck import Houlsby, Parallel, Pfeiffer
from tests.models.support import jit
from tests.peft import support

METHODS = {"houlsby": Houlsby(), "pfeiffer": Pfeiffer(), "parallel": Parallel()}


def adapted(name, **settings):
  config = from_config_dict({"method": name, "target": ".*", "reduction_factor": 4, **settings}, PeftConfig)
  return support.moved(peft.apply(support.build(), config), 0.3)


def expected(module, x):
  """Of its adapter alone, in float64."""
  made = module.adapter
  down, b, up, c = (np.float64(v[...]) for v in (made.down, made.down_bias, made.up, made.up_bias))
  hidden = np.float64(x) @ down + b
  hidden = np.maximum(hidden, 0) if made.spec.activation == "relu" else hidden / (1 + np.exp(-hidden))
  return made.spec.scaling * (hidden @ up + c)


def test_houlsby_reads_what_a_linear_layer_gives():
  layer, x = (
    adapted("houlsby").vision.stack.layers[0].mlp.down_proj,
    np.random.default_rng(1).normal(size=(2, 3, 24)),
  )
  o = np.float64(x) @ np.float64(layer.kernel[...]) + np.float64(layer.bias[...])
  assert layer.adapter.down.shape == (16, 4) and layer.adapter.spec.activation == "silu"
  np.testing.assert_allclose(layer(jnp.float32(x)), o + expected(layer, o), rtol=1e-4, atol=1e-5)


def test_pfeiffer_reads_the_stream_behind_a_block():
  x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 16)), jnp.float32)
  block, plain = (m.vision.stack.layers[0] for m in (adapted("pfeiffer"), support.build()))
  s, _ = plain(x)
  assert block.adapter.spec.scaling == 1 and block.adapter.spec.activation == "relu"
  np.testing.assert_allclose(block(x)[0], s + expected(block, s), rtol=1e-4, atol=1e-5)


def test_parallel_reads_what_the_feed_forward_network_reads():
  x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 16)), jnp.float32)
  mlp, plain = (m.vision.stack.layers[0].mlp for m in (adapted("parallel"), support.build()))
  assert mlp.adapter.spec.scaling == 4 and mlp.adapter.spec.activation == "relu"
  np.testing.assert_allclose(mlp(x), plain(x) + expected(mlp, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_defaults_stand_in_the_decoder_with_the_papers_widths(name):
  vlm = peft.apply(support.build(), PeftConfig(method=name))
  sites = METHODS[name].adapted_sites(vlm)
  assert len(sites) == (4 if name == "houlsby" else 2) and all("text_model" in site for site in sites)
  widths = {site.module.adapter.down.shape for site, _ in sites.values()}
  assert widths == {(24, 12)} if name == "parallel" else widths == {(24, 1)}
  assert not any(np.asarray(site.module.adapter.up[...]).any() for site, _ in sites.values())


@pytest.mark.parametrize("name", [*METHODS, "trainable_tokens"])
def test_a_cache_gives_what_a_whole_pass_gives(name):
  settings = {"token_indices": list(range(3, 40)), "target": None} if name == "trainable_tokens" else {}
  config = {"method": name, **({} if settings else {"target": ".*", "reduction_factor": 4}), **settings}
  vlm = support.moved(peft.apply(support.build(tied=True), from_config_dict(config, PeftConfig)), 0.3)
  batch = support.batch()
  cut = lambda x: x[:, :7]
  prompt = dataclasses.replace(
    batch,
    tokens_BT=cut(batch.tokens_BT),
    valid_BT=cut(batch.valid_BT),
    image_slot_BT=cut(batch.image_slot_BT),
  )
  graphdef, state = nnx.split(vlm)

  def stepped(state):
    model = nnx.merge(graphdef, state)
    _, cache = model.prefill(prompt, model.init_cache(2, 8))
    hidden_BD, _ = model.decode_step(batch.tokens_BT[:, 7], cache)
    ids = jnp.asarray([3, 50, 7])
    return model.unembed(hidden_BD), model.unembed(hidden_BD, ids)

  found, some = jit(stepped)(state)
  whole = support.logits(vlm)[:, 7]
  np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(some, whole[:, [3, 50, 7]], rtol=1e-4, atol=1e-5)


def test_folders_say_what_they_are(tmp_path):
  folder = peft.save_adapter(adapted("parallel", scaling=2.0), tmp_path / "a")
  said = json.loads((folder / "adapter_config.json").read_text())
  assert said["peft_type"] == "SPATIALVLM_PARALLEL"
  assert (said["reduction_factor"], said["activation"], said["scaling"]) == (4, "relu", 2.0)
  assert "model.text_model.layers.0.mlp" in said["target_modules"]
