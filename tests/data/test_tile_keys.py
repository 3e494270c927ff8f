"""Keys of tiles that follow from what they were cut of."""

import numpy as np
import pytest

from spatialvlm.data.tile_keys import NAMED, ONCE, TILE_KEY, tile_keys, with_keys
from spatialvlm.processing.encoded import Encoded
from spatialvlm.processing.tilers import Idefics3Tiler

RNG = np.random.default_rng(0)
TILER = Idefics3Tiler(tile_size=8, longest_edge=16)
PICTURES = [RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8) for _ in range(2)]


def encoded(*pictures: np.ndarray, tiler: Idefics3Tiler = TILER) -> Encoded:
  cut = [tiler(picture).pixels for picture in pictures]
  return Encoded(
    tokens=np.zeros(4, np.int32),
    loss_mask=np.zeros(4, bool),
    image_slot=np.full(4, -1, np.int32),
    tiles=np.concatenate(cut),
    images=tuple(map(len, cut)),
  )


def keys(one: Encoded, **settings) -> np.ndarray:
  return with_keys(one, **settings).extra[TILE_KEY].array


def of_pictures(*pictures: np.ndarray, tiler: Idefics3Tiler = TILER) -> np.ndarray:
  return keys(encoded(*pictures, tiler=tiler), pictures=pictures, tiler=tiler)


def test_they_follow_from_the_picture_the_tiler_and_the_place():
  found = of_pictures(*PICTURES)
  assert found.shape == (10, 2) and found.dtype == np.int64
  assert len({tuple(key) for key in found.tolist()}) == 10 and (found[:, 0] >= 0).all()
  assert (found[:, 0] < NAMED).all()
  np.testing.assert_array_equal(of_pictures(PICTURES[1].copy(), PICTURES[0]), np.roll(found, 5, axis=0))
  other = of_pictures(*PICTURES, tiler=Idefics3Tiler(tile_size=8, longest_edge=16, direct=True))
  assert not {tuple(key) for key in other.tolist()} & {tuple(key) for key in found.tolist()}


def test_of_what_came_in_tiles_they_are_made_of_the_tiles():
  one = encoded(*PICTURES)
  cut = (PICTURES[0], TILER(PICTURES[1]))
  found = keys(one, pictures=cut, tiler=TILER)
  np.testing.assert_array_equal(found[:5], of_pictures(*PICTURES)[:5])
  np.testing.assert_array_equal(found[5:], tile_keys(one.tiles[5:]))
  np.testing.assert_array_equal(keys(one), tile_keys(one.tiles))


def test_given_ones_stay_and_those_that_do_not_come_again_have_none():
  own = np.arange(10).reshape(5, 2)
  found = keys(encoded(*PICTURES), keys=(None, own), pictures=PICTURES, tiler=TILER, again=False)
  assert (found[:5] == ONCE).all()
  np.testing.assert_array_equal(found[5:], own)
  with pytest.raises(ValueError, match="5 keys of an image of 4 tiles"):
    few = encoded(PICTURES[0])
    keys(Encoded(few.tokens, few.loss_mask, few.image_slot, few.tiles[:4], images=(4,)), keys=(own,))
