"""Linear layers whose kernel is kept in few bits, whatever the format (`spatialvlm.quantise` has them).

A kernel of this kind is a `QuantisedParam`, which reads (`kernel[...]`, `kernel.shape`, `kernel.dtype`) as
the matrix that it stands for; so adapters, merging and checkpoints need not know of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
from flax import nnx
from flax.nnx import reprlib
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialvlm.core.axes import spec

Names = tuple[str | None, ...]


class QuantisedArray:
  """A (d_in, d_out) matrix in few bits: a frozen dataclass that is a pytree of the arrays it consists of.

  A subclass is one format, and says the four below. Nothing in it is trained.

  Attributes:
    format: the format's name.
    dtype: of the matrix that it stands for.
  """

  format: ClassVar[str]
  dtype: Any

  @property
  def shape(self) -> tuple[int, int]:
    """(d_in, d_out) of the matrix that it stands for."""
    raise NotImplementedError

  def decoded(self) -> jax.Array:
    """The matrix (d_in, d_out) in its dtype."""
    raise NotImplementedError

  def axes(self, d_in: str | None, d_out: str | None) -> Mapping[str, Names]:
    """Field -> logical axes of each of its arrays, by those of the matrix."""
    raise NotImplementedError

  def spec(self) -> PartitionSpec:
    """How the matrix would be split over the mesh on which the arrays lie."""
    raise NotImplementedError

  # What follows is the same for all of them.

  @property
  def ndim(self) -> int:
    return 2

  @property
  def nbytes(self) -> int:
    """Bytes of all its arrays, of all devices together."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

  @property
  def sharding(self) -> NamedSharding | None:
    """Where the matrix would lie; None on a single device, and where the arrays are only traced."""
    first = jax.tree.leaves(self)[0]
    at = None if isinstance(first, jax.core.Tracer) else first.sharding
    return NamedSharding(at.mesh, self.spec()) if isinstance(at, NamedSharding) else None

  def shardings(self, names: Names, mesh: Mesh) -> QuantisedArray:
    """Where its arrays lie on `mesh`, in its own structure; `names` are the logical axes of the matrix."""
    place = lambda array, axes: NamedSharding(mesh, spec(axes, array.shape, mesh))
    found = {field: (getattr(self, field), axes) for field, axes in self.axes(*names).items()}
    return dataclasses.replace(self, **{f: a if a is None else place(a, n) for f, (a, n) in found.items()})


@jax.jit
def decode(array: QuantisedArray) -> jax.Array:
  """The matrix (d_in, d_out) that `array` stands for: compiled, also where it is called by itself."""
  return array.decoded()


def decoded(variable: nnx.Variable) -> jax.Array:
  """The matrix of a `QuantisedParam`, split over its mesh as a kernel in full would be."""
  array = variable.get_raw_value()
  return jax.jit(lambda array: array.decoded(), out_shardings=array.sharding)(array)


class QuantisedParam(nnx.Param):
  """A frozen kernel whose raw value is a `QuantisedArray`, and which reads as the matrix."""

  def get_value(self, *, index: Any = ...) -> jax.Array:
    matrix = decode(self.get_raw_value())
    return matrix if index is ... else matrix[index]

  @property
  def shape(self) -> tuple[int, ...]:
    return self.get_raw_value().shape

  def __nnx_repr__(self) -> Iterator[Any]:
    # nnx's own would decode descriptions of arrays.
    yield reprlib.Object(type=type(self).__name__)
    yield reprlib.Attr("format", self.get_raw_value().format)
    yield reprlib.Attr("shape", self.shape)


class QuantisedLinear(nnx.Linear):
  """A linear layer around a `QuantisedParam`.

  For the backward pass the kernel is decoded again instead of being kept: otherwise the step would hold every
  matrix in full between the two passes, and nothing was saved. Gradients go through it to the inputs. (XLA's
  compiler for CPUs merges the two decodings again; what those for GPUs and TPUs do was not seen.)
  """

  def __init__(self, base: nnx.Linear):
    for name, value in vars(base).items():
      if not name.startswith("_"):  # what is nnx's own
        setattr(self, name, nnx.data(value) if name == "bias" else value)

  def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
    bias = None if self.bias is None else self.bias[...]
    options = (
      {} if self.preferred_element_type is None else {"preferred_element_type": self.preferred_element_type}
    )

    def product(x: jax.Array, array: QuantisedArray) -> jax.Array:
      x, kernel, _ = self.promote_dtype((x, array.decoded(), bias), dtype=self.dtype)
      dimensions = (((x.ndim - 1,), (0,)), ((), ()))
      return self.dot_general(
        x, kernel, dimensions, precision=self.precision, out_sharding=out_sharding, **options
      )

    y = jax.checkpoint(product)(inputs, self.kernel.get_raw_value())
    return y if bias is None else y + bias.astype(y.dtype)


def wrap(model: nnx.Module) -> None:
  """Makes every linear layer with a quantised kernel a `QuantisedLinear`, in place."""
  for _, module in list(nnx.iter_modules(model)):
    for name, layer in list(vars(module).items()):
      if isinstance(layer, nnx.Linear) and isinstance(layer.kernel, QuantisedParam):
        setattr(module, name, QuantisedLinear(layer))


def formats(model: nnx.Module) -> tuple[str, ...]:
  """Names of the formats that kernels of a model are kept in; empty for a model in full."""
  return tuple(sorted({p.get_raw_value().format for p in _params(model) if isinstance(p, QuantisedParam)}))


def weight_bytes(model: nnx.Module) -> tuple[int, int]:
  """Bytes of a model's parameters as they are kept, and as they would be with every kernel in full."""
  kept = [p.get_raw_value() for p in _params(model)]
  full = lambda a: a.shape[0] * a.shape[1] * a.dtype.itemsize if isinstance(a, QuantisedArray) else a.nbytes
  return sum(a.nbytes for a in kept), sum(map(full, kept))


def _params(model: nnx.Module) -> list[nnx.Param]:
  return [variable for _, variable in nnx.iter_graph(model) if isinstance(variable, nnx.Param)]
