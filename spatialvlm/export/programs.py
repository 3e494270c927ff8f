"""A model as functions of plain arrays, for runtimes that know nothing of this library.

`see` turns tiles into image tokens, `prefill` reads prompts into a cache of keys and values, `step` one more
token a row. Their weights are arguments, by name. The cache is a dict of arrays:

- keys, values: of every layer (B, S, K, H), a tuple each; keys are rotated already.
- valid: bool (B, S), slots that hold real tokens; padding of a prompt keeps its slots and is not seen.
- length: int32 scalar, slots filled so far.

An empty one is all zeros. Where the arguments do not belong together, logits are NaN: a compiled program can
raise nothing. That is the case where the cache is too short for the new tokens, where a row is longer than
the model's context, and where image tokens and image features differ in number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm import peft
from spatialvlm.core.attention import KVCache
from spatialvlm.hub.save import whole
from spatialvlm.hub.tensors import Lazy
from spatialvlm.models import execution
from spatialvlm.models.connector import Connector
from spatialvlm.models.decoder import Decoder
from spatialvlm.models.encoders import VisionEncoder
from spatialvlm.models.execution import Execution
from spatialvlm.models.joined import JoinedEncoder
from spatialvlm.models.vlm import Vlm, VlmConfig

Weights = Mapping[str, Any]
Cache = dict[str, Any]


class Eyes(nnx.Module):
  """Vision tower and connector."""

  def __init__(self, vision: VisionEncoder | JoinedEncoder, connector: Connector):
    self.vision, self.connector = vision, connector

  def __call__(self, pixels_NCHW: jax.Array) -> jax.Array:
    return self.connector(self.vision(pixels_NCHW.transpose(0, 2, 3, 1)))


class Speech(nnx.Module):
  """The language model."""

  def __init__(self, decoder: Decoder):
    self.decoder = decoder


class Part:
  """A module whose parameters are arguments, by their paths: `decoder.stack.layers.0.attn.q_proj.kernel`."""

  def __init__(self, module: nnx.Module):
    self._graphdef, state = nnx.split(module)
    self._variables = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(state)}

  @property
  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """What the parameters are, for tracing."""
    return {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, (_, v) in self._variables.items()}

  @property
  def tensors(self) -> dict[str, Lazy]:
    """The parameters, read one by one as a file of them is written."""
    return {
      name: Lazy(np.dtype(v.dtype), tuple(v.shape), lambda v=v: whole(v))
      for name, (_, v) in sorted(self._variables.items())
    }

  def __call__(self, weights: Weights) -> Any:
    """The module with these parameters."""
    flat = [(path, v.replace(weights[name])) for name, (path, v) in self._variables.items()]
    return nnx.merge(self._graphdef, nnx.from_flat_state(flat))


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
  """The functions of one model, adapters merged.

  Attributes:
    config: the model's.
    language: its decoder, embedding and head.
    eyes: its tower and connector; None of a language model by itself.
    rows: what tokens are looked up in instead of the table of embeddings: int8 (V, D), and the scales of its
      rows, float32 (V, 1).
  """

  config: VlmConfig
  language: Part
  eyes: Part | None
  rows: tuple[np.ndarray, np.ndarray] | None = None

  @classmethod
  def of(cls, vlm: Vlm) -> Programs:
    """Those of a model, which is left as it is.

    Raises:
      UserError: an adapter that cannot be merged.
    """
    merged = execution.apply(peft.merge(vlm), Execution(attention="whole"))
    eyes = None if merged.vision is None else Part(Eyes(merged.vision, merged.connector))
    return cls(merged.config, Part(Speech(merged.decoder)), eyes)

  @property
  def image_tokens(self) -> int:
    """Of a tile."""
    side = self.config.vision.image_size
    return self.config.image_tokens(side, side)

  def cache(self, batch: Any, length: Any) -> Cache:
    """The shapes of a cache; `batch` and `length` may be symbolic dimensions."""
    text = self.config.text
    shape = (batch, length, text.block.attention.kv_heads, text.block.attention.head_dim)
    layers = (jax.ShapeDtypeStruct(shape, jnp.dtype(self.config.dtype)),) * text.depth
    valid = jax.ShapeDtypeStruct((batch, length), jnp.bool_)
    return {"keys": layers, "length": jax.ShapeDtypeStruct((), jnp.int32), "valid": valid, "values": layers}

  def see(self, weights: Weights, pixels_NCHW: jax.Array) -> jax.Array:
    """Image tokens (N, P, D) of whole, normalised tiles."""
    return self.eyes(weights)(pixels_NCHW)

  def prefill(
    self,
    weights: Weights,
    tokens_BT: jax.Array,
    valid_BT: jax.Array,
    cache: Cache,
    images_NPD: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Reads T tokens a row behind what the cache holds, padded on either side.

    Args:
      images_NPD: the k-th image token of all rows, one row after the other, reads the k-th of these. Whatever
        they are where no row has any.

    Returns:
      Float32 logits (B, V) behind the last valid token of each row, and the longer cache.
    """
    if images_NPD is None:
      return self.prefill_placed(weights, tokens_BT, valid_BT, cache)
    N, P, D = images_NPD.shape
    is_image = (tokens_BT == self.config.image_token_id).reshape(-1)
    count, given = is_image.sum(dtype=jnp.int32), jnp.asarray(N * P, jnp.int32)
    place = jnp.clip(jnp.cumsum(is_image.astype(jnp.int32)) - 1, 0, given - 1)
    image_BTD = images_NPD.reshape(N * P, D)[place].reshape(*tokens_BT.shape, D)
    logits_BV, cache = self.prefill_placed(weights, tokens_BT, valid_BT, cache, image_BTD)
    return jnp.where((count == 0) | (count == given), logits_BV, jnp.nan), cache

  def prefill_placed(
    self,
    weights: Weights,
    tokens_BT: jax.Array,
    valid_BT: jax.Array,
    cache: Cache,
    image_BTD: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """`prefill` with image tokens that stand in their places already; elsewhere they are not read."""
    decoder = self.language(weights).decoder
    x_BTD = self._look_up(decoder, tokens_BT)
    if image_BTD is not None:
      is_image_BT1 = (tokens_BT == self.config.image_token_id)[..., None]
      x_BTD = jnp.where(is_image_BT1, image_BTD.astype(x_BTD.dtype), x_BTD)
    T = tokens_BT.shape[1]
    last_B = T - 1 - jnp.argmax(valid_BT[:, ::-1], axis=1)
    return self._extend(decoder, x_BTD, valid_BT, cache, last_B)

  def step(self, weights: Weights, tokens_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Reads one token (B,) a row: float32 logits (B, V) behind it, and the longer cache."""
    decoder = self.language(weights).decoder
    x_BTD = self._look_up(decoder, tokens_B[:, None])
    return self._extend(decoder, x_BTD, jnp.ones(x_BTD.shape[:2], bool), cache, None)

  def with_int8_rows(self) -> Programs:
    """The same with a table of 8 bits, symmetric, one scale a row; the head keeps its own."""
    table = self.language.tensors["decoder.embed.embedding"].make().astype(np.float32)
    scales = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-30) / 127
    rows = np.rint(table / scales).astype(np.int8)
    return dataclasses.replace(self, rows=(rows, scales * np.float32(self.config.text.embed_scale)))

  def _look_up(self, decoder: Decoder, tokens_BT: jax.Array) -> jax.Array:
    if self.rows is None:
      return decoder.embed_tokens(tokens_BT)
    rows_VD, scales_V1 = map(jnp.asarray, self.rows)
    return (rows_VD[tokens_BT].astype(jnp.float32) * scales_V1[tokens_BT]).astype(self.config.dtype)

  def _extend(self, decoder: Decoder, x_BTD, valid_BT, cache: Cache, last_B) -> tuple[jax.Array, Cache]:
    """`last_B` says whose logits are wanted; None of a single token, and of a step: it is causal."""
    B, T, _ = x_BTD.shape
    S = cache["valid"].shape[1]
    mask_ar_BT = None
    if self.config.prefix_lm and last_B is not None:
      mask_ar_BT = jnp.zeros((B, T), bool)
    kept = KVCache(cache["keys"], cache["values"], cache["valid"], cache["length"])
    hidden_BTD, grown = decoder.extend(x_BTD, valid_BT, kept, mask_ar_BT)
    if last_B is None:
      hidden_BD = hidden_BTD[:, 0]
    else:
      hidden_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
    fits_B = grown.valid_BS.sum(axis=1, dtype=jnp.int32) <= self.config.text.max_length
    fits_B &= cache["length"] + T <= S
    logits_BV = jnp.where(fits_B[:, None], decoder.unembed(hidden_BD), jnp.nan)
    longer = {"keys": grown.keys, "length": grown.length, "valid": grown.valid_BS, "values": grown.values}
    return logits_BV, longer
