"""Single-image preprocessing beside transformers' PIL image processors, bit for bit."""

import numpy as np
import pytest
import torch
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from spatialvlm.processing.resize import resizer_from_config

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CASES = {
  "siglip": (SiglipImageProcessorPil, {"size": {"height": 24, "width": 20}}),
  "siglip-edge": (SiglipImageProcessorPil, {"size": 21, "do_normalize": False}),
  "siglip-defaults": (SiglipImageProcessorPil, {}),
  "clip": (CLIPImageProcessorPil, {"size": 23, "crop_size": 20}),
  "clip-large-crop": (CLIPImageProcessorPil, {"size": {"shortest_edge": 15}, "crop_size": 20}),
  "clip-only-crop": (CLIPImageProcessorPil, {"do_resize": False, "crop_size": {"height": 17, "width": 30}}),
  "clip-defaults": (CLIPImageProcessorPil, {}),
  "dinov2": (
    BitImageProcessorPil,
    {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}} | IMAGENET,
  ),
  "vit": (ViTImageProcessorPil, {"size": 18}),
  "vit-lanczos": (ViTImageProcessorPil, {"size": {"height": 40, "width": 30}, "resample": 1}),
  "got_ocr2": (GotOcr2ImageProcessorPil, {"size": {"height": 28, "width": 28}} | IMAGENET),
  "no-rescale": (CLIPImageProcessorPil, {"size": 23, "crop_size": 20, "do_rescale": False}),
}
SHAPES = [(20, 20), (24, 20), (31, 57), (57, 31), (9, 64), (200, 7), (1, 1), (15, 16), (101, 100), (23, 23)]


def draw(height, width):
  return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case):
  cls, settings = CASES[case]
  theirs = cls(**settings)
  ours = resizer_from_config(theirs.to_dict() | settings, case)
  for shape in SHAPES:
    image = draw(*shape)
    wanted = theirs([image], input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(ours.normalise(ours(image)).transpose(2, 0, 1), wanted, err_msg=str(shape))


def test_dinov3_within_one_step_of_what_torchvision_computes():
  """torchvision resizes floats by torch's antialiased bilinear filter, where Pillow rounds twice to uint8."""
  ours = resizer_from_config(
    {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 32, "width": 32}}, ""
  )
  for shape in SHAPES:
    x = torch.tensor(draw(*shape)).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)[0]
    got = ours(draw(*shape)).astype(np.float32)
    assert np.abs(got.transpose(2, 0, 1) - wanted.numpy()).max() <= 1.01
