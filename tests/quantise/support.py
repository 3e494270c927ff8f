"""A SmolVLM whose decoder's widths are multiples of a block of 32, and its folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm import hub, loading
from spatialvlm.config import ModelConfig
from spatialvlm.models.vlm import Vlm
from tests import tiny_model
from tests.tiny_processor import tokenizer, write_processor

WIDTHS = {"hidden_size": 32, "intermediate_size": 64}


def write_model(folder, depth=1):
  """A whole folder, weights drawn at random."""
  folder = write_processor(folder, tile=16, tokens_per_tile=4, longest_edge=16, split=False)
  words = tokenizer()
  source = tiny_model.config_json(words.get_vocab_size(), words.token_to_id("<image>"), depth=depth)
  source["text_config"] |= WIDTHS
  (folder / "config.json").write_text(json.dumps(source))
  config = hub.read_config(folder)
  graphdef, state = nnx.split(nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0))))
  rng = np.random.default_rng(0)

  def draw(leaf):
    noise = rng.normal(size=leaf.shape)
    return jnp.asarray(noise * 1.5 / leaf.shape[0] ** 0.5 if leaf.ndim > 1 else 0.3 * noise + 0.5, leaf.dtype)

  return hub.save_model(nnx.merge(graphdef, jax.tree.map(draw, state)), folder)


def load(folder, mesh=None, **settings):
  """The model in nf4, unless said otherwise."""
  settings = {"quantize": "nf4", "quantize_block": 32, **settings}
  return loading.load_base(ModelConfig(path=str(folder), **settings), mesh)
