"""The passes of an explanation: the vision tower tile by tile, then the decoder once, with a gradient."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.core.block import Stack
from spatialvlm.core.pixels import normalised
from spatialvlm.generation import bucket
from spatialvlm.inside.asked import Asked
from spatialvlm.inside.rollout import carried
from spatialvlm.models.outputs import Wants
from spatialvlm.models.vlm import Vlm
from spatialvlm.types import Batch, Features


class Seen(NamedTuple):
  """What the vision tower made of N tiles, and where it looked. P' patches, of C channels, in a grid.

  Attributes:
    features: (N, P', C), and the grid.
    received: float32 (Lv, heads, N, P'); empty where the tower's attention was not asked for.
    rollout: float32 (N, P, P') from each image token; empty as well.
  """

  features: Features
  received: np.ndarray
  rollout: np.ndarray


class Looked(NamedTuple):
  """What the decoder was read for. Q rows, M image tokens, T positions, L layers.

  Attributes:
    attention: float32 (l, heads or 1, Q, M).
    mean: float32 (L, T, T), the mean over heads of all rows; empty where no rollout was asked for.
    weighted: float32 (L, T, T), the gradient-weighted attention; empty where it was not asked for.
    streams: by layer, the residual stream (1 + M, D) at the answer's place and, behind it, the image tokens.
    features: gradient of the chosen token's logit with regard to `Seen.features`; None where not asked for.
    token: the token of which the gradient was taken: the likeliest of those that could be chosen.
  """

  attention: np.ndarray
  mean: np.ndarray
  weighted: np.ndarray
  streams: dict[int, jax.Array]
  features: jax.Array | None
  token: int


def see(model: Vlm, asked: Asked, *, attention: bool) -> Seen:
  """One pass of the vision tower, tile by tile, so that one tile's probabilities are in memory at once."""
  factor, depth = model.config.connector.factor, _depth(model)
  encoded = asked.encoded
  patches, received, rollout, grid = [], [], [], (0, 0)
  for tile in encoded.tiles:
    with _block_by_block(model.vision):
      out = _tile(model.vision, tile[None], encoded.normal, depth * attention, factor)
    features, got, rolled = jax.device_get(out)
    patches.append(features.patches_NPD)
    grid = features.grid
    received.append(got)
    rollout.append(rolled)
  return Seen(
    Features(np.concatenate(patches), grid),
    np.stack(received, axis=2) if attention else np.zeros((0, 0, 0, 0), np.float32),
    np.stack(rollout) if attention else np.zeros((0, 0, 0), np.float32),
  )


def _depth(model: Vlm) -> int:
  """Blocks of the vision tower that its features come of."""
  encoders = getattr(model.config.vision, "parts", None)
  config = encoders[0].vision if encoders else model.config.vision
  return config.depth if config.feature_layer is None else config.feature_layer


def _tile(encoder, pixels_NHWC, normal, depth: int, factor: int):
  """Features of one tile, what each patch receives (Lv, heads, P'), and the rollout of each token (P, P')."""
  layers = range(1, depth + 1)
  asked = dict(attention=layers, attention_mean=layers) if depth else {}
  out = encoder.read(normalised(pixels_NHWC, normal), **asked)
  if not depth:
    return out.features, None, None
  first = out.prefix
  received = [out.attention[layer][0, :, first:, first:].mean(axis=1) for layer in layers]
  rolled = jnp.eye(out.attention_mean[1].shape[-1])
  for layer in layers:
    rolled = 0.5 * (rolled + jnp.matmul(out.attention_mean[layer][0], rolled, precision="highest"))
  return out.features, jnp.stack(received), _of_tokens(rolled[first:, first:], out.features.grid, factor)


def _of_tokens(rolled_PP: jax.Array, grid: tuple[int, int], factor: int) -> jax.Array:
  """(P, P'): means over the square of patches that each image token is made of, as the connector joins."""
  rows, columns = grid
  parts = rolled_PP.reshape(rows // factor, factor, columns // factor, factor, -1)
  return parts.mean(axis=(1, 3)).reshape(rows * columns // factor**2, -1)


def see_gradient(model: Vlm, asked: Asked, slopes: jax.Array, top_NP: np.ndarray) -> np.ndarray:
  """Gradient-weighted relevance carried on through the vision tower, float32 (N, P'), a tile at a time.

  Args:
    slopes: gradient of the chosen token's logit with regard to the tower's features, (N, P', C).
    top_NP: relevance of each patch behind the tower.
  """
  depth, found = _depth(model), []
  for tile, slope, top_P in zip(asked.encoded.tiles, slopes, top_NP, strict=True):
    normal = asked.encoded.normal
    with _block_by_block(model.vision, again=True):
      weighted = np.asarray(_tile_gradient(model.vision, tile[None], slope, normal, depth))
    first = weighted.shape[-1] - len(top_P)  # class token and registers stand before the patches
    found.append(carried(weighted, np.pad(top_P, (first, 0))[None])[0, first:])
  return np.stack(found)


def _tile_gradient(encoder, pixels_NHWC, slope_PD, normal, depth: int) -> jax.Array:
  """The gradient-weighted attention (Lv, T', T') of one tile."""
  pixels_NHWC = normalised(pixels_NHWC, normal)
  read = lambda traces: encoder.read(pixels_NHWC, traces=traces).features.patches_NPD[0]
  tokens = jax.eval_shape(lambda: encoder.read(pixels_NHWC, attention_mean=(1,)).attention_mean[1]).shape
  zeros = {layer: jnp.zeros(tokens, jnp.float32) for layer in range(1, depth + 1)}
  found = jax.grad(lambda traces: (read(traces).astype(jnp.float32) * slope_PD).sum())(zeros)
  return jnp.stack([found[layer][0] for layer in zeros])


def look(
  model: Vlm,
  asked: Asked,
  seen: Seen,
  *,
  rows: np.ndarray,
  layers: tuple[int, ...],
  heads: bool,
  rollout: bool,
  gradient: bool,
  vision_gradient: bool,
  streams: tuple[int, ...],
) -> Looked:
  """One pass of the decoder for all that is wanted of it, and of one logit the gradient.

  Args:
    rows: int32 (Q,), positions of the queries; the last is the answer's place.
    layers: of which attention is given, of each head or the mean.
    rollout: give the mean over heads of all layers and rows.
    gradient: give the gradient-weighted attention of all layers; it is that of the option's token with the
      largest logit, of a free question of the likeliest token.
    vision_gradient: give the gradient with regard to the features too.
    streams: layers of the residual stream.
  """
  count, depth = len(asked.encoded.tokens), model.config.text.depth
  length = bucket(count + 1, 16)  # the target stands behind the prompt
  every = tuple(range(1, depth + 1))
  wants = Wants(
    logits=True, attention=layers, attention_mean=every if rollout else (), decoder_layers=streams
  )
  vocabulary = model.config.text.vocab_size
  choosable = np.zeros(vocabulary, bool)
  choosable[list(asked.option_ids) or slice(None)] = True
  with _block_by_block(model.decoder, again=gradient):
    out = _look(
      model,
      batch_of(asked, seen, length, model.config.prefix_lm),
      jnp.asarray(rows[None], jnp.int32),
      asked.image_at,
      choosable,
      wants=wants,
      traced=every if gradient else (),
      of_features=gradient and vision_gradient,
      heads=heads,
    )
  own = lambda arrays: np.stack([np.asarray(a)[0, :count, :count] for a in arrays]) if arrays else _EMPTY
  return Looked(
    attention=np.stack([np.asarray(out["attention"][layer]) for layer in layers]),
    mean=own([out["mean"][layer] for layer in every] if rollout else []),
    weighted=own([out["weighted"][layer] for layer in every] if gradient else []),
    streams=out["streams"],
    features=out["features"],
    token=int(out["token"]),
  )


_EMPTY = np.zeros((0, 0, 0), np.float32)


@contextlib.contextmanager
def _block_by_block(module: nnx.Module, again: bool = False) -> Iterator[None]:
  """Blocks within are programs of their own, compiled once; `again`: computed again in the backward pass, so
  that no probabilities are kept for it."""
  stacks = [inner for _, inner in nnx.iter_modules(module) if isinstance(inner, Stack)]
  before = [(stack.apart, stack.remat) for stack in stacks]
  for stack in stacks:
    stack.apart, stack.remat = True, stack.remat or again
  try:
    yield
  finally:
    for stack, (apart, remat) in zip(stacks, before, strict=True):
      stack.apart, stack.remat = apart, remat


def batch_of(asked: Asked, seen: Seen, length: int, bidirectional: bool) -> Batch:
  """The question as a batch of `length` positions, padded on the right, with its tiles' features."""
  encoded = asked.encoded
  count = len(encoded.tokens)
  pad = lambda array, value: np.pad(array, (0, length - count), constant_values=value)[None]
  return Batch(
    tokens_BT=pad(encoded.tokens, 0),
    valid_BT=np.arange(length)[None] < count,
    vision=seen.features,
    image_slot_BT=pad(encoded.image_slot, -1),
    mask_ar_BT=np.arange(length)[None] >= encoded.prefix if bidirectional else None,
    target_index_BK=np.array([[count]], np.int32),
    extra=encoded.extra,
  )


def _look(
  model: Vlm, batch, rows_BQ, image_at, choosable, *, wants, traced, of_features: bool, heads: bool
) -> dict[str, Any]:
  """Everything of `Looked` on the device; of rows their image tokens alone."""

  def read(given):
    traces, patches_NPD = given
    shown = batch
    if patches_NPD is not None:
      shown = dataclasses.replace(batch, vision=Features(patches_NPD, batch.vision.grid))
    out = model.read(shown, wants, rows_BQ=rows_BQ, traces=traces)
    logits_V = jnp.where(choosable, out.logits[0, 0], -jnp.inf)
    token = jnp.argmax(jax.lax.stop_gradient(logits_V))
    return out.logits[0, 0, token], (out, token)

  T = batch.tokens_BT.shape[1]
  zeros = {layer: jnp.zeros((1, T, T), jnp.float32) for layer in traced}
  given = zeros, batch.vision.patches_NPD if of_features else None
  if traced:
    (_, (out, token)), (weighted, features) = jax.value_and_grad(read, has_aux=True)(given)
  else:
    (_, (out, token)), weighted, features = read(given), {}, None
  attention = {layer: p_BNQS[0][..., image_at] for layer, p_BNQS in (out.attention or {}).items()}
  if not heads:
    attention = {layer: p_NQM.mean(axis=0, keepdims=True) for layer, p_NQM in attention.items()}
  at = jnp.concatenate([rows_BQ[0, -1:], image_at])
  streams = {layer: x_BTD[0, at] for layer, x_BTD in (out.decoder_layers or {}).items()}
  return {
    "attention": attention,
    "mean": out.attention_mean or {},
    "weighted": weighted,
    "features": features,
    "streams": streams,
    "token": token,
  }
