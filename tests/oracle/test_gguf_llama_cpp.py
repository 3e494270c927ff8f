"""Exported files within llama.cpp itself (xllamacpp), beside our own model in the layout of its pictures."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spatialvlm
from spatialvlm import export, hub, peft
from spatialvlm.config import ModelConfig
from tests import tiny_edge, tiny_language
from tests.oracle.llama_server import MARKER, serving

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed (pip install 'spatialvlm[edge]')")

ASKED = "Which object is closer to the camera, the red box or the blue box?"
TILE = tiny_edge.TILE
SIZES = ((TILE, TILE), (20, 11), (2 * TILE, 50), (TILE, 3 * TILE))


def picture(height: int, width: int) -> np.ndarray:
  noise = np.random.default_rng(height * width).integers(0, 256, (4, 4, 3), dtype=np.uint8)
  return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def write(folder: Path, vlm, out: Path, numbers: str, to: str = "gguf", **trained) -> Path:
  settings = ModelConfig(str(folder), layout="mtmd", **trained)
  return export.export(export.Exportable(vlm, str(folder), folder, settings), to, out, numbers)


def compare(client, vlm, sizes=SIZES, most: float = 0.05, gap: float = 0.1) -> None:
  """Prompts, numbers of tokens, log-probabilities of a step, and greedy tokens but where two are near."""
  processor, vocabulary, seen = vlm.processor, vlm.model.config.text.vocab_size, 0
  for size in sizes:
    image = picture(*size)
    parts = [{"type": "image"}, {"type": "text", "text": ASKED}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert client.template(image, ASKED) == text.replace(processor.format.mark, MARKER)
    got = client.complete(text.replace(processor.format.mark, MARKER), [image], 8, vocabulary)
    arrays = processor(text=text.replace(processor.format.mark, "<image>"), images=[image])
    prompt = arrays["input_ids"].shape[1]
    assert got["prompt"] == prompt, size
    ids = np.concatenate([arrays["input_ids"], [got["tokens"]]], 1)
    logits = np.asarray(vlm.logits(**arrays | {"input_ids": ids, "attention_mask": np.ones_like(ids)}))[0]
    logits = logits[prompt - 1 : -1].astype(np.float64)
    seen += check(got, logits, most, gap)
  assert seen


def check(got, logits: np.ndarray, most: float, gap: float) -> bool:
  """Holds what a server gave to our logits of its tokens; whether it gave log-probabilities."""
  for step, token in zip(logits, got["tokens"], strict=True):
    assert step[token] > step.max() - gap
  if not got["logprobs"]:
    return False
  known, theirs = (np.array(list(part)) for part in (got["logprobs"], got["logprobs"].values()))
  ours = logits[got["step"]][known]
  near = theirs > -50  # beyond, a server writes the least number for all
  difference = (theirs - theirs.max() - (ours - ours.max()))[near]
  assert np.abs(difference).max() < most < ours.std() and near.sum() > 300
  return True


@pytest.mark.parametrize("numbers", ["f32", "f16"])
@pytest.mark.parametrize(("kind", "edge"), [("smolvlm", TILE), ("smolvlm", 2 * TILE), ("internvl", None)])
def test_models(kind, edge, numbers, tmp_path):
  """SmolVLM's single tile and its grids; InternVL's small and large pictures, and its positions."""
  folder = tiny_edge.write(kind, tmp_path / kind)
  options = {"longest_edge": edge} if edge else {}
  out = write(folder, hub.load_model(folder), tmp_path / "out", numbers, **options)
  with serving(out / "language.gguf", out / "mmproj.gguf") as client:
    compare(client, spatialvlm.load_vlm(folder, layout="mtmd", **options))


@pytest.mark.parametrize("numbers", ["f32", "f16"])
@pytest.mark.parametrize("kind", ["smolvlm", "internvl"])
def test_image_features(kind, numbers, tmp_path):
  """Those of all tiles, in the order of the prompt, straight from mtmd."""
  folder = tiny_edge.write(kind, tmp_path / kind)
  out = write(folder, hub.load_model(folder), tmp_path / "out", numbers)
  np.savez(tmp_path / "pictures.npz", **{f"{h}x{w}": picture(h, w) for h, w in SIZES})
  files = [out / "language.gguf", out / "mmproj.gguf", tmp_path / "pictures.npz", tmp_path / "found.npz"]
  command = [sys.executable, "-m", "tests.oracle.llama_features", *map(str, files)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=400)
  assert done.returncode == 0, done.stderr[-2000:]
  vlm = spatialvlm.load_vlm(folder, layout="mtmd")
  with np.load(tmp_path / "found.npz") as found:
    for height, width in SIZES:
      tiles = vlm.processor.tiler(picture(height, width)).pixels
      ours = np.asarray(vlm.model.encode_images(vlm.processor.tiler.normalise(tiles)))
      theirs = found[f"{height}x{width}"]
      assert np.abs(theirs - ours.reshape(theirs.shape)).max() < 5e-3 < ours.std()


def test_a_blocks_cost_is_small(tmp_path):
  folder = tiny_edge.write("smolvlm", tmp_path / "smolvlm")
  out = write(folder, hub.load_model(folder), tmp_path / "out", "q8_0")
  with serving(out / "language.gguf", out / "mmproj.gguf") as client:
    compare(client, spatialvlm.load_vlm(folder, layout="mtmd"), SIZES[:1], most=0.3, gap=0.3)


def test_an_adapter_over_its_base(tmp_path):
  """LoRA scaled by the root of its rank, in the decoder and in the eyes: adapter and mmproj over the base."""
  folder = tiny_edge.write("smolvlm", tmp_path / "smolvlm")
  base = hub.load_model(folder)
  plain = write(folder, base, tmp_path / "base", "f32")
  options = {"rank": 4, "alpha": 6.0, "rslora": True}
  adapted = tiny_edge.adapted(base, target=r".*\.(q_proj|v_proj|down_proj|proj)", options=options)
  out = write(folder, adapted, tmp_path / "lora", "f32", to="gguf-lora")
  hub.save_model(peft.merge(adapted), tmp_path / "merged", folder)
  vlm = spatialvlm.load_vlm(tmp_path / "merged", layout="mtmd")
  with serving(plain / "language.gguf", out / "mmproj.gguf", out / "adapter.gguf") as client:
    compare(client, vlm, SIZES[:2])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gemma2"])
def test_language_models(kind, tmp_path):
  if kind.startswith("gemma"):
    more = tiny_language.GEMMA2 if kind == "gemma2" else {}
    folder = tiny_language.write_checkpoint(tmp_path / kind, kind, hidden_size=64, **more)
  else:
    folder = tiny_edge.write(kind, tmp_path / kind)
  model = export.Exportable(hub.load_model(folder), str(folder), folder)
  out = export.export(model, "gguf", tmp_path / "out", "f32")
  vlm = spatialvlm.load_vlm(folder)
  seen, vocabulary = 0, vlm.model.config.text.vocab_size
  with serving(out / "language.gguf") as client:
    for asked in (ASKED, "How many cones are in the image?", "Is the cube left of the sphere, or 34 others?"):
      message = [{"role": "user", "content": asked}]
      text = vlm.processor.apply_chat_template(message, add_generation_prompt=True)
      bare = text.removeprefix("<bos>")  # which a server writes itself
      assert client.template(None, asked) == bare
      special = {"parse_special": True, "add_special": bare != text}
      tokens = client.post("/tokenize", content=bare, **special)["tokens"]
      assert tokens == list(vlm.processor.word_ids(text))
      got = client.complete(bare, [], 4, vocabulary)
      logits = np.asarray(vlm.logits([tokens + got["tokens"]]))[0, len(tokens) - 1 : -1]
      seen += check(got, logits.astype(np.float64), 0.05, 0.1)
  assert seen
