"""The numbers of tests/models/test_sizes.py, as transformers counts them on torch's meta device."""

import pytest
import torch
import transformers

from tests.models.test_sizes import PUBLISHED

CLASSES = {
  "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model, {}),
  "siglip_vision_model": (
    transformers.SiglipVisionConfig,
    transformers.SiglipVisionModel,
    {"vision_use_head": False},
  ),
  "clip_vision_model": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel, {}),
  "internvl_vision": (transformers.InternVLVisionConfig, transformers.InternVLVisionModel, {}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_counts_the_same(name):
  source, wanted = PUBLISHED[name]
  config_class, model_class, more = CLASSES[source["model_type"]]
  settings = {key: value for key, value in source.items() if key != "model_type"}
  with torch.device("meta"):
    model = model_class(config_class(**settings, **more))
  assert sum(parameter.numel() for parameter in model.parameters()) == wanted
