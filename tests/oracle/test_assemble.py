"""Models put together from a language model and an encoder, against transformers on the very same files."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from spatialvlm import hub, load_processor, load_vlm
from spatialvlm.hub import joining
from tests.oracle import hf_processor
from tests.tiny_encoder import write_encoder
from tests.tiny_text import text_tokenizer, write_text

SIZES = [(40, 24), (16, 50)]
KINDS = ["llama", "qwen2", "gemma", "gemma2"]


def relative(ours, theirs):
  return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.fixture(scope="module", params=[(kind, tied) for kind in KINDS for tied in (True, False)], ids=str)
def made(request, tmp_path_factory):
  """(kind, folder of the parts, folder of the whole): SigLIP on tiles of 16, another size than its own 12."""
  kind, tied = request.param
  folder = tmp_path_factory.mktemp("parts")
  write_text(folder / "text", kind, tied=tied)
  write_encoder(folder / "siglip", "siglip_vision_model", patch=4)
  options = {"connector": "smolvlm", "size": 16, "factor": 2}
  return kind, folder, hub.assemble(folder / "text", [folder / "siglip"], folder / "whole", **options)


def test_of_text_alone_it_is_the_language_model(made):
  kind, folder, whole = made
  ids = text_tokenizer(kind).encode("Which is closer to the box?", add_special_tokens=False).ids
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "text", attn_implementation="eager")
  with torch.no_grad():
    wanted = theirs(torch.tensor([ids])).logits.numpy()
  ours = load_vlm(whole).logits(input_ids=np.array([ids]), attention_mask=np.ones((1, len(ids)), int))
  assert relative(ours[..., : wanted.shape[-1]], wanted) < 1e-5
  assert load_processor(whole).tokenizer.encode("Which is closer to the box?").ids == ids


def test_a_smolvlm_is_what_transformers_loads(made):
  """Logits of pictures and text by `AutoModelForImageTextToText`, but of Gemma 2, whose folder is ours."""
  kind, _, whole = made
  config = hub.read_json(whole / "config.json")
  assert (config["model_type"] == "smolvlm") == (kind in joining.TEXTS) == (kind != "gemma2")
  if kind == "gemma2":
    return
  theirs = transformers.AutoModelForImageTextToText.from_pretrained(whole, attn_implementation="eager")
  assert type(theirs) is transformers.SmolVLMForConditionalGeneration
  vlm, rng = load_vlm(whole), np.random.default_rng(0)
  pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
  arrays = vlm.processor(["<image>Which is closer?"] * 2, pictures)
  with torch.no_grad():
    wanted = theirs(**{name: torch.tensor(array) for name, array in arrays.items()}).logits.numpy()
  valid = arrays["attention_mask"].astype(bool)
  assert relative(np.asarray(vlm.logits(**arrays))[valid], wanted[valid]) < 1e-5


def test_its_processor_is_what_transformers_loads(made):
  """Ids and pixels are equal; the tokenizer by itself as `AutoTokenizer` reads it."""
  kind, _, whole = made
  ours, rng = load_processor(whole), np.random.default_rng(1)
  pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
  conversation = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " Which is 12 closer? "}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A."}]},
  ]
  text = ours.apply_chat_template(conversation)
  tokenizer = transformers.AutoTokenizer.from_pretrained(whole)
  assert tokenizer(text)["input_ids"] == ours.tokenizer.encode(text).ids
  assert (
    tokenizer.eos_token == "<end_of_utterance>"
    and tokenizer.apply_chat_template(conversation, tokenize=False) == text
  )
  if kind == "gemma2":
    return
  theirs = hf_processor.load(whole)
  assert theirs.apply_chat_template(conversation) == text
  images = [[Image.fromarray(picture)] for picture in pictures]
  wanted = theirs(text=[text] * 2, images=images, padding=True, padding_side="left", return_tensors="np")
  found = ours([text] * 2, [[picture] for picture in pictures])
  for name, array in found.items():
    np.testing.assert_array_equal(array, wanted[name], err_msg=name)


def test_generation_defaults_end_an_answer(made):
  whole = made[2]
  config = transformers.GenerationConfig.from_pretrained(whole)
  processor = load_processor(whole)
  assert tuple(config.eos_token_id) == processor.stop_ids and config.pad_token_id == processor.pad_id
