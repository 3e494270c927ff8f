"""Encoders against what transformers computed once, recorded by tests/oracle/record_encoders.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from spatialvlm import UserError, hub, load_encoder, load_vlm

FIXTURES = Path(__file__).parent / "fixtures"
ENCODERS = sorted(folder.name for folder in (FIXTURES / "encoders").iterdir())


@pytest.fixture(scope="module", params=ENCODERS)
def recorded(request):
  """(encoder, pixels, tokens, penultimate): what transformers made of an image of 4 x 5 patches."""
  folder = FIXTURES / "encoders" / request.param
  with np.load(folder / "record.npz") as record:
    pixels = (record["pixels"] / 127.5 - 1).astype(np.float32)
    return load_encoder(folder), pixels, record["tokens"], record["penultimate"]


def test_tokens(recorded):
  encoder, pixels, tokens, _ = recorded
  np.testing.assert_allclose(encoder(pixels), tokens, atol=2e-5)


def test_features_are_the_patches_of_a_layer(recorded):
  encoder, pixels, _, penultimate = recorded
  found = encoder.features(pixels)
  assert found.grid == (4, 5)
  np.testing.assert_allclose(found.patches_NPD, penultimate[:, -20:], atol=2e-5)


def test_saved_folder_is_the_same_encoder(recorded, tmp_path):
  encoder, pixels, tokens, _ = recorded
  encoder.save(tmp_path / "saved")
  np.testing.assert_allclose(load_encoder(tmp_path / "saved")(pixels), tokens, atol=2e-5)


def test_what_can_be_joined():
  encoder = load_encoder(FIXTURES / "encoders" / "dinov2")
  pixels = np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)
  joined = encoder.features(pixels, layer=(0, -1), class_token=True, norm=True).patches_NPD
  last = np.asarray(encoder(pixels))
  assert joined.shape == (2, 9, 64)
  np.testing.assert_allclose(joined[..., 32:48], last[:, 1:], atol=1e-6)
  np.testing.assert_allclose(joined[:, 4, 48:], last[:, 0], atol=1e-6)


@pytest.mark.parametrize(
  "name, options, message",
  [
    ("siglip", {"layer": 3}, "layer 3: this encoder has layers 0 to 2"),
    ("siglip", {"layer": (-4, 1)}, "layer -4"),
    ("siglip", {"class_token": True}, "class_token: an encoder of family 'siglip' has none"),
    ("internvl_vision", {"norm": True}, "norm: an encoder of family 'internvl_vision' has no final norm"),
  ],
)
def test_what_an_encoder_does_not_have(name, options, message):
  pixels = np.zeros((1, 3, 12, 12), np.float32)
  with pytest.raises(UserError, match=message):
    load_encoder(FIXTURES / "encoders" / name).features(pixels, **options)


def test_pixels_of_a_wrong_shape():
  encoder = load_encoder(FIXTURES / "encoders" / "clip")
  with pytest.raises(UserError, match=r"expected \(N, 3, H, W\) with sides of at least 4"):
    encoder(np.zeros((1, 12, 12, 3), np.float32))


def test_models_and_encoders_are_told_apart(tmp_path):
  with pytest.raises(UserError, match=r"'dinov2' is a vision encoder.*`load_encoder` reads it"):
    load_vlm(FIXTURES / "encoders" / "dinov2")
  tower = load_encoder(FIXTURES / "smolvlm")
  assert tower.config.family == "smolvlm/vision"
  with pytest.raises(UserError, match="saved with its model"):
    tower.save(tmp_path / "tower")
  shutil.copytree(FIXTURES / "encoders" / "clip", tmp_path / "other")
  config = json.loads((tmp_path / "other" / "config.json").read_text())
  (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "swin"}))
  with pytest.raises(UserError, match="unknown encoder 'swin'; supported: clip, dinov2, "):
    load_encoder(tmp_path / "other")


def test_adapters_and_runs_are_no_encoders(tmp_path):
  (tmp_path / "adapter").mkdir()
  (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
  with pytest.raises(UserError, match="adapter: an adapter, where an encoder is wanted; name its base model"):
    load_encoder(tmp_path / "adapter")
  for name in ("config.json", "identity.json", "2-lora/model/config.json"):
    (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / name).write_text("{}")
  with pytest.raises(UserError, match=r"run: the workdir of a run, .*; name .*/run/2-lora/model$"):
    load_encoder(tmp_path / "run")


@pytest.mark.parametrize("family", ["internvl", "paligemma", "paligemma2"])
def test_of_a_model_its_tower(family):
  tower, whole = load_encoder(FIXTURES / family), hub.load_model(FIXTURES / family)
  assert tower.config.family == f"{family}/vision" and tower.config.vision == whole.config.vision
  ours, theirs = (dict(nnx.to_flat_state(nnx.state(model))) for model in (tower.model, whole.vision))
  assert set(ours) == set(theirs) and len(ours) > 10
  for path, variable in ours.items():
    np.testing.assert_array_equal(variable[...], theirs[path][...])


def test_images_of_a_tower_are_squeezed_into_one_tile():
  encoder = load_encoder(FIXTURES.parents[1] / "checkpoints" / "smolvlm-tiny")
  image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
  pixels = encoder.preprocess(image)
  assert pixels.dtype == np.float32
  np.testing.assert_allclose(pixels[0], image.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
  assert encoder.preprocess([image, image[:50]]).shape == (2, 3, 96, 96)
  assert encoder.preprocess([image, image[:50]], size=(48, 60)).shape == (2, 3, 48, 60)


def test_preprocessing_that_cannot_be(tmp_path):
  shutil.copytree(FIXTURES / "encoders" / "clip", tmp_path / "clip")
  image = np.zeros((20, 30, 3), np.uint8)
  with pytest.raises(UserError, match=r"no preprocessor_config\.json; copy it"):
    load_encoder(tmp_path / "clip").preprocess(image)
  settings = {"image_processor_type": "CLIPImageProcessor", "size": 12, "do_center_crop": False}
  (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))
  encoder = load_encoder(tmp_path / "clip")
  assert encoder.preprocess(image).shape == (1, 3, 12, 18)
  with pytest.raises(UserError, match=r"different sizes .*pass size=\(height, width\)"):
    encoder.preprocess([image, image[:, :20]])
  with pytest.raises(UserError, match="there are none"):
    encoder.preprocess([])
