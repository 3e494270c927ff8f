"""Which pixels of a tile belong to which of its tokens."""

from __future__ import annotations

import math

import jax

from spatialvlm.types import UserError


def token_cells(map_NHW: jax.Array, tokens: int) -> jax.Array:
  """A map of pixels as cells of a square grid of tokens, row-major.

  The cells are (N, rows, height of a cell, columns, width of a cell), and what the map has behind its pixels.

  Raises:
    UserError: the map does not divide into the grid.
  """
  N, H, W, *rest = map_NHW.shape
  side = math.isqrt(tokens)
  if side * side != tokens or H % side or W % side:
    raise UserError(f"config.losses: a dense target of {H}x{W} does not divide into {tokens} image tokens")
  return map_NHW.reshape(N, side, H // side, side, W // side, *rest)
