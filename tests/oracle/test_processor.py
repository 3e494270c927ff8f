"""The processor beside transformers' own: ids and pixels are equal, bit for bit."""

import numpy as np
import pytest
from PIL import Image

from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Example, Turn
from tests.oracle import hf_processor
from tests.processing.processor_cases import CASES, run, write


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_equals_transformers(case, tmp_path):
  folder = write(case, tmp_path / "model")
  theirs = hf_processor.of_case(case, folder)
  ours = run(case, load_processor(folder))
  missing = set(theirs.keys()) - set(ours)
  if case.kind == "paligemma" and case.suffix is None:
    assert (
      missing == {"labels"} and (theirs["labels"] == -100).all()
    )  # nothing to learn: ours leaves them out
  else:
    assert missing <= {"rows", "cols"}
  for name, array in ours.items():
    np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert array.dtype == theirs[name].dtype


@pytest.mark.parametrize("budget", [1, 3, 5, 7, 10, 13])
def test_budget_is_transformers_with_a_lower_edge(budget, tmp_path):
  folder = write(CASES[0], tmp_path / "model")
  processor = load_processor(folder, max_tiles=budget)
  theirs = hf_processor.load(folder)
  rng = np.random.default_rng(budget)
  for height, width in [(64, 64), (48, 64), (36, 64), (100, 20), (7, 7), (64, 15)]:
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    fits = []
    for k in (4, 3, 2, 1):
      output = theirs(
        text=["<image>"],
        images=[[Image.fromarray(image)]],
        size={"longest_edge": 16 * k},
        return_tensors="np",
      )
      if output["pixel_values"].shape[1] <= budget:
        fits.append(output)
    ours = processor(text=["<image>"], images=[image])
    np.testing.assert_array_equal(ours["pixel_values"], fits[0]["pixel_values"])
    np.testing.assert_array_equal(ours["input_ids"], fits[0]["input_ids"])


def test_conversations_equal_transformers(tmp_path):
  folder = write(CASES[0], tmp_path / "model")
  ours, theirs = load_processor(folder), hf_processor.load(folder)
  rng = np.random.default_rng(0)
  for turns, count in [
    ((Turn("What?  ", "A"),), 1),
    ((Turn("a <image> b<image>", " B 12"), Turn("why\n\n", "so.\n")), 2),
    ((Turn("none", "yes"), Turn("more", "no")), 0),
    ((Turn("", ""),), 1),
  ]:
    pictures = tuple(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(count))
    messages = []
    for index, turn in enumerate(turns):
      content = [{"type": "image"}] * (count if index == 0 and "<image>" not in turn.prompt else 0)
      for place, part in enumerate(turn.prompt.split("<image>")):
        content = content + [{"type": "image"}] * (place > 0) + [{"type": "text", "text": part}] * bool(part)
      messages.append({"role": "user", "content": content or [{"type": "text", "text": ""}]})
      messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    text = theirs.apply_chat_template(messages)
    assert ours.apply_chat_template(messages) == text
    encoded = ours.encode(Example(pictures, turns))
    wanted = theirs(
      text=[text],
      return_tensors="np",
      **({"images": [[Image.fromarray(p) for p in pictures]]} if count else {}),
    )
    np.testing.assert_array_equal(encoded.tokens, wanted["input_ids"][0])
    if count:
      np.testing.assert_array_equal(encoded.pixels, wanted["pixel_values"][0].transpose(0, 2, 3, 1))
    answers = [ours.decode([t], False) for t in encoded.tokens[encoded.loss_mask]]
    assert "".join(answers) == "".join(f" {t.answer}<end_of_utterance>" for t in turns)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "YCbCr"])
def test_image_modes_equal_transformers(mode, tmp_path):
  folder = write(CASES[0], tmp_path / "model")
  rng = np.random.default_rng(1)
  image = Image.fromarray(rng.integers(0, 256, (20, 30, 4), dtype=np.uint8))
  image = image.convert("L" if mode == "LA" else "RGB").convert(mode) if mode != "RGBA" else image
  ours = load_processor(folder)(text="<image>", images=image)
  theirs = hf_processor.load(folder)(text=["<image>"], images=[[image]], return_tensors="np")
  np.testing.assert_array_equal(ours["pixel_values"], theirs["pixel_values"])
