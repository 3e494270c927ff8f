"""What stands before, or within, every sequence that a model reads, and is no part of the batch.

`SoftTokens` are rows of embeddings among those of the tokens (prompt tuning, P-tuning); a `LearnedPast` is
keys and values in each layer (prefix tuning). Both take places of the context and are read like what they
stand for: positions count them, queries see them. Who puts them into a model decides what of it is trained.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

START, AFTER_IMAGE = "start", "after_image"
PLACES = (START, AFTER_IMAGE)


@dataclasses.dataclass(frozen=True)
class Sequence:
  """What the decoder reads of a batch.

  Attributes:
    x_BTD: embeddings.
    valid_BT, mask_ar_BT: as of `types.Batch`, of these positions.
    home_BT: int32, of each position of the batch the one where it stands here; None where nothing moved.
  """

  x_BTD: jax.Array
  valid_BT: jax.Array
  mask_ar_BT: jax.Array | None
  home_BT: jax.Array | None = None

  def of_batch(self, y: jax.Array, axis: int = 1) -> jax.Array:
    """`y`, which has one entry a position along `axis`, at the positions of the batch alone."""
    if self.home_BT is None:
      return y
    shape = [1] * y.ndim
    shape[0], shape[axis] = self.home_BT.shape
    return jnp.take_along_axis(y, self.home_BT.reshape(shape), axis=axis)

  def of_read(self, y_BTT: jax.Array) -> jax.Array:
    """`y_BTT`, one entry a pair of positions of the batch, over the positions that are read; 0 elsewhere."""
    if self.home_BT is None:
      return y_BTT
    B, R = self.x_BTD.shape[:2]
    b_B11, q_BT1, k_B1T = jnp.arange(B)[:, None, None], self.home_BT[:, :, None], self.home_BT[:, None, :]
    return jnp.zeros((B, R, R), y_BTT.dtype).at[b_B11, q_BT1, k_B1T].set(y_BTT)

  def home(self, index_BK: jax.Array) -> jax.Array:
    """Where positions of the batch stand here; the one behind its last token is behind all that is read."""
    if self.home_BT is None:
      return index_BK
    T, behind = self.home_BT.shape[1], self.x_BTD.shape[1]
    home_BK = jnp.take_along_axis(self.home_BT, jnp.minimum(index_BK, T - 1), axis=1)
    return jnp.where(index_BK < T, home_BK, behind)


class SoftTokens(nnx.Module):
  """Rows of embeddings that are read with every sequence (prompt tuning, Lester et al., arXiv 2104.08691).

  They stand before all tokens, or right behind a sample's last image token (before all where it shows none),
  and are of the kind of what they stand beside: causal, or part of a bidirectional prompt.

  Attributes:
    rows: (P, D) float32, as the blocks read embeddings: a scale of the embedding is not applied to them.
    place: "start" or "after_image".
  """

  def __init__(self, rows: nnx.Variable, place: str = START):
    self.rows, self.place = rows, place

  @property
  def length(self) -> int:
    """P, how many there are."""
    return self.rows.shape[0]

  def __call__(self) -> jax.Array:
    """(P, D) float32."""
    return self.rows[...]

  def insert(self, sequence: Sequence, image_slot_BT: jax.Array | None) -> Sequence:
    """The sequence with the rows in their place."""
    x_BTD, P = sequence.x_BTD, self.length
    B, T, D = x_BTD.shape
    rows_BPD = jnp.broadcast_to(self().astype(x_BTD.dtype), (B, P, D))
    valid_BT = sequence.valid_BT.astype(bool)
    before_B1 = jnp.zeros((B, 1), jnp.int32)
    place = lambda rows, tokens: jnp.concatenate([rows, tokens], axis=1)
    if self.place == AFTER_IMAGE and image_slot_BT is not None:
      behind_BT = jnp.where(image_slot_BT >= 0, jnp.arange(1, T + 1, dtype=jnp.int32), 0)
      before_B1 = jnp.max(behind_BT, axis=1, keepdims=True)
      place = functools.partial(_placed, _order(before_B1, P, T))
    mask_ar_BT = sequence.mask_ar_BT
    if mask_ar_BT is not None:
      mask_ar_BT = mask_ar_BT.astype(bool)
      first_B1 = jnp.argmax(valid_BT, axis=1, keepdims=True)  # padding may stand before it
      neighbour_B1 = jnp.where(before_B1 > 0, before_B1 - 1, first_B1)
      beside_B1 = jnp.take_along_axis(mask_ar_BT, neighbour_B1, axis=1)
      mask_ar_BT = place(jnp.broadcast_to(beside_B1, (B, P)), mask_ar_BT)
    at_BT = jnp.arange(T, dtype=jnp.int32)[None]
    return Sequence(
      place(rows_BPD, x_BTD),
      place(jnp.ones((B, P), bool), valid_BT),
      mask_ar_BT,
      at_BT + P * (at_BT >= before_B1),
    )


def _order(before_B1: jax.Array, P: int, T: int) -> jax.Array:
  """int32 (B, P + T): which of P rows and, behind them, T tokens stands where, `before_B1` tokens first."""
  at_BT = jnp.arange(P + T, dtype=jnp.int32)[None]
  in_rows_BT = jnp.where(at_BT < before_B1 + P, at_BT - before_B1, at_BT)
  return jnp.where(at_BT < before_B1, P + at_BT, in_rows_BT)


def _placed(order_BT: jax.Array, rows: jax.Array, tokens: jax.Array) -> jax.Array:
  # Each of them is taken once, so that no gradient is a sum in an order of the device's choice.
  both = jnp.concatenate([rows, tokens], axis=1)
  return jnp.take_along_axis(both, order_BT.reshape(*order_BT.shape, *(1,) * (both.ndim - 2)), axis=1)


class LearnedPast(nnx.Module):
  """Keys and values that stand before every sequence (prefix tuning, Li and Liang, arXiv 2101.00190).

  Attributes:
    pairs: (P, L, 2, K, H) float32: of each place and layer the key, as queries meet it (none of the rotary
      positions is applied to it any more), and the value.
  """

  def __init__(self, pairs: nnx.Variable):
    self.pairs = pairs

  @property
  def length(self) -> int:
    """P, how many places of the context they take."""
    return self.pairs.shape[0]

  def __call__(self, layer: int) -> tuple[jax.Array, jax.Array]:
    """Keys and values (P, K, H) of a layer, float32."""
    pairs_PL2KH = self.pairs[...]
    return pairs_PL2KH[:, layer, 0], pairs_PL2KH[:, layer, 1]
