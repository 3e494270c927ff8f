"""Pictures and prompts as llama.cpp's mtmd and server make them."""

import numpy as np
import pytest
from PIL import Image

from spatialvlm.processing import mtmd
from spatialvlm.processing.processor import load_processor
from spatialvlm.processing.prompts import ChatTemplate
from spatialvlm.processing.served import served
from spatialvlm.types import Example, Turn, UserError
from tests import tiny_families, tiny_processor


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory):
  return tiny_processor.write_processor(tmp_path_factory.mktemp("s") / "smolvlm", tile=16, longest_edge=16)


@pytest.fixture(scope="module")
def internvl(tmp_path_factory):
  return tiny_families.write_internvl(tmp_path_factory.mktemp("i") / "internvl", max_patches=6)


def test_smolvlms_single_tile_is_shown_twice(smolvlm):
  own, there = load_processor(smolvlm), load_processor(smolvlm, layout="mtmd")
  tiles, plain = there.tiler(picture(24, 30)), own.tiler(picture(24, 30))
  assert (tiles.rows, tiles.cols, plain.rows) == (1, 1, 0)
  np.testing.assert_array_equal(tiles.pixels, np.concatenate([plain.pixels] * 2))
  text = there.decode(there.encode_prompt([picture(24, 30)], "Which?").tokens, skip_special_tokens=False)
  image = "<image>" * 4
  begun = (
    f"<|im_start|>User:<fake_token_around_image><row_1_col_1>{image}\n\n<fake_token_around_image><global-img>"
  )
  assert text.startswith(f"{begun}{image}<fake_token_around_image>Which?")
  encoded = there.encode(
    Example((picture(9, 9),), (Turn("Which?", "A"),), dense={"d": np.ones((2, 2), np.float32)})
  )
  assert encoded.images == (2,) and np.isnan(encoded.extra["d"].array[0]).all()
  assert (encoded.extra["d"].array[1] == 1).all()


def test_smolvlms_grids_are_its_own(smolvlm):
  own, there = (load_processor(smolvlm, longest_edge=64, layout=name) for name in ("own", "mtmd"))
  for size in ((10, 40), (64, 64), (33, 20)):
    ours, theirs = own.tiler(picture(*size)), there.tiler(picture(*size))
    assert (ours.rows, ours.cols) == (theirs.rows, theirs.cols) and np.array_equal(ours.pixels, theirs.pixels)
  assert there.tiler.most_tiles == own.tiler.most_tiles == 17
  lower = load_processor(smolvlm, longest_edge=64, max_tiles=5, layout="mtmd").tiler
  assert (lower.longest_edge, lower.most_tiles, lower.grid(10, 10)) == (32, 5, (2, 2))
  assert load_processor(smolvlm, longest_edge=64, split_images=False, layout="mtmd").tiler.longest_edge == 16


def best_of_all(width: int, height: int, size: int, most: int) -> tuple[int, int]:
  """llama.cpp's loops over candidates, as they stand (`select_best_resolution`)."""
  candidates = [(a * size, b * size) for a in range(1, most + 1) for b in range(1, most // a + 1)]
  found, effective, wasted = None, 0, 2**31 - 1
  for w, h in candidates:
    scale = min(np.float32(w) / np.float32(width), np.float32(h) / np.float32(height))
    used = min(int(np.float32(width) * scale) * int(np.float32(height) * scale), width * height)
    if used > effective or (used == effective and w * h - used < wasted):
      found, effective, wasted = (h // size, w // size), used, w * h - used
  return found


def test_internvls_pictures_lie_in_black(internvl):
  there = load_processor(internvl, layout="mtmd")
  tiler = there.tiler
  assert tiler.grid(16, 16) == tiler.grid(9, 3) == (0, 0) and tiler.most_tiles == 7
  for height, width in ((17, 16), (32, 32), (20, 70), (100, 31), (48, 33), (200, 300)):
    assert tiler.grid(height, width) == best_of_all(width, height, 16, 6), (height, width)
  image = picture(20, 70)
  tiles = tiler(image)
  rows, cols = tiles.rows, tiles.cols
  canvas = tiles.pixels[:-1].reshape(rows, cols, 16, 16, 3).swapaxes(1, 2).reshape(rows * 16, cols * 16, 3)
  box = [np.flatnonzero(canvas.any(axis=axes)) for axes in ((1, 2), (0, 2))]
  inner = canvas[box[0][0] : box[0][-1] + 1, box[1][0] : box[1][-1] + 1]
  height, width = inner.shape[:2]
  resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(inner, resized)
  sides = [(side, room) for side, room in ((height, rows * 16), (width, cols * 16)) if side < room]
  assert len(sides) == 1 and abs(height / width - 20 / 70) < 0.02
  assert [box[0][0], box[1][0]] == [(rows * 16 - height) // 2, (cols * 16 - width) // 2]
  np.testing.assert_array_equal(
    tiles.pixels[-1], Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC)
  )
  arrays = there(text="<image>Which?", images=[image])
  assert (arrays["input_ids"] == there.image_id).sum() == 4 * len(tiles.pixels)


def test_what_mtmd_cannot_be_told(smolvlm, internvl, tmp_path):
  gemma = tiny_families.write_paligemma(tmp_path / "paligemma")
  for folder, options, message in (
    (smolvlm, {"layout": "mtdm"}, "layout: there is no 'mtdm'; did you mean 'mtmd'"),
    (smolvlm, {"layout": "mtmd", "enlarge": False}, "leave enlarge=False out"),
    (smolvlm, {"layout": "mtmd", "pixels": "fast"}, "leave pixels='fast' out"),
    (smolvlm, {"layout": "mtmd", "max_tiles": 1}, "two tiles at least; set max_tiles to 2 or more"),
    (internvl, {"layout": "mtmd", "split_images": False}, "leave split_images=False out"),
    (internvl, {"layout": "mtmd", "max_tiles": 1}, "two tiles at least"),
    (gemma, {"layout": "mtmd"}, "llama.cpp runs no model that cuts pictures as this one"),
  ):
    with pytest.raises(UserError) as refused:
      load_processor(folder, **options)
    assert message in str(refused.value)


def test_differences_are_told_by_an_example(smolvlm, internvl):
  tilers = lambda folder, **options: [
    load_processor(folder, layout=n, **options).tiler for n in ("own", "mtmd")
  ]
  said = mtmd.difference(*tilers(smolvlm))
  assert said == "a picture of 8 x 8 pixels is the whole alone here and 1 x 1 tiles and the whole there"
  assert mtmd.difference(*tilers(smolvlm, longest_edge=64)) == ""
  own, there = tilers(internvl)
  assert "pixels is" in mtmd.difference(own, there) and mtmd.difference(there, there) == ""


@pytest.mark.parametrize("kind", ["smolvlm", "internvl"])
def test_templates_know_a_servers_pictures(kind, smolvlm, internvl):
  """A server's one text gives the prompt of training; without a picture nothing changes."""
  processor = load_processor({"smolvlm": smolvlm, "internvl": internvl}[kind])
  source, differs = served(processor.template, processor.format.mark)
  assert source != processor.template.source and differs == ""
  mended = ChatTemplate(source)
  asked = lambda *parts: [{"role": "user", "content": list(parts)}]
  text = lambda words: {"type": "text", "text": words}
  for mark in ("<__media__>", "<__media_x7Y__>"):
    got = mended.render(asked(text(f"{mark}Which?")), add_generation_prompt=True)
    wanted = processor.template.render(asked({"type": "image"}, text("Which?")), add_generation_prompt=True)
    assert got == wanted.replace(processor.format.mark, mark)
  for messages in (asked(text("Which?")), asked({"type": "image"}, text("Which?"))):
    assert mended.render(messages, True) == processor.template.render(messages, True)


def test_a_template_that_cannot_be_mended_is_told():
  odd = ChatTemplate("{% for m in messages %}{{ m['content'][0]['type'] }}{% endfor %}")
  assert served(odd, "<image>") == (odd.source, "text")
