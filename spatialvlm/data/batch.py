"""Encoded examples to batches of fixed shapes (numpy, on the host).

A shape is a bucket (length, tiles, targets): the whole batch goes to the bucket of its largest example, so
that a batch depends on its own examples only and a stream needs no buffers that a checkpoint would have to
keep. Padding stands on the right. With `data.packing` rows hold several conversations (`data.packing`), and
their number is part of the bucket.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spatialvlm.data import packing
from spatialvlm.types import Batch, Branches, Extra, PixelTable, UserError, missing_value

if TYPE_CHECKING:
  from spatialvlm.processing.processor import Encoded


# Of the description of a batch's extra arrays that processes tell each other.
_KINDS_BYTES = 2048


class Bucket(NamedTuple):
  """The shape of a batch: `length` T, `tiles` per row I (0: no pixels), supervised `targets` K of a row.

  `rows`: of a packed batch, B; 0 where each example has a row.
  """

  length: int
  tiles: int
  targets: int
  rows: int = 0

  def __str__(self) -> str:
    """As it is shown: 512x1x8, of a packed batch 512x6x64x4 (`bucket_says`)."""
    return "x".join(map(str, self if self.rows else self[:3]))


def bucket_says(packed: bool) -> str:
  """What the numbers of a bucket are, as it is shown."""
  return "tokens x tiles x targets" + " x rows" * packed


def bucket_of(
  encoded: Sequence[Encoded], *, lengths: Sequence[int], tiles: Sequence[int], targets: int
) -> Bucket:
  """The smallest bucket that holds all of `encoded`.

  Args:
    lengths: ascending sequence lengths.
    tiles: ascending numbers of tiles per sample; samples without any image need none of them.
    targets: the least K; it doubles until the supervised positions fit. 0 where nothing is supervised.

  Raises:
    UserError: an example is larger than the largest bucket.
  """
  length = _smallest(lengths, max(len(e.tokens) for e in encoded), "tokens", "lengths")
  most_tiles = max(len(e.tiles) for e in encoded)
  supervised = max(int(np.count_nonzero(e.loss_mask)) for e in encoded) if targets else 0
  while 0 < targets < supervised:
    targets *= 2
  return Bucket(length, _smallest(tiles, most_tiles, "image tiles", "tiles") if most_tiles else 0, targets)


def packed_of(
  encoded: Sequence[Encoded],
  *,
  lengths: Sequence[int],
  tiles: Sequence[int],
  targets: int,
  tokens_per_tile: int,
  multiple: int = 1,
) -> tuple[list[Encoded], Bucket, tuple[tuple[int, ...], ...]]:
  """Packed rows of all of `encoded` (`packing.arrange`), their bucket, and the numbers of those in each row.

  Args:
    lengths, tiles, targets: as of `bucket_of`; no example may be larger, though rows may hold more tiles.
    tokens_per_tile: image tokens of a tile.
    multiple: the bucket's rows are one of its multiples; those beyond the rows returned are padding.

  Raises:
    UserError: as `bucket_of`.
  """
  bucket_of(encoded, lengths=lengths, tiles=tiles, targets=targets)
  sizes = [packing.Size(len(e.tokens), len(e.tiles)) for e in encoded]
  layout = packing.arrange(sizes, lengths=lengths, tokens_per_tile=tokens_per_tile, multiple=multiple)
  rows = [packing.joined([encoded[i] for i in row]) for row in layout.rows]
  most = max(int(np.count_nonzero(row.loss_mask)) for row in rows)
  while 0 < targets < most:
    targets *= 2
  return rows, Bucket(*layout.room, targets, layout.count), layout.rows


def largest(buckets: Sequence[Bucket]) -> Bucket:
  """The bucket that holds all of `buckets`: what several processes agree on before a step."""
  return Bucket(*(max(sizes) for sizes in zip(*buckets, strict=True)))


def collate(
  encoded: Sequence[Encoded],
  *,
  length: int,
  tiles: int,
  targets: int,
  pad_id: int,
  batch_size: int,
  rows: int = 0,
  normal: PixelTable | None = None,
) -> Batch:
  """A batch whose tiles stand in order beside their samples: N = B * I, `tile_index_BI` None.

  Args:
    encoded: at most `batch_size` examples, or packed rows of several (`packed_of`), each of which fits the
      bucket; rows beyond them are padding with `example_mask_B` false and a single valid token.
    targets: K of `target_index_BK`; 0 leaves it None.
    tiles: I; 0 leaves the pixels out, for a caller that brings features and `tile_index_BI` itself.
    pad_id: token id at padding.
    rows: of a packed batch, in the place of `batch_size`; 0 for one that is not.
    normal: what the tiles' values stand for; None for what the examples say. A batch without any example
      needs it to be like those of other processes.

  Raises:
    UserError: an extra array that does not fit its axis, or differs within the batch in more than its length.
  """
  batch_size = rows or batch_size
  fields = _text_rows(encoded, length=length, targets=targets, pad_id=pad_id, batch_size=batch_size)
  fields["branches"] = branches = _branches(encoded, length=length, batch_size=batch_size)
  if not rows and branches is None:
    fields["segment_BT"] = None
  fields["normal"] = normal or next((e.normal for e in encoded), None)
  fields["extra"] = _extra(encoded, tiles=tiles, targets=targets, batch_size=batch_size)
  if not tiles:
    return Batch(**fields)
  starts = [i * tiles for i in range(len(encoded))]
  parts = [e.tiles for e in encoded]
  return Batch(
    **fields,
    pixels_NHWC=_scatter(parts, starts, batch_size * tiles, 0),
    pixel_mask_NHW=_pixel_masks(encoded, starts, batch_size * tiles),
  )


def grow(batch: Batch, bucket: Bucket, *, pad_id: int, tile_size: int) -> Batch:
  """Pads an aligned batch to a larger bucket, where another process's share of the step needs one.

  Its views stay as they are: they have buckets of their own.
  """
  rows, length = batch.tokens_BT.shape
  more = bucket.length - length
  if bucket.rows > rows:
    batch = _more_rows(batch, bucket.rows - rows, pad_id=pad_id)
    rows = bucket.rows

  def wider(array, value, by):
    return np.pad(array, [(0, 0), (0, by)] + [(0, 0)] * (array.ndim - 2), constant_values=value)

  targets = batch.target_index_BK
  if bucket.targets:
    targets = np.full((rows, 0), -1, np.int32) if targets is None else targets
    targets = wider(targets, -1, bucket.targets - targets.shape[1])
  pixels = batch.pixels_NHWC
  if pixels is None and bucket.tiles:
    pixels = np.zeros((0, tile_size, tile_size, 3), np.uint8 if batch.normal else np.float32)

  def more_tiles(array, value):
    if array is None:
      return None
    aligned = array.reshape(rows, -1, *array.shape[1:])
    out = np.full((rows, bucket.tiles, *array.shape[1:]), value, array.dtype)
    out[:, : aligned.shape[1]] = aligned
    return out.reshape(-1, *array.shape[1:])

  def grown(extra: Extra) -> Extra:
    missing = missing_value(extra.array.dtype)
    if extra.axis == "tile":
      return Extra(more_tiles(extra.array, missing), extra.axis)
    if extra.axis == "target":
      return Extra(wider(extra.array, missing, bucket.targets - extra.array.shape[1]), extra.axis)
    return extra

  return Batch(
    tokens_BT=wider(batch.tokens_BT, pad_id, more),
    valid_BT=wider(batch.valid_BT, False, more),
    image_slot_BT=wider(batch.image_slot_BT, -1, more),
    mask_ar_BT=None if batch.mask_ar_BT is None else wider(batch.mask_ar_BT, True, more),
    segment_BT=None if batch.segment_BT is None else np.pad(batch.segment_BT, [(0, 0), (0, more)], "edge"),
    target_index_BK=targets,
    example_mask_B=batch.example_mask_B,
    pixels_NHWC=more_tiles(pixels, 0),
    normal=batch.normal,
    pixel_mask_NHW=more_tiles(batch.pixel_mask_NHW, True),
    extra={name: grown(extra) for name, extra in batch.extra.items()},
    views=batch.views,
  )


def _more_rows(batch: Batch, count: int, *, pad_id: int) -> Batch:
  """`count` rows of padding behind those of an aligned batch."""
  rows = batch.tokens_BT.shape[0]

  def more(array, value):
    if array is None:
      return None
    padding = np.full((array.shape[0] // rows * count, *array.shape[1:]), value, array.dtype)
    return np.concatenate([array, padding])

  valid = more(batch.valid_BT, False)
  valid[rows:, 0] = True
  return dataclasses.replace(
    batch,
    tokens_BT=more(batch.tokens_BT, pad_id),
    valid_BT=valid,
    image_slot_BT=more(batch.image_slot_BT, -1),
    mask_ar_BT=more(batch.mask_ar_BT, True),
    segment_BT=more(batch.segment_BT, 0),
    target_index_BK=more(batch.target_index_BK, -1),
    example_mask_B=more(batch.example_mask_B, False),
    pixels_NHWC=more(batch.pixels_NHWC, 0),
    pixel_mask_NHW=more(batch.pixel_mask_NHW, True),
    extra={
      name: Extra(more(extra.array, missing_value(extra.array.dtype)), extra.axis)
      for name, extra in batch.extra.items()
    },
  )


def extra_kinds(batch: Batch) -> np.ndarray:
  """What the arrays of `Batch.extra` are (axis, shape behind it, type), as bytes of one size to exchange."""
  kinds = {
    name: (extra.axis, extra.array.shape[1 + (extra.axis == "target") :], extra.array.dtype.str)
    for name, extra in batch.extra.items()
  }
  text = json.dumps(kinds).encode()
  if len(text) > _KINDS_BYTES:
    raise ValueError(f"Batch.extra: too many arrays to be told to other processes: {sorted(kinds)}")
  return np.frombuffer(text.ljust(_KINDS_BYTES), np.uint8)


def with_extra(batch: Batch, kinds: Sequence[np.ndarray]) -> Batch:
  """The batch with every array that another process's share of the step has, holding no value for any row.

  Processes run one program, and an array that only some of them brought would make two.

  Args:
    kinds: `extra_kinds` of all processes, in their order.
  """
  wanted = {name: kind for text in kinds for name, kind in json.loads(bytes(text)).items()}
  rows = batch.tokens_BT.shape[0]
  sizes = {
    "sample": (rows,),
    "tile": (0 if batch.pixels_NHWC is None else batch.pixels_NHWC.shape[0],),
    "target": (rows, 0 if batch.target_index_BK is None else batch.target_index_BK.shape[1]),
  }
  found = dict(batch.extra)
  for name, (axis, shape, dtype) in wanted.items():
    if name not in found:
      found[name] = Extra(np.full((*sizes[axis], *shape), missing_value(np.dtype(dtype)), dtype), axis)
  return dataclasses.replace(batch, extra={name: found[name] for name in sorted(found)})


def _smallest(sizes: Sequence[int], needed: int, what: str, setting: str) -> int:
  for size in sizes:
    if size >= needed:
      return size
  raise UserError(
    f"an example of {needed} {what} does not fit the largest bucket, {max(sizes, default=0)}; "
    f"raise `{setting}` in the config, or lower model.max_tiles or model.longest_edge"
  )


def _text_rows(encoded, *, length, targets, pad_id, batch_size) -> dict[str, np.ndarray]:
  tokens = np.full((batch_size, length), pad_id, np.int32)
  valid = np.zeros((batch_size, length), bool)
  slots = np.full((batch_size, length), -1, np.int32)
  index = np.full((batch_size, targets), -1, np.int32)
  causal = np.ones((batch_size, length), bool)
  segments = np.zeros((batch_size, length), np.int32)
  for row, e in enumerate(encoded):
    size = len(e.tokens)
    tokens[row, :size] = e.tokens
    valid[row, :size] = True
    slots[row, :size] = e.image_slot
    start = 0
    for number, (count, prefix) in enumerate(e.parts or ((size, e.prefix),)):
      causal[row, start : start + prefix] = False
      segments[row, start:] = number
      start += count
    for number, branch in enumerate(e.branches, 1):
      segments[row, branch.start :] = number
    if targets:
      supervised = np.flatnonzero(e.loss_mask)
      index[row, : len(supervised)] = supervised
  # A softmax over nothing is NaN, which a loss of weight 0 would still spread: padding rows see one token.
  valid[len(encoded) :, 0] = True
  return dict(
    tokens_BT=tokens,
    valid_BT=valid,
    image_slot_BT=slots,
    mask_ar_BT=None if causal.all() else causal,
    segment_BT=segments,
    target_index_BK=index if targets else None,
    example_mask_B=np.arange(batch_size) < len(encoded),
  )


def _branches(encoded: Sequence[Encoded], *, length: int, batch_size: int) -> Branches | None:
  """The answers that branch off the rows; their numbers are rounded up, so that few shapes come."""
  most = max((len(e.branches) for e in encoded), default=0)
  if not most:
    return None
  longest = max(branch.count for e in encoded for branch in e.branches)
  fork = np.full((batch_size, length), -1, np.int32)
  target = np.full((batch_size, packing.rounded(most), packing.rounded(longest)), -1, np.int32)
  group = np.full(target.shape[:2], -1, np.int32)
  for row, e in enumerate(encoded):
    for j, branch in enumerate(e.branches):
      fork[row, branch.start : branch.stop] = branch.fork
      target[row, j, : branch.count] = np.arange(branch.stop - branch.count, branch.stop)
      group[row, j] = branch.group
  return Branches(fork, target, group)


def _scatter(parts: Sequence[np.ndarray], starts: Sequence[int], count: int, value: float) -> np.ndarray:
  """Writes the parts at their starts along the first axis of an array of `count` rows."""
  shape = next(p.shape[1:] for p in parts if len(p))
  out = np.full((count, *shape), value, next(p.dtype for p in parts if len(p)))
  for part, start in zip(parts, starts, strict=True):
    if len(part):
      out[start : start + len(part)] = part
  return out


def _pixel_masks(encoded, starts, count) -> np.ndarray | None:
  """`pixel_mask_NHW`, or None where every pixel is real: the common case, and one attention mask less."""
  if all(e.pixel_mask is None for e in encoded):
    return None
  parts = [np.ones(e.tiles.shape[:3], bool) if e.pixel_mask is None else e.pixel_mask for e in encoded]
  return _scatter(parts, starts, count, True)


def _extra(encoded: Sequence[Encoded], *, tiles: int, targets: int, batch_size: int) -> dict[str, Extra]:
  """The arrays that examples bring, each padded along its axis; those of an axis of size 0 are left out."""
  found = {}
  for name in sorted({name for e in encoded for name in e.extra}):
    given = {row: e.extra[name] for row, e in enumerate(encoded) if name in e.extra}
    kinds = {_kind(extra) for extra in given.values()}
    if len(kinds) > 1:
      said = "; ".join(f"{axis} {shape} {dtype}" for axis, shape, dtype in sorted(kinds, key=str))
      raise UserError(f"extra {name!r} of one batch differs in axis, shape or type: {said}")
    ((axis, shape, dtype),) = kinds
    sizes = {"sample": (), "tile": (tiles,), "target": (targets,)}[axis]
    if 0 in sizes:
      continue
    out = np.full((batch_size, *sizes, *shape), missing_value(dtype), dtype)
    for row, extra in given.items():
      if axis == "sample":
        out[row] = extra.array
        continue
      wanted = len(encoded[row].tiles) if axis == "tile" else int(np.count_nonzero(encoded[row].loss_mask))
      if len(extra.array) != wanted:
        raise UserError(f"extra {name!r} holds {len(extra.array)} {axis}s, but the example has {wanted}")
      out[row, :wanted] = extra.array
    found[name] = Extra(out.reshape(-1, *shape) if axis == "tile" else out, axis)
  return found


def _kind(extra: Extra) -> tuple[str, tuple[int, ...], np.dtype]:
  """What must be equal for all examples of a batch: the axis, the shape behind it, and the type."""
  array = np.asarray(extra.array)
  if extra.axis != "sample" and not array.ndim:
    raise UserError(
      f"extra array of axis {extra.axis!r} is a single number; it wants one for each {extra.axis}"
    )
  return extra.axis, array.shape[extra.axis != "sample" :], array.dtype
