"""Names and layouts of tensors, ours and Hugging Face's: both directions from one table per family."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from spatialvlm.models import registry

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Operation:
  """How a tensor of a file lies here.

  Attributes:
    axes: the file's axes in our order, None where they agree.
    leading: axes of size 1 before all others: 1 where ours has one more, -1 where the file's has one more.
    half: which half of the file's first axis this is, None for all of it.
  """

  axes: tuple[int, ...] | None = None
  leading: int = 0
  half: int | None = None

  def read(self, tensor: np.ndarray) -> np.ndarray:
    if self.half is not None:
      tensor = np.split(tensor, 2)[self.half]
    if self.leading:
      tensor = tensor[None] if self.leading > 0 else tensor[0]
    return tensor if self.axes is None else np.ascontiguousarray(tensor.transpose(self.axes))

  def write(self, tensor: np.ndarray) -> np.ndarray:
    """The inverse; of a half, only that half."""
    if self.axes is not None:
      tensor = np.ascontiguousarray(tensor.transpose(np.argsort(self.axes)))
    if self.leading:
      tensor = tensor[0] if self.leading > 0 else tensor[None]
    return tensor

  def shape(self, shape: Shape) -> Shape:
    """In a file, of our parameter of `shape`."""
    if self.axes is not None:
      shape = tuple(shape[i] for i in np.argsort(self.axes))
    if self.leading:
      shape = shape[1:] if self.leading > 0 else (1, *shape)
    return (2 * shape[0], *shape[1:]) if self.half is not None else tuple(shape)


OPERATIONS: dict[str, Operation] = {
  "same": Operation(),
  "transpose": Operation((1, 0)),  # PyTorch's Linear (out, in) -> (in, out)
  "conv": Operation((2, 3, 1, 0)),  # PyTorch's Conv2d (out, in, height, width) -> (height, width, in, out)
  "row": Operation(leading=1),  # (D,) -> (1, D)
  "unbatch": Operation(leading=-1),  # (1, T, D) -> (T, D)
  "first_half_kernel": Operation((1, 0), half=0),  # two linear layers stored as one
  "second_half_kernel": Operation((1, 0), half=1),
  "first_half_bias": Operation(half=0),
  "second_half_bias": Operation(half=1),
}


def canonical(name: str, family: str) -> str:
  """The published spelling of a tensor's name, whichever of the known ones a file uses."""
  for pattern, replacement in registry.checkpoint(family).aliases:
    name = re.sub(pattern, replacement, name)
  return name


def ignored(name: str, family: str) -> bool:
  """Whether a tensor of the file is one that nobody needs."""
  name = canonical(name, family)
  return any(re.fullmatch(pattern, name) for pattern in registry.checkpoint(family).ignored)


def to_ours(name: str, family: str) -> str | None:
  """Our dotted path of a tensor in a Hugging Face file, e.g. `decoder.stack.layers.0.attn.q_proj.kernel`."""
  return next(iter(all_ours(name, family)), None)


def all_ours(name: str, family: str) -> tuple[str, ...]:
  """Our paths of a tensor in a Hugging Face file: several where it holds several layers' weights."""
  return _translate(canonical(name, family), _table(family, 0, 1))


def to_hf(path: str, family: str) -> str | None:
  """The name in a Hugging Face file of the parameter at our dotted path; None if it has none."""
  return next(iter(_translate(path, _table(family, 1, 0))), None)


def as_module(name: str, family: str) -> str:
  """A published name as transformers' own model has it, which some files name otherwise; PEFT's are such."""
  for pattern, replacement in registry.family(family).modules:
    name = re.sub(pattern, replacement, name)
  return name


def todays_name(name: str, family: str) -> str:
  """A module's name in transformers today, from any spelling that files and older versions have for it."""
  return as_module(canonical(name, family), family)


def older_names(name: str, family: str) -> tuple[str, ...]:
  """Other spellings of a module's name today: its published one, and those without the outer `model.`.

  Of a language model by itself also the one that it would have in a vision-language model, so that patterns
  for decoders fit it.
  """
  published = canonical(name, family)
  others = dict.fromkeys((published, name.removeprefix("model."), published.removeprefix("model.")))
  found = tuple(other for other in others if other != name and canonical(other, family) == published)
  return found if registry.family(family).vision else (*found, f"language_model.{published}")


def to_module(path: str, family: str) -> str | None:
  """The name in transformers' own model of the parameter at our dotted path; None if it has none."""
  name = to_hf(path, family)
  return None if name is None else as_module(name, family)


def operation(path: str, family: str) -> Operation:
  """What lies between the file's tensor and the parameter at our path."""
  return OPERATIONS[next(iter(_translate(path, _table(family, 1, 2))), "same")]


def from_file(tensor: np.ndarray, path: str, family: str) -> np.ndarray:
  """A tensor of the file in our layout."""
  return operation(path, family).read(tensor)


def to_file(tensor: np.ndarray, path: str, family: str) -> np.ndarray:
  """Our tensor in the file's layout; its half, where the file joins two."""
  return operation(path, family).write(tensor)


def file_shape(shape: Shape, path: str, family: str) -> Shape:
  """The shape that our parameter of `shape` has in a file."""
  return operation(path, family).shape(tuple(shape))


def joined(parts: Sequence[tuple[str, np.ndarray]], family: str) -> np.ndarray:
  """One tensor of the file from ours that it holds, as (path, ours) each."""
  parts = sorted(parts, key=lambda part: operation(part[0], family).half or 0)
  written = [to_file(tensor, path, family) for path, tensor in parts]
  return written[0] if len(written) == 1 else np.concatenate(written)


@functools.cache
def _table(family: str, source: int, target: int) -> tuple[tuple[re.Pattern[str], str], ...]:
  rules = registry.checkpoint(family).rules
  return tuple(
    (re.compile(re.escape(rule[source]).replace(r"\{i\}", r"(?P<i>\d+)")), rule[target]) for rule in rules
  )


@functools.lru_cache(maxsize=4096)
def _translate(name: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> tuple[str, ...]:
  matches = ((pattern.fullmatch(name), target) for pattern, target in table)
  return tuple(target.format(**match.groupdict()) for match, target in matches if match)
