"""Numbers of a preprocessor_config.json: read once for every image processor, refused by name."""

from __future__ import annotations

from typing import Any

from PIL import Image

from spatialvlm.types import UserError


def resample(value: Any, where: str) -> int:
  """One of Pillow's filters, by its number."""
  if isinstance(value, bool) or value not in list(Image.Resampling):
    raise UserError(f"{where}: resample: expected a number of Pillow's filters, 0 to 5, got {value!r}")
  return int(value)


def number(value: Any, where: str) -> float:
  """Any number; a boolean is none."""
  if not _is_number(value):
    raise UserError(f"{where}: expected a number, got {value!r}")
  return float(value)


def channels(value: Any, where: str, above_zero: bool = False) -> tuple[float, ...]:
  """A number for each of three channels, or one for all."""
  values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
  if len(values) != 3 or not all(map(_is_number, values)):
    raise UserError(f"{where}: expected a number, or one for each of three channels, got {value!r}")
  if above_zero and min(values) <= 0:
    raise UserError(f"{where}: must be above 0, got {value!r}")
  return tuple(map(float, values))


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)
