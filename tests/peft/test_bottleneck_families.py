"""Bottleneck adapters on InternVL and PaliGemma 2: cached generation, and the way through a folder."""

import dataclasses
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import hub, peft
from spatialvlm.config import PeftConfig
from tests.models.support import batch_of, jit
from tests.peft import support

FIXTURES = Path(__file__).parents[1] / "fixtures"
NEW = 3


def prompt_of(family, model):
  """Rows of three lengths, padded on the left, some with images."""
  record = np.load(FIXTURES / family / "record.npz")
  case = {key: record[f"left.{key}"] for key in ("input_ids", "attention_mask", "pixel_values")}
  pixels = case["pixel_values"]
  case["pixel_values"] = np.where(pixels == 255, 0.0, pixels / 127.5 - 1).astype(np.float32)
  return batch_of(case, model.config.image_token_id)


@partial(jit, static_argnums=0)
def both(graphdef, state, prompt, tokens_BK, mask_ar_BT):
  """Logits of the last place of a prompt and of further tokens: with a cache, and of one whole pass."""
  model = nnx.merge(graphdef, state)
  B, T = prompt.tokens_BT.shape
  hidden_BD, cache = model.prefill(prompt, model.init_cache(B, T + NEW))
  stepped = [model.unembed(hidden_BD)]
  for i in range(NEW):
    hidden_BD, cache = model.decode_step(tokens_BK[:, i], cache)
    stepped.append(model.unembed(hidden_BD))
  grown = lambda x, more: jnp.concatenate([x, jnp.asarray(more, x.dtype)], 1)
  whole = dataclasses.replace(
    prompt,
    tokens_BT=grown(prompt.tokens_BT, tokens_BK),
    valid_BT=grown(prompt.valid_BT, jnp.ones((B, NEW))),
    image_slot_BT=grown(prompt.image_slot_BT, jnp.full((B, NEW), -1)),
    mask_ar_BT=mask_ar_BT,
  )
  return jnp.stack(stepped, 1), model(whole)[:, T - 1 :]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "family"),
  [(name, family) for name in ("houlsby", "pfeiffer", "parallel") for family in ("internvl", "paligemma2")],
)
def test_a_cache_gives_what_a_whole_pass_gives_and_a_folder_the_same(family, name, tmp_path):
  base = FIXTURES / family
  vlm = peft.apply(hub.load_model(base), PeftConfig(method=name, options={"reduction_factor": 4}))
  vlm = support.moved(vlm, 0.3)
  prompt = prompt_of(family, vlm)
  B, T = prompt.tokens_BT.shape
  tokens_BK = jnp.asarray(np.random.default_rng(2).integers(3, 50, (B, NEW)), jnp.int32)
  # PaliGemma's prompts are read in both directions, what follows them is not
  mask_ar_BT = jnp.arange(T + NEW)[None].repeat(B, 0) >= T if vlm.config.prefix_lm else None
  run = lambda model: both(*nnx.split(model), prompt, tokens_BK, mask_ar_BT)
  stepped, whole = run(vlm)
  np.testing.assert_allclose(stepped, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
  peft.save_adapter(vlm, tmp_path / "a")
  plain = hub.load_model(base)
  found, _ = run(peft.load_adapter(plain, tmp_path / "a"))
  assert np.array_equal(found, stepped)
  for _, layer in nnx.iter_modules(vlm):  # and what is compared is not the base's
    if hasattr(layer, "adapter"):
      layer.adapter.up[...] = jnp.zeros_like(layer.adapter.up[...])
      layer.adapter.up_bias[...] = jnp.zeros_like(layer.adapter.up_bias[...])
  assert np.abs(run(vlm)[0] - stepped).max() > 0.1 * np.abs(whole).max()
