"""What the families' files share: reading numbers from a config.json, and writing tables of tensor names.

A rule is (name in the file, path here, operation of `hub.rules`); `{i}` stands for a layer's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spatialvlm.types import UserError

ACTIVATIONS = {
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu": "gelu",
  "silu": "silu",
  "quick_gelu": "quick_gelu",
}

Rule = tuple[str, str, str]


def linear(theirs: str, ours: str) -> Iterator[Rule]:
  """The rules of a linear layer."""
  yield f"{theirs}.weight", f"{ours}.kernel", "transpose"
  yield f"{theirs}.bias", f"{ours}.bias", "same"


def norm(theirs: str, ours: str) -> Iterator[Rule]:
  """The rules of a norm."""
  yield f"{theirs}.weight", f"{ours}.scale", "same"
  yield f"{theirs}.bias", f"{ours}.bias", "same"


def under(theirs: str, ours: str, rules: Iterator[Rule] | tuple[Rule, ...]) -> tuple[Rule, ...]:
  """Rules with a prefix before each side's names."""
  return tuple((theirs + name, ours + path, operation) for name, path, operation in rules)


def group(source: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
  """A nested object of a config, empty where it is left out or null."""
  value = source.get(key)
  if value is not None and not isinstance(value, Mapping):
    raise UserError(f"{where}: {key}: expected an object, got {value!r}")
  return value or {}


def whole(source: Mapping[str, Any], key: str, default: int, where: str, least: int = 1) -> int:
  """A whole number of a config, `default` where it is left out or null."""
  value = source.get(key)
  return as_whole(default if value is None else value, f"{where}.{key}", least)


def as_whole(value: Any, where: str, least: int = 1) -> int:
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not number or value % 1 or value < least:
    raise UserError(f"{where}: expected a whole number of at least {least}, got {value!r}")
  return int(value)


def number(source: Mapping[str, Any], key: str, default: float, where: str) -> float:
  """A positive number of a config, `default` where it is left out or null."""
  value = source.get(key)
  value = default if value is None else value
  if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
    raise UserError(f"{where}.{key}: expected a number above 0, got {value!r}")
  return float(value)


def activation(name: str, where: str, key: str = "hidden_act") -> str:
  if name not in ACTIVATIONS:
    raise UserError(f"{where}.{key} {name!r} is not supported (known: {', '.join(ACTIVATIONS)})")
  return ACTIVATIONS[name]


def side(value: Any, where: str) -> int:
  """A side length that some files write as a pair."""
  sides = set(value) if isinstance(value, (list, tuple)) else {value}
  if len(sides) != 1:
    raise UserError(f"{where} {value!r} is not square")
  return as_whole(sides.pop(), where)
