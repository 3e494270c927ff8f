"""A small model, a prompt with an image, and what the tests of adapters ask of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm import peft
from spatialvlm.core.axes import sharding_of
from spatialvlm.models.families import FAMILIES
from spatialvlm.models.vlm import Vlm
from spatialvlm.types import Batch
from tests import tiny_model
from tests.models.support import call

TRAINED = peft.Trained


def build(dtype="float32", mesh=None, tied=False) -> Vlm:
  """A SmolVLM of two layers each, always with the same random numbers; nothing is compiled for it."""
  graphdef, state = _drawn(dtype, tied)

  def place(variable):
    value = variable[...]
    return variable.replace(value if mesh is None else jax.device_put(value, sharding_of(variable, mesh)))

  return nnx.merge(graphdef, jax.tree.map(place, state, is_leaf=lambda x: isinstance(x, nnx.Variable)))


@functools.cache
def _drawn(dtype, tied):
  source = tiny_model.config_json() | {"tie_word_embeddings": tied}
  config = FAMILIES["smolvlm"].parse_config(source, dtype=dtype, where="test")
  graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0))))
  rng = np.random.default_rng(0)

  def draw(leaf):
    shape = leaf.shape
    value = rng.normal(size=shape) / shape[0] ** 0.5 if len(shape) > 1 else rng.uniform(0.5, 1, shape)
    return jnp.asarray(value, leaf.dtype)

  return graphdef, jax.tree.map(draw, abstract)


def batch(dtype=np.float32) -> Batch:
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 59, (2, 8))
  tokens[:, 1:5] = 60
  slots = np.where(tokens == 60, np.arange(8) - 1, -1)
  return Batch(
    tokens_BT=jnp.asarray(tokens, jnp.int32),
    valid_BT=jnp.ones(tokens.shape, bool),
    pixels_NHWC=jnp.asarray(rng.normal(size=(2, 16, 16, 3)), dtype),
    image_slot_BT=jnp.asarray(slots, jnp.int32),
  )


def logits(vlm) -> np.ndarray:
  return np.asarray(call(vlm, batch()))


def moved(vlm, size=0.2, seed=3):
  """The same model with every trained value moved from its start."""
  graphdef, params, rest = nnx.split(vlm, TRAINED, ...)
  rng = np.random.default_rng(seed)
  move = lambda x: jax.device_put(x + size * jnp.asarray(rng.normal(size=x.shape), x.dtype), x.sharding)
  return nnx.merge(graphdef, jax.tree.map(move, params), rest)
