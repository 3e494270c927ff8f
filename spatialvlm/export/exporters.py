"""The table of exporters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spatialvlm import hub, peft, priors
from spatialvlm.config import nearest
from spatialvlm.core.quantised import formats
from spatialvlm.export import gguf, gguf_lora, litert, stablehlo
from spatialvlm.export.exporter import Exportable, Exporter, no_merging
from spatialvlm.export.onnx import encoder as onnx_encoder
from spatialvlm.export.onnx import folder as onnx
from spatialvlm.export.onnx import numbers as onnx_numbers
from spatialvlm.hub import contents, pictures
from spatialvlm.hub.gguf import numbers as gguf_numbers
from spatialvlm.models.vlm import Vlm
from spatialvlm.types import UserError


def _no_adapter(vlm: Vlm) -> str | None:
  return None if peft.carries(vlm) else "the model carries no adapter; --to=merged writes the whole model"


def _merged(model: Exportable, folder: Path) -> Path:
  if kinds := ", ".join(formats(model.vlm)):
    contents.note(
      f"{folder}: the base is kept in {kinds}; what is written are its decoded weights, in"
      f" {model.vlm.config.dtype}, and the adapter merged into these, not into {model.base} as it is"
    )
  merged = peft.merge(priors.without(model.vlm))
  priors.save(model.vlm, folder)
  written = hub.save_model(merged, folder, model.folder)
  pictures.save(model.trained, written)
  return written


def _adapter(model: Exportable, folder: Path, plain: Callable[[Vlm], Vlm] = lambda vlm: vlm) -> Path:
  vlm = plain(priors.without(model.vlm))
  if peft.carries(vlm):  # what is none is refused below, with nothing written
    priors.save(model.vlm, folder)
  written = peft.save_adapter(vlm, folder, model.base)
  pictures.save(model.trained, written)
  return written


def _no_plain_lora(vlm: Vlm) -> str | None:
  names = [name for name in peft.carries(vlm) if name != "lora"]
  return _no_adapter(vlm) or (f"the adapter is one of method {names[0]!r}, not LoRA" if names else None)


EXPORTERS: dict[str, Exporter] = {
  "adapter": Exporter(
    "an adapter's folder, which Hugging Face peft loads where it knows the method",
    _no_adapter,
    _adapter,
  ),
  "plain-lora": Exporter(
    "a PEFT folder in which PiSSA and OLoRA are ordinary LoRA, of twice the rank",
    _no_plain_lora,
    lambda model, folder: _adapter(model, folder, peft.as_plain_lora),
  ),
  "merged": Exporter(
    "a checkpoint with adapters merged, which transformers loads",
    no_merging,
    _merged,
  ),
  "gguf": Exporter(
    "GGUF files for llama.cpp, language and eyes (mmproj) apart, adapters merged",
    gguf.why_not,
    gguf.write,
    gguf_numbers.parse,
  ),
  "gguf-lora": Exporter(
    "the decoder's LoRA as a GGUF adapter, which llama.cpp lays over its base",
    gguf_lora.why_not,
    gguf_lora.write,
    gguf_numbers.parse,
  ),
  "onnx": Exporter(
    "ONNX files for transformers.js and onnxruntime, adapters merged",
    onnx.why_not,
    onnx.write,
    onnx_numbers.parse,
  ),
  "onnx-encoder": Exporter(
    "a vision encoder alone as ONNX files; of a vision-language model its tower",
    lambda encoder: None,
    onnx_encoder.write,
    onnx_numbers.parse,
    onnx_encoder.find,
  ),
  "stablehlo": Exporter(
    "StableHLO programs by jax.export, with their weights, which run by JAX alone on CPU, GPU and TPU",
    stablehlo.why_not,
    stablehlo.write,
  ),
  "litert": Exporter(
    "LiteRT files (.tflite) of fixed sizes, for phones and boards, adapters merged",
    litert.why_not,
    litert.write,
    litert.numbers,
    sized=True,
  ),
}
# Exporter -> its folder in the workdir of a run.
AFTER_TRAINING = {"adapter": "adapter", "merged": "model"}


def named(name: str, numbers: str = "", length: int | None = None) -> tuple[Exporter, Any]:
  """The exporter of a name, and what it makes of a user's words on numbers.

  Raises:
    UserError: there is none (the nearest is named), or no such numbers, or no choice of a length.
  """
  if name not in EXPORTERS:
    raise UserError(f"--to={name}: no such form; {nearest(name, EXPORTERS)}")
  exporter = EXPORTERS[name]
  if exporter.numbers is None and numbers:
    others = ", ".join(other for other, found in EXPORTERS.items() if found.numbers)
    raise UserError(f"--numbers={numbers}: belongs to --to={others}, not to --to={name}; leave it out")
  if length is not None and not exporter.sized:
    others = ", ".join(other for other, found in EXPORTERS.items() if found.sized)
    raise UserError(f"--length={length}: belongs to --to={others}, not to --to={name}; leave it out")
  return exporter, exporter.numbers(numbers) if exporter.numbers else None


def check_empty(folder: Path) -> None:
  """Raises a UserError where a new folder would be laid over something."""
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{folder}: already holds something; name a new folder")


def export(
  model: Exportable, name: str, folder: str | Path, numbers: str = "", length: int | None = None
) -> Path:
  """Writes one form of a model into a folder that is not there yet, or empty.

  Args:
    numbers: a user's words on the numbers that it is written in, of forms that have a choice.
    length: most tokens of prompt and answer, of forms whose sizes are fixed.

  Raises:
    UserError: an unknown form or numbers, a form that this model does not have, a folder that holds
      something, or a full disk; nothing half-written stays.
  """
  (exporter, said), folder = named(name, numbers, length), Path(folder).expanduser()
  check_empty(folder)
  if why := exporter.why_not(model.vlm):
    raise UserError(why)
  return exporter.write(dataclasses.replace(model, numbers=said, length=length), folder)
