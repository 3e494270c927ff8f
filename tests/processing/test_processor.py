"""The processor against what transformers made of the same input, and its own contracts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Example, Turn, UserError
from tests.processing.processor_cases import CASES, digest, run, write
from tests.tiny_families import write_internvl, write_paligemma
from tests.tiny_processor import write_processor

RECORD = Path(__file__).parent / "recorded" / "processor.npz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def processor(folder):
  return load_processor(folder)


def photo(height=48, width=64, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_equals_what_transformers_made(case, tmp_path):
  recorded = np.load(RECORD)
  ours = run(case, load_processor(write(case, tmp_path)))
  for name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
    if name in ours:
      np.testing.assert_array_equal(ours[name], recorded[f"{case.name}/{name}"], err_msg=name)
  assert ("pixel_values" in ours) == (f"{case.name}/pixels" in recorded)
  if "pixel_values" in ours:
    assert digest(ours["pixel_values"]) == str(recorded[f"{case.name}/pixels"])
  if "pixel_attention_mask" in ours:
    mask = recorded[f"{case.name}/tile_mask"][:, :, None, None]
    assert (ours["pixel_attention_mask"] == mask).all()


def test_neither_torch_nor_transformers_is_needed(folder, tmp_path):
  others = [str(write_internvl(tmp_path / "internvl")), str(write_paligemma(tmp_path / "paligemma"))]
  code = f"""
import sys
sys.modules["torch"] = sys.modules["torchvision"] = sys.modules["transformers"] = None
import numpy as np
from spatialvlm.processing.processor import load_processor
processor = load_processor({str(folder)!r})
out = processor(text="<image>What?", images=np.zeros((30, 40, 3), np.uint8))
assert out["pixel_values"].shape == (1, 13, 3, 16, 16), out["pixel_values"].shape
shapes = [load_processor(f)(text="<image>a", images=np.zeros((30, 40, 3), np.uint8)) for f in {others!r}]
assert [out["pixel_values"].shape[0] for out in shapes] == [13, 1], shapes
"""
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  assert result.stderr == ""


def test_loss_lies_on_answers_only(processor):
  example = Example(
    (photo(),), (Turn("Which?\n(A) a\n(B) b", "B"), Turn("How many?", "12 cones.")), id="x", task="Count"
  )
  encoded = processor.encode(example)
  assert encoded.tokens.dtype == np.int32 and encoded.loss_mask.dtype == bool
  assert encoded.id == "x" and encoded.task == "Count"
  kept = [processor.decode([t], False) for t in encoded.tokens[encoded.loss_mask]]
  assert "".join(kept) == " B<end_of_utterance> 12 cones.<end_of_utterance>"
  assert kept[0] == " B"
  hidden = processor.decode(encoded.tokens[~encoded.loss_mask], False)
  assert hidden.endswith(
    "(B) b<end_of_utterance>\nAssistant:\nUser: How many?<end_of_utterance>\nAssistant:\n"
  )


def test_image_slots_count_image_tokens(processor):
  encoded = processor.encode(Example((photo(), photo(9, 64, 1)), (Turn("a", "b"),)))
  places = np.flatnonzero(encoded.tokens == processor.image_id)
  np.testing.assert_array_equal(encoded.image_slot[places], np.arange(len(encoded.tiles) * 4))
  assert (np.delete(encoded.image_slot, places) == -1).all()
  assert encoded.images == (13, 5) and len(encoded.tiles) == 18
  assert encoded.tiles.dtype == np.uint8 and encoded.tiles.shape[1:] == (16, 16, 3)
  assert encoded.pixels.dtype == np.float32 and encoded.pixels.shape == encoded.tiles.shape


def test_images_stand_first_or_at_their_marks(processor):
  first = processor.encode_prompt((photo(),), "what?").tokens
  marked = processor.encode_prompt((photo(),), "<image>what?").tokens
  last = processor.encode_prompt((photo(),), "what?<image>").tokens
  np.testing.assert_array_equal(first, marked)
  assert processor.decode(last, False).startswith("<|im_start|>User: what?<fake_token_around_image>")
  second = Example((photo(),), (Turn("hello", "A"), Turn("and <image>?", "B")))
  text = processor.decode(processor.encode(second).tokens, False)
  assert text.index("hello") < text.index("<image>")


def test_ids_equal_those_of_the_whole_text(processor):
  rng = np.random.default_rng(3)
  words = [
    "red",
    " box",
    "  ",
    "\n",
    "\n\n",
    "12",
    " A",
    "(B)",
    "é木",
    "<",
    "end_of_utterance>",
    "'s",
    "\t",
    ".",
  ]
  for _ in range(100):
    turns = tuple(
      Turn("".join(rng.choice(words, rng.integers(0, 9))), "".join(rng.choice(words, rng.integers(0, 5))))
      for _ in range(rng.integers(1, 4))
    )
    encoded = processor.encode(Example((), turns))
    messages = []
    for t in turns:
      messages += [{"role": "user", "content": t.prompt}, {"role": "assistant", "content": t.answer}]
    text = processor.apply_chat_template(messages)
    assert encoded.tokens.tolist() == processor.tokenizer.encode(text, add_special_tokens=False).ids
    assert processor.decode(encoded.tokens[encoded.loss_mask], False) == "".join(
      f" {t.answer}<end_of_utterance>" for t in turns
    )


def test_a_prompt_is_the_beginning_of_its_conversation(processor):
  for prefix, answer in (("", "B"), ("Answer:", "Answer: B")):
    prompt = processor.encode_prompt((photo(),), "Which?", prefix)
    whole = processor.encode(Example((photo(),), (Turn("Which?", answer),)))
    np.testing.assert_array_equal(prompt.tokens, whole.tokens[: len(prompt.tokens)])
    assert not prompt.loss_mask.any()
    assert processor.decode(prompt.tokens, False).endswith("Assistant:" + (f" {prefix}" if prefix else ""))
    assert whole.tokens[len(prompt.tokens)] == processor.letter_ids(2, prefix)[1]


def test_letters_as_they_follow_the_prompt(processor):
  token = processor.tokenizer.token_to_id
  assert processor.letter_ids(4) == tuple(token("Ġ" + x) for x in "ABCD")
  assert processor.letter_ids(4, "Answer:") == processor.letter_ids(4)
  assert processor.letter_ids(2, "(") == (token("A"), token("B"))
  with pytest.raises(UserError, match="not one token"):
    processor.letter_ids(26)
  with pytest.raises(UserError, match="1 to 26"):
    processor.letter_ids(0)


def test_ids_and_layout(processor):
  token = processor.tokenizer.token_to_id
  assert processor.pad_id == 2 and processor.stop_ids == (token("<end_of_utterance>"),)
  layout = processor.layout
  assert (layout.tile_size, layout.tokens_per_tile, layout.max_tiles) == (16, 4, 17)
  assert layout.image_token_id == token("<image>") and layout.max_length == 16384


def test_too_long_is_refused(folder):
  processor = load_processor(folder, max_length=80)
  with pytest.raises(UserError, match=r"example 'e7': \d+ tokens \(52 of images\) exceed .* context of 80"):
    processor.encode(Example((photo(),), (Turn("a", "b"),), id="e7"))
  short = load_processor(folder, max_length=80, max_tiles=1)
  assert len(short.encode(Example((photo(),), (Turn("a", "b"),))).tokens) < 80


@pytest.mark.parametrize(
  "example",
  [
    Example((), (Turn("<image>a", "b"),)),
    Example((photo(),), (Turn("<image>a<image>", "b"),)),
    Example((photo(),), (Turn("a", "<image>"),)),
  ],
)
def test_marks_and_images_must_agree(processor, example):
  with pytest.raises(UserError, match="marks in the text"):
    processor.encode(example)


def test_call_refuses_what_does_not_fit(processor):
  with pytest.raises(UserError, match="1 <image> marks"):
    processor(text=["<image>"], images=[[photo(), photo()]])
  with pytest.raises(UserError, match="0 <image> marks in the text, but 1 images"):
    processor(text="none", images=photo())
  with pytest.raises(UserError, match="images for 1"):
    processor(text=["a", "b"], images=[[photo()]])
  with pytest.raises(UserError, match="padding_side"):
    processor(text="a", padding_side="middle")
  with pytest.raises(UserError, match="pass text"):
    processor()


def test_images_are_handed_out_in_order(processor):
  a, b, c = photo(seed=1), photo(seed=2), photo(seed=3)
  flat = processor(text=["<image>", "x", "<image><image>"], images=[a, b, c])
  nested = processor(text=["<image>", "x", "<image><image>"], images=[[a], [], [b, c]])
  for name in flat:
    np.testing.assert_array_equal(flat[name], nested[name])


def test_options_over_the_checkpoint(folder):
  count = lambda **kwargs: len(load_processor(folder, **kwargs).encode_prompt((photo(),), "a").tiles)
  assert count() == 13
  assert count(split_images=False) == 1
  assert count(longest_edge=32) == 5
  assert count(max_tiles=10) == 10
  assert count(max_tiles=1) == 1


def test_more_tiles_than_markers_are_refused(folder, tmp_path):
  with pytest.raises(UserError, match="7 x 7 tiles, for which this tokenizer has no markers"):
    load_processor(folder, longest_edge=112).encode_prompt((photo(50, 50),), "a")
  assert len(load_processor(folder, longest_edge=96).encode_prompt((photo(50, 50),), "a").tiles) == 37
  plain = load_processor(write_processor(tmp_path, markers=False), longest_edge=112)
  assert len(plain.encode_prompt((photo(50, 50),), "a").tiles) == 50


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "chat_template.json"])
def test_missing_files_are_named(tmp_path, name):
  folder = write_processor(tmp_path)
  (folder / name).unlink()
  with pytest.raises(UserError, match=str(folder)):
    load_processor(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "chat_template.json"])
def test_broken_files_are_named(tmp_path, name):
  folder = write_processor(tmp_path)
  (folder / name).write_text('{"a": ')
  with pytest.raises(UserError, match=name):
    load_processor(folder)


def test_disagreeing_files_are_refused(tmp_path):
  folder = write_processor(tmp_path)
  good = {"vision_config": {"patch_size": 4, "image_size": 16}, "scale_factor": 2, "image_token_id": 421}
  (folder / "config.json").write_text(json.dumps(good | {"text_config": {"max_position_embeddings": 77}}))
  assert load_processor(folder).max_length == 77
  (folder / "config.json").write_text(json.dumps(good | {"scale_factor": 4}))
  with pytest.raises(UserError, match=r"image_seq_len 4, but .* make 1 tokens"):
    load_processor(folder)
  (folder / "config.json").write_text(json.dumps(good | {"image_token_id": 5}))
  with pytest.raises(UserError, match="image_token_id 5, the tokenizer 421"):
    load_processor(folder)
  with pytest.raises(UserError, match="no such folder"):
    load_processor(tmp_path / "none")


def test_a_template_that_hides_answers_is_refused(tmp_path):
  folder = write_processor(tmp_path)
  odd = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
  odd += "{% if add_generation_prompt %}X{% endif %}"
  (folder / "chat_template.jinja").write_text(odd)
  with pytest.raises(UserError, match="the loss cannot be placed"):
    load_processor(folder).encode(Example((), (Turn("a", "b"),)))
  (folder / "chat_template.jinja").write_text("{% for %}")
  with pytest.raises(UserError, match="does not compile"):
    load_processor(folder)
  (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
  with pytest.raises(UserError, match="roles must alternate"):
    load_processor(folder).apply_chat_template([{"role": "user", "content": "a"}])
