"""The files of a checkpoint's folder that describe its processor, read without running any of its code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from spatialvlm.data.images import Tiler
from spatialvlm.types import UserError


def tokens_per_tile(config: Mapping, outer: Mapping, tiler: Tiler, folder: Path) -> int:
  said = outer.get("image_seq_len")
  vision = group(config, "vision_config", folder)
  if not config or "patch_size" not in vision:
    return said or 169  # the default of transformers' processors
  patch, factor = vision["patch_size"], config.get("scale_factor", 2)
  if not all(isinstance(n, int) and n > 0 for n in (patch, factor)):
    raise UserError(f"{folder}/config.json: patch_size {patch!r} and scale_factor {factor!r} must be numbers")
  made = (tiler.tile_size // patch // factor) ** 2
  if said not in (None, made):
    raise UserError(
      f"{folder}: processor_config.json says image_seq_len {said}, but tiles of {tiler.tile_size} pixels make"
      f" {made} tokens by config.json; correct one of them"
    )
  return made


def template(folder: Path, outer: Mapping, settings: Mapping) -> str:
  file = folder / "chat_template.jinja"
  found = outer.get("chat_template")
  found = found or (file.read_text(encoding="utf-8") if file.is_file() else None)
  found = (
    found or read_json(folder, "chat_template.json").get("chat_template") or settings.get("chat_template")
  )
  if isinstance(found, list):
    found = {t["name"]: t["template"] for t in found}
  if isinstance(found, Mapping):
    found = found.get("default")
  if not found:
    raise UserError(f"{folder}: no chat template; copy the base model's chat_template.jinja there")
  return found


def tokenizer(folder: Path) -> Tokenizer:
  file = folder / "tokenizer.json"
  if not file.is_file():
    raise UserError(f"{folder}: no tokenizer.json; copy the base model's tokenizer files beside the weights")
  try:
    tokenizer = Tokenizer.from_file(str(file))
  except Exception as error:  # the bindings raise bare Exception
    raise UserError(f"{file}: cannot be read as a tokenizer: {error}") from error
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer


def read_json(folder: Path, name: str) -> dict[str, Any]:
  """A JSON object of the folder, empty where there is no such file."""
  file = folder / name
  if not file.is_file():
    return {}
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{file}: not valid JSON: {error}") from error
  if not isinstance(found, dict):
    raise UserError(f"{file}: expected a JSON object")
  return found


def group(config: Mapping, key: str, folder: Path) -> Mapping[str, Any]:
  """A nested object of config.json, empty where it is left out or null."""
  value = config.get(key)
  if value is not None and not isinstance(value, Mapping):
    raise UserError(f"{folder}/config.json: {key}: expected an object, got {value!r}")
  return value or {}


def content(token: Any) -> str | None:
  """A special token's text; files hold it as a string or as a record."""
  return token.get("content") if isinstance(token, Mapping) else token if isinstance(token, str) else None


def as_list(value: Any) -> list[Any]:
  return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
