"""One decoder-only language model. A family's checkpoint chooses its sizes and parts (`models.texts`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core.attention import KVCache
from spatialvlm.core.axes import logical, towards_weight
from spatialvlm.core.block import BlockConfig, Hooks, Stack, layer_numbers, looks
from spatialvlm.core.init import truncated_normal
from spatialvlm.core.masks import attention_mask, cached_mask, positions, windowed
from spatialvlm.core.mlp import linear
from spatialvlm.core.norm import NORMS
from spatialvlm.core.products import einsum
from spatialvlm.core.rope import RopeScaling, rope_angles
from spatialvlm.models.soft_prompts import LearnedPast


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes of a `Decoder`.

  Attributes:
    rope_theta: base of the rotary frequencies; `rope_scaling` slows some of them.
    max_length: longest sequence the weights were trained for.
    init_std: deviation of freshly drawn embeddings.
    embed_scale: embeddings are multiplied by it.
    softcap: logits x become softcap * tanh(x / softcap), None for none.
    windows: of each layer, how many positions a query sees, itself counted; 0 for all. Empty: all see all.
  """

  block: BlockConfig
  depth: int
  vocab_size: int
  rope_theta: float
  max_length: int
  init_std: float = 0.02
  rope_scaling: RopeScaling | None = None
  embed_scale: float = 1.0
  softcap: float | None = None
  windows: tuple[int, ...] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderOutput:
  """What `Decoder.read` gives.

  Attributes:
    hidden_BTD: after the final norm; (B, Q, D) where `at_BQ` named the places.
    layers: by layer as it was asked for, the residual stream (B, T, D): 0 is the embeddings, i what stands
      after i blocks, negative ones count from the end; no final norm. As transformers' `hidden_states`, but
      for their last one, which is after the norm.
    attention: by layer as it was asked for, the probabilities (B, N, T, T) in float32 in the block before it,
      1 for the first; transformers' `attentions[i - 1]`. (B, N, Q, T) where `rows_BQ` named the queries.
    attention_mean: by layer as it was asked for, their means over heads of all queries, (B, T, T).
  """

  hidden_BTD: jax.Array
  layers: dict[int, jax.Array]
  attention: dict[int, jax.Array]
  attention_mean: dict[int, jax.Array]


class Embed(nnx.Embed):
  """A table of token embeddings, which may be the head's as well."""

  def take_over(self, base: nnx.Embed) -> None:
    """Makes this the table of `base`; the variable stays under its name."""
    self.embedding, self.num_embeddings, self.features = base.embedding, base.num_embeddings, base.features
    self.dtype, self.param_dtype, self.promote_dtype = base.dtype, base.param_dtype, base.promote_dtype

  def logits(self, x: jax.Array, ids: jax.Array | None = None) -> jax.Array:
    """What a head that is tied to the table gives: `Decoder.unembed` without its cap."""
    table = self.embedding[...]
    table = table if ids is None else table[ids]
    lead = "BTK"[: x.ndim - 1]
    return einsum(f"{lead}D,VD->{lead}V", x, table)


class Decoder(nnx.Module):
  """Embedding, rotary blocks, final norm and head. `tied`: the head is the embedding's transpose."""

  def __init__(self, config: DecoderConfig, *, tied: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
    width = config.block.width
    self.config = config
    self.embed = Embed(
      config.vocab_size,
      width,
      param_dtype=dtype,
      embedding_init=truncated_normal(config.init_std, "vocab", "embed"),
      embedding_metadata=logical("vocab", "embed"),
      rngs=rngs,
    )
    self.stack = Stack(config.block, config.depth, dtype=dtype, rngs=rngs)
    self.norm = NORMS[config.block.norm](width, config.block.eps, dtype=dtype, rngs=rngs)
    if not tied:
      self.lm_head = linear(
        width,
        config.vocab_size,
        ("embed", "vocab"),
        bias=False,
        dtype=dtype,
        rngs=rngs,
        scale=config.init_std * width**0.5,
        out_dtype=jnp.float32,
      )
    self.tied = tied
    self.learned_past: LearnedPast | None = nnx.data(None)

  def embed_tokens(self, tokens_BT: jax.Array) -> jax.Array:
    """(B, T, D), scaled as the blocks expect them."""
    x_BTD = self.embed(tokens_BT)
    scale = self.config.embed_scale
    return x_BTD if scale == 1 else x_BTD * jnp.asarray(scale, x_BTD.dtype)

  def __call__(self, x_BTD: jax.Array, valid_BT: jax.Array, mask_ar_BT: jax.Array | None = None) -> jax.Array:
    """Hidden states (B, T, D) after the final norm, of embedded tokens."""
    return self.read(x_BTD, valid_BT, mask_ar_BT).hidden_BTD

  def read(
    self,
    x_BTD: jax.Array,
    valid_BT: jax.Array,
    mask_ar_BT: jax.Array | None = None,
    segment_BT: jax.Array | None = None,
    fork_BT: jax.Array | None = None,
    *,
    layers: Iterable[int] = (),
    attention: Iterable[int] = (),
    attention_mean: Iterable[int] = (),
    rows_BQ: jax.Array | None = None,
    traces: Mapping[int, jax.Array] | None = None,
    at_BQ: jax.Array | None = None,
    hooks: Hooks | None = None,
  ) -> DecoderOutput:
    """Reads embedded tokens, and keeps the layers and attention probabilities that are asked for.

    Args:
      segment_BT: which sequence of its row a position belongs to (`core.masks`); None where a row is one.
      fork_BT: up to where it sees the first of them, of a sequence that forks from that; None: none does.
      rows_BQ: places of the queries whose `attention` is wanted; None for all.
      traces: by layer, from 1 on, zeros (B, T, T) whose gradient is `core.attention.traced`'s.
      at_BQ: places whose hidden states alone are wanted; `hidden_BTD` is then (B, Q, D), and the last block
        does not compute the others. Its stream and attention cannot be kept then.
      hooks: as of `Stack.read`; a learned past stands before the keys of their masks.

    Raises:
      UserError: a layer that is not there.
    """
    streams = layer_numbers(layers, self.config.depth, "decoder")
    attended = layer_numbers(attention, self.config.depth, "decoder's attention", first=1)
    means = layer_numbers(attention_mean, self.config.depth, "decoder's attention", first=1)
    before = ((0, 0), (0, 0), (self._before, 0))
    traces = {number: jnp.pad(trace_BTT, before) for number, trace_BTT in (traces or {}).items()}
    masks, angles = self.context(valid_BT, mask_ar_BT, segment_BT, fork_BT)
    past = None
    if self.learned_past is not None:
      cache = self.init_cache(*x_BTD.shape[:2])
      past = [(k_BSKH, v_BSKH, cache.length) for k_BSKH, v_BSKH in zip(cache.keys, cache.values, strict=True)]
    out = self.stack.read(
      x_BTD,
      masks,
      angles,
      layers=streams.values(),
      attention=looks(attended.values(), means.values(), rows_BQ, traces),
      past=past,
      at_BQ=at_BQ,
      hooks=hooks,
    )
    own = lambda p_BTS: p_BTS[..., self._before :]
    return DecoderOutput(
      hidden_BTD=self.norm(out.x_BTD),
      layers={layer: out.layers[number] for layer, number in streams.items()},
      attention={layer: own(out.attention[number]) for layer, number in attended.items()},
      attention_mean={layer: own(out.attention_mean[number]) for layer, number in means.items()},
    )

  def context(
    self,
    valid_BT: jax.Array,
    mask_ar_BT: jax.Array | None = None,
    segment_BT: jax.Array | None = None,
    fork_BT: jax.Array | None = None,
  ) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, jax.Array]]:
    """What the blocks read beside the residual stream: masks (B, T, S), one a block, and rotary angles.

    S counts the places of a learned past, which all see, before those of the batch.
    """
    P, (B, T) = self._before, valid_BT.shape
    queries_BT = positions(valid_BT, segment_BT, fork_BT) + P
    mask_BTS, keys_BS = attention_mask(valid_BT, mask_ar_BT, segment_BT, fork_BT), queries_BT
    if P:
      mask_BTS = jnp.concatenate([jnp.ones((B, T, P), bool), mask_BTS], axis=2)
      keys_BS = jnp.concatenate([jnp.broadcast_to(jnp.arange(P), (B, P)), queries_BT], axis=1)
    masks = self._masks(mask_BTS, queries_BT, keys_BS, mask_ar_BT, segment_BT)
    return masks, self._angles(queries_BT)

  def init_cache(self, batch: int, length: int) -> KVCache:
    """A cache for `length` tokens a sample, prompt padding included; of a learned past, and else empty."""
    attention, dtype, P = self.config.block.attention, self.embed.embedding.dtype, self._before
    shape = (batch, P + length, attention.kv_heads, attention.head_dim)
    buffer = lambda past_PKH: jnp.zeros(shape, dtype).at[:, :P].set(past_PKH.astype(dtype))
    if self.learned_past is None:
      keys, values = ([jnp.zeros(shape, dtype) for _ in range(self.config.depth)] for _ in range(2))
    else:
      pairs = [map(buffer, self.learned_past(layer)) for layer in range(self.config.depth)]
      keys, values = zip(*pairs, strict=True)
    valid_BS = jnp.broadcast_to(jnp.arange(P + length) < P, (batch, P + length))
    return KVCache(tuple(keys), tuple(values), valid_BS, jnp.int32(P), begun=False)

  def extend(
    self, x_BTD: jax.Array, valid_BT: jax.Array, cache: KVCache, mask_ar_BT: jax.Array | None = None
  ) -> tuple[jax.Array, KVCache]:
    """Reads T more tokens into the cache: hidden states after the final norm, and the longer cache."""
    before_B = cache.valid_BS.sum(axis=-1, dtype=jnp.int32)
    places_BT = positions(valid_BT) + before_B[:, None]
    grown = cache.extend(valid_BT)
    mask_BTS = cached_mask(grown.valid_BS, cache.length, x_BTD.shape[1], mask_ar_BT)
    masks = self._masks(mask_BTS, places_BT, positions(grown.valid_BS), mask_ar_BT)
    x_BTD, grown = self.stack.extend(x_BTD, masks, self._angles(places_BT), grown)
    return self.norm(x_BTD), grown

  def unembed(self, x: jax.Array, ids: jax.Array | None = None) -> jax.Array:
    """Logits (..., V) in float32 of hidden states (..., D); with `ids` (K,) of those alone, (..., K)."""
    x = towards_weight(x)
    if self.tied:
      logits = self.embed.logits(x, ids)
    else:  # a whole product: an adapter may stand around the layer
      logits = self.lm_head(x).astype(jnp.float32)
      logits = logits if ids is None else logits[..., ids]
    cap = self.config.softcap
    return logits if cap is None else cap * jnp.tanh(logits / cap)

  @property
  def _before(self) -> int:
    """Places of the context that a learned past takes."""
    return 0 if self.learned_past is None else self.learned_past.length

  def _masks(self, mask_BTS, queries_BT, keys_BS, mask_ar_BT, segment_BT=None) -> tuple[jax.Array, ...]:
    """One mask a layer; layers of one window share theirs."""
    windows = self.config.windows or (0,) * self.config.depth
    by_size = {0: mask_BTS}
    for size in set(windows) - {0}:
      by_size[size] = windowed(mask_BTS, queries_BT, keys_BS, size, mask_ar_BT, segment_BT)
    return tuple(by_size[size] for size in windows)

  def _angles(self, places_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    config = self.config
    return rope_angles(places_BT, config.block.attention.head_dim, config.rope_theta, config.rope_scaling)
