"""The vision-language model: encoder, connector and decoder, joined where the prompt holds image tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core.attention import KVCache, at_places
from spatialvlm.core.pixels import normalised
from spatialvlm.models.connector import Connector, ConnectorConfig
from spatialvlm.models.decoder import Decoder, DecoderConfig
from spatialvlm.models.encoders import VisionConfig, VisionEncoder
from spatialvlm.models.interventions import Interventions
from spatialvlm.models.joined import JoinedConfig, JoinedEncoder
from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.models.soft_prompts import Sequence, SoftTokens
from spatialvlm.types import Batch, UserError, prior_values


@dataclasses.dataclass(frozen=True)
class VlmConfig:
  """Everything that a `Vlm` is built from.

  Attributes:
    family: what `models.registry.family` knows.
    vision, connector, image_token_id: None of a language model by itself, which reads no images.
    prefix_lm: whether prompts are bidirectional, answers causal; else all is causal.
    tied: whether the head is the embedding's transpose.
    dtype: "float32" or "bfloat16", of weights and activations.
    source: the checkpoint's own config.json, kept for saving; not part of the model's identity.
  """

  family: str
  vision: VisionConfig | JoinedConfig | None
  text: DecoderConfig
  connector: ConnectorConfig | None
  image_token_id: int | None
  tied: bool
  prefix_lm: bool = False
  dtype: str = "float32"
  source: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

  def image_tokens(self, height: int, width: int) -> int:
    """How many image tokens one image of this size becomes, in pixels.

    Raises:
      UserError: a language model by itself, or patches that the connector cannot join.
    """
    if self.vision is None:
      raise UserError("pixel_values: a language model by itself reads no images")
    factor = self.connector.factor
    rows, cols = height // self.vision.patch_size, width // self.vision.patch_size
    if rows % factor or cols % factor or not rows * cols:
      raise UserError(
        f"pixel_values: images of {height} x {width} make {rows} x {cols} patches, which the connector cannot"
        f" join by {factor}; tiles of this model have {self.vision.image_size} pixels"
      )
    return (rows // factor) * (cols // factor)


class Vlm(nnx.Module):
  """Reads a `Batch`. Freshly drawn from `rngs`; `hub.load_model` fills it from a checkpoint.

  A language model by itself is one whose `vision` and `connector` are None.
  """

  def __init__(self, config: VlmConfig, *, rngs: nnx.Rngs):
    dtype = jnp.dtype(config.dtype)
    self.config = config
    if config.vision is None:
      self.vision = self.connector = None
    else:
      encoder = JoinedEncoder if isinstance(config.vision, JoinedConfig) else VisionEncoder
      self.vision = encoder(config.vision, dtype=dtype, rngs=rngs)
      self.connector = Connector(
        config.connector, config.vision.width, config.text.block.width, dtype=dtype, rngs=rngs
      )
    self.decoder = Decoder(config.text, tied=config.tied, dtype=dtype, rngs=rngs)
    self.soft_tokens: SoftTokens | None = nnx.data(None)
    # By name: (N, P, C) values of image tokens -> (N, P, D) that is added to them. `priors` attaches them.
    self.priors: nnx.Dict | None = nnx.data(None)

  @property
  def max_length(self) -> int:
    """Most tokens that it can read: its context, without the places that a soft prompt takes."""
    prompts = self.soft_tokens, self.decoder.learned_past
    return self.config.text.max_length - sum(prompt.length for prompt in prompts if prompt is not None)

  def encode_images(
    self,
    pixels_NHWC: jax.Array,
    pixel_mask_NHW: jax.Array | None = None,
    priors: Mapping[str, jax.Array] | None = None,
  ) -> jax.Array:
    """Image tokens (N, P, D) of normalised tiles, after the connector.

    Args:
      priors: of a model that has some, what each says of the tokens, (N, P, C) by name.

    Raises:
      UserError: a language model by itself; priors that are not given.
    """
    self._check_sight()
    image_NPD = self.connector(self.vision(normalised(pixels_NHWC, None), pixel_mask_NHW))
    return self._with_priors(image_NPD, priors or {})

  def embed(self, batch: Batch) -> jax.Array:
    """(B, T, D): text embeddings, with image tokens in their places."""
    return self._with_images(batch, self._see(batch, Wants(image=True)).image)

  def read(
    self,
    batch: Batch,
    wants: Wants,
    changes: Interventions | None = None,
    *,
    rows_BQ: jax.Array | None = None,
    traces: Mapping[int, jax.Array] | None = None,
  ) -> Outputs:
    """Everything that `wants` names, of one pass of the vision tower and one of the decoder.

    What nothing wanted needs does not run. Without a `mask_ar_BT` the batch is taken for prompts.

    Args:
      changes: what is done to the decoder on the way; outputs are those of the changed one.
      rows_BQ: int32, positions of the queries whose `attention` is wanted, which is then (B, heads, Q, T);
        None for all. The others' is not computed.
      traces: by the decoder's layers, from 1 on, float32 zeros (B, T, T), which change no number: the
        gradient with regard to them is that of the probabilities, weighted as `core.attention.traced` says.

    Raises:
      UserError: a layer that the model has not; something before the connector of a batch whose image tokens
        are cached; logits of a batch without targets; anything of images of a language model by itself.
    """
    if wants.logits and batch.target_index_BK is None:
      raise UserError("logits: the batch has no target_index_BK, which says at what positions")
    shown = wants.of_decoder and batch.image_slot_BT is not None
    seen = self._see(batch, dataclasses.replace(wants, image=wants.image or shown))
    outputs = seen if wants.image else dataclasses.replace(seen, image=None)
    if not wants.of_decoder:
      return outputs
    sequence = Sequence(self._with_images(batch, seen.image), batch.valid_BT, self._mask_ar(batch))
    if self.soft_tokens is not None:
      if batch.segment_BT is not None:
        several = "packed, several a row" if batch.branches is None else "of rows with false answers beside"
        raise UserError(f"soft tokens stand in one sequence a row; this batch is {several}")
      sequence = self.soft_tokens.insert(sequence, batch.image_slot_BT)
    before_BK = None
    if wants.logits:
      before_BK = jnp.maximum(sequence.home(jnp.maximum(batch.target_index_BK, 0)) - 1, 0)
    # Of a few targets in a long row nothing but keys and values of the last block is needed elsewhere.
    last = {self.decoder.config.depth, -1}
    kept = {*wants.decoder_layers, *wants.attention, *wants.attention_mean, *(traces or ())}
    whole = wants.hidden or not last.isdisjoint(kept)
    whole = whole or before_BK is None or before_BK.shape[1] >= sequence.x_BTD.shape[1]
    whole = whole or changes is not None
    out = self.decoder.read(
      sequence.x_BTD,
      sequence.valid_BT,
      sequence.mask_ar_BT,
      batch.segment_BT,
      None if batch.branches is None else batch.branches.fork_BT,
      layers=wants.decoder_layers,
      attention=wants.attention,
      attention_mean=wants.attention_mean,
      rows_BQ=None if rows_BQ is None else sequence.home(rows_BQ),
      traces={layer: sequence.of_read(trace_BTT) for layer, trace_BTT in (traces or {}).items()},
      at_BQ=None if whole else before_BK,
      hooks=None if changes is None else changes.placed(sequence, batch),
    )
    logits_BKV = None
    if wants.logits:
      hidden_BKD = at_places(out.hidden_BTD, before_BK) if whole else out.hidden_BTD
      logits_BKV = self.unembed(hidden_BKD)
    over_keys = lambda p: sequence.of_batch(p, axis=p.ndim - 1)
    over_both = lambda p: over_keys(sequence.of_batch(p, axis=p.ndim - 2))
    return dataclasses.replace(
      outputs,
      decoder_layers={layer: sequence.of_batch(x_BTD) for layer, x_BTD in out.layers.items()} or None,
      attention={
        layer: over_both(p_BNTS) if rows_BQ is None else over_keys(p_BNTS)
        for layer, p_BNTS in out.attention.items()
      }
      or None,
      attention_mean={layer: over_both(p_BTS) for layer, p_BTS in out.attention_mean.items()} or None,
      hidden=sequence.of_batch(out.hidden_BTD) if wants.hidden else None,
      logits=logits_BKV,
    )

  def hidden(self, batch: Batch) -> jax.Array:
    """(B, T, D) after the decoder's final norm; of prompts, where no `mask_ar_BT` says what else there is."""
    return self.read(batch, Wants(hidden=True)).hidden

  def unembed(self, x: jax.Array, ids: jax.Array | None = None) -> jax.Array:
    """Float32 logits (..., V) of hidden states (..., D); with `ids` (K,) of those alone, (..., K)."""
    return self.decoder.unembed(x, ids)

  def __call__(self, batch: Batch) -> jax.Array:
    """Float32 logits (B, T, V) at every position."""
    return self.unembed(self.hidden(batch))

  def init_cache(self, batch: int, length: int) -> KVCache:
    """A key-value cache of fixed size: `length` counts prompt, its padding, and new tokens.

    There is room for a soft prompt beside them, which is read with the first tokens of the samples.
    """
    return self.decoder.init_cache(
      batch, length + (0 if self.soft_tokens is None else self.soft_tokens.length)
    )

  def extend(self, batch: Batch, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """Reads the batch after what the cache holds: hidden states (B, T, D), and the longer cache.

    Without a `mask_ar_BT` it is causal, as all is that follows a prompt. A cache that is too short is not
    noticed here, since its length is traced: callers size it.
    """
    sequence, hidden_BTD, cache = self._extend(batch, cache)
    return sequence.of_batch(hidden_BTD), cache

  def prefill(self, batch: Batch, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """Reads prompts, padded on either side: the hidden state (B, D) of each one's last valid token."""
    batch = dataclasses.replace(batch, mask_ar_BT=self._mask_ar(batch))
    sequence, hidden_BTD, cache = self._extend(batch, cache)
    T = hidden_BTD.shape[1]
    last_B = T - 1 - jnp.argmax(sequence.valid_BT[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0], cache

  def decode_step(self, tokens_B: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """Reads one more token a sample: its hidden state (B, D), and the longer cache."""
    batch = Batch(tokens_BT=tokens_B[:, None], valid_BT=jnp.ones((tokens_B.shape[0], 1), bool))
    hidden_BTD, cache = self.extend(batch, cache)
    return hidden_BTD[:, 0], cache

  def _extend(self, batch: Batch, cache: KVCache) -> tuple[Sequence, jax.Array, KVCache]:
    """What was read, its hidden states, and the longer cache."""
    sequence = Sequence(self.embed(batch), batch.valid_BT, batch.mask_ar_BT)
    if self.soft_tokens is not None and not cache.begun:
      sequence = self.soft_tokens.insert(sequence, batch.image_slot_BT)
    return sequence, *self.decoder.extend(sequence.x_BTD, sequence.valid_BT, cache, sequence.mask_ar_BT)

  def _see(self, batch: Batch, wants: Wants) -> Outputs:
    """The wanted fields of `Outputs` that come of images; all are None where the batch has none."""
    if wants.of_encoder or batch.pixels_NHWC is not None or batch.features_NPD is not None:
      self._check_sight()
    if batch.vision is not None:
      if wants.of_encoder_layers:
        raise UserError(
          "encoder_layers, encoder_attention: the batch holds what the vision tower made, not pixels; give"
          " pixels_NHWC instead of vision"
        )
      image_NPD = (
        self._with_priors(self.connector(batch.vision), prior_values(batch.extra)) if wants.image else None
      )
      return Outputs(vision=batch.vision if wants.vision else None, image=image_NPD)
    if batch.pixels_NHWC is None:
      if batch.features_NPD is not None and wants.of_encoder:
        raise UserError(
          "vision, encoder_layers, encoder_attention: the batch holds image tokens from after the connector,"
          " not pixels; give pixels_NHWC instead of features_NPD"
        )
      image_NPD, values = batch.features_NPD, prior_values(batch.extra)
      if wants.image and image_NPD is not None and any(name in values for name in self.priors or ()):
        image_NPD = self._with_priors(image_NPD, values)
      return Outputs(image=image_NPD if wants.image else None)
    if not (wants.image or wants.of_encoder):
      return Outputs()
    out = self.vision.read(
      normalised(batch.pixels_NHWC, batch.normal),
      batch.pixel_mask_NHW,
      layers=wants.encoder_layers,
      attention=wants.encoder_attention,
      attention_mean=wants.encoder_attention_mean,
    )
    patches = {layer: x_NTD[:, out.prefix :] for layer, x_NTD in out.layers.items()}
    return Outputs(
      vision=out.features if wants.vision else None,
      image=self._with_priors(self.connector(out.features), prior_values(batch.extra))
      if wants.image
      else None,
      encoder_layers=patches or None,
      encoder_attention=out.attention or None,
      encoder_attention_mean=out.attention_mean or None,
    )

  def _with_priors(self, image_NPD: jax.Array, values: Mapping[str, jax.Array]) -> jax.Array:
    """Image tokens with what each prior says of them; `values` (N, P, C) by the priors' names."""
    for name, prior in (self.priors or {}).items():
      if name not in values:
        raise UserError(
          f"prior {name!r}: the model was made with it, and these images bring no values of it; give each its"
          " shot (docs/priors.md), or load the model's base"
        )
      image_NPD = image_NPD + prior(values[name]).astype(image_NPD.dtype)
    return image_NPD

  def _check_sight(self) -> None:
    if self.vision is None:
      raise UserError("a language model by itself, which has no vision encoder: it reads no images")

  def _with_images(self, batch: Batch, image_NPD: jax.Array | None) -> jax.Array:
    """Embedded tokens (B, T, D), with the image tokens in their places."""
    x_BTD = self.decoder.embed_tokens(batch.tokens_BT)
    if image_NPD is None or batch.image_slot_BT is None:
      return x_BTD
    image_BTD = gather_image_tokens(image_NPD, batch.image_slot_BT, batch.tile_index_BI)
    return jnp.where(batch.image_slot_BT[..., None] >= 0, image_BTD.astype(x_BTD.dtype), x_BTD)

  def _mask_ar(self, batch: Batch) -> jax.Array | None:
    if batch.mask_ar_BT is None and self.config.prefix_lm:
      return jnp.zeros(batch.tokens_BT.shape, bool)
    return batch.mask_ar_BT


def gather_image_tokens(
  features_NPD: jax.Array, image_slot_BT: jax.Array, tile_index_BI: jax.Array | None
) -> jax.Array:
  """(B, T, D): for every position the image token of its slot; arbitrary where the slot is -1.

  See `types.Batch`: slots count a sample's own image tokens; without a tile index the tiles are aligned
  with their samples, and the gather stays on the sample's shard.
  """
  N, P, D = features_NPD.shape
  B = image_slot_BT.shape[0]
  slot_BT = jnp.maximum(image_slot_BT, 0)
  if tile_index_BI is None:
    return jnp.take_along_axis(features_NPD.reshape(B, N // B * P, D), slot_BT[..., None], axis=1)
  tile_BT = jnp.take_along_axis(jnp.maximum(tile_index_BI, 0), slot_BT // P, axis=1)
  return features_NPD.reshape(N * P, D)[tile_BT * P + slot_BT % P]
