"""Opening images of every kind, and the grids of the tile budget."""

import io

import numpy as np
import pytest
from PIL import Image

from spatialvlm.data.images import Tiler, open_image, tiler_from_config
from spatialvlm.types import UserError

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def png(image: Image.Image, **kwargs) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, "PNG", **kwargs)
  return buffer.getvalue()


def test_rgb_from_path_bytes_pil_and_array(tmp_path):
  image = Image.fromarray(PHOTO)
  image.save(tmp_path / "a.png")
  for source in (tmp_path / "a.png", str(tmp_path / "a.png"), png(image), image, PHOTO):
    result = open_image(source)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, PHOTO)


def test_exif_orientation_is_applied(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees clockwise
  Image.fromarray(PHOTO).save(tmp_path / "a.png", exif=exif)
  np.testing.assert_array_equal(open_image(tmp_path / "a.png"), np.rot90(PHOTO, -1))


def test_palette_grey_and_bilevel():
  image = Image.fromarray(PHOTO).quantize(8)
  np.testing.assert_array_equal(open_image(png(image)), np.array(image.convert("RGB")))
  grey = PHOTO[..., 0]
  np.testing.assert_array_equal(open_image(png(Image.fromarray(grey))), np.repeat(grey[..., None], 3, -1))
  np.testing.assert_array_equal(open_image(grey), np.repeat(grey[..., None], 3, -1))
  bits = grey > 100
  np.testing.assert_array_equal(open_image(png(Image.fromarray(bits)))[..., 1], bits * 255)
  np.testing.assert_array_equal(open_image(bits)[..., 1], bits * 255)


def test_transparency_lies_on_white():
  alpha = np.array([[0, 255, 128]], np.uint8)
  rgba = np.concatenate([np.full((1, 3, 3), 40, np.uint8), alpha[..., None]], -1)
  for source in (png(Image.fromarray(rgba)), rgba):
    np.testing.assert_array_equal(open_image(source)[0, :, 0], [255, 40, 255 - 108])
  palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
  palette.putpalette([10, 20, 30, 40, 50, 60])
  np.testing.assert_array_equal(open_image(png(palette, transparency=0))[0], [[255, 255, 255], [40, 50, 60]])


def test_cmyk_jpeg(tmp_path):
  flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
  flat.save(tmp_path / "a.jpg", quality=100)
  assert np.abs(open_image(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() < 6


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
  deep = np.array([[0, 257, 32896, 65535]], np.uint16)
  Image.fromarray(deep).save(tmp_path / "a.png")
  assert Image.open(tmp_path / "a.png").mode.startswith("I")
  np.testing.assert_array_equal(open_image(tmp_path / "a.png")[0, :, 2], [0, 1, 128, 255])
  np.testing.assert_array_equal(open_image(deep)[0, :, 0], [0, 1, 128, 255])
  Image.fromarray(deep.astype(np.int32)).save(tmp_path / "a.tiff")
  np.testing.assert_array_equal(open_image(tmp_path / "a.tiff")[0, :, 0], [0, 1, 128, 255])


def test_floats_lie_between_zero_and_one():
  np.testing.assert_array_equal(open_image(np.array([[0.0, 0.5, 1.0]]))[0, :, 0], [0, 128, 255])
  for wrong in (np.array([[0.0, 255.0]]), np.array([[np.nan]]), np.array([[-1.0]])):
    with pytest.raises(UserError, match=r"\[0, 1\]"):
      open_image(wrong)


def test_one_pixel():
  assert open_image(png(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "empty"),
    (b"no image at all", "cannot be read"),
    (png(Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)))[:900], "cannot be read"),
    (png(Image.fromarray(PHOTO))[:20] + b"\x00" * 50, "cannot be read"),
  ],
)
def test_broken_files_are_named(tmp_path, content, message):
  (tmp_path / "broken.png").write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    open_image(tmp_path / "broken.png")
  assert str(tmp_path / "broken.png") in str(error.value)
  assert "\n" not in str(error.value)


def test_missing_file_and_folder(tmp_path):
  with pytest.raises(UserError, match="no such image"):
    open_image(tmp_path / "none.png")
  with pytest.raises(UserError, match="cannot be read"):
    open_image(tmp_path)


def test_decompression_bomb():
  bomb = png(Image.new("1", (20000, 20000)))
  assert len(bomb) < 100_000
  with pytest.raises(UserError, match="photo 7: the image is too large"):
    open_image(bomb, name="photo 7")


@pytest.mark.parametrize("shape", [(4,), (0, 4, 3), (4, 4, 2), (3, 9, 9), (1, 4, 4, 3)])
def test_arrays_that_are_no_images(shape):
  with pytest.raises(UserError, match="expected an image of shape"):
    open_image(np.zeros(shape, np.uint8))


def test_arrays_of_unknown_range():
  with pytest.raises(UserError, match="int64"):
    open_image(np.zeros((2, 2, 3), np.int64))


def tiler(**kwargs) -> Tiler:
  return Tiler(tile_size=16, longest_edge=64, **kwargs)


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
    cut = Tiler(tile_size=16, longest_edge=edge)
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


def test_most_tiles():
  assert tiler().most_tiles == 17
  assert tiler(max_tiles=7).most_tiles == 7
  assert tiler(split=False).most_tiles == 1


def test_an_image_of_the_tile_s_size_is_untouched():
  image = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
  np.testing.assert_array_equal(Tiler(tile_size=16, longest_edge=16)(image).pixels, image[None])


def test_normalise_by_channel():
  cut = tiler(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
  expected = ((PHOTO / 255.0).astype(np.float32) - np.float32([0.1, 0.2, 0.3])) / np.float32([0.5, 0.6, 0.7])
  np.testing.assert_array_equal(cut.normalise(PHOTO), expected)
  np.testing.assert_array_equal(tiler(rescale=None, mean=None).normalise(PHOTO), PHOTO.astype(np.float32))


def test_settings_that_cannot_be_honoured():
  with pytest.raises(UserError, match="CLIPImageProcessor"):
    tiler_from_config({"image_processor_type": "CLIPImageProcessor"}, "here")
  with pytest.raises(UserError, match="do_resize"):
    tiler_from_config({"do_resize": False}, "here")
  with pytest.raises(UserError, match="longest_edge"):
    tiler_from_config({"size": {"height": 3}}, "here")
  with pytest.raises(UserError, match="max_tiles must be at least 1"):
    tiler_from_config({}, "here", max_tiles=0)
