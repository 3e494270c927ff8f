"""Writes tests/recorded/onnx_js.json: what transformers.js makes of folders that `--to=onnx` writes.

  python -m tests.oracle.record_onnx_js PACKAGES    (in the root of the project)

PACKAGES is a folder in which `npm install @huggingface/transformers` was run (with `--ignore-scripts`, where
the scripts of onnxruntime-node reach no network: what runs on a CPU comes with it).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import spatialvlm
from spatialvlm import export, shipped
from tests import tiny_edge

RECORDED = Path(__file__).parents[1] / "recorded" / "onnx_js.json"
TEXT = "How many cones are in the image?\n(A) 1\n(B) 2\n(C) 3\n"
FORMS, COUNT = ("fp32", "fp16", "q8", "q4"), 12
# Case -> height and width of its picture.
CASES = {"shipped": (96, 96), "grids": (40, 70)}


def model(case: str, folder: Path) -> spatialvlm.LoadedVlm:
  """The model that ships, tied and of one tile; a drawn one of grouped heads and several tiles."""
  if case == "shipped":
    return spatialvlm.load_vlm(shipped.checkpoints()["smolvlm-tiny"])
  return spatialvlm.load_vlm(tiny_edge.write("smolvlm", folder))


def picture(case: str) -> np.ndarray:
  noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
  return np.asarray(Image.fromarray(noise).resize(CASES[case][::-1], Image.Resampling.BICUBIC))


def arrays(vlm: spatialvlm.LoadedVlm, case: str) -> dict[str, np.ndarray]:
  """What our own processor makes of a case."""
  content = [{"type": "image"}, {"type": "text", "text": TEXT}]
  prompt = vlm.processor.apply_chat_template([{"role": "user", "content": content}], True)
  return vlm.processor(text=[prompt], images=[picture(case)])


def ask(packages: Path, vlm: spatialvlm.LoadedVlm, case: str, folder: Path) -> dict[str, Any]:
  """Exports a model into `folder` and asks it within transformers.js; what `transformers_js.mjs` prints."""
  found = export.Exportable(vlm.model, vlm.name, vlm.folder)
  export.export(found, "onnx", folder / "models" / case, ",".join(FORMS))
  Image.fromarray(picture(case)).save(folder / "picture.png")
  pixels = arrays(vlm, case)["pixel_values"]
  pixels.astype("<f4").tofile(folder / "pixels.bin")
  asked = {
    "models": str(folder / "models"),
    "name": case,
    "dtypes": FORMS,
    "text": TEXT,
    "picture": str(folder / "picture.png"),
    "pixels": {"file": str(folder / "pixels.bin"), "dims": pixels.shape},
    "count": COUNT,
  }
  (folder / "asked.json").write_text(json.dumps(asked))
  script = Path(__file__).with_name("transformers_js.mjs")
  command = ["node", str(script), str(packages.resolve()), str(folder / "asked.json")]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  if done.returncode:
    raise RuntimeError(done.stderr[-2000:])
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  found = {}
  for case in CASES:
    with tempfile.TemporaryDirectory() as folder:
      found[case] = ask(Path(sys.argv[1]), model(case, Path(folder) / "source"), case, Path(folder))
  RECORDED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main()
