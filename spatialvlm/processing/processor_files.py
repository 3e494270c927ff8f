"""The files of a checkpoint's folder that describe its processor, read without running any of its code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from spatialvlm.config import read_json, refuse_pointer
from spatialvlm.types import UserError


def template(folder: Path, outer: Mapping, settings: Mapping) -> str | None:
  """Source of the chat template, by transformers' order of precedence; None where there is none."""
  file = folder / "chat_template.jinja"
  refuse_pointer(file)
  found = outer.get("chat_template")
  found = found or (file.read_text(encoding="utf-8") if file.is_file() else None)
  found = (
    found or read_json(folder / "chat_template.json").get("chat_template") or settings.get("chat_template")
  )
  if isinstance(found, list):
    found = {t["name"]: t["template"] for t in found}
  if isinstance(found, Mapping):
    found = found.get("default")
  return found or None


def tokenizer(folder: Path) -> Tokenizer:
  file = folder / "tokenizer.json"
  if not file.is_file():
    raise UserError(f"{folder}: no tokenizer.json; copy the base model's tokenizer files beside the weights")
  try:
    tokenizer = Tokenizer.from_file(str(file))
  except Exception as error:  # the bindings raise bare Exception
    refuse_pointer(file)
    raise UserError(f"{file}: cannot be read as a tokenizer: {error}") from error
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer


def special_tokens(folder: Path, settings: Mapping) -> dict[str, str]:
  """The special tokens' texts, such as `bos_token`, by their names.

  They stand in tokenizer_config.json (`settings`); of older tokenizers, whose file lists no
  `added_tokens_decoder`, those of special_tokens_map.json come first, as in transformers.
  """
  older = {} if "added_tokens_decoder" in settings else read_json(folder / "special_tokens_map.json")
  return {k: content(v) for k, v in {**settings, **older}.items() if k.endswith("_token") and content(v)}


def pad_and_stops(
  folder: Path, tokenizer: Tokenizer, names: Mapping[str, str], end: int | None, eos: Any = None
) -> tuple[Any, tuple[Any, ...]]:
  """The id that pads, and those that end an answer: `end`, and generation_config.json's, else `eos`."""
  generation = read_json(folder / "generation_config.json")
  stops = [s for s in [end, *as_list(generation.get("eos_token_id", eos))] if s is not None]
  pad = tokenizer.token_to_id(names.get("pad_token", ""))
  if pad is None:
    pad = next(iter(as_list(generation.get("pad_token_id"))), end)
  return pad, tuple(dict.fromkeys(stops))


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
