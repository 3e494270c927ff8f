"""Models as StableHLO programs, in a process that has JAX and no library of ours, and by their functions."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file

import spatialvlm
from spatialvlm import export, hub, peft
from spatialvlm.export import stablehlo
from spatialvlm.export.programs import Programs
from spatialvlm.types import UserError
from tests import tiny_edge, tiny_language, tiny_model

ROOT = Path(__file__).resolve().parents[2]
# What the reader of the docs may not import: this library and what it is built on.
ALONE = """
import sys
for name in ("spatialvlm", "flax", "transformers", "tokenizers", "einops", "orbax", "optax"):
  sys.modules[name] = None
"""
NEW = 12


def written(folder: Path, out: Path, vlm=None) -> Path:
  model = export.Exportable(vlm or hub.load_model(folder), str(folder), folder)
  return export.export(model, "stablehlo", out)


def reader() -> str:
  """The lines of docs/edge.md."""
  (code,) = re.findall(r"```python\n([^`]*safetensors[^`]*)```", (ROOT / "docs/edge.md").read_text())
  assert len([line for line in code.splitlines() if line.strip()]) <= 30
  return code


def prompts(vlm, path: Path) -> dict[str, np.ndarray]:
  """Two prompts of different lengths about pictures of their own, as the reader takes them."""
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (80, 96, 3), dtype=np.uint8), np.full((96, 60, 3), 90, np.uint8)]
  asked = ("Which object is closer to the camera?", "How many cones are in the image? Answer with a number.")
  ask = lambda text: [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
  texts = [vlm.processor.apply_chat_template(ask(text), add_generation_prompt=True) for text in asked]
  arrays = vlm.processor(text=texts, images=[[image] for image in images], padding_side="left")
  np.savez(path, **arrays)
  return arrays


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
  """The small model that ships, and its programs."""
  folder = ROOT / "checkpoints/smolvlm-tiny"
  return spatialvlm.load_vlm(folder), written(folder, tmp_path_factory.mktemp("hlo") / "programs")


def test_a_process_without_this_library_gives_the_same_tokens(shipped, tmp_path):
  vlm, out = shipped
  arrays = prompts(vlm, tmp_path / "prompt.npz")
  assert (arrays["attention_mask"] == 0).any()
  command = [sys.executable, "-c", ALONE + reader(), str(out), str(tmp_path / "prompt.npz"), str(NEW)]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
  assert done.returncode == 0, done.stderr
  wanted = vlm.generate(**arrays, max_new_tokens=NEW, stop=False)
  assert json.loads(done.stdout) == wanted.tolist()
  assert len(np.unique(wanted)) > 3


def test_what_lies_in_the_folder(shipped):
  vlm, out = shipped
  said = json.loads((out / "programs.json").read_text())
  assert said["platforms"] == ["cpu", "cuda", "tpu"]
  assert said["model"]["stop_ids"] == list(vlm.processor.stop_ids)
  assert said["model"]["image_token_id"] == 657 and said["model"]["pixels"]["mean"] == [0.5] * 3
  assert said["programs"]["vision"]["inputs"] == [
    {"name": "pixels", "shape": ["n", 3, 96, 96], "dtype": "float32"}
  ]
  prefill = said["programs"]["prefill"]
  assert [i["name"] for i in prefill["inputs"]][:4] == ["tokens", "valid", "cache.keys.0", "cache.keys.1"]
  assert prefill["inputs"][-1] == {"name": "images", "shape": ["n", 64, 128], "dtype": "float32"}
  assert [o["name"] for o in prefill["outputs"]][:2] == ["logits", "cache.keys.0"]
  assert prefill["outputs"][0]["shape"] == ["b", 660]
  sizes = {name: (out / program["file"]).stat().st_size for name, program in said["programs"].items()}
  assert max(sizes.values()) < 200_000  # no weights within
  for program in said["programs"].values():
    read = jax_export.deserialize(bytearray((out / program["file"]).read_bytes()))
    assert read.platforms == ("cpu", "cuda", "tpu")
    held = load_file(out / said["weights"][program["weights"]])
    assert len(read.in_avals) == len(held) + len(program["inputs"])
  assert (out / "tokenizer.json").read_bytes() == (vlm.folder / "tokenizer.json").read_bytes()
  with pytest.raises(UserError, match="holds StableHLO"):
    spatialvlm.load_vlm(out)


class Read:
  """A folder's programs in this process."""

  def __init__(self, out: Path):
    self.said = json.loads((out / "programs.json").read_text())
    self.weights = {name: load_file(out / file) for name, file in self.said["weights"].items()}
    self.out, self.run = out, {}

  def __call__(self, name: str, *arguments):
    program = self.said["programs"][name]
    if name not in self.run:
      read = jax_export.deserialize(bytearray((self.out / program["file"]).read_bytes()))
      self.run[name] = jax.jit(read.call, compiler_options={"xla_backend_optimization_level": 0})
    return self.run[name](self.weights[program["weights"]], *arguments)

  def cache(self, batch: int, length: int):
    kind = self.said["cache"]
    layers = (jnp.zeros((batch, length, *kind["shape"][2:]), kind["dtype"]),) * kind["layers"]
    valid = jnp.zeros((batch, length), bool)
    return {"keys": layers, "length": jnp.int32(0), "valid": valid, "values": layers}


def test_arguments_that_do_not_belong_together_give_no_numbers(tmp_path):
  folder = tiny_model.write_checkpoint(tmp_path / "tiny")
  read = Read(written(folder, tmp_path / "out"))
  image_id, width = read.said["model"]["image_token_id"], 24
  tokens, valid = np.full((1, 12), 5, np.int32), np.ones((1, 12), bool)
  tokens[0, 2:6] = image_id
  given = lambda tiles: np.ones((tiles, 4, width), np.float32)
  logits, cache = read("prefill", tokens, valid, read.cache(1, 13), given(1))
  assert np.isfinite(logits).all()
  assert np.isnan(read("prefill", tokens, valid, read.cache(1, 13), given(2))[0]).all()
  logits, cache = read("step", np.array([7], np.int32), cache)
  assert np.isfinite(logits).all()
  assert np.isnan(read("step", np.array([7], np.int32), cache)[0]).all()
  with pytest.raises(ValueError, match="refining shapes"):  # a cache shorter than the prompt
    read("prefill", tokens, valid, read.cache(1, 11), given(1))
  longer = read.cache(1, 600) | {"length": jnp.int32(512), "valid": jnp.arange(600)[None] < 512}
  assert np.isnan(read("step", np.array([7], np.int32), longer)[0]).all()


def of_model(vlm) -> tuple[Programs, Callable]:
  """A model's programs without a folder: `run(name, *arguments)`."""
  programs, made = Programs.of(vlm), {}
  for name, (program, _) in stablehlo.exported(programs).items():
    made[name] = jax.jit(program.call, compiler_options={"xla_backend_optimization_level": 0})
  weights = {}
  for name, part in (("language", programs.language), ("vision", programs.eyes)):
    weights[name] = {key: tensor.make() for key, tensor in part.tensors.items()}
  return programs, lambda name, *rest: made[name](
    weights["vision" if name == "vision" else "language"], *rest
  )


@pytest.mark.parametrize("kind", ["internvl", "paligemma2"])
def test_families(kind):
  """Greedy tokens are those that transformers recorded: two prompts padded on the left, of several tiles."""
  with np.load(ROOT / "tests/fixtures" / kind / "record.npz") as record:
    name = "left" if "left.input_ids" in record.files else "text"
    case = {key.split(".")[1]: record[key] for key in record.files if key.startswith(f"{name}.")}
  programs, run = of_model(hub.load_model(ROOT / "tests/fixtures" / kind))
  pixels = case["pixel_values"].reshape(-1, *case["pixel_values"].shape[-3:])
  pixels = pixels[(pixels != 255).any(axis=(1, 2, 3))]  # the rest is padding
  images = run("vision", (pixels / 127.5 - 1).astype(np.float32))
  tokens, valid = case["input_ids"].astype(np.int32), case["attention_mask"] != 0
  greedy = case["greedy"]
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    programs.cache(len(tokens), tokens.shape[1] + greedy.shape[1]),
  )
  logits, cache = run("prefill", tokens, valid, zeros, images)
  found = [np.argmax(logits, -1).astype(np.int32)]
  while len(found) < greedy.shape[1]:
    logits, cache = run("step", found[-1], cache)
    found.append(np.argmax(logits, -1).astype(np.int32))
  np.testing.assert_array_equal(np.stack(found, 1), greedy)


def test_language_models(tmp_path):
  """In two pieces, padded on the left, and a token: the logits of the whole."""
  more = {"sliding_window": 4, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}
  folder = tiny_language.write_checkpoint(tmp_path / "tiny", "gemma2", **more)
  read, vlm = Read(written(folder, tmp_path / "out")), spatialvlm.load_vlm(folder)
  assert set(read.said["programs"]) == {"prefill", "step"} and "vision" not in read.said["weights"]
  ids = np.arange(5, 17, dtype=np.int32)[None]
  first = np.concatenate([np.zeros((1, 3), np.int32), ids[:, :5]], axis=1)
  _, cache = read("prefill", first, np.arange(8)[None] >= 3, read.cache(1, 20))
  second, cache = read("prefill", np.pad(ids[:, 5:11], ((0, 0), (0, 2))), np.arange(8)[None] < 6, cache)
  third, cache = read("step", ids[:, 11], cache)
  wanted = np.asarray(vlm.logits(ids))[0]
  np.testing.assert_allclose(second[0], wanted[10], atol=2e-5)
  np.testing.assert_allclose(third[0], wanted[11], atol=2e-5)
  assert wanted.std() > 0.5


def _within(module, name: str):
  return module[int(name)] if name.isdecimal() else getattr(module, name)


def test_adapters_are_merged_and_what_cannot_be_is_refused(tmp_path, monkeypatch):
  folder = tiny_model.write_checkpoint(tmp_path / "tiny")
  vlm = hub.load_model(folder)
  adapted = tiny_edge.adapted(vlm, method="lora", target=r".*\.(q_proj|proj)", options={"rank": 2})
  programs, merged = Programs.of(adapted), peft.merge(adapted)
  for part, name, wanted, before in (
    (programs.language, "decoder.stack.layers.0.attn.q_proj.kernel", merged.decoder, vlm.decoder),
    (programs.eyes, "connector.proj.kernel", merged.connector, vlm.connector),
  ):
    value = part.tensors[name].make()
    inner = name.split(".")[1:]
    read = lambda module, inner=inner: np.asarray(functools.reduce(_within, inner, module)[...])
    np.testing.assert_array_equal(value, read(wanted))
    assert np.abs(value - read(before)).max() > 1e-3
  out = tmp_path / "out"
  with monkeypatch.context() as patch:
    patch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"\(No space left on device\); nothing was left"):
      written(folder, out)
  assert not [path for path in tmp_path.iterdir() if path != folder]
  with pytest.raises(UserError, match="method 'prefix' cannot be merged; --to=adapter writes it"):
    written(folder, out, tiny_edge.adapted(vlm, method="prefix"))
  with pytest.raises(UserError, match=r"--numbers=f16: belongs to --to=gguf.*, not to --to=stablehlo"):
    export.named("stablehlo", "f16")
  assert not out.exists()
  (out / "programs.json").parent.mkdir()
  (out / "programs.json").write_text("{}")
  with pytest.raises(UserError, match="already holds something; name a new folder"):
    written(folder, out)
  assert [file.name for file in out.iterdir()] == ["programs.json"]
