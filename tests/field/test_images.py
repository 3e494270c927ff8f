"""Pictures as cameras, scanners and scripts of users write them."""

import numpy as np
from PIL import Image

from spatialvlm.processing.images import open_image


def test_a_script_saved_grey_pixels_as_a_tiff_of_32_bit_integers(tmp_path):
  grey = np.array([[0, 1, 128, 255]], np.int32)
  Image.fromarray(grey).save(tmp_path / "a.tiff")
  assert Image.open(tmp_path / "a.tiff").mode == "I"
  np.testing.assert_array_equal(open_image(tmp_path / "a.tiff")[0, :, 1], grey[0])
  np.testing.assert_array_equal(open_image(Image.open(tmp_path / "a.tiff"))[0, :, 1], grey[0])


def test_a_32_bit_tiff_of_16_bit_samples_is_still_scaled(tmp_path):
  Image.fromarray(np.array([[0, 256, 65535]], np.int32)).save(tmp_path / "a.tiff")
  np.testing.assert_array_equal(open_image(tmp_path / "a.tiff")[0, :, 0], [0, 1, 255])


def test_a_dark_pgm_of_16_bits_stays_dark(tmp_path):
  (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([0, 255], ">u2").tobytes())
  np.testing.assert_array_equal(open_image(tmp_path / "a.pgm")[0, :, 0], [0, 1])
