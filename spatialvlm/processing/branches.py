"""Wrong answers beside the right one, each read as if it stood in its place (`types.Branches`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from spatialvlm.processing.encoded import Branch, Encoded
from spatialvlm.types import Example, UserError


def branched(encoded: Encoded, example: Example, alone: Callable[[Example], Encoded]) -> Encoded:
  """`encoded` with a branch for every answer to each question that has wrong ones, the right one first.

  Args:
    alone: reads a conversation by itself, without its tiles.

  Raises:
    UserError: a wrong answer that is the right one, or that changes the tokens before it.
  """
  tokens, branches = [encoded.tokens], []
  start = len(encoded.tokens)
  for number, turn in enumerate(example.turns):
    if not turn.false:
      continue
    if turn.answer in turn.false:
      raise UserError(f"turn {number + 1}: the wrong answers name the right one, {turn.answer!r}")
    for answer in (turn.answer, *turn.false):
      asked = dataclasses.replace(turn, answer=answer, false=())
      read = alone(dataclasses.replace(example, turns=(*example.turns[:number], asked)))
      first, end = _last_stretch(read.loss_mask)
      if not np.array_equal(read.tokens[:first], encoded.tokens[:first]):
        raise UserError(f"turn {number + 1}: the answer {answer!r} changes the tokens that stand before it")
      branches.append(Branch(start, end - first, first - 2, number))
      tokens.append(read.tokens[first - 1 : end])
      start = branches[-1].stop
  added = start - len(encoded.tokens)
  return dataclasses.replace(
    encoded,
    tokens=np.concatenate(tokens),
    loss_mask=np.pad(encoded.loss_mask, (0, added)),
    image_slot=np.pad(encoded.image_slot, (0, added), constant_values=-1),
    branches=tuple(branches),
  )


def _last_stretch(mask: np.ndarray) -> tuple[int, int]:
  """Start and end of the last stretch of true values."""
  places = np.flatnonzero(mask)
  before = np.flatnonzero(~mask[: places[-1]])
  return int(before[-1] + 1), int(places[-1] + 1)
