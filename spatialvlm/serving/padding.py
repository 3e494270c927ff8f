"""Rows of different lengths in arrays of one shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Options of a batch; a row with more of them makes it double.
OPTIONS = 8


def stacked(rows: Sequence[np.ndarray], count: int) -> np.ndarray:
  """Arrays of one shape as (count, ...), zeros behind them."""
  found = np.zeros((count, *rows[0].shape), rows[0].dtype)
  found[: len(rows)] = rows
  return found


def texts(rows: Sequence[np.ndarray], batch: int, length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
  """Token rows padded on the right: tokens_BT int32 and valid_BT bool.

  Rows that fill the batch repeat no prompt: one token that nobody reads keeps attention's softmax defined.
  """
  tokens_BT = np.full((batch, length), pad_id, np.int32)
  valid_BT = np.zeros((batch, length), bool)
  for row, tokens in enumerate(rows):
    tokens_BT[row, : len(tokens)] = tokens
    valid_BT[row, : len(tokens)] = True
  valid_BT[len(rows) :, 0] = True
  return tokens_BT, valid_BT


def options(
  rows: Sequence[Sequence[tuple[int, ...]]], batch: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """The options of each row, padded to one number K of them and to `width`: tokens_BKT and valid_BKT."""
  count = OPTIONS
  while count < max(map(len, rows)):
    count *= 2
  tokens_BKT = np.zeros((batch, count, width), np.int32)
  valid_BKT = np.zeros(tokens_BKT.shape, bool)
  for row, found in enumerate(rows):
    for k, option in enumerate(found):
      tokens_BKT[row, k, : len(option)] = option
      valid_BKT[row, k, : len(option)] = True
  return tokens_BKT, valid_BKT
