"""Batches from arrays in the layout of transformers' processors, for tests of the model alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.types import Batch

# Tests of tiny models spend their time in the compiler.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def call(model, *args, method: str = "__call__"):
  """A compiled call of a module, compiled once per method and shapes."""
  graphdef, state = nnx.split(model)
  return _call(graphdef, method, state, *args)


@functools.partial(jit, static_argnums=(0, 1))
def _call(graphdef, method, state, *args):
  return getattr(nnx.merge(graphdef, state), method)(*args)


def batch_of(arrays, image_token_id: int, shared: bool = False) -> Batch:
  """A `Batch` of `input_ids`, `attention_mask` and, where given, `pixel_values`, `pixel_attention_mask`.

  `shared` lays the tiles out flat with a tile index, in reversed order, instead of aligned.
  """
  ids = np.asarray(arrays["input_ids"], np.int32)
  fields = {"tokens_BT": ids, "valid_BT": np.asarray(arrays["attention_mask"], bool)}
  if "token_type_ids" in arrays:
    fields["mask_ar_BT"] = np.asarray(arrays["token_type_ids"]) == 1
  if arrays.get("pixel_values") is not None:
    pixels = np.asarray(arrays["pixel_values"], np.float32)
    B, tiles = pixels.shape[:2]
    order = np.arange(B * tiles)[::-1] if shared else np.arange(B * tiles)
    flat = pixels.reshape(B * tiles, *pixels.shape[2:]).transpose(0, 2, 3, 1)
    fields["pixels_NHWC"] = flat[order]
    mark = ids == image_token_id
    fields["image_slot_BT"] = np.where(mark, np.cumsum(mark, axis=1) - 1, -1).astype(np.int32)
    if arrays.get("pixel_attention_mask") is not None:
      mask = np.asarray(arrays["pixel_attention_mask"], bool)
      fields["pixel_mask_NHW"] = mask.reshape(B * tiles, *mask.shape[2:])[order]
    if shared:
      fields["tile_index_BI"] = np.argsort(order).reshape(B, tiles).astype(np.int32)
  return Batch(**{name: jnp.asarray(value) for name, value in fields.items()})


def answer_loss(logits_BTV, labels_BT):
  """Mean negative log-likelihood of the labels that are not -100, each predicted one place before."""
  logits, labels = logits_BTV[:, :-1], labels_BT[:, 1:]
  kept = labels != -100
  # A constant: the gradient of a maximum asks which logit equals it, and in a fused program none may do so.
  logp = logits - jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
  logp = logp - jnp.log(jnp.sum(jnp.exp(logp), -1, keepdims=True))
  picked = jnp.take_along_axis(logp, jnp.where(kept, labels, 0)[..., None], axis=-1)[..., 0]
  return -jnp.sum(jnp.where(kept, picked, 0.0)) / jnp.sum(kept)


def tokens_per_tile(config) -> int:
  """Image tokens that a `VlmConfig`'s connector makes of one tile."""
  return (config.vision.grid // config.connector.factor) ** 2
