"""What lies in a folder: a model, an adapter, both, a run; and what to name where it is none that is wanted.

The rules are those of transformers' `from_pretrained`. A folder with config.json and weights is a model, also
where an adapter lies beside them, which then belongs to it. An adapter without them names its base. What lies
in folders below is not looked for; it is named where nothing lies at the top, or where it is passed by.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from spatialvlm.hub.resolve import read_json
from spatialvlm.types import Note, UserError

ADAPTER_FILE = "adapter_config.json"
# What describes the priors of a model, beside its weights or its adapter (`priors.attached`).
PRIORS_FILE = "priors.json"
_WEIGHTS = (
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
  "model.gguf",
)


def has_adapter(folder: Path) -> bool:
  """Whether an adapter lies in the folder, alone or beside a model."""
  return (folder / ADAPTER_FILE).is_file()


def has_priors(folder: Path) -> bool:
  """Whether priors lie in the folder, beside a model or an adapter."""
  return (folder / PRIORS_FILE).is_file()


def refuse_priors(folder: Path) -> None:
  """Raises a UserError where priors lie in a folder, for those who would read it without them."""
  if has_priors(folder):
    names = ", ".join(read_json(folder / PRIORS_FILE).get("priors") or ())
    raise UserError(
      f"{folder}: a model with priors ({names}), which this would leave out; load it by load_vlm,"
      " launch/evaluate.py or as the start of a training with the same config.priors"
    )


def has_model(folder: Path) -> bool:
  """Whether a whole model lies there: its config and weights, readable or not."""
  return (folder / "config.json").is_file() and any((folder / name).is_file() for name in _WEIGHTS)


def is_workdir(folder: Path) -> bool:
  """Whether it is the workdir of a run of ours, whose config.json describes no model."""
  config = folder / "config.json"
  return (folder / "identity.json").is_file() and config.is_file() and "model_type" not in read_json(config)


def inside(folder: Path, adapters: bool = False) -> list[str]:
  """The folders directly below that hold something, each with what it is; `adapters`: of these alone."""
  found = []
  for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
    try:
      kind = "adapter" if has_adapter(below) else "run" if is_workdir(below) else ""
    except UserError:  # a config.json that is none
      continue
    kind = kind or ("model" if (below / "config.json").is_file() else "")
    if kind == "adapter" or (kind and not adapters):
      found.append(f"{below.name} ({kind})")
  return found


def way_on(folder: Path, adapters: bool = False) -> str:
  """`; in it are ...: name one of them`, where there is anything below; else nothing."""
  below = inside(folder, adapters)
  return f"; in it are {', '.join(below)}: name one of them" if below else ""


def model_json(folder: Path, wanted: str = "a model") -> dict[str, Any]:
  """The config.json of a model or encoder.

  Args:
    wanted: for errors, what should lie there.

  Raises:
    UserError: there is none, with what lies there instead, or it cannot be read.
  """
  config = folder / "config.json"
  if not config.is_file():
    if has_adapter(folder):
      raise UserError(f"{folder}: an adapter, where {wanted} is wanted; name its base model")
    if below := way_on(folder):
      raise UserError(f"{folder}: no config.json, where {wanted} is wanted{below}")
  elif is_workdir(folder):
    exported = [str(p.parent) for p in sorted(folder.glob("**/model/config.json"))]
    hint = f"name {exported[-1]}" if exported else "name its base model"
    raise UserError(f"{folder}: the workdir of a run, where {wanted} is wanted; {hint}")
  return read_json(config)


def note_passed_by(folder: Path) -> None:
  """Tells the user what lies in folders below a model that is taken, as transformers takes it."""
  if below := inside(folder):
    note(f"{folder}: the model at its top is taken; passed by are {', '.join(below)}")


def note(text: str) -> None:
  """Tells the user what was decided for them."""
  warnings.warn(text, Note, stacklevel=3)
