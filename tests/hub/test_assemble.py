import json
import statistics

import numpy as np
import pytest
from PIL import Image

from spatialvlm import UserError, hub, load_encoder, load_processor, load_vlm
from spatialvlm.config import ModelConfig, PeftConfig
from spatialvlm.models.joined import nearest
from spatialvlm.peft import surgery
from tests import tiny_model
from tests.hub.test_load_and_save import stored
from tests.models.support import call, tokens_per_tile
from tests.tiny_encoder import COLOURS, write_encoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A base with tiles of 16 pixels, joined by 2; encoders of patches of 3 (tiles: 18) and of 5."""
  folder = tmp_path_factory.mktemp("eyes")
  tiny_model.write_checkpoint(folder / "base")
  write_encoder(folder / "dino", "dinov2", patch=3, seed=1)
  write_encoder(folder / "clip", "clip_vision_model", patch=5, width=4, seed=2)
  names = [folder / "dino", folder / "clip", "own"]
  return folder, hub.assemble(folder / "base", names, folder / "joined", connector="linear")


@pytest.fixture(scope="module")
def joined(folders):
  return load_vlm(folders[1])


@pytest.fixture(scope="module")
def arrays(joined):
  image = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
  return joined.processor("<image>Which is closer?", [image])


def _resized(x_NHWC, size, how):
  """By Pillow, one channel at a time, in float32."""
  planes = [[Image.fromarray(c).resize((size, size), how) for c in np.moveaxis(x, -1, 0)] for x in x_NHWC]
  return np.stack([np.stack([np.asarray(c) for c in x], -1) for x in planes])


def test_features_are_the_encoders_own_put_together(folders, joined, arrays):
  """Each encoder alone, on its own pixels; resampled, brought to unit size and joined in NumPy."""
  folder, _ = folders
  pixels = arrays["pixel_values"].reshape(-1, 3, 18, 18).transpose(0, 2, 3, 1)
  parts = []
  for name, kind, side in (("dino", "dinov2", 18), ("clip", "clip_vision_model", 20), ("base", None, 20)):
    encoder = load_encoder(folder / name)
    seen = pixels if side == 18 else _resized(pixels, side, Image.Resampling.BICUBIC)
    if kind:
      mean, std = (np.array(values, np.float32) for values in COLOURS[kind])
      seen = ((seen + 1) / 2 - mean) / std
    tokens = np.asarray(encoder(seen.transpose(0, 3, 1, 2)))[:, encoder.config.vision.prefix :]
    grid = side // encoder.config.vision.patch_size
    square = tokens.reshape(len(tokens), grid, grid, -1)
    square = square if grid == 6 else _resized(square, 6, Image.Resampling.BILINEAR)
    parts.append(square / np.sqrt(np.mean(square**2, -1, keepdims=True)))
  wanted = np.concatenate(parts, -1).reshape(len(pixels), 36, -1)
  found = call(joined.model.vision, pixels)
  assert found.grid == (6, 6) and wanted.shape[-1] == 8 + 4 + 16
  np.testing.assert_allclose(found.patches_NPD, wanted, atol=2e-5)


def test_processor_and_tensors_follow_the_encoder(folders, joined, arrays):
  folder, written = folders
  processor = load_processor(written)
  assert processor.tiler.tile_size == 18 and processor.tokens_per_tile == 9
  assert (arrays["input_ids"] == processor.image_id).sum() == 9 * arrays["pixel_values"].shape[1]
  config, layout = joined.model.config, processor.layout
  assert (layout.tile_size, layout.tokens_per_tile) == (config.vision.image_size, tokens_per_tile(config))
  ours, base, dino = stored(written), stored(folder / "base"), stored(folder / "dino")
  name = "encoder.layer.0.attention.attention.query.weight"
  np.testing.assert_array_equal(ours[f"encoders.0.{name}"], dino[name])
  name = "model.text_model.layers.0.mlp.up_proj.weight"
  np.testing.assert_array_equal(ours[name], base[name])
  tower = [name for name in base if ".vision_model." in name]
  assert {f"encoders.2.{name}" for name in tower} < set(ours) and not set(tower) & set(ours)


def test_image_tokens_start_as_large_as_words(folders, joined, arrays):
  folder, _ = folders
  pixels = arrays["pixel_values"].reshape(-1, 3, 18, 18).transpose(0, 2, 3, 1)
  words = np.sqrt(np.mean(np.square(stored(folder / "base")["model.text_model.embed_tokens.weight"])))
  tokens = call(joined.model, pixels, method="encode_images")
  assert 0.8 < np.sqrt(np.mean(np.square(tokens))) / words < 1.25
  two = hub.assemble(folder / "base", [folder / "dino"], folder / "two")
  x = np.random.default_rng(0).normal(size=100_000)
  behind = x * np.vectorize(statistics.NormalDist().cdf)(x)  # gelu
  scale = json.loads((two / "config.json").read_text())["connector"]["init_scale"]
  np.testing.assert_allclose(scale * np.sqrt(np.mean(behind**2)), words, rtol=0.02)


def test_saved_merged_and_adapted_models_stay_themselves(folders, joined, arrays, tmp_path):
  _, written = folders
  before = joined.logits(**arrays)
  joined.save(tmp_path / "saved")
  again = load_vlm(tmp_path / "saved")
  np.testing.assert_array_equal(again.logits(**arrays), before)
  assert load_processor(tmp_path / "saved").layout == load_processor(written).layout
  target = r".*\.(query|v_proj|o_proj)"
  surgery.apply(again.model, PeftConfig(target=target, full=r"model\.connector\..*", options={"rank": 2}))
  rng = np.random.default_rng(0)
  for _, layer in again.model.iter_modules():
    if hasattr(layer, "lora_b"):
      layer.lora_b[...] = rng.normal(0, 0.3, layer.lora_b.shape).astype(np.float32)
  adapted = again.logits(**arrays)
  assert np.abs(adapted - before).max() > 1e-2
  again.save_adapter(tmp_path / "adapter")
  held = set(stored(tmp_path / "adapter"))
  assert any("encoders.0.encoder.layer.0.attention.attention.query.lora_A" in name for name in held)
  assert any("encoders.2.model.vision_model.encoder.layers.0.self_attn.v_proj" in name for name in held)
  np.testing.assert_allclose(load_vlm(tmp_path / "adapter").logits(**arrays), adapted, atol=1e-5)
  again.save(tmp_path / "merged")
  np.testing.assert_allclose(load_vlm(tmp_path / "merged").logits(**arrays), adapted, atol=2e-4)


def test_settings_that_are_equal_find_the_same_folder(folders, tmp_path, monkeypatch):
  folder, _ = folders
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  model = ModelConfig(path=str(folder / "base"), encoders=(str(folder / "dino"),), dtype="bfloat16", seed=3)
  plain = hub.assembled(model)
  assert plain == ModelConfig(path=plain.path, dtype="bfloat16", seed=3) and plain.path.startswith(
    str(tmp_path)
  )
  again = hub.assembled(model)
  others = [
    ModelConfig(path=model.path, encoders=model.encoders, seed=4),
    ModelConfig(path=model.path, encoders=("own",), seed=3),
    ModelConfig(path=model.path, encoders=model.encoders, seed=3, encoder_size=24),
  ]
  assert again == plain and len({plain.path, *(hub.assembled(other).path for other in others)}) == 4
  assert hub.assembled(ModelConfig()) == ModelConfig()


def test_nearest():
  assert [nearest(side, 56) for side in (512, 224, 1, 28, 27, 84)] == [504, 224, 56, 56, 56, 112]


@pytest.mark.parametrize(
  ("names", "options", "message"),
  [
    (["dino"], {"size": 20}, r"encoder_size 20: .* multiple of 6; near it are 12, 18, 24"),
    (["dino"], {"connector": "cross"}, "connector 'cross': expected one of linear, mlp, smolvlm"),
    ([], {}, "encoders: there are none"),
    (["joined"], {}, "joined: its encoders were changed already"),
    (["nothing"], {}, "nothing: no such folder"),
  ],
)
def test_what_cannot_be_joined(folders, tmp_path, names, options, message):
  folder, _ = folders
  with pytest.raises(UserError, match=message):
    hub.assemble(folder / "base", [folder / name for name in names], tmp_path / "new", **options)
  assert not (tmp_path / "new").exists()


def test_files_that_do_not_belong_together(folders, tmp_path):
  folder, written = folders
  with pytest.raises(UserError, match="joined: its encoders were changed already"):
    hub.assemble(written, ["own"], tmp_path / "new")
  with pytest.raises(
    UserError, match="joined: a model whose encoder was replaced or joined; load the encoder's"
  ):
    load_encoder(written)
  bare = write_encoder(tmp_path / "bare", patch=4)
  (bare / "preprocessor_config.json").unlink()
  with pytest.raises(UserError, match=r"bare: no preprocessor_config\.json"):
    hub.assemble(folder / "base", [bare], tmp_path / "new")
  copy = hub.assemble(folder / "base", ["own"], tmp_path / "copy")
  config = json.loads((copy / "config.json").read_text())
  (copy / "config.json").write_text(json.dumps(config | {"tile": config["tile"] | {"size": 24}}))
  with pytest.raises(UserError, match="made for tiles of 24 pixels, but the processor's have 16"):
    load_processor(copy)
  (copy / "config.json").write_text(json.dumps(config | {"encoders": []}))
  with pytest.raises(UserError, match="encoders: expected a list of encoders"):
    load_vlm(copy)
