"""Grouped-query attention, its fixed-size key-value cache, and the product itself.

Suffixes: N query heads, K key-value heads, G query heads of one key-value head, H head size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core import backend
from spatialvlm.core.axes import context_mesh
from spatialvlm.core.mlp import linear
from spatialvlm.core.norm import RMSNorm
from spatialvlm.core.products import einsum
from spatialvlm.core.rope import rotate

_QK_EPS = 1e-6  # in no config: a constant of the reference implementation


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
  """Sizes and parts of an `Attention`.

  Attributes:
    width: of the residual stream.
    heads, kv_heads, head_dim: query heads, key-value heads, and the size of each.
    bias: whether the linear layers have biases; `key_bias`: whether the keys' has one too, where the others
      do; `out_bias`: whether the output's has one, None for as the others.
    qk_norm: a root-mean-square norm over all heads' queries, and one over the keys (ViT-22B, Dehghani et al.,
      2023).
    scale, softcap: of the scores, see `attend`.
  """

  width: int
  heads: int
  kv_heads: int
  head_dim: int
  bias: bool = False
  key_bias: bool = True
  out_bias: bool | None = None
  qk_norm: bool = False
  scale: float | None = None
  softcap: float | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
  """Keys and values of all layers in buffers of one fixed length.

  Attributes:
    keys, values: for each layer (B, S, K, H), keys already rotated.
    valid_BS: slots that hold real tokens. Padding of a prompt keeps its slots and stays invalid.
    length: int32 scalar, slots filled so far, the same for all samples.
    begun: whether any token of the samples has been read into it.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  valid_BS: jax.Array
  length: jax.Array
  begun: bool = dataclasses.field(default=True, metadata={"static": True})

  def extend(self, valid_BT: jax.Array) -> KVCache:
    """The cache with the slots of T new tokens marked (their keys and values are still to be written)."""
    valid_BS = jax.lax.dynamic_update_slice(self.valid_BS, valid_BT.astype(bool), (0, self.length))
    length = self.length + valid_BT.shape[1]
    return dataclasses.replace(self, valid_BS=valid_BS, length=length, begun=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Look:
  """What of a layer's probabilities is asked for.

  Attributes:
    heads: those of each head; `rows_BQ`: of the queries at these places alone, None for all.
    mean: the mean over heads, of all queries.
    trace_BTS: float32 zeros, which change no number; their gradient is `traced`'s. None: no gradient is.
  """

  heads: bool = dataclasses.field(default=True, metadata={"static": True})
  mean: bool = dataclasses.field(default=False, metadata={"static": True})
  rows_BQ: jax.Array | None = None
  trace_BTS: jax.Array | None = None


class Read(NamedTuple):
  """What a layer's queries read.

  Attributes:
    keys, values: (B, S, K, H), keys already rotated.
    probabilities: (B, N, T, S) float32, of each query over the keys, or (B, N, Q, S) of the rows of a `Look`;
      None where they were not asked for.
    mean: (B, T, S) float32, their mean over heads; None where it was not asked for.
  """

  keys: jax.Array
  values: jax.Array
  probabilities: jax.Array | None = None
  mean: jax.Array | None = None


def at_places(x_BT: jax.Array, at_BQ: jax.Array) -> jax.Array:
  """What stands at these places of the second axis: (B, T, ...) -> (B, Q, ...)."""
  return jnp.take_along_axis(x_BT, at_BQ.reshape(*at_BQ.shape, *(1,) * (x_BT.ndim - 2)), axis=1)


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask_BTS: jax.Array | None,
  implementation: str,
  scale: float | None = None,
  softcap: float | None = None,
) -> jax.Array:
  """softmax(scale q k^T) v, softmax in float32; query head i reads key-value head i // (N / K).

  Args:
    mask_BTS: true where a query sees a key, or (B, 1, S); None where all see all. A query that sees none
      gives the mean of all values, never NaN.
    implementation: a key of `IMPLEMENTATIONS`.
    scale: 1 / sqrt(H) where it is None.
    softcap: scores s become softcap * tanh(s / softcap) before the mask.

  Returns:
    (B, T, N, H) in the dtype of q.
  """
  return IMPLEMENTATIONS[implementation].run(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, softcap)


def attention_probabilities(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  mask_BTS: jax.Array | None,
  scale: float | None = None,
  softcap: float | None = None,
) -> jax.Array:
  """softmax(scale q k^T) as (B, N, T, S) in float32, whatever implementation `attend` has: it is written out.

  Arguments as of `attend`. A query that sees no key looks at all of them alike.
  """
  B, T, N, _ = q_BTNH.shape
  scores_BKGTS = _scores(_scaled(q_BTNH, scale), k_BSKH, mask_BTS, softcap)
  return jax.nn.softmax(scores_BKGTS, axis=-1).reshape(B, N, T, k_BSKH.shape[1])


@jax.custom_vjp
def traced(p_BNTS: jax.Array, trace_BTS: jax.Array) -> jax.Array:
  """The probabilities themselves, marked so that a gradient can be asked of them, small enough to be kept.

  The gradient of a scalar y with regard to `trace_BTS` is the mean over heads of max(0, dy/dp * p),
  (B, T, S): equation 5 of Chefer et al., "Generic Attention-model Explainability" (arXiv 2103.15679).
  """
  del trace_BTS
  return p_BNTS


def _traced_forward(p_BNTS, trace_BTS):
  del trace_BTS
  return p_BNTS, p_BNTS


def _traced_backward(p_BNTS, gradient_BNTS):
  return gradient_BNTS, jnp.maximum(gradient_BNTS * p_BNTS, 0).mean(axis=1)


traced.defvjp(_traced_forward, _traced_backward)


# Scores (4 MB of float32) that a CPU keeps in its cache.
_BLOCK = 1 << 20
# Queries of a TPU kernel's smallest block: the scores of fewer (one new token of each row) are few.
_FEW = 128
_HIDDEN = jnp.finfo(jnp.float32).min


def _cpu_alone() -> bool:
  mesh = context_mesh()
  return backend.platform() == "cpu" and (mesh is None or mesh.size == 1)


def _chunks(T: int, row: int) -> int:
  """Into how many equal parts T queries of `row` scores each are divided, to fit a block if they can."""
  return next((n for n in range(1, min(T, 64) + 1) if T % n == 0 and T // n * row <= _BLOCK), 1)


def _capped(scores: jax.Array, softcap: float | None) -> jax.Array:
  return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def _scaled(q_BTNH: jax.Array, scale: float | None) -> jax.Array:
  return q_BTNH * jnp.asarray(q_BTNH.shape[-1] ** -0.5 if scale is None else scale, q_BTNH.dtype)


def _scores(q_BTNH, k_BSKH, mask_BTS, softcap):
  """Masked scores (B, K, G, T, S) in float32 of queries that are scaled already."""
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
  s_BKGTS = einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH)
  s_BKGTS = _capped(s_BKGTS, softcap)
  return s_BKGTS if mask_BTS is None else jnp.where(mask_BTS[:, None, None], s_BKGTS, _HIDDEN)


def _xla(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, softcap):
  """The scores as one array; in blocks where one CPU computes alone and they would not fit its cache."""
  B, T, N, _ = q_BTNH.shape
  # In bfloat16 products are so fast that calling them head by head costs more than the cache saves: with
  # AMX, one core and two, blocks lose at 1.3 million scores and win from 3.7 on.
  limit = _BLOCK if q_BTNH.dtype == jnp.float32 else 3 * _BLOCK
  whole = B * N * T * k_BSKH.shape[1] <= limit or not _cpu_alone()
  return (_whole if whole else _blocked)(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, softcap)


def _whole(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, softcap):
  q_BTNH = _scaled(q_BTNH, scale)
  s_BKGTS = _scores(q_BTNH, k_BSKH, mask_BTS, softcap)
  return _summed(jax.nn.softmax(s_BKGTS, axis=-1), v_BSKH).reshape(q_BTNH.shape).astype(q_BTNH.dtype)


def _summed(p_BKGTS, v_BSKH):
  return einsum("BKGTS,BSKH->BTKGH", p_BKGTS.astype(v_BSKH.dtype), v_BSKH)


def _blocked(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, softcap):
  """One key-value head and one part of the queries at a time.

  On a CPU the scores then stay in its cache instead of being written out: 2.8 times faster for the 1024
  patches of a tile. The backward pass computes them again, block by block.
  """
  q_BTNH = _scaled(q_BTNH, scale)
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  G = N // K
  chunks = _chunks(T, G * S)
  C = T // chunks
  q = q_BTNH.reshape(B, chunks, C, K, G, H).transpose(0, 3, 1, 4, 2, 5).reshape(B * K, chunks, G * C, H)
  k = k_BSKH.transpose(0, 2, 1, 3).reshape(B * K, S, H)
  v = v_BSKH.transpose(0, 2, 1, 3).reshape(B * K, S, H)
  masks = None
  if mask_BTS is not None:
    masks = jnp.broadcast_to(mask_BTS, (B, T, S)).reshape(B, chunks, C, S)

  @jax.checkpoint
  def block(q, k, v, mask):
    scores = _capped(einsum("TH,SH->TS", q, k), softcap)
    if mask is not None:
      scores = jnp.where(mask, scores.reshape(G, C, S), _HIDDEN).reshape(G * C, S)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    # Divided after the product, which has fewer columns than the scores.
    out = einsum("TS,SH->TH", weights.astype(v.dtype), v)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(q.dtype)

  def head(inputs):
    index, q, k, v = inputs
    mask = None if masks is None else masks[index // K]
    if chunks == 1:
      return block(q[0], k, v, None if mask is None else mask[0])[None]
    return jax.lax.map(lambda part: block(part[0], k, v, part[1]), (q, mask))

  out = jax.lax.map(head, (jnp.arange(B * K), q, k, v))
  return out.reshape(B, K, chunks, G, C, H).transpose(0, 2, 4, 1, 3, 5).reshape(B, T, N, H)


def _cudnn(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, softcap):
  del softcap  # refused before
  B, T, S = q_BTNH.shape[0], q_BTNH.shape[1], k_BSKH.shape[1]
  mask = None if mask_BTS is None else jnp.broadcast_to(mask_BTS, (B, T, S))[:, None]
  return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask, scale=scale, implementation="cudnn")


def _cudnn_refuses(dtype: str, softcap: float | None) -> str:
  if dtype != "bfloat16" or backend.platform() != "gpu":
    return "needs an NVIDIA GPU and dtype bfloat16"
  return "" if softcap is None else "cannot bound scores (attn_logit_softcapping)"


def _splash(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, softcap):
  if q_BTNH.shape[1] < _FEW:
    return _whole(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, softcap)
  from spatialvlm.core import splash  # here: of jax.experimental, and TPUs alone need it

  return splash.run(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale, softcap)


def _splash_refuses(dtype: str, softcap: float | None) -> str:
  del dtype, softcap  # it takes both
  return "" if backend.platform() == "tpu" else "needs a TPU"


@dataclasses.dataclass(frozen=True)
class Implementation:
  """A way to compute the product.

  Attributes:
    run: (q, k, v, mask, scale, softcap) -> (B, T, N, H), all as of `attend`.
    refuses: (dtype, softcap) -> why it cannot compute a model of these on this machine; empty where it can.
  """

  run: Callable[..., jax.Array]
  refuses: Callable[[str, float | None], str] = lambda dtype, softcap: ""


# "xla" computes everywhere, and takes "blocked" by itself where one CPU computes alone and the scores are too
# many for its cache. "blocked" does so at any size and on any device, "whole" never, so that a program knows
# neither its device nor its sizes. "cudnn": NVIDIA's kernels; heads of at most 128 there, 256 on Hopper.
# "splash": jax's own kernel for TPUs (`core.splash`).
IMPLEMENTATIONS: dict[str, Implementation] = {
  "xla": Implementation(_xla),
  "blocked": Implementation(_blocked),
  "whole": Implementation(_whole),
  "cudnn": Implementation(_cudnn, _cudnn_refuses),
  "splash": Implementation(_splash, _splash_refuses),
}


class Attention(nnx.Module):
  """Self-attention with separate q, k, v projections, as Hugging Face and PEFT know them.

  `implementation`, a key of `IMPLEMENTATIONS`, may be set later (`models.execution.apply`).
  """

  def __init__(self, config: AttentionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs, out_scale: float = 1.0):
    """`out_scale`: of the initial weights of the output projection, which writes into the residual stream."""
    make = functools.partial(linear, dtype=dtype, rngs=rngs)
    width, inner, kv_inner = config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim
    bias = config.bias
    self.q_proj = make(width, inner, ("embed", "heads"), bias=bias)
    self.k_proj = make(width, kv_inner, ("embed", "heads"), bias=bias and config.key_bias)
    self.v_proj = make(width, kv_inner, ("embed", "heads"), bias=bias)
    out_bias = bias if config.out_bias is None else config.out_bias
    self.o_proj = make(inner, width, ("heads", "embed"), bias=out_bias, scale=out_scale)
    norm = lambda size: RMSNorm(size, _QK_EPS, dtype=dtype, rngs=rngs, axis="heads")
    self.q_norm = norm(inner) if config.qk_norm else None
    self.k_norm = norm(kv_inner) if config.qk_norm else None
    self.config = config
    self.implementation = "xla"

  def project(self, x_BTD: jax.Array, angles, at_BQ=None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries (B, T, N, H), keys and values (B, T, K, H), rotated where `angles` are given.

    With `at_BQ` the queries are those of these places alone, (B, Q, N, H).
    """
    read_BQD, turns = x_BTD, angles
    if at_BQ is not None:
      read_BQD = at_places(x_BTD, at_BQ)
      turns = angles and tuple(at_places(a, at_BQ) for a in angles)
    q, k, v = self.q_proj(read_BQD), self.k_proj(x_BTD), self.v_proj(x_BTD)
    if self.q_norm is not None:
      q, k = self.q_norm(q), self.k_norm(k)
    q, k, v = (x.reshape(*x.shape[:2], -1, self.config.head_dim) for x in (q, k, v))
    return (q, k, v) if angles is None else (rotate(q, turns), rotate(k, angles), v)

  def __call__(
    self,
    x_BTD: jax.Array,
    mask_BTS: jax.Array | None,
    angles: tuple[jax.Array, jax.Array] | None = None,
    past: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    look: Look | None = None,
    at_BQ: jax.Array | None = None,
    change: Callable[[jax.Array], jax.Array] | None = None,
  ) -> tuple[jax.Array, Read]:
    """Returns the output (B, T, D), and what was read.

    Args:
      mask_BTS: as of `attend`.
      angles: of the rotary positions, (cos, sin); None for none.
      past: (keys (B, S, K, H), values, start): the buffers of a cache and the slot, an int32 scalar, where
        the T new tokens are written. Without it the keys are those of `x_BTD`.
      look: what of the probabilities is to be given too; not with `at_BQ`.
      at_BQ: places of the queries; the output is then (B, Q, D), of them alone. None for all.
      change: what becomes of the heads' outputs (B, T, N, H) before they are joined; None: they stay.
    """
    q_BTNH, k_BSKH, v_BSKH = self.project(x_BTD, angles, at_BQ)
    if at_BQ is not None and mask_BTS is not None and mask_BTS.shape[1] > 1:
      mask_BTS = at_places(mask_BTS, at_BQ)
    if past is not None:
      keys, values, start = past
      k_BSKH = jax.lax.dynamic_update_slice(keys, k_BSKH.astype(keys.dtype), (0, start, 0, 0))
      v_BSKH = jax.lax.dynamic_update_slice(values, v_BSKH.astype(values.dtype), (0, start, 0, 0))
    scores = {"scale": self.config.scale, "softcap": self.config.softcap}
    whole_BNTS = None
    if look is not None and (look.mean or look.trace_BTS is not None):
      whole_BNTS = attention_probabilities(q_BTNH, k_BSKH, mask_BTS, **scores)
    if look is not None and look.trace_BTS is not None:
      whole_BNTS = traced(whole_BNTS, look.trace_BTS)
      p_BKGTS = whole_BNTS.reshape(q_BTNH.shape[0], k_BSKH.shape[2], -1, *whole_BNTS.shape[2:])
      out_BTNH = _summed(p_BKGTS, v_BSKH).reshape(q_BTNH.shape).astype(q_BTNH.dtype)
    else:
      out_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, self.implementation, **scores)
    out_BTNH = out_BTNH if change is None else change(out_BTNH)
    read = Read(k_BSKH, v_BSKH)
    if look is not None:
      rows_BNQS = _rows(look, q_BTNH, k_BSKH, mask_BTS, whole_BNTS, scores) if look.heads else None
      read = Read(k_BSKH, v_BSKH, rows_BNQS, whole_BNTS.mean(axis=1) if look.mean else None)
    return self.o_proj(out_BTNH.reshape(*out_BTNH.shape[:2], -1)), read


def _rows(look: Look, q_BTNH, k_BSKH, mask_BTS, whole_BNTS: jax.Array | None, scores) -> jax.Array:
  """The probabilities of a look's rows, (B, N, Q, S); those of the others are not computed for them."""
  if look.rows_BQ is None:
    return attention_probabilities(q_BTNH, k_BSKH, mask_BTS, **scores) if whole_BNTS is None else whole_BNTS
  if whole_BNTS is not None:
    return at_places(whole_BNTS.swapaxes(1, 2), look.rows_BQ).swapaxes(1, 2)
  if mask_BTS is not None and mask_BTS.shape[1] > 1:
    mask_BTS = at_places(mask_BTS, look.rows_BQ)
  return attention_probabilities(at_places(q_BTNH, look.rows_BQ), k_BSKH, mask_BTS, **scores)
