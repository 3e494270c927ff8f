"""Who may see whom. True means that a query may attend to a key.

A row may hold several sequences one behind the other (packing): `segment_BT` says which one a position
belongs to, by numbers that do not fall along the row; None where each row is one. Sequences of a row do not
see each other, and the positions of each begin at 0. Sequences that fork from the first one (`fork_BT`: the
last position of it that they see, -1 elsewhere) see its beginning, and their positions go on from there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def positions(
  valid_BT: jax.Array, segment_BT: jax.Array | None = None, fork_BT: jax.Array | None = None
) -> jax.Array:
  """int32 positions that count valid tokens only, so that left and right padding give the same ones."""
  own_BT = jnp.clip(_counted(valid_BT, segment_BT) - 1, 0)
  if fork_BT is None:
    return own_BT
  before_BT = jnp.take_along_axis(own_BT, jnp.maximum(fork_BT, 0), axis=1) + 1
  return own_BT + jnp.where(fork_BT >= 0, before_BT, 0)


def _counted(marks_BT: jax.Array, segment_BT: jax.Array | None) -> jax.Array:
  """int32: how many marks stand up to a position, itself counted, since the begin of its sequence."""
  marks_BT = marks_BT.astype(jnp.int32)
  count_BT = jnp.cumsum(marks_BT, axis=-1)
  if segment_BT is None:
    return count_BT
  begins_BT = jnp.diff(segment_BT, axis=-1, prepend=segment_BT[:, :1] - 1) != 0
  # What was counted before a sequence never falls along a row, so the largest so far is the last one's.
  before_BT = jax.lax.cummax(jnp.where(begins_BT, count_BT - marks_BT, 0), axis=1)
  return count_BT - before_BT


def visibility(mask_ar_BT: jax.Array) -> jax.Array:
  """(B, T, T) from big_vision's autoregressive mask: one function for causal and prefix attention.

  A token sees another if as many or fewer tokens with `mask_ar` true stand up to the other. All true is
  causal attention; false over a prefix makes that prefix bidirectional.
  """
  order_BT = jnp.cumsum(mask_ar_BT.astype(jnp.int32), axis=-1)
  return order_BT[:, None, :] <= order_BT[:, :, None]


def attention_mask(
  valid_BT: jax.Array,
  mask_ar_BT: jax.Array | None = None,
  segment_BT: jax.Array | None = None,
  fork_BT: jax.Array | None = None,
) -> jax.Array:
  """(B, T, T): causal, or with a bidirectional prefix, never onto padding nor another sequence of the row.

  A sequence that forks from the first one sees that up to its fork.
  """
  if mask_ar_BT is None:
    mask_ar_BT = jnp.ones_like(valid_BT, dtype=bool)
  mask_BTT = visibility(mask_ar_BT) & valid_BT[:, None, :].astype(bool)
  if segment_BT is None:
    return mask_BTT
  seen_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
  if fork_BT is not None:
    seen_BTT |= jnp.arange(valid_BT.shape[1]) <= fork_BT[:, :, None]
  return mask_BTT & seen_BTT


def windowed(
  mask_BTS: jax.Array,
  queries_BT: jax.Array,
  keys_BS: jax.Array,
  window: int,
  mask_ar_BT: jax.Array | None,
  segment_BT: jax.Array | None = None,
) -> jax.Array:
  """`mask_BTS` without keys that stand `window` or more positions before their query.

  Args:
    queries_BT, keys_BS: positions.
    mask_ar_BT: of the queries; those of a bidirectional prefix see all of it.
    segment_BT: of the queries.
  """
  near_BTS = queries_BT[:, :, None] - keys_BS[:, None, :] < window
  if mask_ar_BT is not None:
    near_BTS |= (_counted(mask_ar_BT, segment_BT) == 0)[:, :, None]
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
