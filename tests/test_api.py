"""The public interface on a tiny checkpoint: what it answers, and that it agrees with the model beneath."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import spatialvlm
from spatialvlm import peft
from spatialvlm.config import PeftConfig
from spatialvlm.processing.images import open_image
from spatialvlm.types import Example, Turn
from tests.tiny_model import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), longest_edge=32)


@pytest.fixture(scope="module")
def vlm(folder):
  return spatialvlm.load_vlm(str(folder))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
  file = tmp_path_factory.mktemp("photo") / "a.png"
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file)
  return file


def test_importing_costs_nothing():
  code = "import sys, spatialvlm; assert not {'jax', 'numpy', 'transformers', 'flax'} & set(sys.modules)"
  code += "; spatialvlm.load_vlm; spatialvlm.UserError; assert 'transformers' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
  assert set(spatialvlm.__all__) <= set(dir(spatialvlm))
  with pytest.raises(AttributeError, match="load_all"):
    _ = spatialvlm.load_all


def test_logits_and_their_padding(vlm, photo):
  """Each sample's logits are the same alone, padded left and padded right."""
  texts = ["<|im_start|>User:<image>What?<end_of_utterance>\nAssistant:", "<|im_start|>User: How many?"]
  sides = {}
  for side in ("left", "right"):
    arrays = vlm.processor(text=texts, images=[[photo], []], padding_side=side)
    sides[side] = vlm.logits(**arrays, token_type_ids=np.zeros_like(arrays["input_ids"]))
    assert sides[side].shape == (*arrays["input_ids"].shape, vlm.model.config.text.vocab_size)
    assert sides[side].dtype == np.float32
  length = vlm.processor(text=texts[1])["input_ids"].shape[1]
  alone = vlm.logits(**vlm.processor(text=texts[1]))[0]
  np.testing.assert_allclose(sides["left"][1, -length:], alone, atol=1e-4)
  np.testing.assert_allclose(sides["right"][1, :length], alone, atol=1e-4)
  np.testing.assert_allclose(sides["left"][0], sides["right"][0], atol=1e-4)


def test_the_inside_of_a_model(vlm, photo):
  arrays = vlm.processor(text="<image>a b", images=photo)
  wants = spatialvlm.Wants(image=True, decoder_layers=(-1,), attention=(1,), hidden=True)
  out = vlm.read(wants, **arrays)
  tiles, (B, T) = arrays["pixel_values"].shape[1], arrays["input_ids"].shape
  width = vlm.model.config.text.block.width
  assert out.image.shape == (tiles, vlm.processor.tokens_per_tile, width) and out.vision is None
  assert out.attention[1].shape == (B, vlm.model.config.text.block.attention.heads, T, T)
  np.testing.assert_allclose(vlm.model.decoder.norm(out.decoder_layers[-1]), out.hidden, atol=1e-5)
  np.testing.assert_allclose(vlm.model.unembed(out.hidden), vlm.logits(**arrays), atol=1e-4)
  with pytest.raises(spatialvlm.UserError, match="layer 99: this decoder has layers"):
    vlm.read(spatialvlm.Wants(decoder_layers=(99,)), **arrays)


def test_generate_is_greedy_over_the_logits(vlm, photo):
  arrays = vlm.processor(
    text=["<|im_start|>User: A<image>", "<image>cube"], images=[[photo], [photo]], padding_side="left"
  )
  new = vlm.generate(**arrays, max_new_tokens=5, stop=False)
  assert new.shape == (2, 5) and new.dtype == np.int32
  whole = {**arrays, "input_ids": np.concatenate([arrays["input_ids"], new], axis=1)}
  whole["attention_mask"] = np.pad(arrays["attention_mask"], ((0, 0), (0, 5)), constant_values=1)
  logits = vlm.logits(**whole)[:, arrays["input_ids"].shape[1] - 1 : -1]
  np.testing.assert_array_equal(logits.argmax(-1), new)


def test_chat_is_what_generate_says(vlm, photo, monkeypatch):
  arrays = vlm.processor(
    text=vlm.processor.apply_chat_template(
      [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which is closer?"}]}],
      add_generation_prompt=True,
    ),
    images=photo,
  )
  tokens = vlm.generate(**arrays, max_new_tokens=8)[0]
  expected = vlm.processor.decode(tokens).strip()
  assert vlm.chat(photo, "Which is closer?", max_new_tokens=8) == expected != ""
  pieces = list(vlm.chat_stream([open_image(photo)], "<image>Which is closer?", max_new_tokens=8))
  assert len(pieces) > 1 and "".join(pieces).strip() == expected

  # Both end at the same stop token.
  monkeypatch.setattr(vlm.processor, "stop_ids", (int(tokens[2]),))
  monkeypatch.setattr(vlm, "_ends", (vlm.processor.stop_ids, vlm.processor.pad_id))
  end = int(np.flatnonzero(tokens == tokens[2])[0]) + 1
  stopped = vlm.generate(**arrays, max_new_tokens=8)[0]
  assert stopped.tolist() == [*tokens[:end], *[vlm.processor.pad_id] * (8 - end)]
  assert vlm.generate(**arrays, max_new_tokens=8, stop=False)[0].tolist() == tokens.tolist()
  said = vlm.chat(photo, "Which is closer?", max_new_tokens=8)
  assert said == vlm.processor.decode(tokens[:end]).strip()


def test_chat_ends_where_the_context_ends(vlm):
  words = "many words " * 60
  room = 512 - len(vlm.processor.encode_prompt((), words).tokens)
  pieces = list(vlm.chat_stream(None, words, max_new_tokens=10**6))
  assert 0 < len(pieces) <= room < 100


def test_score_choices_sums_the_logits_of_each_answer(vlm, photo):
  """Against a whole forward pass over the conversations with each answer in them."""
  choices = ["the cube", "A", "B", "the sphere is left of 3"]
  scores = vlm.score_choices(photo, "Which?", choices)
  assert scores.shape == (4,) and scores.dtype == np.float32
  encoded = [
    vlm.processor.encode(Example((open_image(photo),), (Turn("Which?", choice),))) for choice in choices
  ]
  ids = np.zeros((4, max(len(e.tokens) for e in encoded)), int)
  mask, pixels = np.zeros_like(ids), np.stack([e.pixels.transpose(0, 3, 1, 2) for e in encoded])
  for row, e in enumerate(encoded):
    ids[row, : len(e.tokens)], mask[row, : len(e.tokens)] = e.tokens, 1
  logits = vlm.logits(ids, mask, pixels).astype(np.float64)
  logprob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = [
    sum(logprob[row, t - 1, e.tokens[t]] for t in np.flatnonzero(e.loss_mask)[:-1])
    for row, e in enumerate(encoded)
  ]
  np.testing.assert_allclose(scores, expected, rtol=1e-4)
  np.testing.assert_allclose(vlm.score_choices(photo, "Which?", choices[::-1]), scores[::-1], rtol=1e-5)
  letters = vlm.score_choices(photo, "Which?", ["sphere", "cube"], letters=True)
  np.testing.assert_allclose(letters, scores[1:3], rtol=1e-5)


def test_saved_and_loaded_again(vlm, photo, tmp_path):
  vlm.save(tmp_path / "copy")
  again = spatialvlm.load_vlm(tmp_path / "copy")
  arrays = vlm.processor(text="<image>a", images=photo)
  np.testing.assert_array_equal(again.logits(**arrays), vlm.logits(**arrays))
  loaded = spatialvlm.load_processor(tmp_path / "copy")(text="<image>a", images=photo)
  for name in arrays:
    np.testing.assert_array_equal(loaded[name], arrays[name])


def test_adapters_go_out_and_in(folder, vlm, photo, tmp_path):
  arrays = vlm.processor(text="<image>a", images=photo)
  trained = spatialvlm.load_vlm(folder)
  peft.apply(trained.model, PeftConfig(options={"rank": 2}))
  rng = np.random.default_rng(0)
  for _, module in nnx.iter_modules(trained.model):
    if isinstance(module, peft.LoraLinear):
      module.lora_b[...] = jnp.asarray(rng.normal(size=module.lora_b.shape) * 0.3, jnp.float32)
  after = trained.logits(**arrays)
  assert np.abs(after - vlm.logits(**arrays)).max() > 0.1
  trained.save_adapter(tmp_path / "adapter")
  fresh = spatialvlm.load_vlm(folder).load_adapter(tmp_path / "adapter")
  np.testing.assert_allclose(fresh.logits(**arrays), after, atol=1e-5)
  before = vlm.logits(**arrays)
  assert fresh.adapters == ("default",)
  np.testing.assert_array_equal(fresh.disable_adapters().logits(**arrays), before)
  fresh.add_weighted_adapter({"default": -1.0}, "minus")
  assert np.abs(fresh.logits(**arrays) - before).max() > 0.1
  np.testing.assert_allclose(fresh.set_adapter("default").logits(**arrays), after, atol=1e-5)
  np.testing.assert_array_equal(fresh.delete_adapter("default").logits(**arrays), before)
  with pytest.raises(spatialvlm.UserError, match="already carries an adapter"):
    trained.disable_adapters()
  trained.save(tmp_path / "merged")
  np.testing.assert_allclose(spatialvlm.load_vlm(tmp_path / "merged").logits(**arrays), after, atol=1e-4)


def test_sharded_over_a_mesh(folder, vlm, photo):
  sharded = spatialvlm.load_vlm(folder, mesh={"fsdp": 4, "tensor": 2})
  arrays = vlm.processor(text="<image>a", images=photo)
  np.testing.assert_allclose(sharded.logits(**arrays), vlm.logits(**arrays), atol=1e-4)


def test_bad_input_is_one_line(vlm, folder, photo):
  wrong = spatialvlm.UserError
  with pytest.raises(wrong, match="connector"):
    vlm.logits(np.array([[1, 2]]), pixel_values=np.ones((1, 1, 3, 20, 16)))
  with pytest.raises(wrong, match="600 tokens exceed the model's context of 512"):
    vlm.logits(np.ones((1, 600), int))
  with pytest.raises(wrong, match="exceed the model's context"):
    vlm.generate(np.ones((1, 500), int), max_new_tokens=20)
  with pytest.raises(wrong, match="exceed the model's context of 512"):
    vlm.chat(photo, "many words " * 300)
  with pytest.raises(wrong, match="no choices"):
    vlm.score_choices(photo, "a", [])
  with pytest.raises(wrong, match="image 2: the image file is empty"):
    vlm.chat([photo, b""], "a")
  with pytest.raises(wrong, match="mesh"):
    spatialvlm.load_vlm(folder, mesh={"data": 3})
  with pytest.raises(wrong, match="float16"):
    spatialvlm.load_vlm(folder, dtype="float16")
  with pytest.raises(wrong, match="no layer carries an adapter"):
    vlm.save_adapter("/nowhere/at/all")
