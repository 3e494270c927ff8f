"""Who may see whom. True means that a query may attend to a key."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def positions(valid_BT: jax.Array) -> jax.Array:
  """int32 positions that count valid tokens only, so that left and right padding give the same ones."""
  return jnp.clip(jnp.cumsum(valid_BT.astype(jnp.int32), axis=-1) - 1, 0)


def visibility(mask_ar_BT: jax.Array) -> jax.Array:
  """(B, T, T) from big_vision's autoregressive mask: one function for causal and prefix attention.

  A token sees another if as many or fewer tokens with `mask_ar` true stand up to the other. All true is
  causal attention; false over a prefix makes that prefix bidirectional.
  """
  order_BT = jnp.cumsum(mask_ar_BT.astype(jnp.int32), axis=-1)
  return order_BT[:, None, :] <= order_BT[:, :, None]


def attention_mask(valid_BT: jax.Array, mask_ar_BT: jax.Array | None = None) -> jax.Array:
  """(B, T, T): causal, or with a bidirectional prefix, and never onto padding."""
  if mask_ar_BT is None:
    mask_ar_BT = jnp.ones_like(valid_BT, dtype=bool)
  return visibility(mask_ar_BT) & valid_BT[:, None, :].astype(bool)


def windowed(
  mask_BTS: jax.Array, queries_BT: jax.Array, keys_BS: jax.Array, window: int, mask_ar_BT: jax.Array | None
) -> jax.Array:
  """`mask_BTS` without keys that stand `window` or more positions before their query.

  Args:
    queries_BT, keys_BS: positions.
    mask_ar_BT: of the queries; those of a bidirectional prefix see all of it.
  """
  near_BTS = queries_BT[:, :, None] - keys_BS[:, None, :] < window
  if mask_ar_BT is not None:
    near_BTS |= (jnp.cumsum(mask_ar_BT.astype(jnp.int32), axis=-1) == 0)[:, :, None]
  return mask_BTS & near_BTS


def cached_mask(
  valid_BS: jax.Array, length: jax.Array, count: int, mask_ar_BT: jax.Array | None = None
) -> jax.Array:
  """(B, T, S) for `count` new tokens that stand in a cache's slots `length ... length + count - 1`.

  Args:
    valid_BS: slots that hold real tokens, the new ones included.
    length: slots filled before, scalar int32.
    mask_ar_BT: of the new tokens; what the cache held before is visible to them all.
  """
  B, S = valid_BS.shape
  if mask_ar_BT is None:
    mask_ar_BT = jnp.ones((B, count), bool)
  before_BTS = jnp.broadcast_to(jnp.arange(S) < length, (B, count, S))
  mask_BTS = jax.lax.dynamic_update_slice(before_BTS, visibility(mask_ar_BT), (0, 0, length))
  return mask_BTS & valid_BS[:, None, :]
