"""Grouped-query attention, its fixed-size key-value cache, and the product itself.

Suffixes: N query heads, K key-value heads, G query heads of one key-value head, H head size.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core.mlp import linear
from spatialvlm.core.rope import rotate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
  """Keys and values of all layers in buffers of one fixed length.

  Attributes:
    keys, values: for each layer (B, S, K, H), keys already rotated.
    valid_BS: slots that hold real tokens. Padding of a prompt keeps its slots and stays invalid.
    length: int32 scalar, slots filled so far, the same for all samples.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  valid_BS: jax.Array
  length: jax.Array

  def extend(self, valid_BT: jax.Array) -> KVCache:
    """The cache with the slots of T new tokens marked (their keys and values are still to be written)."""
    valid_BS = jax.lax.dynamic_update_slice(self.valid_BS, valid_BT.astype(bool), (0, self.length))
    return dataclasses.replace(self, valid_BS=valid_BS, length=self.length + valid_BT.shape[1])


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask_BTS: jax.Array | None,
  implementation: str,
) -> jax.Array:
  """softmax(q k^T / sqrt(H)) v, softmax in float32; query head i reads key-value head i // (N / K).

  Args:
    mask_BTS: true where a query sees a key, or (B, 1, S); None where all see all. A query that sees none
      gives the mean of all values, never NaN.
    implementation: "xla", or "cudnn" (GPU, bfloat16, head size at most 128; 256 on Hopper).

  Returns:
    (B, T, N, H) in the dtype of q.
  """
  if implementation == "cudnn":
    mask = None if mask_BTS is None else mask_BTS[:, None]
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask, implementation="cudnn")
  return _attend_xla(q_BTNH, k_BSKH, v_BSKH, mask_BTS)


def _attend_xla(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * jnp.asarray(H**-0.5, q_BTNH.dtype)
  scores = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  s_BKGTS = scores("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH)
  if mask_BTS is not None:
    s_BKGTS = jnp.where(mask_BTS[:, None, None], s_BKGTS, jnp.finfo(jnp.float32).min)
  p_BKGTS = jax.nn.softmax(s_BKGTS, axis=-1).astype(v_BSKH.dtype)
  return jnp.einsum("BKGTS,BSKH->BTKGH", p_BKGTS, v_BSKH).reshape(B, T, N, H)


class Attention(nnx.Module):
  """Self-attention with separate q, k, v projections, as Hugging Face and PEFT know them."""

  def __init__(
    self,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    bias: bool,
    implementation: str,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    out_scale: float = 1.0,
  ):
    make = functools.partial(linear, bias=bias, dtype=dtype, rngs=rngs)
    self.q_proj = make(width, heads * head_dim, ("embed", "heads"))
    self.k_proj = make(width, kv_heads * head_dim, ("embed", "heads"))
    self.v_proj = make(width, kv_heads * head_dim, ("embed", "heads"))
    self.o_proj = make(heads * head_dim, width, ("heads", "embed"), scale=out_scale)
    self.head_dim = head_dim
    self.implementation = implementation

  def project(self, x_BTD: jax.Array, angles) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries (B, T, N, H), keys and values (B, T, K, H), rotated where `angles` are given."""
    q, k, v = (
      proj(x_BTD).reshape(*x_BTD.shape[:2], -1, self.head_dim)
      for proj in (self.q_proj, self.k_proj, self.v_proj)
    )
    return (q, k, v) if angles is None else (rotate(q, angles), rotate(k, angles), v)

  def __call__(
    self,
    x_BTD: jax.Array,
    mask_BTS: jax.Array | None,
    angles: tuple[jax.Array, jax.Array] | None = None,
    past: tuple[jax.Array, jax.Array, jax.Array] | None = None,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns the output and the keys and values that were read.

    Args:
      past: (keys (B, S, K, H), values, start): the buffers of a cache and the slot, an int32 scalar, where
        the T new tokens are written. Without it the keys are those of `x_BTD`.
    """
    q_BTNH, k_BSKH, v_BSKH = self.project(x_BTD, angles)
    if past is not None:
      keys, values, start = past
      k_BSKH = jax.lax.dynamic_update_slice(keys, k_BSKH.astype(keys.dtype), (0, start, 0, 0))
      v_BSKH = jax.lax.dynamic_update_slice(values, v_BSKH.astype(values.dtype), (0, start, 0, 0))
    out_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, self.implementation)
    return self.o_proj(out_BTNH.reshape(*x_BTD.shape[:2], -1)), (k_BSKH, v_BSKH)
