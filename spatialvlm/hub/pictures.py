"""How a model was shown pictures where it was trained: `pictures.json` beside its weights or its adapter.

Budgets of tiles and layouts are settings of whoever runs a model (`ModelConfig.tiling`), and a checkpoint's
own files do not hold them. A model that was trained with others than the checkpoint's own has them in this
file, so that whoever shows it pictures otherwise is told so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from spatialvlm import workdir
from spatialvlm.config import ModelConfig, read_json
from spatialvlm.types import Note, UserError

FILE = "pictures.json"
OWN: dict[str, Any] = ModelConfig().tiling


def changed(tiling: Mapping[str, Any]) -> dict[str, Any]:
  """Those settings that are not the checkpoint's own."""
  return {name: value for name, value in tiling.items() if value != OWN[name]}


def save(model: ModelConfig | None, folder: Path) -> None:
  """Writes the file of a model that was trained with these settings into the folder where it lies.

  With a checkpoint's own settings there is none, and one that lies there goes. Every process of a run may
  call this; the first one writes.

  Args:
    model: None where nobody knows: what lies there stays.

  Raises:
    UserError: the disk is full or not writable.
  """
  if model is None or jax.process_index():
    return
  file = Path(folder).expanduser() / FILE
  if found := changed(model.tiling):
    workdir.write_json(file, found)
  else:
    file.unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Any]:
  """The settings that differ from a checkpoint's own, of the model or adapter in a folder; {} without any.

  Raises:
    UserError: the file holds something else.
  """
  found = read_json(folder / FILE, damaged="it may be deleted")
  for name, value in found.items():
    kinds = {"layout": str, "pixels": str, "split_images": bool, "enlarge": bool}
    if name not in OWN or type(value) is not kinds.get(name, int):
      raise UserError(f"{folder / FILE}: {name}={value!r} is no setting of pictures; it may be deleted")
  return found


def note(name: str, trained: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
  """Tells the user that a model is shown pictures otherwise than in its training.

  Args:
    name: whose; trained, shown: settings as of `ModelConfig.tiling`, or those of them that were changed.
  """
  trained, shown = OWN | trained, OWN | shown
  differs = [key for key in OWN if trained[key] != shown[key]]
  if differs:
    said = lambda of: ", ".join(f"{key}={of[key]}" for key in differs)
    warnings.warn(
      f"{name}: was trained with {said(trained)} and is shown pictures with {said(shown)} here; set the"
      " former to ask it as it was trained",
      Note,
      stacklevel=3,
    )
