"""Logical axis names of parameters and activations, and what they mean on a device mesh.

A layer only names the axes of its parameters (`logical("embed", "mlp")`). `RULES` says on which mesh axes
each name lies: fully sharded data parallelism (ZeRO-3) along `embed`, Megatron's tensor parallelism along
heads, mlp and vocab. Names without a rule are replicated.

What is small lies whole along `fsdp`: vectors (norms, biases) and low-rank factors. Split, each would be
gathered anew in every pass: a message's latency for a few kilobytes (docs/scale.md counts them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spatialvlm.config import MeshConfig
from spatialvlm.types import UserError

MESH_AXES = ("data", "fsdp", "tensor")
RULES: Mapping[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "embed": ("fsdp",),
  "heads": ("tensor",),
  "mlp": ("tensor",),
  "vocab": ("tensor",),
}

Model = TypeVar("Model")


def make_mesh(sizes: MeshConfig | Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with axes data, fsdp and tensor over `devices` (default: all).

  Args:
    sizes: devices along each axis; -1 in one of them takes those that remain. Absent keys of a mapping
      are 1.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if isinstance(sizes, MeshConfig):
    sizes = {axis: getattr(sizes, axis) for axis in MESH_AXES}
  shape = [sizes.get(axis, 1) for axis in MESH_AXES]
  said = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
  if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape) or set(sizes) - set(MESH_AXES):
    raise UserError(f"mesh {said}: axes are {', '.join(MESH_AXES)}, sizes at least 1, and one may be -1")
  if -1 in shape:
    shape[shape.index(-1)] = max(1, len(devices) // math.prod(size for size in shape if size != -1))
  if math.prod(shape) != len(devices):
    raise UserError(
      f"mesh {said} does not fit {len(devices)} device(s): the sizes must multiply to that number"
    )
  # By default its axes would be Explicit ones, where plain layers fail.
  types = (AxisType.Auto,) * len(MESH_AXES)
  try:
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
  except NotImplementedError:  # sizes that no axes of a TPU's torus multiply to, such as 64 x 4 of 16 x 16
    laid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(laid, MESH_AXES, axis_types=types)


def spread_anew(mesh: Mesh, sizes: MeshConfig) -> Mesh:
  """Another mesh of the devices of `mesh`, in the same order, so that one program may read arrays of both.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = mesh.devices.flatten()
  shape = make_mesh(sizes, devices).devices.shape
  return Mesh(devices.reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def logical(*names: str | None) -> dict[str, Any]:
  """Metadata that names the axes of a variable. A model so named also builds without a mesh."""
  return {"out_sharding": names, "eager_sharding": False}


def spec(names: Sequence[str | None], shape: Sequence[int], mesh: Any) -> PartitionSpec:
  """Where an array of `shape` with these logical axes lies on `mesh`.

  A mesh axis is left out where it does not divide the dimension (e.g. an odd vocabulary over tensor=2):
  that dimension stays whole, which costs memory and no correctness.
  """
  parts: list[Any] = []
  for name, size in zip(names, shape, strict=True):
    axes: list[str] = []
    for axis in RULES.get(name, ()) if name else ():
      if mesh.shape[axis] > 1 and size % (math.prod(mesh.shape[a] for a in axes) * mesh.shape[axis]) == 0:
        axes.append(axis)
    parts.append(None if not axes else axes[0] if len(axes) == 1 else tuple(axes))
  return PartitionSpec(*parts)


def unsplit(*names: str | None) -> tuple[str | None, ...]:
  """The names of an array that is too small to be gathered: without those that lie along `fsdp`."""
  return tuple(None if "fsdp" in RULES.get(name, ()) else name for name in names)


def sharding_of(variable: nnx.Variable, mesh: Mesh) -> NamedSharding:
  """The sharding of one (abstract or real) variable, from the names in its metadata.

  A vector is not split along `fsdp`. Of a value that consists of several arrays (`core.quantised`) it is a
  tree of them, in its own structure.
  """
  names = variable.get_metadata().get("out_sharding") or (None,) * len(variable.shape)
  names = unsplit(*names) if len(names) == 1 else names
  value = variable.get_raw_value()
  if hasattr(value, "shardings"):
    return value.shardings(names, mesh)
  return NamedSharding(mesh, spec(names, variable.shape, mesh))


def shardings(state: Any, mesh: Mesh) -> Any:
  """The shardings of an `nnx.State`, in its own structure, for `jax.jit(out_shardings=...)`."""
  is_variable = lambda leaf: isinstance(leaf, nnx.Variable)
  return jax.tree.map(lambda v: v.replace(sharding_of(v, mesh)), state, is_leaf=is_variable)


def keep_whole(module: nnx.Module, mesh: Mesh) -> None:
  """Has every parameter of `module` lie whole along `fsdp`, in place; those that hold arrays are moved.

  For what is small beside the memory of a device and read often, such as a frozen tower: no pass gathers it.
  """
  for _, variable in nnx.to_flat_state(nnx.state(module)):
    if names := variable.get_metadata().get("out_sharding"):
      variable.set_metadata(out_sharding=unsplit(*names))
      value = variable.get_raw_value()
      if all(isinstance(part, jax.Array) for part in jax.tree.leaves(value)):
        variable.set_raw_value(jax.device_put(value, sharding_of(variable, mesh)))


def create_sharded(init_fn: Callable[[], Model], mesh: Mesh | None) -> Model:
  """Builds `init_fn()` with its parameters on their shards.

  Initializers of `core.init` draw there at once, so no device ever holds the whole model; whatever else
  `init_fn` makes is moved afterwards.
  """
  if mesh is None:
    return init_fn()
  with jax.set_mesh(mesh):
    graphdef, state = nnx.split(init_fn())
  return nnx.merge(graphdef, jax.device_put(state, shardings(state, mesh)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Along the first axis of every field of a `Batch`."""
  return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def context_mesh() -> Any:
  """The mesh of `jax.set_mesh`, where it has our axes; None without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh if not mesh.empty and set(MESH_AXES) <= set(mesh.axis_names) else None


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Pins the activation `x` to its logical axes, under `jax.set_mesh`; without a mesh it is `x`."""
  mesh = context_mesh()
  return x if mesh is None else jax.lax.with_sharding_constraint(x, spec(names, x.shape, mesh))


def towards_weight(x: jax.Array, out_bytes: int = 4) -> jax.Array:
  """Few vectors (B, ..., D) split along D as a weight (D, V) is over `fsdp`, so that they travel, not it.

  The compiler by itself gathers the weight, however few vectors meet it: of a head that is 95 MB for some
  answers' logits. Sums over D are then those of the devices' parts. Many vectors, whose logits are more than
  the weight, stay as they are; so they do without a mesh.

  Args:
    out_bytes: of each number of the product.
  """
  mesh = context_mesh()
  if mesh is None or mesh.shape["fsdp"] == 1 or x.ndim < 2 or x.shape[-1] % mesh.shape["fsdp"]:
    return x
  data = mesh.shape["data"] if x.shape[0] % mesh.shape["data"] == 0 else 1
  vectors = math.prod(x.shape[:-1]) // data
  if vectors * out_bytes >= x.shape[-1] * x.dtype.itemsize:
    return x
  place = PartitionSpec("data" if data > 1 else None, *(None,) * (x.ndim - 2), "fsdp")
  # Pinned first: else what comes before it would be split along D, too, up into gradients and moments.
  x = constrain(x, "batch", *(None,) * (x.ndim - 1))
  return jax.lax.with_sharding_constraint(x, place)
