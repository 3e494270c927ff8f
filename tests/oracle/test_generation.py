"""Generation beside transformers' own: greedy, token for token, from the same arrays."""

import numpy as np
import pytest
import torch

import spatialvlm
from tests.oracle import hf_processor, reference
from tests.tiny_processor import write_processor

NEW = 12


@pytest.fixture(scope="module", params=[("smolvlm", False), ("idefics3", True)], ids=lambda p: p[0])
def pair(request, tmp_path_factory):
  family, tied = request.param
  theirs = reference.build(family, tied=tied, seed=3)
  folder = tmp_path_factory.mktemp(family)
  theirs.save_pretrained(folder)
  return theirs, spatialvlm.load_vlm(folder)


def generated(model, case, **kwargs):
  with torch.no_grad():
    out = model.generate(
      **reference.tensors(case), max_new_tokens=NEW, do_sample=False, pad_token_id=2, **kwargs
    )
  return out.numpy()[:, case["input_ids"].shape[1] :]


@pytest.mark.parametrize("name", ["plain", "left", "masked left", "text"])
def test_greedy_equals_transformers(pair, name):
  theirs, ours = pair
  cases = reference.cases()
  case = {**cases["masked"], **cases["left"]} if name == "masked left" else cases[name]
  if name == "masked left":
    case["pixel_attention_mask"] = cases["masked"]["pixel_attention_mask"]
  if name == "text":  # transformers' generate wants padding on the left only
    assert case["attention_mask"][:, -1].all()
  free = generated(theirs, case, eos_token_id=None)
  np.testing.assert_array_equal(ours.generate(**case, max_new_tokens=NEW, stop=False), free)
  stops = sorted({int(row[3]) for row in free})
  expected = generated(theirs, case, eos_token_id=stops)
  ours.__dict__["_ends"] = (tuple(stops), 2)
  result = ours.generate(**case, max_new_tokens=NEW)
  np.testing.assert_array_equal(result[:, : expected.shape[1]], expected)
  assert (result[:, expected.shape[1] :] == 2).all()


def test_logits_of_the_public_interface(pair):
  theirs, ours = pair
  case = reference.cases()["masked"]
  kept = case["attention_mask"] == 1
  assert np.abs(ours.logits(**case) - reference.logits(theirs, case))[kept].max() <= 1e-4
  tensors = reference.tensors(case)
  np.testing.assert_array_equal(ours.logits(**tensors), ours.logits(**case))


def test_from_a_photo_to_text(tmp_path):
  """Processor, model and decoding together, each in its own way, on split images of different sizes."""
  folder = write_processor(tmp_path / "model", tile=24, longest_edge=96, tokens_per_tile=9)
  words = spatialvlm.load_processor(folder)
  theirs = reference.build(
    "smolvlm", tied=False, seed=4, text={"vocab_size": 425, "max_position_embeddings": 512}
  )
  theirs.config.image_token_id = words.image_id
  theirs.model.image_token_id = words.image_id
  theirs.generation_config.eos_token_id = words.end_id
  theirs.generation_config.pad_token_id = 2
  theirs.save_pretrained(folder)
  ours = spatialvlm.load_vlm(folder)
  rng = np.random.default_rng(0)
  images = [
    [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes] for sizes in (((30, 50),), ())
  ]
  text = "<|im_start|>User:<image>Which is closer?<end_of_utterance>\nAssistant:"
  texts = [text, text.replace("<image>", " ")]
  arrays = ours.processor(text=texts, images=images)
  output = hf_processor.run(hf_processor.load(folder), texts, images, "left")
  with torch.no_grad():
    expected = theirs.generate(**output.convert_to_tensors("pt"), max_new_tokens=NEW, do_sample=False)
  expected = expected.numpy()[:, arrays["input_ids"].shape[1] :]
  np.testing.assert_array_equal(ours.generate(**arrays, max_new_tokens=NEW)[:, : expected.shape[1]], expected)
  said = ours.chat(images[0], "Which is closer?", max_new_tokens=NEW)
  assert said == words.decode(expected[0]).strip()
