"""InternVL's and PaliGemma's processors beside transformers' on many images, texts and conversations."""

import json
import shutil

import numpy as np
import pytest
import transformers
from PIL import Image

import spatialvlm
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Example, Turn
from tests.oracle import hf_processor, reference
from tests.tiny_families import write_internvl, write_paligemma

WORDS = (
  "red", " box", "  ", "\n", "\n\n", "12", " A", "(B)", "é木", "e\u0301", "<", "<|im_end", "</img",
  "mage>", "'s", "\t", "<loc0003>", "<bo", " s>", "▁", ".",
)  # fmt: skip


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
  folder = write_internvl(tmp_path_factory.mktemp("internvl"))
  return load_processor(folder), hf_processor.load(folder, "internvl"), folder


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
  folder = write_paligemma(tmp_path_factory.mktemp("paligemma"))
  return load_processor(folder), hf_processor.load(folder, "paligemma"), folder


def noise(rng, height, width):
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def text(rng, most=9):
  return "".join(rng.choice(WORDS, rng.integers(0, most)))


@pytest.mark.parametrize("patches", [(1, 12), (1, 6), (3, 7), (2, 2), (1, 1), (1, 40)])
def test_crops_of_any_size(patches, tmp_path):
  least, most = patches
  folder = write_internvl(tmp_path, min_patches=least, max_patches=most)
  ours, theirs = load_processor(folder), hf_processor.load(folder, "internvl")
  rng = np.random.default_rng(most)
  for _ in range(30):
    image = noise(rng, *np.exp(rng.uniform(0, np.log(150), 2)).astype(int))
    wanted = theirs(text=["<IMG_CONTEXT>"], images=[Image.fromarray(image)], return_tensors="np")
    found = ours(text="<image>", images=image)
    np.testing.assert_array_equal(found["pixel_values"], wanted["pixel_values"])
    np.testing.assert_array_equal(found["input_ids"], wanted["input_ids"])
    assert len(found["pixel_values"]) <= ours.layout.max_tiles


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 7, 13, 20])
def test_a_budget_is_fewer_patches(budget, internvl):
  _, theirs, folder = internvl
  ours = load_processor(folder, max_tiles=budget)
  rng = np.random.default_rng(budget)
  for height, width in [(64, 64), (16, 64), (36, 64), (100, 20), (7, 7), (150, 4)]:
    image = noise(rng, height, width)
    wanted = theirs(
      text=["<IMG_CONTEXT>"],
      images=[Image.fromarray(image)],
      images_kwargs={"max_patches": max(1, min(12, budget - 1))},
      return_tensors="np",
    )
    found = ours(text="<image>", images=image)
    np.testing.assert_array_equal(found["pixel_values"], wanted["pixel_values"])
    np.testing.assert_array_equal(found["input_ids"], wanted["input_ids"])
    assert len(found["pixel_values"]) <= budget


def test_internvl_s_conversations(internvl):
  ours, theirs, _ = internvl
  rng = np.random.default_rng(0)
  for _ in range(40):
    # An answer that begins with a line break would share a token with the template's.
    turns = tuple(
      Turn(text(rng) + "<image>" * int(rng.integers(0, 2)) + text(rng), "A" + text(rng))
      for _ in range(rng.integers(1, 4))
    )
    pictures = tuple(
      noise(rng, *rng.integers(1, 60, 2)) for turn in turns for _ in range(turn.prompt.count("<image>"))
    )
    messages = []
    for turn in turns:
      content = []
      for place, part in enumerate(turn.prompt.split("<image>")):
        content += [{"type": "image"}] * (place > 0) + [{"type": "text", "text": part}] * bool(part)
      messages.append({"role": "user", "content": content or [{"type": "text", "text": ""}]})
      messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    whole = theirs.apply_chat_template(messages)
    assert ours.apply_chat_template(messages) == whole
    wanted = hf_processor.run(theirs, [whole], [pictures])
    encoded = ours.encode(Example(pictures, turns))
    np.testing.assert_array_equal(encoded.tokens, wanted["input_ids"][0])
    if pictures:
      np.testing.assert_array_equal(encoded.pixels, wanted["pixel_values"].transpose(0, 2, 3, 1))
    learned = ours.decode(encoded.tokens[encoded.loss_mask], False)
    assert learned == ours.decode(
      [i for t in turns for i in ours.tokenizer.encode(t.answer + "<|im_end|>").ids], False
    )


def test_paligemma_s_turns(paligemma):
  ours, theirs, _ = paligemma
  rng = np.random.default_rng(1)
  for _ in range(60):
    prompt, answer = text(rng), text(rng, 5)
    pictures = tuple(noise(rng, *rng.integers(1, 60, 2)) for _ in range(rng.integers(1, 4)))
    wanted = theirs(
      text=["<image>" * len(pictures) + prompt],
      images=[[Image.fromarray(p) for p in pictures]],
      suffix=[answer],
      return_tensors="np",
    )
    encoded = ours.encode(Example(pictures, (Turn(prompt, answer),)))
    np.testing.assert_array_equal(encoded.tokens, wanted["input_ids"][0])
    np.testing.assert_array_equal(
      np.arange(len(encoded.tokens)) >= encoded.prefix, wanted["token_type_ids"][0]
    )
    np.testing.assert_array_equal(np.where(encoded.loss_mask, encoded.tokens, -100), wanted["labels"][0])
    np.testing.assert_array_equal(encoded.pixels, wanted["pixel_values"].transpose(0, 2, 3, 1))
    asked = theirs(text=prompt, images=[[Image.fromarray(p) for p in pictures]], return_tensors="np")
    np.testing.assert_array_equal(ours.encode_prompt(pictures, prompt).tokens, asked["input_ids"][0])


def test_the_folder_is_one_that_transformers_loads(paligemma):
  ours, _, folder = paligemma
  theirs = transformers.AutoProcessor.from_pretrained(folder)
  image = noise(np.random.default_rng(2), 30, 50)
  kwargs = {"text": ["a", "which box"], "suffix": ["b  c", "A"], "images": None}
  wanted = theirs(**(kwargs | {"images": [Image.fromarray(image)] * 2}), padding=True, return_tensors="np")
  found = ours(**(kwargs | {"images": [image] * 2}))
  assert set(found) == set(wanted)
  for name, array in found.items():
    np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_model_reads_suffixes_causally(paligemma, tmp_path, side):
  """Both processors and models, each in its own way; without the prefix's end the logits are others."""
  ours, theirs, source = paligemma
  folder = shutil.copytree(source, tmp_path / "model")
  written = json.loads((folder / "config.json").read_text())
  text = {"vocab_size": ours.tokenizer.get_vocab_size(), "max_position_embeddings": 128}
  model = reference.build_paligemma(second=True, text=text)
  model.config.image_token_index = written["image_token_index"]
  model.config.vision_config.image_size, model.config.vision_config.patch_size = 16, 8
  model = type(model)(model.config).eval()
  reference.randomise(model, 3)
  model.save_pretrained(folder)
  rng = np.random.default_rng(4)
  pictures = [[noise(rng, 20, 30), noise(rng, 9, 9)], [noise(rng, 30, 20)]]
  kwargs = {"text": ["<image><image>A or B?", "<image>a"], "suffix": ["B", "the cube is red"]}
  found = ours(**kwargs, images=pictures, padding_side=side)
  found.pop("labels")
  wanted = dict(hf_processor.run(theirs, kwargs["text"], pictures, side, suffix=kwargs["suffix"]))
  wanted.pop("labels")
  kept = wanted["attention_mask"] == 1
  expected = reference.logits(model, wanted)[kept]
  vlm = spatialvlm.load_vlm(folder)
  assert np.abs(vlm.logits(**found)[kept] - expected).max() <= 1e-4
  found.pop("token_type_ids")
  assert np.abs(vlm.logits(**found)[kept] - expected).max() > 1e-2
