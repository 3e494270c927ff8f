"""One ONNX graph: nodes in the order in which they run, and the arrays that they read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from spatialvlm.types import UserError

OPSET, IR = 17, 9
CONTRIBUTED = "com.microsoft"
# A protobuf holds 2 GiB at most; arrays of a larger file lie beside it, in files of no more than this.
LARGEST = 1_900_000_000
# Arrays below this many bytes always stay in the file, where readers look for shapes.
_SMALL = 1024
_ALIGNED = 4096


def library() -> ModuleType:
  """The package `onnx`.

  Raises:
    UserError: it is not installed.
  """
  try:
    import onnx
  except ImportError:
    raise UserError("ONNX files need the package onnx; pip install 'spatialvlm[edge]'") from None
  return onnx


@dataclasses.dataclass(frozen=True)
class Value:
  """An input or output of a graph: its NumPy dtype's name, and sizes, a name for one that is free."""

  name: str
  dtype: str
  shape: tuple[int | str, ...]


class Graph:
  """Nodes and arrays that are added one by one; every method returns names of values.

  Attributes:
    name: of the graph, for who looks inside.
    form: in which its matrices are kept (`numbers.Form`).
  """

  def __init__(self, name: str, form: Any):
    self.name, self.form = name, form
    self._onnx = library()
    self._nodes: list[Any] = []
    self._arrays: dict[str, np.ndarray] = {}
    self._known: dict[Hashable, Any] = {}
    self._contributed = False
    self._count = 0

  def array(self, values: np.ndarray, name: str) -> str:
    """A weight under a name of its own.

    Raises:
      UserError: numbers that are not finite.
    """
    values = np.asarray(values, order="C")  # `ascontiguousarray` would give a scalar an axis
    if values.dtype.kind == "f" and not np.isfinite(values).all():
      raise UserError(f"{name}: holds numbers that are not finite; the model is damaged")
    if name in self._arrays:
      raise ValueError(f"{name}: stands in the graph already")
    self._arrays[name] = values
    return name

  def constant(self, values: Any, dtype: Any) -> str:
    """A small array that has no name; equal ones are one."""
    values = np.asarray(values, dtype)
    key = ("constant", values.dtype.str, values.shape, values.tobytes())
    return self.once(key, lambda: self.array(values, f"constant_{len(self._arrays)}"))

  def integers(self, *values: int) -> str:
    """int64 (K,)."""
    return self.constant(values, np.int64)

  def number(self, value: float) -> str:
    """A float32 scalar."""
    return self.constant(value, np.float32)

  def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` gives, made when `key` is first seen."""
    if key not in self._known:
      self._known[key] = make()
    return self._known[key]

  def op(self, kind: str, *inputs: str, out: str = "", contributed: bool = False, **attributes: Any) -> str:
    """A node of one output, which is named `out` where that is given."""
    return self._node(kind, inputs, [out or self._fresh(kind)], contributed, attributes)[0]

  def split(self, x: str, axis: int) -> list[str]:
    """Two halves along an axis."""
    return self._node("Split", (x,), [self._fresh("Split"), self._fresh("Split")], False, {"axis": axis})

  def cast(self, x: str, dtype: Any) -> str:
    """`x` in another dtype; once for each, however often it is asked for."""
    code = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return self.once(("cast", x, code), lambda: self.op("Cast", x, to=code))

  def reshape(self, x: str, *sizes: int) -> str:
    """0 keeps the size at its place, -1 is what is left."""
    return self.op("Reshape", x, self.integers(*sizes))

  def transpose(self, x: str, *axes: int) -> str:
    return self.op("Transpose", x, perm=list(axes))

  def unsqueeze(self, x: str, *axes: int) -> str:
    return self.op("Unsqueeze", x, self.integers(*axes))

  def size(self, x: str, axis: int) -> str:
    """int64 (1,), the size of one axis."""
    return self.once(("size", x, axis), lambda: self.op("Shape", x, start=axis, end=axis + 1))

  def half(self, x: str) -> str:
    """`x` as products take it: float16 in forms that compute in it, else as it is."""
    return self.cast(x, np.float16) if self.form.half else x

  def full(self, x: str) -> str:
    """What a product gave, in float32."""
    return self.cast(x, np.float32) if self.form.half else x

  def write(
    self, file: Path, inputs: Sequence[Value], outputs: Sequence[Value], most: int | None = None
  ) -> int:
    """Writes the file, and `FILE_data`, `FILE_data_1`, ... where its arrays are more than `most` bytes.

    Returns:
      how many such files lie beside it.
    """
    onnx, most = self._onnx, LARGEST if most is None else most
    outside = sum(array.nbytes for array in self._arrays.values()) > most
    large = [name for name, array in self._arrays.items() if outside and array.nbytes >= _SMALL]
    places, count = _places({name: self._arrays[name].nbytes for name in large}, file, most)
    tensors = [self._tensor(name, array, places.get(name)) for name, array in self._arrays.items()]
    graph = onnx.helper.make_graph(
      self._nodes, self.name, list(map(self._value, inputs)), list(map(self._value, outputs)), tensors
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    opsets += [onnx.helper.make_opsetid(CONTRIBUTED, 1)] * self._contributed
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="spatialvlm")
    with open(file, "wb") as stream:
      stream.write(model.SerializeToString())
      stream.flush()
      os.fsync(stream.fileno())
    self._write_beside(file.parent, places)
    return count

  def _write_beside(self, folder: Path, places: dict[str, tuple[str, int, int]]) -> None:
    for beside in sorted({place[0] for place in places.values()}):
      with open(folder / beside, "wb") as stream:
        for name, (where, start, _) in places.items():
          if where == beside:
            stream.write(b"\0" * (start - stream.tell()))
            stream.write(self._arrays[name].reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())

  def _tensor(self, name: str, array: np.ndarray, place: tuple[str, int, int] | None) -> Any:
    onnx = self._onnx
    code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = onnx.TensorProto(name=name, data_type=code, dims=array.shape)
    if place is None:
      tensor.raw_data = array.tobytes()
      return tensor
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in zip(("location", "offset", "length"), place, strict=True):
      tensor.external_data.add(key=key, value=str(value))
    return tensor

  def _value(self, value: Value) -> Any:
    code = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return self._onnx.helper.make_tensor_value_info(value.name, code, list(value.shape))

  def _node(self, kind, inputs, outputs, contributed, attributes) -> list[str]:
    self._contributed |= contributed
    domain = CONTRIBUTED if contributed else ""
    name = f"{kind}_{len(self._nodes)}"
    node = self._onnx.helper.make_node(kind, list(inputs), outputs, name=name, domain=domain, **attributes)
    self._nodes.append(node)
    return outputs

  def _fresh(self, kind: str) -> str:
    self._count += 1
    return f"{kind.lower()}_{self._count}"


def _places(sizes: dict[str, int], file: Path, most: int) -> tuple[dict[str, tuple[str, int, int]], int]:
  """Of arrays that lie beside a file: which one, from where, how many bytes; and how many files there are."""
  places: dict[str, tuple[str, int, int]] = {}
  number, end = 0, 0
  for name, size in sizes.items():
    start = -(-end // _ALIGNED) * _ALIGNED
    if end and start + size > most:
      number, start = number + 1, 0
    places[name] = (f"{file.name}_data" + (f"_{number}" if number else ""), start, size)
    end = start + size
  return places, number + 1 if places else 0
