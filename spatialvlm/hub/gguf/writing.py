"""Writing a GGUF file: keys, then tensors that are made, encoded and dropped one at a time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.hub.gguf import numbers
from spatialvlm.hub.gguf.file import library
from spatialvlm.hub.tensors import Lazy
from spatialvlm.types import UserError

Keys = Any
"""The `gguf` library's GGUFWriter, which knows the type of every key; it writes no file by itself here."""


@dataclasses.dataclass(frozen=True)
class Out:
  """A tensor to be written.

  Attributes:
    name: ggml's.
    tensor: its values in Hugging Face's layout, rows (the last axis) as they are in the file.
    kind: ggml's type.
    part: of `numbers.Numbers`, for errors.
    change: of the values, before they are encoded; keeps the shape.
  """

  name: str
  tensor: Lazy
  kind: str
  part: str
  change: Callable[[np.ndarray], np.ndarray] | None = None

  def encoded(self) -> np.ndarray:
    """What the file holds.

    Raises:
      UserError: numbers that the type cannot hold, or that are none.
    """
    values = self.tensor.make()
    made = numbers.encode(values if self.change is None else self.change(values), self.kind)
    if made.dtype.kind == "f" and not np.isfinite(made).all():
      why = "that are not finite" if not np.isfinite(values.astype(np.float32)).all() else "beyond 65504"
      advice = "the model is damaged" if why.startswith("that") else f"write --numbers={self.part}=bf16"
      raise UserError(f"{self.name}: holds numbers {why}; {advice}")
    return made


def new_keys(arch: str, kind: str) -> Keys:
  """Keys of a file of an architecture; `kind` is "model", "mmproj" or "adapter"."""
  keys = library().GGUFWriter(None, arch)
  keys.add_type(kind)
  return keys


def describe(keys: Keys, folder: Path, name: str, tensors: Sequence[Out]) -> None:
  """What a file says of its origin: name, size, licence... out of the folder's model card and name.

  Args:
    folder: of the model that it was made of. name: where neither the card nor the folder gives one.
  """
  gguf = library()
  for tensor in tensors:
    keys.add_tensor_info(
      tensor.name,
      tensor.tensor.shape,
      np.dtype(np.float32),
      numbers.size(tensor.tensor.shape, tensor.kind),
      gguf.GGMLQuantizationType[tensor.kind],
    )
  total, shared, expert, count = keys.get_total_parameter_count()
  metadata = gguf.Metadata.load(None, folder, None, total)
  metadata.name = metadata.name or name
  if metadata.size_label is None and total > 0:
    metadata.size_label = gguf.size_label(total, shared, expert, count)
  metadata.set_gguf_meta_model(keys)


def write(file: Path, keys: Keys, tensors: Sequence[Out]) -> None:
  """Writes a file whose tensors are those that `describe` was given.

  Raises:
    UserError: a tensor that cannot be encoded. OSError: a full disk; the file is then half-written.
  """
  keys.write_header_to_file(file)
  try:
    keys.write_kv_data_to_file()
    keys.write_ti_data_to_file()
    for tensor in tensors:
      keys.write_tensor_data(tensor.encoded())
    keys.flush()
    os.fsync(keys.fout[0].fileno())
  finally:
    keys.close()
