"""The grids of the tile budget, and which settings and options each family's tiles know."""

import numpy as np
import pytest
from PIL import Image

from spatialvlm.processing.tilers import (
  CropTiler,
  Idefics3Tiler,
  SquareTiler,
  crop_tiler,
  idefics3_tiler,
  square_tiler,
)
from spatialvlm.processing.tiling import TileOptions
from spatialvlm.types import UserError

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def tiler(**kwargs) -> Idefics3Tiler:
  return Idefics3Tiler(tile_size=16, longest_edge=64, **kwargs)


@pytest.mark.parametrize(
  ("size", "budget", "grid"),
  [
    ((64, 64), None, (4, 4)),
    ((64, 64), 17, (4, 4)),
    ((64, 64), 16, (3, 3)),
    ((64, 64), 9, (2, 2)),
    ((64, 64), 4, (0, 0)),
    ((48, 64), 13, (3, 4)),
    ((48, 64), 12, (3, 3)),
    ((200, 20), 5, (4, 1)),
    ((200, 20), 3, (2, 1)),
    ((200, 20), 2, (0, 0)),
    ((8, 8), 1, (0, 0)),
  ],
)
def test_budget_takes_the_greatest_grid_that_fits(size, budget, grid):
  cut = tiler(max_tiles=budget)
  assert cut.grid(*size) == grid
  tiles = cut(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
  assert (tiles.rows, tiles.cols) == grid
  assert len(tiles.pixels) == grid[0] * grid[1] + 1
  assert budget is None or len(tiles.pixels) <= budget


def test_grid_is_what_the_pixels_become():
  for edge in (16, 40, 64, 55):
    cut = Idefics3Tiler(tile_size=16, longest_edge=edge)
    for height, width in RNG.integers(1, 120, (40, 2)):
      tiles = cut(np.zeros((height, width, 3), np.uint8))
      assert (tiles.rows, tiles.cols) == cut.grid(height, width), (edge, height, width)
      assert len(tiles.pixels) <= cut.most_tiles


def test_without_enlarging_small_images_cost_few_tiles():
  cut = tiler(enlarge=False)
  assert cut.grid(10, 16) == (0, 0)
  assert cut.grid(17, 17) == (2, 2)
  assert cut.grid(30, 40) == (3, 3)  # 48 pixels along the longer side, 36 along the other
  assert cut.grid(500, 500) == (4, 4)


def test_fast_pixels_are_one_resize_each():
  image = RNG.integers(0, 256, (20, 27, 3), dtype=np.uint8)  # at the longest edge 48 rows are 46
  exact, fast = tiler()(image), tiler(direct=True)(image)
  assert (fast.rows, fast.cols) == (exact.rows, exact.cols) == (3, 4)
  resize = lambda size: np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
  canvas = resize((64, 48)).reshape(3, 16, 4, 16, 3).swapaxes(1, 2).reshape(12, 16, 16, 3)
  np.testing.assert_array_equal(fast.pixels, np.concatenate([canvas, resize((16, 16))[None]]))
  assert (fast.pixels != exact.pixels).any()
  one = tiler(direct=True, split=False)(image)
  np.testing.assert_array_equal(one.pixels[0], resize((16, 16)))


def test_most_tiles():
  assert tiler().most_tiles == 17
  assert tiler(max_tiles=7).most_tiles == 7
  assert tiler(split=False).most_tiles == 1


def test_an_image_of_the_tile_s_size_is_untouched():
  image = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
  np.testing.assert_array_equal(Idefics3Tiler(tile_size=16, longest_edge=16)(image).pixels, image[None])


def test_normalise_by_channel():
  cut = tiler(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
  expected = ((PHOTO / 255.0).astype(np.float32) - np.float32([0.1, 0.2, 0.3])) / np.float32([0.5, 0.6, 0.7])
  np.testing.assert_array_equal(cut.normalise(PHOTO), expected)
  np.testing.assert_array_equal(tiler(rescale=None, mean=None).normalise(PHOTO), PHOTO.astype(np.float32))


def test_what_the_settings_of_a_file_mean():
  size = {"height": 32, "width": 32}
  cut = crop_tiler({"size": size, "max_patches": 6, "crop_to_patches": False}, "here", TileOptions(), "")
  assert cut == CropTiler(tile_size=32, max_patches=6) and cut.most_tiles == 7
  assert round(cut.mean[0], 3) == 0.481
  settings = {"size": 32, "resample": 2, "image_mean": [0, 0, 0]}
  square = square_tiler(settings, "here", TileOptions(), "")
  assert square == SquareTiler(tile_size=32, resample=2, mean=(0, 0, 0)) and square.most_tiles == 1


@pytest.mark.parametrize(
  ("size", "budget", "grid"),
  [
    ((16, 16), None, (0, 0)),
    ((32, 32), None, (2, 2)),  # of 1x1, 2x2 and 3x3 the one whose area is at most twice the image's
    ((90, 90), None, (3, 3)),
    ((90, 90), 9, (2, 2)),
    ((90, 90), 4, (0, 0)),
    ((30, 90), None, (2, 6)),
    ((30, 90), 5, (1, 3)),
    ((90, 31), 4, (3, 1)),
    ((500, 10), None, (12, 1)),
    ((500, 10), 13, (12, 1)),
    ((500, 10), 12, (11, 1)),
    ((500, 10), 3, (2, 1)),
    ((500, 10), 2, (0, 0)),
    ((500, 10), 1, (0, 0)),
  ],
)
def test_crops_within_a_budget(size, budget, grid):
  cut = CropTiler(tile_size=16, max_tiles=budget)
  tiles = cut(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
  assert (tiles.rows, tiles.cols) == cut.grid(*size) == grid
  assert tiles.pixels.shape == (grid[0] * grid[1] + 1, 16, 16, 3)
  assert (
    len(tiles.pixels) <= cut.most_tiles == (13 if budget is None else max(1, budget) if budget != 2 else 1)
  )


def test_the_whole_alone():
  image = RNG.integers(0, 256, (16, 48, 3), dtype=np.uint8)
  whole = CropTiler(tile_size=16)(image).pixels[-1:]
  for cut in (
    CropTiler(tile_size=16, split=False),
    CropTiler(tile_size=16, max_tiles=1),
    SquareTiler(tile_size=16),
  ):
    assert cut.most_tiles == 1
    np.testing.assert_array_equal(cut(image).pixels, whole)
  np.testing.assert_array_equal(SquareTiler(tile_size=16)(image[:, :16]).pixels, image[None, :, :16])


@pytest.mark.parametrize(
  ("read", "config", "options", "message"),
  [
    (idefics3_tiler, {"do_resize": False}, {}, "do_resize"),
    (idefics3_tiler, {"size": {"height": 3}}, {}, "longest_edge"),
    (idefics3_tiler, {}, {"max_tiles": 0}, "max_tiles must be at least 1"),
    (crop_tiler, {"do_resize": False}, {}, "do_resize"),
    (crop_tiler, {"size": {"height": 3, "width": 4}}, {}, "one height and the same width"),
    (crop_tiler, {"size": {"shortest_edge": 3}}, {}, "one height and the same width"),
    (crop_tiler, {"min_patches": 3, "max_patches": 2}, {}, "min_patches 3 and max_patches 2"),
    (
      crop_tiler,
      {},
      {"longest_edge": 99},
      "longest_edge=99 belongs to SmolVLM's tiles; InternVL's tiles know",
    ),
    (crop_tiler, {}, {"enlarge": False}, "enlarge=False belongs to SmolVLM"),
    (crop_tiler, {}, {"pixels": "fast"}, "pixels=fast belongs to SmolVLM"),
    (idefics3_tiler, {}, {"pixels": "quick"}, "pixels: there is no 'quick'; known: exact, fast"),
    (crop_tiler, {}, {"max_tiles": 0}, "max_tiles must be at least 1"),
    (
      crop_tiler,
      {"image_mean": None},
      {},
      "image_mean: expected a number, or one for each of three",
    ),
    (crop_tiler, {"image_std": [1, 0, 1]}, {}, "image_std: must be above 0"),
    (crop_tiler, {"rescale_factor": "x"}, {}, "rescale_factor: expected a number, got 'x'"),
    (square_tiler, {"resample": 9}, {}, "resample: expected"),
    (square_tiler, {}, {"enlarge": False}, "PaliGemma sees each image as one tile"),
    (square_tiler, {}, {"split_images": True}, "split_images=True"),
    (square_tiler, {}, {"max_tiles": 0}, "max_tiles must be at least 1"),
  ],
)
def test_settings_and_options_that_cannot_be_honoured(read, config, options, message):
  with pytest.raises(UserError, match=message):
    read(config, "here", TileOptions(**options), "")
