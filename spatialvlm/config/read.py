"""From an `ml_collections.ConfigDict`, or a command line's text, to the typed configuration, and back."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from spatialvlm.config.schema import RunConfig
from spatialvlm.types import UserError

T = typing.TypeVar("T")
DTYPES = ("float32", "bfloat16")


def from_config_dict(config: Mapping[str, Any], cls: type[T] = RunConfig) -> T:
  """Reads a ConfigDict (or any nested mapping) into a RunConfig, or into another config class.

  Raises:
    UserError: an unknown key (with the nearest known one) or a value of the wrong type, by its full name.
  """
  if hasattr(config, "to_dict"):
    config = config.to_dict()
  return _build(cls, config, "config")


def override(values: dict[str, Any], key: str, text: str, cls: type = RunConfig) -> None:
  """Sets one dotted key of a nested dict of settings from the text of a command line, in place.

  A string stands as it is; other values are written as in Python (`true` and `false` are taken too). A group
  that a recipe leaves out begins with its defaults.

  Raises:
    UserError: an unknown key (with the nearest known one), or text of the wrong type.
  """
  hint, where, parts = cls, "config", key.split(".")
  for i, part in enumerate(parts):
    of, origin = hint, typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
      hints = typing.get_type_hints(hint)
      if part not in hints:
        raise UserError(f"{where}.{part}: unknown key; {nearest(part, hints)}")
      full = hints[part]
    elif origin is not None and issubclass(origin, Mapping):
      full = typing.get_args(hint)[1]
    else:
      raise UserError(f"{where}.{part}: unknown key; {where} is a single value")
    hint, where = _without_none(full), f"{where}.{part}"
    if i + 1 < len(parts):
      if values.get(part) is None:
        values[part] = _default(of, part)
      values = values[part]
  values[parts[-1]] = _literal(hint, text, optional=hint is not full)


def _default(cls: Any, name: str) -> dict[str, Any]:
  """What a group of settings is where it is not said, as a nested dict; empty where it has no default."""
  field = {f.name: f for f in dataclasses.fields(cls)}.get(name) if dataclasses.is_dataclass(cls) else None
  if field is None or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING):
    return {}
  default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
  return {} if default is None else to_dict(default)


def _without_none(hint: Any) -> Any:
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
  return hint


def _literal(hint: Any, text: str, optional: bool) -> Any:
  """Text as a value; what is no literal stays text, and is refused later if it should be something else."""
  if text in ("None", "none") and (optional or hint is not str):
    return None
  if hint is str:
    return text
  if text in ("true", "false"):
    return text == "true"
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def to_dict(config: Any) -> Any:
  """The plain nested dict of a config, ready for JSON: the inverse of `from_config_dict`."""
  if dataclasses.is_dataclass(config):
    return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
  if isinstance(config, Mapping):
    return {k: to_dict(v) for k, v in config.items()}
  if isinstance(config, tuple):
    return [to_dict(v) for v in config]
  return config


def fingerprint(config: Any) -> str:
  """Eight hex digits that name a config: equal configs, equal fingerprint, on any machine."""
  text = json.dumps(to_dict(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def nearest(word: str, known: typing.Iterable[str]) -> str:
  """` (did you mean 'x'?)`, or the list of what is known where nothing is near."""
  known = sorted(known)
  near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def check_dtype(dtype: str, where: str = "config.model.dtype") -> None:
  """Raises a UserError, by the setting's full name, for numbers in which models are not offered."""
  if dtype not in DTYPES:
    why = " (its largest number, 65504, is too small for activations and gradients)"
    reason = why if dtype == "float16" else ""
    raise UserError(f"{where}: {dtype!r} is not offered{reason}; use {' or '.join(DTYPES)}")


def _build(cls: type, values: Any, where: str) -> Any:
  if not isinstance(values, Mapping):
    raise UserError(f"{where}: expected a group of settings, got {values!r}")
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      raise UserError(f"{where}.{key}: unknown key; {nearest(str(key), hints)}")
  return cls(**{k: _value(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
  """Converts `value` to what `hint` says, or raises a UserError that names the place."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, where)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    (hint,) = [a for a in args if a is not type(None)]
    return _value(hint, value, where)
  if origin is Literal:
    if value in args:
      return value
    raise UserError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
  if origin is tuple and isinstance(value, (tuple, list)):
    return tuple(_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
  if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
    return {str(k): _value(args[1], v, f"{where}.{k}") for k, v in value.items()}
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(hint, type) and type(value) is hint:
    return value
  wanted = getattr(origin or hint, "__name__", str(hint))
  raise UserError(f"{where}: expected {wanted}, got {value!r}")
