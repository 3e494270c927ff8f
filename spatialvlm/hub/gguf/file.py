"""GGUF files: what they say, and their tensors, one at a time.

The header is read here (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3): the
`gguf` library's own reader makes an array of every word of a vocabulary, which takes seconds where this takes
a tenth of one. Quantised blocks become numbers by that library (`gguf.quants.dequantize`), an optional part:
`pip install "spatialvlm[gguf]"`.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from spatialvlm.config import refuse_pointer
from spatialvlm.hub.tensors import Entry
from spatialvlm.types import UserError

# What is read, by the names that ggml has for them, and the dtype that each becomes. Those that the format
# knows beside them are rare in models of this size, and nothing here is held to them.
PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_PLAIN_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Codes of values in the header, in the format's order; 8 is a string and 9 an array.
_SCALARS = ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d")
_STRING, _ARRAY = 8, 9
# What a header may not exceed: far beyond any file, but no memory is asked for by a damaged number.
_MOST_COUNT, _MOST_DIMS = 1 << 24, 4


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies: `count` bytes from `start`, of ggml's type `quant`; `shape` as NumPy has it."""

  quant: str
  shape: tuple[int, ...]
  start: int
  count: int


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file says of itself: its keys with their values, and its tensors by ggml's names."""

  file: Path
  keys: Mapping[str, Any]
  tensors: Mapping[str, Tensor]

  def key(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """The value of a key, `default` where it is not there.

    Raises:
      UserError: it is of another kind.
    """
    value = self.keys.get(name, default)
    if value is not default and (
      not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    ):
      raise UserError(
        f"{self.file}: the key {name} holds {_short(value)}, which it cannot; the file is damaged"
      )
    return value


@dataclasses.dataclass(frozen=True)
class GgufEntry(Entry):
  """A tensor of a GGUF file as a file of safetensors would hold it; `dtype` is what it is read as.

  Attributes:
    quant: ggml's type of what lies in the file.
    undo: takes back what a converter did to the numbers; None where it did nothing.
  """

  quant: str = "F32"
  undo: Callable[[np.ndarray], np.ndarray] | None = None

  def read(self) -> np.ndarray:
    """The tensor in a buffer of its own, float32 where its blocks were quantised."""
    raw = np.empty(self.count, np.uint8)
    with open(self.file, "rb") as file:
      file.seek(self.start)
      if file.readinto(raw) != self.count:
        raise UserError(f"{self.file}: truncated while it was being read; download it again")
    if self.quant in _PLAIN_DTYPES:
      tensor = raw.view(_PLAIN_DTYPES[self.quant]).reshape(self.shape)
    else:
      gguf = library(self.file)
      rows = raw.reshape(*self.shape[:-1], -1)
      tensor = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[self.quant]).reshape(self.shape)
    return tensor if self.undo is None else self.undo(tensor)


def library(file: Path | str = "--to=gguf") -> ModuleType:
  """The `gguf` package; `file` is what wants it, for errors.

  Raises:
    UserError: it is not installed.
  """
  try:
    import gguf
  except ImportError:
    raise UserError(
      f'{file}: GGUF needs the gguf library: pip install "spatialvlm[gguf]" (or pip install gguf)'
    ) from None
  return gguf


def read_header(file: Path) -> Header:
  """Reads everything but the tensors' numbers.

  Raises:
    UserError: no GGUF file, of a version or with a type of tensor that is not read, or truncated.
  """
  sizes = {quant.name: size for quant, size in library(file).GGML_QUANT_SIZES.items()}
  names = {int(quant): quant.name for quant in library(file).GGML_QUANT_SIZES}
  size = file.stat().st_size
  with open(file, "rb") as stream:
    reader = _Reader(file, stream, size)
    _check_version(file, stream.read(4), reader.number("I"))
    count, keys = reader.number("Q"), {}
    for _ in range(reader.count(13)):
      name = reader.string()
      if name in keys:
        raise UserError(f"{file}: holds the key {name} twice; the file is damaged")
      keys[name] = reader.value()
    found = [reader.tensor() for _ in range(reader.checked(count, 24))]
    align = keys.get("general.alignment", 32)
    if not isinstance(align, int) or align < 1 or align & (align - 1):
      raise UserError(f"{file}: general.alignment {align!r} is no power of two; the file is damaged")
    start = -(-stream.tell() // align) * align
  tensors: dict[str, Tensor] = {}
  for name, shape, code, offset in found:
    if name in tensors:
      raise UserError(f"{file}: holds the tensor {name} twice; the file is damaged")
    quant = names.get(code, f"type {code}")
    if quant not in PLAIN and quant not in BLOCKS:
      known = ", ".join((*PLAIN, *BLOCKS))
      raise UserError(f"{file}: the tensor {name} is {quant}, which is not read (known: {known})")
    block, bytes_ = sizes[quant]
    if shape[-1] % block:
      raise UserError(
        f"{file}: {name}: rows of {shape[-1]} numbers are no whole blocks of {quant}; it is damaged"
      )
    length = int(np.prod(shape, dtype=object)) // block * bytes_
    if start + offset + length > size:
      raise UserError(
        f"{file}: truncated, tensor {name} ends past the file's {size} bytes; download it again"
      )
    tensors[name] = Tensor(quant, shape, start + offset, length)
  return Header(file, keys, tensors)


def _check_version(file: Path, magic: bytes, version: int) -> None:
  if magic != b"GGUF":
    refuse_pointer(file)
    raise UserError(f"{file}: not a GGUF file; download it again")
  if version not in (2, 3):
    why = "of the other byte order" if version & 0xFFFF == 0 else f"version {version}"
    raise UserError(
      f"{file}: a GGUF file, but {why}, which is not read (known: versions 2 and 3, little-endian)"
    )


class _Reader:
  """The header's values in their order, none of them beyond the end of the file."""

  def __init__(self, file: Path, stream: BinaryIO, size: int):
    self._file, self._stream, self._size = file, stream, size

  def bytes(self, count: int) -> bytes:
    if count > self._size - self._stream.tell():
      raise self._truncated()
    return self._stream.read(count)

  def number(self, code: str) -> Any:
    return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]

  def checked(self, count: int, least: int) -> int:
    """A number of things, each of at least so many bytes, that the rest of the file can hold."""
    if count > min(_MOST_COUNT, (self._size - self._stream.tell()) // least):
      raise self._truncated()
    return count

  def count(self, least: int) -> int:
    return self.checked(self.number("Q"), least)

  def string(self) -> str:
    try:
      return self.bytes(self.number("Q")).decode()
    except UnicodeDecodeError:
      raise UserError(f"{self._file}: a text in its header is no UTF-8; the file is damaged") from None

  def value(self, kind: int | None = None) -> Any:
    """A value of a key: number, boolean, string, or list of them."""
    kind = self.number("I") if kind is None else kind
    if kind == _STRING:
      return self.string()
    if kind == _ARRAY:
      of = self.number("I")
      if of == _STRING:
        return [self.string() for _ in range(self.count(8))]
      if of == _ARRAY or not 0 <= of < len(_SCALARS):
        raise UserError(f"{self._file}: a list of values of kind {of} in its header; the file is damaged")
      code = _SCALARS[of]
      count = self.count(struct.calcsize(f"<{code}"))
      return list(struct.unpack(f"<{count}{code}", self.bytes(count * struct.calcsize(f"<{code}"))))
    if not 0 <= kind < len(_SCALARS):
      raise UserError(f"{self._file}: a value of kind {kind} in its header; the file is damaged")
    return self.number(_SCALARS[kind])

  def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, code of the type, and offset; the file lists the fastest axis first."""
    name, dims = self.string(), self.number("I")
    if not 1 <= dims <= _MOST_DIMS:
      raise UserError(f"{self._file}: the tensor {name} has {dims} axes; the file is damaged")
    shape = tuple(self.number("Q") for _ in range(dims))[::-1]
    return name, shape, self.number("I"), self.number("Q")

  def _truncated(self) -> UserError:
    return UserError(f"{self._file}: truncated inside its header, at {self._size} bytes; download it again")


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) < 60 else f"{text[:57]}..."
