"""What is set against each other, each read as if it stood in the right one's place (`types.Branches`).

Wrong answers beside the right one, and rearranged pictures beside the one that an answer is true of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from spatialvlm.processing.encoded import Branch, Encoded
from spatialvlm.processing.tiling import Tiles
from spatialvlm.types import PICTURES, Example, Extra, UserError, missing_value

# Reads a conversation by itself, without its tiles.
Alone = Callable[[Example], Encoded]


def branched(encoded: Encoded, example: Example, alone: Alone) -> Encoded:
  """`encoded` with its branches: to each question that has wrong answers one for every answer, the right one
  first; then the first question once more, behind the picture itself and behind each rearranged one.

  Args:
    example: its pictures, the rearranged ones too, cut into `Tiles`.

  Raises:
    UserError: a wrong answer that is the right one, or that changes the tokens before it; pictures set
      against each other that are several in a conversation, or do not stand behind some text.
  """
  row = _Row(encoded)
  for number, turn in enumerate(example.turns):
    if not turn.false:
      continue
    if turn.answer in turn.false:
      raise UserError(f"turn {number + 1}: the wrong answers name the right one, {turn.answer!r}")
    for answer in (turn.answer, *turn.false):
      row.answer(example, number, answer, alone)
  if example.rearranged:
    if len(example.images) != 1:
      raise UserError(
        f"rearranged pictures of a conversation with {len(example.images)} pictures; one is wanted"
      )
    row.answer(example, 0, example.turns[0].answer, alone, PICTURES)
    for picture in example.rearranged:
      row.picture(dataclasses.replace(example, images=(picture,)), alone)
  return row.encoded()


class _Row:
  """A conversation and what is put behind it."""

  def __init__(self, encoded: Encoded):
    self._encoded = encoded
    self._tokens, self._slots = [encoded.tokens], [encoded.image_slot]
    self._branches: list[Branch] = []
    self._tiles, self._shown = [encoded.tiles], np.count_nonzero(encoded.image_slot >= 0)
    self._images = list(encoded.images)

  def answer(self, example: Example, number: int, answer: str, alone: Alone, group: int = 0) -> None:
    """An answer to question `number`, behind the row's own tokens up to it."""
    asked = dataclasses.replace(example.turns[number], answer=answer, false=())
    read = alone(dataclasses.replace(example, turns=(*example.turns[:number], asked)))
    first, _ = _last_stretch(read.loss_mask)
    if not np.array_equal(read.tokens[:first], self._encoded.tokens[:first]):
      raise UserError(f"turn {number + 1}: the answer {answer!r} changes the tokens that stand before it")
    self._add(read, first - 1, group + number)

  def picture(self, example: Example, alone: Alone) -> None:
    """The first question and its answer behind the example's picture, in place of the row's own."""
    turn = dataclasses.replace(example.turns[0], false=())
    read = alone(dataclasses.replace(example, turns=(turn,)))
    first = int(np.argmax(read.image_slot >= 0))
    if not first or not np.array_equal(read.tokens[:first], self._encoded.tokens[:first]):
      raise UserError(
        "rearranged pictures: the picture must stand behind some text, the same for all of them"
      )
    self._add(read, first, PICTURES, self._shown)
    (picture,) = example.images
    self._tiles.append(picture.pixels)
    self._images.append(len(picture.pixels))
    self._shown += np.count_nonzero(read.image_slot >= 0)

  def _add(self, read: Encoded, begin: int, group: int, slots: int = 0) -> None:
    """Tokens of `read` from `begin` to the end of its last answer; its picture's slots begin at `slots`."""
    first, end = _last_stretch(read.loss_mask)
    start = self._branches[-1].stop if self._branches else len(self._encoded.tokens)
    self._branches.append(Branch(start, end - first, begin - 1, group, first - begin - 1))
    self._tokens.append(read.tokens[begin:end])
    own = read.image_slot[begin:end]
    self._slots.append(np.where(own >= 0, own + slots, -1).astype(np.int32))

  def encoded(self) -> Encoded:
    tiles = np.concatenate(self._tiles)
    added = sum(map(len, self._tokens[1:]))
    return dataclasses.replace(
      self._encoded,
      tokens=np.concatenate(self._tokens),
      loss_mask=np.pad(self._encoded.loss_mask, (0, added)),
      image_slot=np.concatenate(self._slots),
      tiles=tiles,
      images=tuple(self._images),
      extra={name: _longer(extra, len(tiles)) for name, extra in self._encoded.extra.items()},
      branches=tuple(self._branches),
    )


def in_tiles(example: Example, tiler: Callable[[np.ndarray], Tiles]) -> Example:
  """The example with all of its pictures cut into tiles, as far as they are not yet."""
  tiles = lambda images: tuple(i if isinstance(i, Tiles) else tiler(i) for i in images)
  return dataclasses.replace(example, images=tiles(example.images), rearranged=tiles(example.rearranged))


def _longer(extra: Extra, tiles: int) -> Extra:
  """An array that says nothing of the tiles behind its own."""
  array = extra.array
  if extra.axis != "tile" or len(array) == tiles:
    return extra
  more = np.full((tiles - len(array), *array.shape[1:]), missing_value(array.dtype), array.dtype)
  return Extra(np.concatenate([array, more]), extra.axis)


def _last_stretch(mask: np.ndarray) -> tuple[int, int]:
  """Start and end of the last stretch of true values."""
  places = np.flatnonzero(mask)
  before = np.flatnonzero(~mask[: places[-1]])
  return int(before[-1] + 1), int(places[-1] + 1)
