"""Single-image preprocessing; tests/oracle/test_resize.py holds it to transformers pixel by pixel."""

import numpy as np
import pytest

from spatialvlm.processing.resize import Resizer, resizer_from_config
from spatialvlm.types import UserError

CLIP = {"image_processor_type": "CLIPImageProcessor", "size": 8, "crop_size": 6}


def draw(height, width):
  return np.random.default_rng(height * 99 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read(**config):
  return resizer_from_config(config, "here")


@pytest.mark.parametrize(
  "name, size, crop, mean",
  [
    ("SiglipImageProcessor", (224, 224), None, 0.5),
    ("CLIPImageProcessorFast", 224, (224, 224), 0.48145466),
    ("BitImageProcessorPil", 224, (224, 224), 0.48145466),
    ("ViTImageProcessor", (224, 224), None, 0.5),
    ("DINOv3ViTImageProcessorFast", (224, 224), None, 0.485),
    ("GotOcr2ImageProcessorFast", (384, 384), None, 0.48145466),
  ],
)
def test_defaults_of_each_class(name, size, crop, mean):
  # Files of transformers hold every setting, the unset ones as null.
  found = read(image_processor_type=name, size=None, do_center_crop=None, image_mean=None, do_pad=None)
  assert (found.size, found.crop, found.mean[0]) == (size, crop, mean)
  assert found.output == (crop or size)


def test_one_number_means_the_shortest_edge_or_a_square():
  assert read(**CLIP).size == 8 and read(**CLIP).crop == (6, 6)
  assert read(image_processor_type="ViTImageProcessor", size=8).size == (8, 8)
  assert read(feature_extractor_type="CLIPFeatureExtractor", size=8).size == 8


def test_the_middle_is_cut_out():
  image = draw(9, 15)
  cut = Resizer(size=None, crop=(4, 4))(image)
  np.testing.assert_array_equal(cut, image[2:6, 5:9])


def test_a_small_image_is_padded_with_black():
  image = draw(3, 15)
  found = Resizer(size=None, crop=(6, 6))(image)
  np.testing.assert_array_equal(found[2:5], image[:, 4:10])
  assert not found[:2].any() and not found[5:].any()


@pytest.mark.parametrize("shape, wanted", [((10, 33), (8, 26)), ((33, 10), (26, 8)), ((8, 8), (8, 8))])
def test_the_shortest_edge(shape, wanted):
  assert Resizer(size=8)(draw(*shape)).shape[:2] == wanted


def test_another_size():
  clip = Resizer(size=256, crop=(224, 224))
  assert clip.at(448) == Resizer(size=512, crop=(448, 448))
  assert clip.at((6, 9)) == Resizer(size=(6, 9))
  assert clip.at((6, 9))(draw(30, 30)).shape == (6, 9, 3)
  assert Resizer(size=(8, 8)).at(16).output == (16, 16)
  assert Resizer(size=8).output is None and Resizer(size=8).at(16).output == (16, 16)


def test_normalisation_by_channel():
  means, deviations = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
  found = Resizer(size=(2, 2), mean=means, std=deviations).normalise(draw(4, 5))
  wanted = (draw(4, 5) / 255 - np.array(means)) / np.array(deviations)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  plain = Resizer(size=(2, 2), rescale=None, mean=None, std=None).normalise(draw(4, 5))
  np.testing.assert_array_equal(plain, draw(4, 5).astype(np.float32))


@pytest.mark.parametrize(
  "config, message",
  [
    ({"image_processor_type": "FlavaImageProcessor"}, "'FlavaImageProcessor' is not one of Siglip"),
    ({}, "'of no name' is not one of"),
    (CLIP | {"size": {"longest_edge": 4}}, "here: size: expected height and width, or shortest_edge"),
    (CLIP | {"size": {"height": 4, "width": -1}}, "here: size: expected"),
    (CLIP | {"crop_size": {"shortest_edge": 4}}, "crop_size must name a height and a width"),
    (CLIP | {"do_pad": True}, "do_pad is not supported"),
    (CLIP | {"resample": 9}, "resample: expected"),
    (CLIP | {"rescale_factor": "x"}, "rescale_factor: expected a number"),
    (CLIP | {"image_mean": [1, 2]}, "image_mean: expected"),
    (CLIP | {"image_std": 0}, "image_std: must be above 0"),
  ],
)
def test_what_cannot_be_honoured(config, message):
  with pytest.raises(UserError, match=message):
    resizer_from_config(config, "here")


def test_a_size_of_nothing():
  with pytest.raises(UserError, match="at least 1 pixel"):
    Resizer(size=8).at((0, 4))
