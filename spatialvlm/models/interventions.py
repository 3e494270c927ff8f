"""What `Vlm.read` can be made to change in the decoder: attention cut, heads taken out, states given.

    changes = Interventions(cut=Cut(layers_BL, queries_BT, keys_BT))
    vlm.read(batch, Wants(logits=True), changes)

Every array has one row for each of the batch, so that many interventions on one question are rows of one
batch, and one compiled program does them all. Suffixes beyond those of `types`: L blocks of the decoder,
N query heads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spatialvlm.models.soft_prompts import Sequence
from spatialvlm.types import Batch, UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cut:
  """Attention that is cut: in some blocks, some positions do not see some others (Geva et al., 2023).

  A query that is left without any key reads the mean of all values.

  Attributes:
    layers_BL: bool, in which blocks; block i (from 1) is `layers_BL[:, i - 1]`.
    queries_BT, keys_BT: bool, who does not see whom.
  """

  layers_BL: Any
  queries_BT: Any
  keys_BT: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Heads:
  """Heads whose outputs are replaced, by zeros or by their mean over the batch.

  Attributes:
    out_BLN: bool, the heads that are taken out of each row.
    kind_BT: int32, of what kind a position is, -1 for padding: a head's output there becomes its mean over
      all positions of the batch of this kind (mean ablation); None: it becomes zero.
    kinds: how many kinds there are.
  """

  out_BLN: Any
  kind_BT: Any = None
  kinds: int = dataclasses.field(default=1, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Given:
  """States that are put in the place of a row's own: activation patching (Meng et al., 2022).

  Attributes:
    layers_BL: bool (B, L + 1), in which layers: 0 is what the first block reads, i what stands after i
      blocks.
    places_BT: bool, at which positions.
    streams: (L + 1, 1 or B, T, D), the residual streams of another reading (`Outputs.decoder_layers`).
  """

  layers_BL: Any
  places_BT: Any
  streams: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interventions:
  """All that is changed in one reading; None is left alone. Positions are those of the batch.

  It is what `core.block.Hooks` asks for.
  """

  cut: Cut | None = None
  heads_out: Heads | None = None
  given: Given | None = None

  def rows(self, index: np.ndarray) -> Interventions:
    """Those of some rows, in this order, as a batch of their own."""

    def pick(path, x):
      axis = int(path[-1].name == "streams")
      return x if axis and x.shape[1] == 1 else np.take(x, index, axis=axis)

    return jax.tree_util.tree_map_with_path(pick, self)

  def placed(self, sequence: Sequence, batch: Batch) -> Interventions:
    """The same for a sequence in which a soft prompt stands between the batch's positions; traced.

    Raises:
      UserError: several sequences a row, which have no positions of their own.
    """
    if batch.segment_BT is not None:
      raise UserError("interventions: a row of the batch holds several sequences; give one question a row")
    if sequence.home_BT is None:
      return self
    move = lambda x, fill: _moved(x, sequence, fill)
    cut, heads, given = self.cut, self.heads_out, self.given
    if cut is not None:
      cut = Cut(cut.layers_BL, move(cut.queries_BT, False), move(cut.keys_BT, False))
    if heads is not None and heads.kind_BT is not None:
      heads = dataclasses.replace(heads, kind_BT=move(heads.kind_BT, -1))
    if given is not None:
      layers, _, _, width = given.streams.shape
      streams_LBTD = jnp.broadcast_to(given.streams, (layers, *batch.tokens_BT.shape, width))
      moved_LBTD = jnp.moveaxis(move(jnp.moveaxis(streams_LBTD, 0, 2), 0), 2, 0)
      given = Given(given.layers_BL, move(given.places_BT, False), moved_LBTD)
    return Interventions(cut, heads, given)

  def mask(self, number: int, mask_BTS: jax.Array) -> jax.Array:
    """What the queries of block `number` see."""
    if self.cut is None:
      return mask_BTS
    keys_BS = self.cut.keys_BT
    before = mask_BTS.shape[2] - keys_BS.shape[1]  # places of a learned past, which stay
    keys_BS = jnp.pad(keys_BS, ((0, 0), (before, 0)))
    cut_BTS = self.cut.queries_BT[:, :, None] & keys_BS[:, None, :]
    return mask_BTS & ~(cut_BTS & self.cut.layers_BL[:, number - 1, None, None])

  def heads(self, number: int, out_BTNH: jax.Array) -> jax.Array:
    """The outputs of a block's heads."""
    if self.heads_out is None:
      return out_BTNH
    instead_BTNH = jnp.zeros_like(out_BTNH)
    if (kind_BT := self.heads_out.kind_BT) is not None:
      of_kind_BTC = jax.nn.one_hot(kind_BT, self.heads_out.kinds, dtype=jnp.float32)  # -1 is of none
      sums_CNH = jnp.einsum("BTC,BTNH->CNH", of_kind_BTC, out_BTNH.astype(jnp.float32))
      means_CNH = sums_CNH / jnp.maximum(of_kind_BTC.sum((0, 1)), 1)[:, None, None]
      instead_BTNH = jnp.einsum("BTC,CNH->BTNH", of_kind_BTC, means_CNH).astype(out_BTNH.dtype)
    return jnp.where(self.heads_out.out_BLN[:, number - 1][:, None, :, None], instead_BTNH, out_BTNH)

  def stream(self, number: int, x_BTD: jax.Array) -> jax.Array:
    """The residual stream of layer `number`."""
    if self.given is None:
      return x_BTD
    where_BT = self.given.layers_BL[:, number, None] & self.given.places_BT
    return jnp.where(where_BT[..., None], self.given.streams[number].astype(x_BTD.dtype), x_BTD)


def _moved(x: jax.Array, sequence: Sequence, fill: Any) -> jax.Array:
  """`x` (B, T, ...), with one entry a position of the batch, at the sequence's; `fill` at the others'."""
  rows_B1 = jnp.arange(len(x))[:, None]
  empty = jnp.full((len(x), sequence.valid_BT.shape[1], *x.shape[2:]), fill, jnp.asarray(x).dtype)
  return empty.at[rows_B1, sequence.home_BT].set(x)
