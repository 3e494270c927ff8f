"""The forms that a graph's matrices are kept in, by the names that transformers.js has for them (`dtype`).

All that is no matrix product is computed in float32 in all of them: norms, softmax, rotations, the residual
stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from spatialvlm.config import nearest
from spatialvlm.export.onnx.graph import Graph
from spatialvlm.types import UserError

BLOCK = 32
_MIDDLE = 128  # what stands for 0 in a byte without sign


@dataclasses.dataclass(frozen=True)
class Form:
  """One form.

  Attributes:
    suffix: of the files, as transformers.js looks for them.
    product: (graph, x (..., D_in), kernel (D_in, D_out) float32, name) -> x times kernel, float32.
    rows: (graph, int64 ids, table (V, D) float32, name) -> rows of a table, float32.
    half: products are of float16, those within attention too, and so are kept keys and values.
  """

  suffix: str
  product: Callable[[Graph, str, np.ndarray, str], str]
  rows: Callable[[Graph, str, np.ndarray, str], str]
  half: bool = False

  @property
  def cache(self) -> str:
    """The dtype of kept keys and values."""
    return "float16" if self.half else "float32"


def parse(text: str) -> tuple[str, ...]:
  """Names of forms out of `--numbers`, with commas between; fp32 for "".

  Raises:
    UserError: one that there is not, or one twice.
  """
  names = tuple(item.strip().lower() for item in text.split(",")) if text else ("fp32",)
  for name in names:
    if name not in FORMS:
      raise UserError(f"--numbers: {name!r} is no form that ONNX files have here; {nearest(name, FORMS)}")
  if len(set(names)) < len(names):
    raise UserError(f"--numbers: {text!r} names one form twice")
  return names


def _plain(graph: Graph, x: str, kernel: np.ndarray, name: str) -> str:
  return graph.op("MatMul", x, graph.array(kernel, name))


def _plain_rows(graph: Graph, ids: str, table: np.ndarray, name: str) -> str:
  return graph.op("Gather", graph.array(table, name), ids, axis=0)


def halved(values: np.ndarray, name: str) -> np.ndarray:
  """In float16.

  Raises:
    UserError: numbers beyond 65504, which it does not hold.
  """
  with np.errstate(over="ignore"):
    half = values.astype(np.float16)
  if not np.isfinite(half).all() and np.isfinite(values).all():
    raise UserError(f"{name}: holds numbers beyond 65504, which float16 does not; leave out fp16 and q4f16")
  return half


def _half(graph: Graph, x: str, kernel: np.ndarray, name: str) -> str:
  return graph.full(graph.op("MatMul", graph.half(x), graph.array(halved(kernel, name), name)))


def _half_rows(graph: Graph, ids: str, table: np.ndarray, name: str) -> str:
  return graph.cast(graph.op("Gather", graph.array(halved(table, name), name), ids, axis=0), np.float32)


def bytes_of(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
  """uint8 around 128, and float32 scales of each line along `axis`: values = (bytes - 128) * scale."""
  scale = np.abs(values).max(axis=axis, keepdims=True) / np.float32(127)
  scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
  return (np.rint(values / scale) + _MIDDLE).astype(np.uint8), scale


def _eight(graph: Graph, x: str, kernel: np.ndarray, name: str) -> str:
  """Bytes times bytes, summed in whole numbers; a scale for each token, and one for each column.

  Each token has a scale of its own, so that what it gives depends on no other one. Both sides are bytes
  without sign: of signed ones, x86 without VNNI clips sums of two.
  """
  weights, scale = bytes_of(kernel, 0)
  middle = graph.constant(_MIDDLE, np.uint8)
  told, size = graph.once(("eight", x), lambda: _eight_of(graph, x))
  whole = graph.op("MatMulInteger", told, graph.array(weights, name), middle, middle)
  y = graph.op("Mul", graph.op("Cast", whole, to=1), graph.array(scale[0], f"{name}.scale"))
  return graph.op("Mul", y, size)


def _eight_of(graph: Graph, x: str) -> tuple[str, str]:
  """A value as bytes, and the scale of each of its tokens."""
  most = graph.op("ReduceMax", graph.op("Abs", x), axes=[-1], keepdims=1)
  scale = graph.op("Div", graph.op("Max", most, graph.number(1e-30)), graph.number(127))
  told = graph.op("Add", graph.op("Round", graph.op("Div", x, scale)), graph.number(_MIDDLE))
  return graph.cast(told, np.uint8), scale


def _eight_rows(graph: Graph, ids: str, table: np.ndarray, name: str) -> str:
  rows, scale = bytes_of(table, 1)
  found = graph.cast(graph.op("Gather", graph.array(rows, name), ids, axis=0), np.float32)
  size = graph.op("Gather", graph.array(scale, f"{name}.scale"), ids, axis=0)
  return graph.op("Mul", graph.op("Sub", found, graph.number(_MIDDLE)), size)


def nibbles_of(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Four bits of each number of a (D_in, D_out) kernel.

  Blocks of 32 inputs, the last one filled up with zeros; scaled so that the number of the largest size is -8,
  as ggml's Q4_0 and onnxruntime's own quantiser do it.

  Returns:
    uint8 (D_out, blocks, 16), the lower half of a byte first, and float32 scales (D_out, blocks).
  """
  d_in, d_out = kernel.shape
  blocks = -(-d_in // BLOCK)
  padded = np.zeros((d_out, blocks * BLOCK), np.float32)
  padded[:, :d_in] = kernel.T
  x = padded.reshape(d_out, blocks, BLOCK)
  largest = np.take_along_axis(x, np.abs(x).argmax(axis=-1)[..., None], axis=-1)
  scale = largest / np.float32(-8)
  inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
  told = np.clip(np.rint(x * inverse) + 8, 0, 15).astype(np.uint8)
  return told[..., ::2] | told[..., 1::2] << 4, scale[..., 0]


def _four(graph: Graph, x: str, kernel: np.ndarray, name: str) -> str:
  told, scale = nibbles_of(kernel)
  scale = halved(scale, name) if graph.form.half else scale
  names = graph.array(told, name), graph.array(scale.reshape(-1), f"{name}.scale")
  sizes = {"K": kernel.shape[0], "N": kernel.shape[1], "bits": 4, "block_size": BLOCK}
  return graph.full(graph.op("MatMulNBits", graph.half(x), *names, contributed=True, **sizes))


_BYTES = Form("_quantized", _eight, _eight_rows)
FORMS: dict[str, Form] = {
  "fp32": Form("", _plain, _plain_rows),
  "fp16": Form("_fp16", _half, _half_rows, half=True),
  # The same bytes, under each of the names by which they are asked for; q8 is what browsers ask for.
  "q8": _BYTES,
  "int8": dataclasses.replace(_BYTES, suffix="_int8"),
  "uint8": dataclasses.replace(_BYTES, suffix="_uint8"),
  # Tables stay in bytes: rows are read, not multiplied.
  "q4": Form("_q4", _four, _eight_rows),
  "q4f16": Form("_q4f16", _four, _eight_rows, half=True),
}
