"""Reading and writing safetensors files one tensor at a time.

The safetensors library maps whole files into memory, and every page touched counts as memory of the process;
it also knows bfloat16 only together with PyTorch. The format is a length, a JSON header and raw bytes
(https://huggingface.co/docs/safetensors), so plain reads into one buffer do better here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from spatialvlm.config import refuse_pointer
from spatialvlm.types import UserError

DTYPES: dict[str, np.dtype] = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_MOST_HEADER = 100_000_000  # the library's own limit


@dataclasses.dataclass(frozen=True)
class Entry:
  """Where a tensor lies: `count` bytes from `start` of `file`."""

  file: Path
  dtype: str
  shape: tuple[int, ...]
  start: int
  count: int

  def read(self) -> np.ndarray:
    """The tensor, in a buffer of its own."""
    out = np.empty(self.shape, DTYPES[self.dtype])
    with open(self.file, "rb") as file:
      file.seek(self.start)
      if file.readinto(out.reshape(-1).view(np.uint8)) != self.count:
        raise UserError(f"{self.file}: truncated while it was being read; download it again")
    return out


def read_header(file: Path) -> dict[str, Entry]:
  """The tensors of one safetensors file, none of them read yet.

  Raises:
    UserError: no safetensors file, truncated, or of a dtype that is not known.
  """
  size = file.stat().st_size
  with open(file, "rb") as stream:
    head = stream.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= _MOST_HEADER:
      refuse_pointer(file)
      raise UserError(f"{file}: not a safetensors file (or truncated to {size} bytes); download it again")
    if 8 + length > size:
      raise UserError(f"{file}: truncated inside its header; download it again")
    try:
      header = json.loads(stream.read(length))
    except ValueError:
      raise UserError(f"{file}: not a safetensors file (its header is no JSON); download it again") from None
  if not isinstance(header, dict):
    raise UserError(f"{file}: not a safetensors file (its header is no JSON object); download it again")
  header.pop("__metadata__", None)
  entries = {}
  for name, item in header.items():
    try:
      begin, end = map(int, item["data_offsets"])
      shape, dtype = tuple(map(int, item["shape"])), str(item["dtype"])
    except (KeyError, TypeError, ValueError):
      raise UserError(f"{file}: the header's entry of tensor {name} is damaged; download it again") from None
    if dtype not in DTYPES:
      raise UserError(f"{file}: tensor {name} has dtype {dtype}, which is not supported")
    if (
      min((begin, *shape), default=0) < 0
      or end - begin != int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
    ):
      raise UserError(f"{file}: tensor {name}: {end - begin} bytes do not hold shape {list(shape)}")
    if 8 + length + end > size:
      raise UserError(
        f"{file}: truncated, tensor {name} ends past the file's {size} bytes; download it again"
      )
    entries[name] = Entry(file, dtype, shape, 8 + length + begin, end - begin)
  return entries


@dataclasses.dataclass(frozen=True)
class Lazy:
  """A tensor that is made only when it is written."""

  dtype: np.dtype
  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]

  @property
  def count(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def lazy(array: np.ndarray) -> Lazy:
  """A tensor that lies in memory already."""
  return Lazy(np.dtype(array.dtype), tuple(array.shape), lambda: array)


def write(file: Path, tensors: Mapping[str, Lazy]) -> None:
  """Writes one safetensors file, each tensor made, written and dropped in turn."""
  header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for a format
  place = 0
  for name, tensor in tensors.items():
    offsets = [place, place + tensor.count]
    header[name] = {
      "dtype": CODES[tensor.dtype],
      "shape": list(tensor.shape),
      "data_offsets": offsets,
    }
    place = offsets[1]
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # the data starts aligned
  with open(file, "wb") as stream:
    stream.write(struct.pack("<Q", len(text)))
    stream.write(text)
    for tensor in tensors.values():
      stream.write(np.ascontiguousarray(tensor.make()).reshape(-1).view(np.uint8).data)
    stream.flush()
    os.fsync(stream.fileno())


def write_sharded(folder: Path, tensors: Mapping[str, Lazy], most: int = 5 * 10**9) -> None:
  """Writes `model.safetensors`, or shards of at most `most` bytes with transformers' index."""
  shards = list(_shards(tensors, most))
  if len(shards) == 1:
    write(folder / "model.safetensors", shards[0])
    return
  names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  for name, shard in zip(names, shards, strict=True):
    write(folder / name, shard)
  index = {
    "metadata": {"total_size": sum(t.count for t in tensors.values())},
    "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
  }
  (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Mapping[str, Lazy], most: int) -> Iterable[dict[str, Lazy]]:
  shard: dict[str, Lazy] = {}
  size = 0
  for name, tensor in tensors.items():
    if shard and size + tensor.count > most:
      yield shard
      shard, size = {}, 0
    shard[name] = tensor
    size += tensor.count
  yield shard
