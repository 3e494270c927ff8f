"""LiteRT files within LiteRT's own interpreter, beside our model: float, int8, and the reader of the docs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import spatialvlm
from spatialvlm import export, hub
from tests import tiny_language

interpreter = pytest.importorskip(
  "ai_edge_litert.interpreter", reason="LiteRT is not installed (pip install 'spatialvlm[litert]')"
)
pytest.importorskip("litert_converter")

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints/smolvlm-tiny"
DOCS = ROOT / "docs/edge.md"
NEW = 12


def written(folder: Path, out: Path, numbers: str, length: int | None = None) -> Path:
  model = export.Exportable(hub.load_model(folder), str(folder), folder)
  return export.export(model, "litert", out, numbers, length)


class Read:
  """A folder's signatures."""

  def __init__(self, out: Path):
    self.said = json.loads((out / "programs.json").read_text())
    programs = self.said["programs"]
    files = {
      name: interpreter.Interpreter(str(out / name)) for name in {p["file"] for p in programs.values()}
    }
    self.run = {name: files[p["file"]].get_signature_runner(name) for name, p in programs.items()}
    self.inputs = {i["name"]: i for i in programs["prefill"]["inputs"]}
    self.cache = {
      name: np.zeros(i["shape"], i["dtype"])
      for name, i in self.inputs.items()
      if name.startswith(("keys", "values"))
    }

  def logits(self, tokens: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
    """Behind each of some tokens, one after the other, the first ones read together."""
    chunk, cache = self.inputs["tokens"]["shape"][1], self.cache
    first = len(tokens) - NEW
    found = []
    for at in [*range(0, first, chunk), *range(first, len(tokens))]:
      piece = tokens[at : at + min(chunk, first - at)] if at < first else tokens[at : at + 1]
      given = {"length": np.array(at, np.int32), **cache}
      if at < first:
        room = chunk - len(piece)
        given |= {"tokens": np.pad(piece, (0, room))[None], "count": np.array(len(piece), np.int32)}
        if images is not None:
          given["images"] = np.pad(images[at : at + len(piece)], ((0, room), (0, 0)))[None]
      cache = self.run["prefill" if at < first else "step"](**({"tokens": piece} | given))
      found.append(cache.pop("logits")[0])
    return np.stack(found[-NEW - 1 :])


@pytest.fixture(scope="module")
def asked():
  """The small model, what it is asked, its tokens behind that, and its logits of all of them."""
  vlm = spatialvlm.load_vlm(TINY)
  image = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)
  ask = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which object is closer?"}]}
  ]
  text = vlm.processor.apply_chat_template(ask * 2, add_generation_prompt=True)
  arrays = vlm.processor(text=text, images=[image, image[::-1]])
  tokens = vlm.generate(**arrays, max_new_tokens=NEW, stop=False)
  return vlm, arrays, tokens


@pytest.mark.parametrize(("numbers", "most"), [("float32", 1e-3), ("int8", 1.0)])
def test_a_model_with_eyes(numbers, most, asked, tmp_path, capsys):
  vlm, arrays, answer = asked
  out = written(TINY, tmp_path / "out", numbers, length=256)
  read = Read(out)
  tokens = np.concatenate([arrays["input_ids"], answer], 1)[0].astype(np.int32)
  assert len(tokens) - NEW > 128
  pixels = arrays["pixel_values"][0]
  seen = np.concatenate([read.run["vision"](pixels=tile[None])["images"][0] for tile in pixels])
  images = np.zeros((len(tokens), seen.shape[1]), np.float32)
  images[tokens == 657] = seen
  wanted = vlm.logits(**arrays | {"input_ids": tokens[None], "attention_mask": np.ones((1, len(tokens)))})
  wanted = wanted[0][-NEW - 1 :]
  found = read.logits(tokens, images)
  off = np.abs(found - wanted).max()
  sizes = {file.name: file.stat().st_size for file in out.glob("*.tflite")}
  with capsys.disabled():
    print(f"\n{numbers}: logits off by {off:.2g} at most, of a deviation of {wanted.std():.2g}; {sizes}")
  assert off < most < wanted.std()


def test_the_reader_of_the_docs_gives_the_same_tokens(asked, tmp_path):
  """In a process that has LiteRT and NumPy alone."""
  _, arrays, answer = asked
  out = written(TINY, tmp_path / "out", "float32", length=256)
  (code,) = re.findall(r"```python\n([^`]*ai_edge_litert[^`]*)```", DOCS.read_text())
  np.savez(tmp_path / "prompt.npz", **arrays)
  alone = "import sys\nfor name in ('spatialvlm', 'jax', 'flax', 'transformers'): sys.modules[name] = None\n"
  command = [sys.executable, "-c", alone + code, str(out), str(tmp_path / "prompt.npz"), str(NEW)]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout) == answer[0].tolist()


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_language_models(kind, tmp_path):
  more = {"sliding_window": 8, "query_pre_attn_scalar": 8} if kind == "gemma2" else {}
  folder = tiny_language.write_checkpoint(tmp_path / "tiny", kind, **more)
  read, vlm = Read(written(folder, tmp_path / "out", "float32", length=64)), spatialvlm.load_vlm(folder)
  tokens = np.random.default_rng(0).integers(3, 200, 30).astype(np.int32)
  wanted = vlm.logits(tokens[None])[0][-NEW - 1 :]
  assert np.abs(read.logits(tokens) - wanted).max() < 1e-3 < wanted.std()
