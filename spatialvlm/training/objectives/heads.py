"""Heads on disk: `heads/NAME.safetensors`, and in `heads/NAME.json` what it is, beside a run's adapter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm import workdir as workdir_lib
from spatialvlm.config import LossConfig, to_dict
from spatialvlm.hub import tensors
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.training import objectives
from spatialvlm.types import UserError

FOLDER = "heads"
_FORMAT = "spatialvlm-head-1"


@dataclasses.dataclass(frozen=True)
class Head:
  """A trained head, ready to be asked.

  Attributes:
    name: of its term in the run.
    objective: what it was trained for; `objective.wants` is what it reads of the model.
    module: its parameters, float32.
  """

  name: str
  objective: objectives.Objective
  module: nnx.Module


def save_head(
  folder: Path, name: str, module: nnx.Module, objective: objectives.Objective, base: str
) -> None:
  """Writes both files, the description last, so that half of a head is none.

  Args:
    base: id or path of the base model whose tokens the head reads, as the adapter names it.

  Raises:
    UserError: the disk is full or not writable.
  """
  arrays = {path: np.asarray(jax.device_get(value), np.float32) for path, value in _variables(module).items()}
  if jax.process_index():
    return
  about = {
    "format": _FORMAT,
    "kind": _kind(objective),
    "settings": to_dict(objective.settings),
    "base": base,
    "tensors": {path: list(array.shape) for path, array in arrays.items()},
  }
  file = folder / f"{name}.safetensors"
  with workdir_lib.writing(file):
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    tensors.write(part, {path: tensors.lazy(array) for path, array in arrays.items()})
    part.replace(file)
  workdir_lib.write_json(folder / f"{name}.json", about)


def load_head(file: str | Path, model: VlmConfig) -> Head:
  """Reads a head for a model.

  Args:
    file: `heads/NAME.json`, or the safetensors file beside it.
    model: the configuration of the model that it shall read: the base it was trained on, with the adapter or
      merged.

  Raises:
    UserError: no such head, one of another format or kind, or tensors that do not fit the model.
  """
  file = Path(file).expanduser().with_suffix(".json")
  about = _read(file)
  config = LossConfig(kind=str(about.get("kind")), kwargs=dict(about.get("settings") or {}))
  try:
    objective = objectives.make_objective(file.stem, config)
    objective.check(model)
  except UserError as error:
    raise UserError(f"{file}: {error}") from None
  module = objective.head(model, nnx.Rngs(0))
  if module is None:
    raise UserError(f"{file}: a loss of kind {config.kind!r} has no head")
  entries = tensors.read_header(_present(file.with_suffix(".safetensors")))
  variables = _variables(module)
  wanted = {path: tuple(value.shape) for path, value in variables.items()}
  found = {path: entry.shape for path, entry in entries.items()}
  if wanted != found:
    raise UserError(f"{file}: holds {_shapes(found)}, but on this model the head is {_shapes(wanted)}")
  for path, variable in variables.items():
    variable.set_raw_value(jnp.asarray(entries[path].read()))
  return Head(file.stem, objective, module)


def _variables(module: nnx.Module) -> dict[str, nnx.Variable]:
  found = nnx.state(module, nnx.Param).flat_state()
  return {
    ".".join(map(str, path)): variable for path, variable in sorted(found, key=lambda item: str(item[0]))
  }


def _kind(objective: objectives.Objective) -> str:
  return next(kind for kind, cls in objectives.OBJECTIVES.items() if cls is type(objective))


def _read(file: Path) -> dict[str, Any]:
  try:
    about = json.loads(_present(file).read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{file}: is no JSON ({error}); export the head again") from None
  if not isinstance(about, dict) or about.get("format") != _FORMAT:
    raise UserError(f"{file}: describes no head of this version ({_FORMAT})")
  return about


def _present(file: Path) -> Path:
  if not file.is_file():
    raise UserError(f"{file}: no such head; a finished run leaves its heads in heads/")
  return file


def _shapes(found: dict[str, tuple[int, ...]]) -> str:
  return ", ".join(f"{path} {list(shape)}" for path, shape in sorted(found.items()))
