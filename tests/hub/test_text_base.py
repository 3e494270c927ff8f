"""A language model by itself and encoders, put together."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from spatialvlm import UserError, hub, load_processor, load_vlm
from spatialvlm.config import ModelConfig
from spatialvlm.processing import smolvlm_files
from tests import tiny_model
from tests.hub.test_load_and_save import stored
from tests.models.support import call
from tests.tiny_encoder import write_encoder
from tests.tiny_text import text_tokenizer, write_text

IDS = text_tokenizer().get_vocab_size()
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  """SmolLM2's likeness; SigLIP with patches of 4, tiles of 12; DINOv2 with patches of 3, tiles of 9."""
  folder = tmp_path_factory.mktemp("parts")
  write_text(folder / "text")
  write_encoder(folder / "siglip", "siglip_vision_model", patch=4)
  write_encoder(folder / "dino", "dinov2", patch=3, seed=1)
  return folder


@pytest.fixture(scope="module")
def written(parts):
  return hub.assemble(parts / "text", [parts / "siglip", parts / "dino"], parts / "joined", size=16, factor=2)


def test_tokens_stand_where_smolvlm_has_them(written):
  """Of SmolLM2's 49,152 ids: `<image>` 49,190, `<end_of_utterance>` 49,279, 49,280 in all."""
  words = Tokenizer.from_file(str(written / "tokenizer.json"))
  places = {"<global-img>": 0, "<row_1_col_1>": 1, "<row_6_col_6>": 36, "<fake_token_around_image>": 37}
  places |= {"<image>": 38, "<end_of_utterance>": 127}
  assert {token: words.token_to_id(token) - IDS for token in places} == places
  assert words.get_vocab_size() == IDS + 128
  processor = load_processor(written)
  assert processor.image_id == IDS + 38 and processor.stop_ids == (IDS + 127, 2) and processor.pad_id == 2
  text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], True)
  assert text == "<|im_start|>User:<image><end_of_utterance>\nAssistant:"
  assert (
    processor(text, [PICTURE])["input_ids"] == processor.image_id
  ).sum() == 4 * 13  # 4 x 3 tiles, and all


def test_decoder_is_the_language_models_own(parts, written):
  ours, text = stored(written), stored(parts / "text")
  for name, tensor in text.items():
    mine = ours[name.replace("model.", "model.text_model.")]
    np.testing.assert_array_equal(mine[: len(tensor)], tensor)
  assert not any(name.startswith("lm_head") for name in ours)
  config = hub.load_model(written).config
  assert config.tied and config.text.vocab_size == IDS + 128


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gemma2"])
def test_new_rows_are_drawn_like_the_old_ones(tmp_path, parts, kind):
  """Embedding and head alike, with the rows' mean and covariance; spare rows are used first."""
  rows = write_text(tmp_path / "text", kind, tied=False, spare=200)
  folder = hub.assemble(rows, [parts / "dino"], tmp_path / "new", size=9)
  ours, known = stored(folder), text_tokenizer(kind).get_vocab_size()
  for name, old in (("model.text_model.embed_tokens.weight", "model.embed_tokens.weight"),) + (
    ("lm_head.weight", "lm_head.weight"),
  ):
    table, before = ours[name], stored(rows)[old]
    assert table.shape == before.shape == (known + 200, 24)
    np.testing.assert_array_equal(table[:known], before[:known])
    np.testing.assert_array_equal(table[known + 128 :], before[known + 128 :])
    new, words = table[known : known + 128], before[:known]
    np.testing.assert_allclose(new.mean(0), words.mean(0), atol=0.15)
    spread = np.sqrt(np.mean(np.var(words, 0)))
    np.testing.assert_allclose(np.cov(new.T), np.cov(words.T), atol=0.6 * spread**2)
    assert len(np.unique(new.round(3), axis=0)) == 128
  vlm = load_vlm(folder)
  assert vlm.model.config.text.block.norm == {"l": "rms", "q": "rms", "g": "rms_offset"}[kind[0]]
  assert vlm.processor.apply_chat_template([], True).startswith("<bos>" if kind[0] == "g" else "<|im_start|>")
  pixels = np.random.default_rng(1).normal(size=(2, 9, 9, 3)).astype(np.float32)
  words = np.sqrt(np.mean(np.square(stored(rows)["model.embed_tokens.weight"][:known])))
  words *= vlm.model.config.text.embed_scale
  tokens = np.asarray(call(vlm.model, pixels, method="encode_images"))
  assert 0.6 < np.sqrt(np.mean(np.square(tokens))) / words < 1.6


def test_a_smolvlms_tower_is_the_siglip_by_itself(parts, tmp_path):
  """On tiles of another size than its own, for which its table of positions is resampled."""
  whole = hub.assemble(
    parts / "text", [parts / "siglip"], tmp_path / "new", size=16, connector="smolvlm", factor=2
  )
  config = json.loads((whole / "config.json").read_text())
  assert config["model_type"] == "smolvlm" and config["vision_config"]["image_size"] == 16
  pixels = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
  model, alone = hub.load_model(whole), hub.load_encoder(parts / "siglip")[0]
  found, wanted = call(model.vision, pixels), call(alone, pixels)
  np.testing.assert_allclose(found.patches_NPD, wanted.patches_NPD, atol=2e-5)
  words = stored(parts / "text")["model.embed_tokens.weight"]
  tokens = np.asarray(call(model, pixels, method="encode_images"))
  assert tokens.shape == (2, 4, 24) and 0.6 < np.sqrt(np.mean(tokens**2) / np.mean(words**2)) < 1.6


def test_tokens_of_a_tile(parts, tmp_path):
  """16 x 16 patches: joined 2 x 2 they are 64 tokens, 4 x 4 they are 16; by itself about 8 x 8."""
  for factor, tokens in ((2, 64), (4, 16), (0, 64)):
    folder = hub.assemble(
      parts / "text", [write_encoder(tmp_path / f"e{factor}", "dinov2", patch=14, image=224)],
      tmp_path / f"f{factor}", factor=factor, weights=False,
    )  # fmt: skip
    layout = load_processor(folder).layout
    assert (layout.tile_size, layout.tokens_per_tile) == (224, tokens)


def test_settings_that_differ_are_other_folders(parts, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  model = ModelConfig(path=str(parts / "text"), encoders=(str(parts / "dino"),), text_only=True)
  plain = hub.assembled(model)
  assert plain == ModelConfig(path=plain.path) and hub.assembled(model) == plain
  others = [dataclasses.replace(model, connector="smolvlm"), dataclasses.replace(model, connector_factor=3)]
  assert len({plain.path, *(hub.assembled(other).path for other in others)}) == 3


def test_what_is_no_language_model_by_itself(parts, written, tmp_path):
  base = tiny_model.write_checkpoint(tmp_path / "base")
  for folder, kind in ((base, "smolvlm"), (written, "spatialvlm")):
    with pytest.raises(
      UserError, match=rf"{folder.name}: a vision-language model \({kind}\), where a language"
    ):
      hub.assembled(ModelConfig(path=str(folder), encoders=("own",), text_only=True))
  with pytest.raises(UserError, match=r"dino: 'dinov2' is no language model that is read here \(gemma, "):
    hub.assembled(ModelConfig(path=str(parts / "dino"), encoders=("own",), text_only=True))
  with pytest.raises(UserError, match=r"own: .*text is a language model by itself, without a tower"):
    hub.assemble(parts / "text", ["own"], tmp_path / "new")
  with pytest.raises(UserError, match="text: a language model by itself, where an encoder is wanted"):
    hub.assemble(parts / "text", [parts / "text"], tmp_path / "new")
  assert not (tmp_path / "new").exists()


def test_what_a_tokenizer_cannot_take(parts, tmp_path):
  def refused(match, **files):
    folder = write_text(tmp_path / f"text{len(list(tmp_path.iterdir()))}")
    for name, change in files.items():
      path = folder / f"{name}.json"
      path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=match):
      hub.assemble(folder, [parts / "dino"], tmp_path / "new")
    assert not (tmp_path / "new").exists()

  def with_image(text):
    words = Tokenizer.from_str(text)
    words.add_special_tokens(["<image>"])
    return words.to_str()

  refused(rf"has a token <image> already \(id {IDS}\)", tokenizer=with_image)
  refused("names no token to begin a conversation", tokenizer_config=lambda _: '{"eos_token": "<|im_end|>"}',
          tokenizer=lambda text: text.replace("<|im_start|>", "<s>"))  # fmt: skip
  refused("names no token to fill a batch", tokenizer_config=lambda _: "{}")
  refused(f"tokenizer has {IDS} ids, but config.json says vocab_size {IDS - 1}",
          config=lambda text: json.dumps(json.loads(text) | {"vocab_size": IDS - 1}))  # fmt: skip
  refused(r"model\.text_model\.layers\.1\..*: no place for it",
          config=lambda text: json.dumps(json.loads(text) | {"num_hidden_layers": 1}))  # fmt: skip


def test_a_tokenizers_own_frame_is_taken_out(tmp_path):
  """Gemma's writes `<bos>` before a text; the template does so here."""
  grown = smolvlm_files.grow(write_text(tmp_path / "text", "gemma"))
  ids = Tokenizer.from_str(grown.text).encode("Which is closer?").ids
  assert ids == text_tokenizer("gemma").encode("Which is closer?", add_special_tokens=False).ids
  assert grown.opening == "<bos>" and grown.pad == "<pad>"


@pytest.mark.parametrize("setting", [{"connector": "smolvlm"}, {"connector_factor": 2}, {"encoder_size": 9}])
def test_settings_that_nothing_would_read(setting):
  with pytest.raises(UserError, match=rf"config\.model\.{next(iter(setting))}: nothing reads it without"):
    hub.assembled(ModelConfig(**setting))


def test_a_trained_connector_is_taken(tmp_path, parts, written):
  """Of a model's folder and of a file alike; one of other parts is refused, and a change of it is seen."""
  make = lambda source, name, **settings: hub.assemble(
    parts / "text",
    [parts / "siglip", parts / "dino"],
    tmp_path / name,
    size=16,
    **{"factor": 2, "seed": 1, "connector_from": source} | settings,
  )
  of_connector = lambda folder: {k: v for k, v in stored(folder).items() if "connector" in k}
  want = of_connector(written)
  save_file(want, tmp_path / "connector.safetensors")
  for source in (written, tmp_path / "connector.safetensors"):
    got = of_connector(make(source, source.name + "-taken"))
    assert set(got) == set(want) and len(want) == 6
    for name, tensor in want.items():
      np.testing.assert_array_equal(got[name], tensor)
  with pytest.raises(
    UserError, match=r"hidden\.weight has shape .*take the connector of a model of the same"
  ):
    make(written, "factor", factor=1)
  with pytest.raises(UserError, match=r"no such connector in it; .*connector.* are missing"):
    make(parts / "dino", "dino")
  assert not (tmp_path / "factor").exists() and not (tmp_path / "dino").exists()
  model = ModelConfig(
    path=str(parts / "text"),
    encoders=(str(parts / "dino"),),
    connector_from=str(tmp_path / "connector.safetensors"),
  )
  with pytest.raises(UserError, match="take the connector"):
    hub.assembled(model)
