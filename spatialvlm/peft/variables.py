"""The variables that are trained, and where they lie on a mesh.

`Trained` is the one mark: what carries it is given to the optimizer, checkpointed and exported, and nothing
else is. `AdapterParam` is what a method adds to a model, `FullParam` a parameter of the base.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from spatialvlm.core import axes


class Trained(nnx.Param):
  """A float32 array that is trained."""


class AdapterParam(Trained):
  """What a method adds to the base: factors, scales, prompts. The base's checkpoint has no place for it."""


class FullParam(Trained):
  """A base parameter that is trained in full: a float32 master copy that the model reads in the base's dtype.

  Layers read `variable[...]` and get `compute_dtype`, so that a bfloat16 network stays one; gradients,
  optimizers and checkpoints see the raw float32 array.
  """

  def get_value(self, **kwargs) -> Any:
    return super().get_value(**kwargs).astype(self.dtype)

  @property
  def dtype(self) -> jnp.dtype:
    """What readers see, so that a layer which asks its weights for a dtype casts to the base's."""
    return jnp.dtype(self.get_metadata()["compute_dtype"])


def trained_in_full(variable: nnx.Variable, kind: type[FullParam] = FullParam) -> FullParam:
  """A float32 `kind` with the values, axes and compute dtype of a base parameter."""
  value = variable.get_raw_value()
  return kind(value.astype(jnp.float32), compute_dtype=str(value.dtype), **axis_names(variable))


def axis_names(variable: nnx.Variable) -> dict[str, Any]:
  """The metadata that names the axes of `variable`, for another variable of its shape."""
  names = variable.get_metadata().get("out_sharding")
  return axes.logical(*names) if names else {}


def replace_variable(vlm: nnx.Module, old: nnx.Variable, new: nnx.Variable) -> None:
  """Puts `new` wherever `old` stands in the model."""
  for _, module in list(nnx.iter_modules(vlm)):
    for attribute, value in list(vars(module).items()):
      if value is old:
        setattr(module, attribute, new)


def set_value(variable: nnx.Variable, value: np.ndarray) -> None:
  """Gives a trained variable other values (float32, its shape), on the shards where it lies."""
  sharding = mesh_sharding(variable.get_raw_value())
  variable.set_raw_value(placed(value, sharding, sharding and sharding.spec))


def mesh_sharding(array: jax.Array) -> NamedSharding | None:
  """Where `array` lies on a mesh; None on a single device, and for a value that is only traced."""
  sharding = None if isinstance(array, jax.core.Tracer) else array.sharding
  return sharding if isinstance(sharding, NamedSharding) else None


def placed(value: Any, sharding: NamedSharding | None, spec: PartitionSpec) -> jax.Array:
  """`value` in float32 on the mesh of `sharding`, split as `spec` says; each device gets its own part only.

  Copies, since an array that aliases NumPy's memory can never be donated.
  """
  if isinstance(value, jax.Array):
    return value
  if sharding is None:
    return jnp.array(value, jnp.float32, copy=True)
  return jax.make_array_from_callback(
    value.shape,
    NamedSharding(sharding.mesh, spec),
    lambda index: np.array(value[index], np.float32, copy=True),
  )


def beside(kernel: nnx.Variable, value: Any, axis: int) -> AdapterParam:
  """A vector that goes along one axis of a (d_in, d_out) kernel, split as that axis is where that pays
  (`core.axes.unsplit`)."""
  names = axes.unsplit((kernel.get_metadata().get("out_sharding") or (None, None))[axis])
  sharding = mesh_sharding(kernel.get_raw_value())
  place = axes.spec(names, value.shape, sharding.mesh) if sharding else PartitionSpec()
  metadata = axes.logical(*names) if any(names) else {}
  return AdapterParam(placed(value, sharding, place), **metadata)


def host(variable: nnx.Variable) -> np.ndarray:
  """The whole float32 array in this process's memory, wherever its shards lie."""
  value = variable.get_raw_value()
  if not value.is_fully_addressable:
    from jax.experimental import multihost_utils

    value = multihost_utils.process_allgather(value, tiled=True)
  return np.asarray(jax.device_get(value), np.float32)


def layer_id(name: str) -> int:
  """A number of 31 bits that belongs to a layer's name, the same in every run."""
  return zlib.crc32(name.encode()) & 0x7FFFFFFF
