"""A SmolVLM small enough to be built in a test, with every parameter random, and its folder."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm import hub
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.vlm import Vlm
from tests.tiny_processor import tokenizer, write_processor

TILE, TOKENS_PER_TILE = 16, 4


def config_json(vocab_size: int = 64, image_token_id: int = 60, depth: int = 2) -> dict:
  """A config.json: tiles of 16 pixels make 4 tokens; `depth` layers in each tower."""
  return {
    "model_type": "smolvlm",
    "image_token_id": image_token_id,
    "scale_factor": 2,
    "tie_word_embeddings": False,
    "text_config": {
      "model_type": "llama",
      "vocab_size": vocab_size,
      "hidden_size": 24,
      "intermediate_size": 32,
      "num_hidden_layers": depth,
      "num_attention_heads": 4,
      "num_key_value_heads": 2,
      "head_dim": 8,
      "max_position_embeddings": 512,
      "rms_norm_eps": 1e-5,
      "rope_theta": 1e4,
    },
    "vision_config": {
      "hidden_size": 16,
      "intermediate_size": 24,
      "num_hidden_layers": depth,
      "num_attention_heads": 2,
      "image_size": TILE,
      "patch_size": 4,
    },
  }


def build(seed: int = 0, **kwargs) -> Vlm:
  """The model of `config_json(**kwargs)`, its logits spread by several units."""
  config = FAMILIES["smolvlm"].parse_config(config_json(**kwargs), dtype="float32", where="test")
  vlm = nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0)))
  graphdef, state = nnx.split(vlm)
  rng = np.random.default_rng(seed)

  def draw(leaf):
    noise = rng.normal(size=leaf.shape)
    scale = 2 / leaf.shape[0] ** 0.5 if leaf.ndim > 1 else 0.3
    return jnp.asarray(noise * scale + (0.5 if leaf.ndim == 1 else 0.0), jnp.float32)

  return nnx.merge(graphdef, jax.tree.map(draw, state))


def write_checkpoint(folder: str | Path, seed: int = 0, depth: int = 1, **processor) -> Path:
  """A whole folder: config, weights, tokenizer, template, image settings."""
  folder = write_processor(folder, tile=TILE, tokens_per_tile=TOKENS_PER_TILE, **processor)
  words = tokenizer()
  kwargs = {
    "vocab_size": words.get_vocab_size(),
    "image_token_id": words.token_to_id("<image>"),
    "depth": depth,
  }
  (folder / "config.json").write_text(json.dumps(config_json(**kwargs)))
  vlm = build(seed, **kwargs)
  source = json.loads((folder / "config.json").read_text())
  vlm.config = FAMILIES["smolvlm"].parse_config(source, dtype="float32", where="test")
  return hub.save_model(vlm, folder)
