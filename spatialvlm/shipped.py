"""What comes with the project beside its code: recipes (`configs/`) and the small model (`checkpoints/`).

In a checkout, and so in an editable install, both lie beside the library; in a wheel they lie inside of it,
where pyproject.toml puts them. This file alone knows that.
"""

from __future__ import annotations

import pathlib

RECIPES, CHECKPOINTS = "configs", "checkpoints"
_PACKAGE = pathlib.Path(__file__).resolve().parent


def folder(name: str) -> pathlib.Path:
  """The folder of `RECIPES` or `CHECKPOINTS`, absolute; it may be missing where an install is not whole."""
  inside = _PACKAGE / name
  return inside if inside.is_dir() else _PACKAGE.parent / name


def recipes() -> dict[str, pathlib.Path]:
  """The files of recipes of ours by their bare names: {"lora": .../configs/lora.py, ...}."""
  files = sorted(folder(RECIPES).glob("*.py"))
  return {file.stem: file for file in files if not file.stem.startswith("_")}


def checkpoints() -> dict[str, pathlib.Path]:
  """The folders of models that come with the project by their bare names: {"smolvlm-tiny": ...}."""
  configs = sorted(folder(CHECKPOINTS).glob("*/config.json"))
  return {file.parent.name: file.parent for file in configs}


def file(name: str | pathlib.Path) -> pathlib.Path | None:
  """`checkpoints/FOLDER/FILE` as it comes with the project; None for another name, or a missing one."""
  parts = pathlib.PurePath(name).parts
  found = folder(CHECKPOINTS).joinpath(*parts[1:]) if parts[:1] == (CHECKPOINTS,) else None
  return found if found is not None and found.is_file() else None
