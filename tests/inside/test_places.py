"""Values of image tokens over a picture: tiles in their places, the global view over all."""

import numpy as np
import pytest

from spatialvlm.inside.places import Canvas, canvases
from spatialvlm.types import UserError


def test_a_token_lies_where_its_tile_shows_it():
  """Each token by itself, against a loop over pixels of the picture."""
  canvas = Canvas(rows=2, cols=3, side=2, first=1)
  assert canvas.shape == (4, 6) and canvas.tiles == 7
  for token in range(canvas.tiles * 4):
    values = np.zeros((canvas.first + canvas.tiles) * 4)
    values[canvas.first * 4 + token] = 1
    tile, place = divmod(token, 4)
    row, column = divmod(place, 2)
    want = np.zeros((4, 6))
    for r in range(4):
      for c in range(6):
        if tile == 6:  # the global view, squeezed to 2 x 2
          want[r, c] = (r * 2 // 4 == row) * (c * 2 // 6 == column) / 6
        else:
          want[r, c] = (r // 2 == tile // 3) * (c // 2 == tile % 3) * (r % 2 == row) * (c % 2 == column)
    np.testing.assert_allclose(canvas.lay(values), want)


def test_shares_keep_their_sum_and_means_their_size():
  values = np.random.default_rng(0).random((3, 2, 5 * 9))
  canvas = Canvas(rows=2, cols=2, side=3)
  np.testing.assert_allclose(canvas.lay(values).sum((-1, -2)), values.sum(-1))
  np.testing.assert_allclose(canvas.lay(np.full(45, 0.25), total=False), np.full((6, 6), 0.25))
  alone = Canvas(0, 0, 3)
  np.testing.assert_array_equal(alone.lay(values[..., :9]), values[..., :9].reshape(3, 2, 3, 3))


def test_which_token_a_cell_shows():
  canvas = Canvas(rows=2, cols=2, side=2, first=3)
  tile, view = canvas.tokens_at()
  assert tile[0].tolist() == [12, 13, 16, 17] and tile[3].tolist() == [22, 23, 26, 27]
  assert view[0].tolist() == [28, 28, 29, 29] and view[3].tolist() == [30, 30, 31, 31]
  marked = np.zeros(32)
  marked[tile[2, 1]] = 1
  assert canvas.lay(marked).argmax() == 2 * 4 + 1


def test_pictures_one_behind_the_other():
  first, second = canvases([(1, 2), (0, 0)], 4)
  assert (first.first, second.first) == (0, 3) and second.finer(2).side == 4
  values = np.arange(16.0)
  assert second.lay(values).tolist() == [[12, 13], [14, 15]]
  with pytest.raises(UserError, match="8 image tokens a tile are no square"):
    canvases([(0, 0)], 8)
