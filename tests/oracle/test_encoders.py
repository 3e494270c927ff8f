"""Our encoders against transformers, on random weights: tokens, hidden states, other grids, folders."""

import numpy as np
import pytest
import torch
import transformers

from spatialvlm import load_encoder
from spatialvlm.models.positions import bicubic
from spatialvlm.types import UserError
from tests.oracle import reference

SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7)
WIDE = SIZES | dict(intermediate_size=40)
GATED = WIDE | dict(hidden_act="silu", use_gated_mlp=True, num_register_tokens=2)
RESIZED = [(28, 28), (35, 35), (21, 42), (14, 30)]


def _full(kind, model):
  """A model of both towers, whose vision tower is meant."""
  text = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=40)
  return lambda: model(kind(vision_config=dict(WIDE), text_config=text))


def _of(config, model, **sizes):
  return lambda: model(config(**sizes))


CASES = {
  "siglip": _of(transformers.SiglipVisionConfig, transformers.SiglipVisionModel, **WIDE),
  "siglip-full": _full(transformers.SiglipConfig, transformers.SiglipModel),
  "clip": _of(transformers.CLIPVisionConfig, transformers.CLIPVisionModel, **WIDE),
  "clip-full": _full(transformers.CLIPConfig, transformers.CLIPModel),
  "dinov2": _of(transformers.Dinov2Config, transformers.Dinov2Model, **SIZES),
  "dinov2-swiglu": _of(transformers.Dinov2Config, transformers.Dinov2Model, **SIZES, use_swiglu_ffn=True),
  "registers": _of(transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel, **SIZES),
  "dinov3": _of(transformers.DINOv3ViTConfig, transformers.DINOv3ViTModel, **WIDE, num_register_tokens=4),
  "dinov3-7b": _of(  # its biases
    transformers.DINOv3ViTConfig,
    transformers.DINOv3ViTModel,
    **GATED,
    query_bias=False,
    value_bias=False,
  ),
  "dinov3-gated": _of(transformers.DINOv3ViTConfig, transformers.DINOv3ViTModel, **GATED),
  "internvit": _of(
    transformers.InternVLVisionConfig, transformers.InternVLVisionModel, **WIDE, attention_bias=True
  ),
  "internvit-6b": _of(
    transformers.InternVLVisionConfig,
    transformers.InternVLVisionModel,
    **WIDE,
    use_qk_norm=True,
    norm_type="rms_norm",
  ),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
  """(their vision model, ours, folder): one model twice, the second through the files of the first."""
  theirs = CASES[request.param]().eval()
  reference.randomise(theirs, 0)
  folder = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(folder)
  return getattr(theirs, "vision_model", theirs), load_encoder(folder), folder


def run(theirs, pixels, **kwargs):
  """Their output; positions are resampled without asking where the model's code offers no choice."""
  if type(theirs).__name__.startswith(("Siglip", "CLIP")):
    kwargs["interpolate_pos_encoding"] = True
  with torch.no_grad():
    return theirs(torch.tensor(pixels), **kwargs)


def draw(height, width):
  return np.random.default_rng(height).normal(size=(2, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("height, width", RESIZED)
def test_last_hidden_state(pair, height, width):
  theirs, ours, _ = pair
  wanted = run(theirs, draw(height, width)).last_hidden_state.numpy()
  got = np.asarray(ours(draw(height, width)))
  assert got.shape == wanted.shape
  assert np.abs(got - wanted).max() <= 2e-5
  assert np.abs(wanted).max() > 0.1


def test_hidden_states(pair):
  theirs, ours, _ = pair
  hidden = run(theirs, draw(28, 28), output_hidden_states=True).hidden_states
  lead = ours.config.vision.prefix
  for layer in (0, 1, -2, -1):
    found = ours.features(draw(28, 28), layer=layer)
    assert found.grid == (4, 4)
    np.testing.assert_allclose(found.patches_NPD, hidden[layer][:, lead:].numpy(), atol=2e-5)
  both = ours.features(draw(28, 28), layer=(1, -2)).patches_NPD
  np.testing.assert_allclose(both[..., 32:], hidden[-2][:, lead:].numpy(), atol=2e-5)


def test_saved_folders_load_in_transformers(pair, tmp_path):
  theirs, ours, _ = pair
  ours.save(tmp_path / "saved")
  again, report = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
  assert not report["unexpected_keys"] and not report["mismatched_keys"]
  assert not [key for key in report["missing_keys"] if ".head." not in f".{key}"]
  wanted = run(theirs, draw(28, 28)).last_hidden_state
  torch.testing.assert_close(run(again.eval(), draw(28, 28)).last_hidden_state, wanted)
  np.testing.assert_array_equal(load_encoder(tmp_path / "saved")(draw(28, 28)), ours(draw(28, 28)))


@pytest.mark.parametrize("size_in, size_out", [(4, 4), (4, 7), (16, 5), (37, 16), (5, 1)])
@pytest.mark.parametrize("antialias", [False, True])
def test_bicubic_is_torchs(size_in, size_out, antialias):
  x = torch.eye(size_in)[None, :, None, :]  # channels are input positions
  wanted = torch.nn.functional.interpolate(
    x.double(), size=(1, size_out), mode="bicubic", align_corners=False, antialias=antialias
  )[0, :, 0]
  np.testing.assert_allclose(bicubic(size_in, size_out, antialias), wanted.T.numpy(), atol=1e-6)


def test_the_tower_of_a_vision_language_model(tmp_path):
  theirs = reference.build("smolvlm", tied=False)
  theirs.save_pretrained(tmp_path)
  ours = load_encoder(tmp_path)
  pixels = draw(24, 24)
  with torch.no_grad():
    wanted = theirs.model.vision_model(torch.tensor(pixels)).last_hidden_state
  np.testing.assert_allclose(ours(pixels), wanted.numpy(), atol=2e-5)
  with pytest.raises(UserError, match="saved with its model"):
    ours.save(tmp_path / "x")
