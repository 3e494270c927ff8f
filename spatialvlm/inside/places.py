"""Where image tokens stand: tiles and global view put together in one picture's coordinates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class Canvas:
  """The grid of cells that one picture is divided into: one a token of the finest tiles.

  Attributes:
    rows, cols: of tiles; both 0 where the global view stands alone.
    side: tokens along a tile's edge.
    first: number of its first tile among all tiles of the question; the global view is its last.
  """

  rows: int
  cols: int
  side: int
  first: int = 0

  @property
  def tiles(self) -> int:
    """How many tiles it has, the global view counted."""
    return self.rows * self.cols + 1

  @property
  def shape(self) -> tuple[int, int]:
    """Rows and columns of cells."""
    return max(self.rows, 1) * self.side, max(self.cols, 1) * self.side

  def finer(self, factor: int) -> Canvas:
    """The same picture where each token is a square of factor x factor patches, as before a connector."""
    return dataclasses.replace(self, side=self.side * factor)

  def own(self, values: np.ndarray) -> np.ndarray:
    """This picture's of the values (..., M) of a question's image tokens: (..., tiles, side, side)."""
    size = self.side**2
    part = values[..., self.first * size : (self.first + self.tiles) * size]
    return part.reshape(*values.shape[:-1], self.tiles, self.side, self.side)

  def lay(self, values: np.ndarray, total: bool = True) -> np.ndarray:
    """(..., rows, columns) of cells, of values (..., M) of all image tokens of a question.

    A token of a tile is a cell of its own; one of the global view lies over as many cells as it shows.

    Args:
      total: values are shares of a whole: a token's is divided among its cells, and tiles and view add up, so
        that the sum over cells is that over tokens. False: cells take the mean of the two.
    """
    parts = self.own(values)
    view = parts[..., -1, :, :]
    if not self.rows:
      return view
    grid = parts[..., :-1, :, :].reshape(*values.shape[:-1], self.rows, self.cols, self.side, self.side)
    grid = grid.swapaxes(-3, -2).reshape(*values.shape[:-1], *self.shape)
    view = view.repeat(self.rows, axis=-2).repeat(self.cols, axis=-1)
    return grid + view / (self.rows * self.cols) if total else (grid + view) / 2

  def tokens_at(self) -> np.ndarray:
    """int32 (2, rows, columns): the image token that each cell shows in its tile, and in the view."""
    size = self.side**2
    number = np.arange((self.first + self.tiles) * size, dtype=np.int32)
    parts = self.own(number)
    view = parts[-1]
    if not self.rows:
      return np.stack([view, view])
    grid = parts[:-1].reshape(self.rows, self.cols, self.side, self.side).swapaxes(1, 2).reshape(self.shape)
    return np.stack([grid, view.repeat(self.rows, axis=0).repeat(self.cols, axis=1)])


def canvases(grids: Sequence[tuple[int, int]], tokens_per_tile: int) -> tuple[Canvas, ...]:
  """The canvases of a question's pictures, by the rows and columns of their tiles.

  Raises:
    UserError: tiles whose tokens are no square.
  """
  side = math.isqrt(tokens_per_tile)
  if side**2 != tokens_per_tile:
    raise UserError(
      f"{tokens_per_tile} image tokens a tile are no square, so that nobody knows where they stand in it;"
      f" explain"
      " a model whose connector joins squares of patches"
    )
  found, first = [], 0
  for rows, cols in grids:
    found.append(Canvas(rows, cols, side, first))
    first += found[-1].tiles
  return tuple(found)
