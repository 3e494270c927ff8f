"""Writes tests/recorded/gguf.json: what llama.cpp's own converter makes of small models' folders.

  python -m tests.oracle.record_gguf LLAMA_CPP    (in the root of the project)

LLAMA_CPP is a folder with `convert_hf_to_gguf.py`, `convert_lora_to_gguf.py` and `gguf-py`, as a checkout or
the source package of llama-cpp-python (below `vendor/llama.cpp`) has it. The converter knows vocabularies by
hashes and refuses those of tests: the name that it would find is put there. Of long values hashes are kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from spatialvlm import hub, peft
from spatialvlm.hub import tensors
from spatialvlm.hub.gguf import file as gguf_file
from tests import tiny_edge

RECORDED = Path(__file__).parents[1] / "recorded" / "gguf.json"
PARTS = ("language", "mmproj")
# Case -> kind of folder, the converter's type, settings of the language model.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
  "smolvlm-f32": ("smolvlm", "f32", {}),
  "smolvlm-f16": ("smolvlm", "f16", {}),
  "smolvlm-q8_0": ("smolvlm", "q8_0", {}),
  "internvl-f16": ("internvl", "f16", {}),
  "internvl-bf16": ("internvl", "bf16", {}),
  "llama-q8_0": ("llama", "q8_0", {"tie_word_embeddings": True}),
  "llama3-f32": (
    "llama",
    "f32",
    {
      "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
      }
    },
  ),
  "qwen2-bf16": ("qwen2", "bf16", {}),
}
# The folders have no tokenizer.model, which the converter would look for with a package of its own.
_RUN = """
import json, sys
sys.path.insert(1, {root!r} + "/gguf-py"); sys.path.insert(1, {root!r})
import convert_hf_to_gguf
from {base} import TextModel
def missing(self): raise FileNotFoundError("tokenizer.model")
TextModel._set_vocab_sentencepiece = missing
for pre, argv in json.loads({jobs!r}):
  TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
  sys.argv = ["convert", *argv]
  convert_hf_to_gguf.main()
"""


def main() -> None:
  root, out, jobs = Path(sys.argv[1]).resolve(), {}, []
  with tempfile.TemporaryDirectory() as scratch:
    for name, (kind, quant, text) in CASES.items():
      folder = as_the_converter_wants(tiny_edge.write(kind, Path(scratch) / name / f"tiny-{kind}", **text))
      for part in PARTS if kind in ("smolvlm", "internvl") else PARTS[:1]:
        jobs.append(job(folder, Path(scratch) / f"{name}-{part}.gguf", kind, quant, part))
    run(root, jobs)
    for name in CASES:
      files = {part: Path(scratch) / f"{name}-{part}.gguf" for part in PARTS}
      out[name] = {part: summary(file) for part, file in files.items() if file.is_file()}
    out["lora"] = {"adapter": summary(adapter(root, Path(scratch) / "lora"))}
  RECORDED.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  print(f"{RECORDED}: {RECORDED.stat().st_size / 1e3:.0f} kB")


def as_the_converter_wants(folder: Path) -> Path:
  """InternVL's eyes under the names that they have in transformers' modules; under others it finds none."""
  file = folder / "model.safetensors"
  names = {
    n: re.sub(r"^(vision_tower|multi_modal_projector)", r"model.\1", n) for n in tensors.read_header(file)
  }
  found = {names[name]: tensors.lazy(entry.read()) for name, entry in tensors.read_header(file).items()}
  tensors.write(file, found)
  return folder


def job(folder: Path, file: Path, kind: str, quant: str, part: str) -> tuple[str, list[str]]:
  """How texts are cut, and the converter's arguments, for one file of a folder."""
  argv = [str(folder), "--outfile", str(file), "--outtype", quant]
  return "qwen2" if kind in ("internvl", "qwen2") else "smollm", argv + ["--mmproj"] * (part == "mmproj")


def run(root: Path, jobs: list[tuple[str, list[str]]]) -> None:
  """llama.cpp's converter, in a process of its own."""
  base = "conversion.base" if (root / "conversion").is_dir() else "convert_hf_to_gguf"
  script = _RUN.format(root=str(root), base=base, jobs=json.dumps(jobs))
  subprocess.run([sys.executable, "-c", script], check=True, cwd=root)


def adapter(root: Path, scratch: Path) -> Path:
  """A LoRA of `tiny_edge.adapted`, by llama.cpp's converter of adapters."""
  folder, file = tiny_edge.write("smolvlm", scratch / "tiny-smolvlm"), scratch / "adapter.gguf"
  saved = peft.save_adapter(tiny_edge.adapted(hub.load_model(folder), **tiny_edge.LORA), scratch / "lora")
  command = [
    sys.executable,
    str(root / "convert_lora_to_gguf.py"),
    "--base",
    str(folder),
    "--outfile",
    str(file),
  ]
  subprocess.run([*command, str(saved)], check=True, cwd=root)
  return file


def summary(file: Path) -> dict[str, Any]:
  """What a file holds: keys with their values, tensors with type, shape and the hash of their bytes."""
  header = gguf_file.read_header(file)
  raw = file.read_bytes()
  held = {
    name: [t.quant, list(t.shape), hashlib.sha256(raw[t.start : t.start + t.count]).hexdigest()]
    for name, t in header.tensors.items()
  }
  return {"keys": {name: _short(value) for name, value in header.keys.items()}, "tensors": held}


def _short(value: Any) -> Any:
  text = json.dumps(value, ensure_ascii=False)
  return (
    value
    if len(text) < 200
    else f"sha256 of {type(value).__name__}: {hashlib.sha256(text.encode()).hexdigest()}"
  )


if __name__ == "__main__":
  main()
