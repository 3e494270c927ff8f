"""Names and layouts of tensors, ours and Hugging Face's: both directions from one table per family."""

from __future__ import annotations

import functools
import re

import numpy as np

from spatialvlm.models.registry import FAMILIES

# Every operation permutes axes, from the file's layout to ours; the inverse permutation goes back.
OPERATIONS: dict[str, tuple[int, ...] | None] = {
  "same": None,
  "transpose": (1, 0),  # PyTorch's Linear (out, in) -> (in, out)
  "conv": (2, 3, 1, 0),  # PyTorch's Conv2d (out, in, height, width) -> (height, width, in, out)
}


def canonical(name: str, family: str) -> str:
  """The published spelling of a tensor's name, whichever of the known ones a file uses."""
  for pattern, replacement in FAMILIES[family].aliases:
    name = re.sub(pattern, replacement, name)
  return name


def ignored(name: str, family: str) -> bool:
  """Whether a tensor of the file is a buffer that nobody needs."""
  return any(re.fullmatch(pattern, name) for pattern in FAMILIES[family].ignored)


def to_ours(name: str, family: str) -> str | None:
  """Our dotted path of a tensor in a Hugging Face file, e.g. `decoder.stack.layers.0.attn.q_proj.kernel`."""
  return _translate(canonical(name, family), _table(family, 0, 1))


def to_hf(path: str, family: str) -> str | None:
  """The name in a Hugging Face file of the parameter at our dotted path; None if it has none."""
  return _translate(path, _table(family, 1, 0))


def module_to_hf(path: str, family: str) -> str | None:
  """Hugging Face's name of a linear layer, as PEFT targets it: the name of its kernel without `.weight`."""
  name = to_hf(f"{path}.kernel", family)
  return None if name is None else name.removesuffix(".weight")


def module_to_ours(name: str, family: str) -> str | None:
  """Our path of the linear layer that Hugging Face calls `name`."""
  path = to_ours(f"{name}.weight", family)
  return path.removesuffix(".kernel") if path is not None and path.endswith(".kernel") else None


def permutation(path: str, family: str) -> tuple[int, ...] | None:
  """Axes of the file's tensor in our order, for the parameter at our path; None where they agree."""
  return OPERATIONS[_translate(path, _table(family, 1, 2)) or "same"]


def from_file(tensor: np.ndarray, path: str, family: str) -> np.ndarray:
  """A tensor of the file in our layout."""
  axes = permutation(path, family)
  return tensor if axes is None else np.ascontiguousarray(tensor.transpose(axes))


def to_file(tensor: np.ndarray, path: str, family: str) -> np.ndarray:
  """Our tensor in the file's layout."""
  axes = permutation(path, family)
  return tensor if axes is None else np.ascontiguousarray(tensor.transpose(np.argsort(axes)))


def file_shape(shape: tuple[int, ...], path: str, family: str) -> tuple[int, ...]:
  """The shape that our parameter of `shape` has in a file."""
  axes = permutation(path, family)
  return tuple(shape) if axes is None else tuple(shape[i] for i in np.argsort(axes))


@functools.cache
def _table(family: str, source: int, target: int) -> tuple[tuple[re.Pattern[str], str], ...]:
  rules = FAMILIES[family].rules
  return tuple(
    (re.compile(re.escape(rule[source]).replace(r"\{i\}", r"(?P<i>\d+)")), rule[target]) for rule in rules
  )


@functools.lru_cache(maxsize=4096)
def _translate(name: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
  for pattern, target in table:
    if match := pattern.fullmatch(name):
      return target.format(**match.groupdict())
  return None
