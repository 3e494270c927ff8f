"""In which of ggml's types the parts of a model are written, and arrays in these types.

`parse("q8_0")`, or `parse("q4_0,embedding=q8_0,mmproj=f16")`: one type for all, and others for parts of it.
What the `gguf` library encodes in NumPy is what is written; its blocks are those of llama.cpp's converter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from spatialvlm.config import nearest
from spatialvlm.hub.gguf.file import library
from spatialvlm.types import UserError

# Name -> `general.file_type`, which tells people what a file mostly holds (llama.cpp's `llama_ftype`).
FILE_TYPES: Mapping[str, int] = {
  "F32": 0,
  "F16": 1,
  "BF16": 32,
  "Q8_0": 7,
  "Q5_1": 9,
  "Q5_0": 8,
  "Q4_1": 3,
  "Q4_0": 2,
  "TQ1_0": 36,
  "TQ2_0": 37,
}
# What people ask for and the library only decodes.
_DECODED_ALONE = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ")


@dataclasses.dataclass(frozen=True)
class Numbers:
  """ggml's types of the matrices of a model's parts; vectors are always F32.

  Attributes:
    language: of the language model's layers.
    embedding: of its table of tokens and its head.
    mmproj: of the vision tower and the projector.
  """

  language: str = "F16"
  embedding: str = "F16"
  mmproj: str = "F16"


PARTS = tuple(field.name for field in dataclasses.fields(Numbers))


def parse(text: str) -> Numbers:
  """Numbers out of `--numbers`: a type for all, and `part=type` for others, with commas between; "" for F16.

  Raises:
    UserError: a type that is not known or cannot be encoded, an unknown part, or one that is named twice.
  """
  said: dict[str, str] = {}
  for item in filter(None, (item.strip() for item in text.split(","))):
    part, equals, kind = item.rpartition("=")
    if part not in (PARTS if equals else ("",)):
      raise UserError(f"--numbers: {item!r}: there is no part {part!r}; {nearest(part, PARTS)}")
    if part in said:
      raise UserError(f"--numbers: {text!r} names {part or 'the type of all parts'} twice")
    said[part] = _known(kind.strip())
  everything = said.pop("", "F16")
  return dataclasses.replace(Numbers(everything, everything, everything), **said)


def _known(name: str) -> str:
  kind = name.upper()
  if kind in FILE_TYPES:
    return kind
  known = ", ".join(FILE_TYPES).lower()
  if kind.startswith(_DECODED_ALONE):
    raise UserError(
      f"--numbers: {name}: the gguf library reads such blocks and does not write them (known: {known}); write"
      " f16 and let llama-quantize make them of it"
    )
  raise UserError(f"--numbers: {name!r} is no type of numbers that is written (known: {known})")


def block(kind: str) -> tuple[int, int]:
  """How many numbers a block of a type holds, and its bytes."""
  gguf = library()
  return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


def size(shape: tuple[int, ...], kind: str) -> int:
  """Bytes of a tensor in a type."""
  numbers, count = block(kind)
  return int(np.prod(shape, dtype=np.int64)) // numbers * count


def check_rows(name: str, shape: tuple[int, ...], kind: str, part: str) -> None:
  """Raises a UserError where blocks do not divide a tensor's rows."""
  numbers, _ = block(kind)
  if shape[-1] % numbers:
    raise UserError(
      f"--numbers: {part}={kind.lower()}: {name} has rows of {shape[-1]} numbers, which blocks of {numbers}"
      f" do not divide; write {part}=f16"
    )


def encode(values: np.ndarray, kind: str) -> np.ndarray:
  """A float array in ggml's bytes or numbers; rows are its last axis.

  Sums of blocks are computed in float32, whatever `values` are, as llama.cpp's converter does.
  """
  if kind == "BF16" and values.dtype == ml_dtypes.bfloat16:
    return values
  plain = np.ascontiguousarray(values, np.float32)
  if kind == "F32":
    return plain
  if kind == "F16":
    with np.errstate(over="ignore"):  # an infinity, which the writer refuses by the tensor's name
      return plain.astype(np.float16)
  gguf = library()
  return gguf.quants.quantize(plain, gguf.GGMLQuantizationType[kind])
