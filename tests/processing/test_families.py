"""InternVL's and PaliGemma's conversations, and files of different families in one folder."""

import dataclasses
import json

import numpy as np
import pytest

from spatialvlm.data import checks
from spatialvlm.data.batch import Bucket, collate, grow
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Example, Turn, UserError
from tests.tiny_families import write_internvl, write_paligemma
from tests.tiny_processor import write_processor

WRITERS = {"internvl": write_internvl, "paligemma": write_paligemma, "smolvlm": write_processor}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


@pytest.fixture(scope="module")
def internvl(folders):
  return load_processor(folders["internvl"])


@pytest.fixture(scope="module")
def paligemma(folders):
  return load_processor(folders["paligemma"])


def photo(height=32, width=64, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_internvl_reads_turns_with_images_at_their_marks(internvl):
  turns = (Turn("first <image> and", "B"), Turn("<image>how many?", "12"))
  encoded = internvl.encode(Example((photo(), photo(16, 16)), turns, id="x"))
  assert encoded.images == (9, 1) and encoded.tiles.shape == (10, 16, 16, 3) and encoded.prefix == 0
  text = internvl.decode(encoded.tokens, False)
  assert text.replace("<IMG_CONTEXT>" * 36, "36").replace("<IMG_CONTEXT>" * 4, "4") == (
    "<|im_start|>user\nfirst <img>36</img>\n and<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
    "<|im_start|>user\n<img>4</img>\nhow many?<|im_end|>\n<|im_start|>assistant\n12<|im_end|>\n"
  )
  assert internvl.decode(encoded.tokens[encoded.loss_mask], False) == "B<|im_end|>12<|im_end|>"
  places = np.flatnonzero(encoded.tokens == internvl.image_id)
  np.testing.assert_array_equal(encoded.image_slot[places], np.arange(40))


def test_internvl_s_layout_and_ids(internvl, folders):
  token = internvl.tokenizer.token_to_id
  layout = internvl.layout
  assert (layout.tile_size, layout.tokens_per_tile, layout.max_tiles, layout.max_length) == (16, 4, 13, 4096)
  assert layout.image_token_id == token("<IMG_CONTEXT>") and not internvl.bidirectional
  assert internvl.stop_ids == (token("<|im_end|>"),) and internvl.pad_id == token("<|endoftext|>")
  assert internvl.letter_ids(2) == (token("A"), token("B"))
  assert internvl.letter_ids(2, "Answer:") == (token("ĠA"), token("ĠB"))
  for options, tiles in (({}, 9), ({"max_tiles": 5}, 3), ({"max_tiles": 1}, 1), ({"split_images": False}, 1)):
    assert len(load_processor(folders["internvl"], **options).encode_prompt((photo(),), "a").tiles) == tiles


def test_paligemma_s_prompt_is_a_prefix(paligemma):
  encoded = paligemma.encode(Example((photo(), photo(9, 9)), (Turn("A or B?", "B \n"),)))
  assert encoded.images == (1, 1)
  prompt, answer = encoded.tokens[: encoded.prefix], encoded.tokens[encoded.prefix :]
  assert paligemma.decode(prompt, False) == "<image>" * 8 + "<bos>A or B?\n"
  assert paligemma.decode(answer, False) == "B \n<eos>"
  np.testing.assert_array_equal(encoded.loss_mask, np.arange(len(encoded.tokens)) >= encoded.prefix)
  asked = paligemma.encode_prompt((photo(), photo(9, 9)), "A or B?")
  np.testing.assert_array_equal(asked.tokens, prompt)
  assert asked.prefix == len(prompt)


def test_paligemma_s_answer_begins_a_text_of_its_own(paligemma):
  """Two line breaks are one token, but not where the first ends the prompt."""
  whole = paligemma.tokenizer.encode("a\n\nb", add_special_tokens=False).ids
  encoded = paligemma.encode(Example((), (Turn("a", "\nb"),)))
  pieces = [paligemma.tokenizer.encode(text, add_special_tokens=False).ids for text in ("a\n", "\nb")]
  assert encoded.tokens.tolist() == [2, *pieces[0], *pieces[1], 1] != [2, *whole, 1]
  assert encoded.prefix == 1 + len(pieces[0])


def test_paligemma_s_answer_prefix_is_no_part_of_the_prefix(paligemma):
  plain = paligemma.encode_prompt((photo(),), "A or B?")
  begun = paligemma.encode_prompt((photo(),), "A or B?", "Answer:")
  np.testing.assert_array_equal(begun.tokens[: begun.prefix], plain.tokens)
  assert begun.prefix == len(plain.tokens) < len(begun.tokens)
  assert paligemma.decode(begun.tokens[begun.prefix :]) == "Answer:"
  whole = paligemma.encode(Example((photo(),), (Turn("A or B?", "Answer: B"),)))
  assert whole.tokens[len(begun.tokens)] == paligemma.letter_ids(2, "Answer:")[1]
  assert whole.tokens[: len(begun.tokens)].tolist() == begun.tokens.tolist()
  token = paligemma.tokenizer.token_to_id
  assert paligemma.letter_ids(2) == (token("A"), token("B")) != paligemma.letter_ids(2, "Answer:")


def test_paligemma_knows_images_before_the_text_only(paligemma):
  first = paligemma.encode_prompt((photo(),), "what").tokens
  for prompt in ("<image>what", "what<image>"):
    np.testing.assert_array_equal(paligemma.encode_prompt((photo(),), prompt).tokens, first)
  with pytest.raises(UserError, match="images before the text only"):
    paligemma.encode_prompt((photo(),), "what <image> is")
  with pytest.raises(UserError, match=r"one question .* the roles are: user, assistant, user, assistant"):
    paligemma.encode(Example((), (Turn("a", "b"), Turn("c", "d"))))


def test_paligemma_s_messages_are_what_the_call_takes(paligemma):
  content = [{"type": "image"}, {"type": "text", "text": "A or B?"}]
  text = paligemma.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
  assert text == "<image>A or B?"
  ours = paligemma(text=text, images=photo())
  np.testing.assert_array_equal(ours["input_ids"][0], paligemma.encode_prompt((photo(),), "A or B?").tokens)
  assert not ours["token_type_ids"].any() and "labels" not in ours
  with pytest.raises(UserError, match="pass them as suffix="):
    paligemma.apply_chat_template([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


def test_paligemma_s_texts_without_images(paligemma):
  words = lambda text: paligemma.tokenizer.encode(text, add_special_tokens=False).ids
  alone = [2, *words("which of them?\n")]
  for images in (None, []):
    assert paligemma(text="which of them?", images=images)["input_ids"].tolist() == [alone]
  beside = paligemma(text=["<image>a", "which of them?"], images=photo())
  assert beside["input_ids"][1, -len(alone) :].tolist() == alone
  assert beside["input_ids"][0, -len(words("a\n")) - 1 :].tolist() == [2, *words("a\n")]


def test_the_call_refuses_what_a_family_does_not_know(paligemma, internvl):
  with pytest.raises(UserError, match="suffix: InternVL knows none"):
    internvl(text="a", suffix="b")
  with pytest.raises(UserError, match="2 prompts, but 1 suffixes"):
    paligemma(text=["a", "b"], suffix="c")
  with pytest.raises(UserError, match="an answer holds an <image> mark"):
    paligemma(text="a", suffix="<image>")
  with pytest.raises(UserError, match="2 prompts, but images for 1"):
    paligemma(text=["a", "b"], images=photo())
  with pytest.raises(UserError, match="1 <image> marks in the text, but 0 images"):
    internvl.encode(Example((), (Turn("<image>a", "b"),)))
  with pytest.raises(UserError, match="an answer holds an <image> mark"):
    internvl.encode(Example((photo(),), (Turn("a", "<image>"),)))


def test_an_answer_that_the_prefix_shows_is_refused(paligemma):
  example = Example((photo(),), (Turn("a", "b"),))
  encoded = paligemma.encode(example)
  checks.check_encoded(encoded, example, paligemma.layout, longest=32)
  leaky = dataclasses.replace(encoded, prefix=len(encoded.tokens) - 1)
  with pytest.raises(UserError, match="bidirectional prefix shows"):
    checks.check_encoded(leaky, example, paligemma.layout, longest=32)


def test_a_batch_says_where_its_prefixes_end(paligemma, internvl):
  rows = [paligemma.encode(Example((photo(),), (Turn(p, "b"),))) for p in ("a", "which of them?")]
  shape = dict(pad_id=0, batch_size=3)
  batch = collate(rows, length=32, tiles=1, targets=4, **shape)
  for row, encoded in enumerate(rows):
    np.testing.assert_array_equal(batch.mask_ar_BT[row], np.arange(32) >= encoded.prefix)
  assert batch.mask_ar_BT.dtype == bool and batch.mask_ar_BT[2].all()
  small = collate(rows, length=24, tiles=1, targets=4, **shape)
  grown = grow(small, Bucket(32, 1, 4), pad_id=0, tile_size=16)
  np.testing.assert_array_equal(grown.mask_ar_BT, batch.mask_ar_BT)
  plain = collate([internvl.encode(Example((), (Turn("a", "b"),)))], length=24, tiles=0, targets=4, **shape)
  assert plain.mask_ar_BT is None
  assert grow(plain, Bucket(32, 1, 4), pad_id=0, tile_size=16).mask_ar_BT is None


def test_numbers_that_transformers_overwrites_are_not_asked(tmp_path):
  folder = WRITERS["paligemma"](tmp_path)
  config = json.loads((folder / "config.json").read_text())
  for part in ("text_config", "vision_config"):
    config[part]["num_image_tokens"] = 9
  (folder / "config.json").write_text(json.dumps(config))
  assert load_processor(folder).tokens_per_tile == 4


@pytest.mark.parametrize(
  ("name", "config", "message"),
  [
    ("smolvlm", {"model_type": "internvl"}, r"'internvl' \(InternVL\), but the image processor is SmolVLM"),
    ("internvl", {"model_type": "paligemma"}, r"\(PaliGemma\), but the image processor is GotOcr2"),
    (
      "internvl",
      {"model_type": "llava"},
      "architecture 'llava'; supported: gemma, gemma2, idefics3, internvl, llama, paligemma, qwen2",
    ),
    ("internvl", {"downsample_ratio": 1.0}, "image_seq_length 4, but tiles of 16 pixels make 16 tokens"),
    ("internvl", {"downsample_ratio": 0.3}, "whole number of patches"),
    ("internvl", {"downsample_ratio": "half"}, "lie between 0 and 1"),
    ("internvl", {"vision_config": {"patch_size": [4, 2]}}, r"patch_size \[4, 2\] must be one number"),
    ("internvl", {"image_token_id": 5}, "image_token_id 5, the tokenizer"),
    (
      "paligemma",
      {"vision_config": {"patch_size": 4, "image_size": 16}},
      "image_seq_length 4, but .* make 16 tokens",
    ),
    ("paligemma", {"vision_config": {"patch_size": 8, "image_size": 32}}, "of 16 pixels, .* image_size 32"),
    ("paligemma", {"vision_config": {"patch_size": 8}}, "of 16 pixels, but .* image_size 224"),
    ("paligemma", {"vision_config": {"patch_size": 5, "image_size": 16}}, "no whole number of patches of 5"),
    ("paligemma", {"image_token_index": 5}, "image_token_id 5, the tokenizer"),
  ],
)
def test_files_that_disagree(folders, tmp_path, name, config, message):
  folder = WRITERS[name](tmp_path)
  before = json.loads((folder / "config.json").read_text()) if name != "smolvlm" else {}
  (folder / "config.json").write_text(json.dumps(before | config))
  with pytest.raises(UserError, match=message) as error:
    load_processor(folder)
  assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("name", "other"), [("internvl", "smolvlm"), ("paligemma", "internvl"), ("smolvlm", "paligemma")]
)
def test_a_tokenizer_of_another_family_is_noticed(folders, tmp_path, name, other):
  folder = WRITERS[name](tmp_path)
  (folder / "tokenizer.json").write_text((folders[other] / "tokenizer.json").read_text())
  with pytest.raises(UserError, match=f"(?i)no special token .*; is it {name}'s") as error:
    load_processor(folder)
  assert str(folder) in str(error.value)
