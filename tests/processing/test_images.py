"""Opening images of every kind."""

import io

import numpy as np
import pytest
from PIL import Image

from spatialvlm.processing.images import open_image
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
