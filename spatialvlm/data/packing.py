"""Several conversations in one row: which ones, in rows of what shape, and the row itself.

A packed batch holds the very conversations of an unpacked one, and the model reads each as if it stood alone
(`types.Batch.segment_BT`): losses and gradients of a step are the same to rounding. How they are laid out
follows from their sizes alone, so a stream of packed batches keeps nothing and goes on with the same bits.

Shapes come in few sizes, since each is a program: rows and tiles of a row are 1, 2, 3, 4, 6, 8, 12, ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spatialvlm.types import Extra, UserError, missing_value

if TYPE_CHECKING:
  from spatialvlm.processing.processor import Encoded

# Positions of a row at which attention over all of it costs as much as the layers' products: six times the
# width, and decoders of small models are about a thousand wide.
_EVEN = 6144


class Size(NamedTuple):
  """Of one conversation, or what a row has room for."""

  tokens: int
  tiles: int


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the conversations of a batch stand.

  Attributes:
    rows: the numbers of the conversations of each row, in the order they stand in; as many as are not empty.
    count: rows of the batch, those that stay empty included.
    room: tokens and tiles of a row.
  """

  rows: tuple[tuple[int, ...], ...]
  count: int
  room: Size


def arrange(
  sizes: Sequence[Size], *, lengths: Sequence[int], tokens_per_tile: int, multiple: int = 1
) -> Layout:
  """The layout of the least cost: of rows of each length, the fewest that hold all conversations.

  Within a length the longest conversation is laid first, each into the row that it leaves most evenly filled
  with tokens and with tiles; where that does not fit, into the first that has room (first fit, decreasing). A
  tile is weighed as the tokens that the decoder reads of it.

  Args:
    sizes: of the conversations, none longer than the last of `lengths`.
    lengths: that rows may have, ascending.
    multiple: the number of rows is one of its multiples.
  """
  order = sorted(range(len(sizes)), key=lambda i: (-sizes[i].tokens, -sizes[i].tiles, i))
  longest = max(size.tokens for size in sizes)
  found = [_of_length(sizes, order, length, multiple) for length in lengths if length >= longest]

  def cost(layout: Layout) -> float:
    tokens, tiles = layout.room
    return layout.count * (tokens * (1 + tokens / _EVEN) + tiles * tokens_per_tile)

  return min(found, key=cost)


def joined(encoded: Sequence[Encoded]) -> Encoded:
  """One row of several conversations: tokens, tiles and all that is counted by them one behind the other.

  Raises:
    UserError: an extra array that belongs to one conversation as a whole: a row has one place for it; answers
      that branch off a conversation.
  """
  if any(e.branches for e in encoded):
    raise UserError(
      "data.packing: rows with false answers beside the right ones are not packed; turn one off"
    )
  images = np.cumsum([0] + [np.count_nonzero(e.image_slot >= 0) for e in encoded])
  slots = [np.where(e.image_slot >= 0, e.image_slot + n, -1) for e, n in zip(encoded, images, strict=False)]
  tiles = [e.tiles for e in encoded if len(e.tiles)] or [encoded[0].tiles]
  masks = None
  if any(e.pixel_mask is not None for e in encoded):
    whole = lambda e: np.ones(e.tiles.shape[:3], bool) if e.pixel_mask is None else e.pixel_mask
    masks = np.concatenate([whole(e) for e in encoded])
  return dataclasses.replace(
    encoded[0],
    tokens=np.concatenate([e.tokens for e in encoded]),
    loss_mask=np.concatenate([e.loss_mask for e in encoded]),
    image_slot=np.concatenate(slots).astype(np.int32),
    tiles=np.concatenate(tiles),
    pixel_mask=masks,
    images=tuple(tiles for e in encoded for tiles in e.images),
    extra={name: _joined_extra(encoded, name) for name in sorted({n for e in encoded for n in e.extra})},
    views={name: joined([e.views[name] for e in encoded]) for name in encoded[0].views},
    parts=tuple((len(e.tokens), e.prefix) for e in encoded),
    prefix=0,
  )


def rounded(count: int) -> int:
  """The least of 1, 2, 3, 4, 6, 8, 12, ... that is not less than `count`; 0 for 0."""
  power = 1 << max(0, count - 1).bit_length()
  return 0 if not count else power * 3 // 4 if power > 2 and power * 3 // 4 >= count else power


def _of_length(sizes: Sequence[Size], order: Sequence[int], length: int, multiple: int) -> Layout:
  """The fewest rows of a length, and of layouts into so many that of the fewest tiles a row."""
  fewest = len(_first_fit(sizes, order, Size(length, sum(size.tiles for size in sizes))))
  count = rounded(-(-fewest // multiple)) * multiple
  for tiles in _tile_rooms(sizes, count):
    room = Size(length, tiles)
    rows = _even(sizes, order, room, count) or _first_fit(sizes, order, room)
    if len(rows) <= count:
      return Layout(tuple(tuple(row) for row in rows if row), count, room)
  raise AssertionError("rows with room for all tiles hold what rows without a bound hold")


def _tile_rooms(sizes: Sequence[Size], count: int) -> Iterator[int]:
  """Rooms for tiles that are worth a try, ascending; the last one holds all of them."""
  total, most = sum(size.tiles for size in sizes), max(size.tiles for size in sizes)
  room = rounded(max(most, -(-total // count)))
  while room < total:
    yield room
    room = rounded(room + 1)
  yield rounded(total)


def _first_fit(sizes: Sequence[Size], order: Sequence[int], room: Size) -> list[list[int]]:
  """As many rows as it takes."""
  rows: list[list[int]] = []
  left: list[Size] = []
  for i in order:
    size = sizes[i]
    at = next((n for n, has in enumerate(left) if _fits(size, has)), len(rows))
    if at == len(rows):
      rows.append([])
      left.append(room)
    rows[at].append(i)
    left[at] = Size(left[at].tokens - size.tokens, left[at].tiles - size.tiles)
  return rows


def _even(sizes: Sequence[Size], order: Sequence[int], room: Size, count: int) -> list[list[int]] | None:
  """`count` rows whose tokens and tiles fill alike; None where that ends before the last conversation."""
  rows: list[list[int]] = [[] for _ in range(count)]
  left = [room] * count
  for i in order:
    size = sizes[i]
    after = [Size(has.tokens - size.tokens, has.tiles - size.tiles) for has in left]
    fitting = [n for n in range(count) if min(after[n]) >= 0]
    if not fitting:
      return None
    at = min(fitting, key=lambda n: abs(after[n].tokens * room.tiles - after[n].tiles * room.tokens))
    rows[at].append(i)
    left[at] = after[at]
  return rows


def _fits(size: Size, room: Size) -> bool:
  return size.tokens <= room.tokens and size.tiles <= room.tiles


def _joined_extra(encoded: Sequence[Encoded], name: str) -> Extra:
  """The array of a row; conversations that bring none get its missing value."""
  given = {n: e.extra[name] for n, e in enumerate(encoded) if name in e.extra}
  first = next(iter(given.values()))
  kinds = {(extra.axis, np.shape(extra.array)[1:], np.asarray(extra.array).dtype) for extra in given.values()}
  if any(extra.axis == "sample" for extra in given.values()):
    raise UserError(
      f"data.packing: extra {name!r} is said of a whole example, and a packed row holds several; set"
      " data.packing=false"
    )
  if len(kinds) > 1:
    said = "; ".join(f"{axis} {shape} {dtype}" for axis, shape, dtype in sorted(kinds, key=str))
    raise UserError(f"extra {name!r} of one batch differs in axis, shape or type: {said}")
  ((axis, shape, dtype),) = kinds
  parts = []
  for n, e in enumerate(encoded):
    wanted = len(e.tiles) if axis == "tile" else int(np.count_nonzero(e.loss_mask))
    part = given[n].array if n in given else np.full((wanted, *shape), missing_value(dtype), dtype)
    if len(part) != wanted:
      raise UserError(f"extra {name!r} holds {len(part)} {axis}s, but the example has {wanted}")
    parts.append(part)
  return Extra(np.concatenate(parts), first.axis)
