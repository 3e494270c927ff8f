"""What training changes, held apart from what it only reads.

A trainee is several models: the VLM, the heads of its objectives, and others that are only asked (teachers).
`Split` cuts them once into flat dicts of arrays by dotted name. From there on everything is plain JAX: a dict
flattens in C++, so that a step costs little Python however many layers there are.

Names are what checkpoints hold, and do not change: a path of the VLM stands as it is
(`decoder.stack.layers.0...`), a head's under `heads.TERM.`, another model's under `others.NAME.`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialvlm.core import axes
from spatialvlm.types import UserError

Params = dict[str, jax.Array]
# What the names of arrays begin with that are not the VLM's.
HEADS, OTHERS = "heads.", "others."


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What one step replaces, and what a checkpoint holds.

  Attributes:
    step: int32 scalar, optimizer steps taken.
    params: trainable arrays by name, float32.
    opt_state: of the optax optimizer.
    ema: moving average of `params`; empty where none is kept.
  """

  step: jax.Array
  params: Params
  opt_state: Any
  ema: Params


@dataclasses.dataclass(frozen=True)
class Trainee:
  """The models of a run, whole.

  Attributes:
    vlm: the model that is trained, evaluated and exported.
    heads: modules of objectives by the objective's name, trained beside it.
    others: models by name that are only asked; none of their arrays is trained.
  """

  vlm: nnx.Module
  heads: Mapping[str, nnx.Module] = dataclasses.field(default_factory=dict)
  others: Mapping[str, nnx.Module] = dataclasses.field(default_factory=dict)


class Split:
  """A trainee cut into trainables and the rest, and the way back.

  Of abstract models the arrays are `jax.ShapeDtypeStruct` with their places, and nothing is moved.

  Attributes:
    params: trainable arrays by name; frozen: all other arrays by name. They lie on `mesh`, those of others
      where `meshes` says so.
  """

  def __init__(
    self,
    vlm: nnx.Module,
    trainable: Any,
    mesh: Mesh,
    heads: Mapping[str, nnx.Module] | None = None,
    others: Mapping[str, nnx.Module] | None = None,
    meshes: Mapping[str, Mesh] | None = None,
  ):
    """Cuts the models.

    Args:
      trainable: an nnx filter over the VLM, `(path, variable) -> bool`. Of heads every `nnx.Param` is
        trained, of others nothing is.
      mesh: arrays that do not lie on it yet (new adapters, heads) are put to their logical places.
      others: arrays that they have in common with the frozen part of a model before them are kept once, so
        that the base of an adapted model takes no memory of its own.
      meshes: of others whose arrays lie on another mesh of the same devices, by name.

    Raises:
      UserError: nothing is trainable, or a trainable is no float32 array.
    """
    self.mesh = mesh
    self.params: Params = {}
    self.frozen: Params = {}
    # By the prefix of a model's names: its graph, and for trainables and the rest its paths and variables.
    # Only the shells stay here: a second reference would keep donated buffers alive.
    self._graphs: dict[str, nnx.GraphDef] = {}
    self._shells: dict[str, tuple[dict, dict]] = {}
    # The name of the array that another model's variable takes its value from, where it has none of its own.
    self._shared: dict[str, str] = {}
    self._heads, self._others = tuple(heads or ()), tuple(others or ())
    # Frozen arrays as the models hold them, by identity; the models live as long as this is read.
    self._raw: dict[int, str] = {}
    self._cut("", vlm, trainable)
    for name, head in (heads or {}).items():
      self._cut(f"{HEADS}{name}.", head, nnx.Param)
    for name, other in (others or {}).items():
      self._cut(f"{OTHERS}{name}.", other, nnx.Nothing(), (meshes or {}).get(name), shares=True)
    self._raw = {}
    if not self.params:
      raise UserError("nothing is trained: config.peft names no adapter and no parameter; set target or full")
    for name, value in self.params.items():
      if value.dtype != jnp.float32:
        raise UserError(f"{name}: trained parameters must be float32, not {value.dtype}")

  def model(self, params: Params, frozen: Params) -> nnx.Module:
    """The VLM of these arrays alone; inside of a traced function it is a traced model."""
    return self._merged("", params, frozen)

  def trainee(self, params: Params, frozen: Params) -> Trainee:
    """All models of these arrays, likewise."""
    return Trainee(
      self.model(params, frozen),
      {name: self._merged(f"{HEADS}{name}.", params, frozen) for name in self._heads},
      {name: self._merged(f"{OTHERS}{name}.", params, frozen) for name in self._others},
    )

  def _cut(
    self, prefix: str, model: nnx.Module, trainable: Any, mesh: Mesh | None = None, shares: bool = False
  ) -> None:
    mesh = mesh or self.mesh
    self._graphs[prefix], *states = nnx.split(model, trainable, ...)
    named = [_by_name(state, prefix) for state in states]
    raw = {name: id(item[1].get_raw_value()) for name, item in named[1].items()}
    shared = {name: self._raw[array] for name, array in raw.items() if shares and array in self._raw}
    for found, arrays in zip(named, (self.params, self.frozen), strict=True):
      if twice := found.keys() & (self.params.keys() | self.frozen.keys()):
        raise ValueError(f"two arrays have one name: {sorted(twice)}")
      arrays |= {name: _place(item, mesh) for name, item in found.items() if name not in shared}
    self._shared |= shared
    self._raw |= {array: name for name, array in raw.items() if name not in shared}
    self._shells[prefix] = tuple({name: _shell(item) for name, item in found.items()} for found in named)

  def _merged(self, prefix: str, params: Params, frozen: Params) -> nnx.Module:
    states = [
      nnx.State.from_flat_path(
        {path: shell.replace(values[self._shared.get(name, name)]) for name, (path, shell) in shells.items()}
      )
      for values, shells in zip((params, frozen), self._shells[prefix], strict=True)
    ]
    return nnx.merge(self._graphs[prefix], *states)


def is_head(name: str) -> bool:
  """Whether an array of this name belongs to a head."""
  return name.startswith(HEADS)


def init_state(params: Params, tx: optax.GradientTransformation, *, ema: bool, mesh: Mesh) -> TrainState:
  """A fresh state. Moments lie where their parameters lie, all else on every device."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=None)
  # jit(tx.init) alone would put the moments on device 0: zeros do not inherit the sharding of their input.
  opt_state = jax.jit(tx.init, out_shardings=opt_shardings(params, tx, mesh))(params)
  return TrainState(
    step=jax.device_put(jnp.zeros((), jnp.int32), everywhere),
    params=copy(params),
    opt_state=opt_state,
    ema=copy(params) if ema else {},
  )


def abstract_state(params: Params, tx: optax.GradientTransformation, *, ema: bool, mesh: Mesh) -> TrainState:
  """Shapes, types and places of what `init_state` makes; `params` may be abstract themselves."""
  everywhere = NamedSharding(mesh, PartitionSpec())
  described = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  own = {name: described(value, value.sharding) for name, value in params.items()}
  opt_state = jax.tree.map(described, jax.eval_shape(tx.init, params), opt_shardings(params, tx, mesh))
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
  return TrainState(step=step, params=own, opt_state=opt_state, ema=own if ema else {})


def opt_shardings(params: Params, tx: optax.GradientTransformation, mesh: Mesh) -> Any:
  """Shardings of the optimizer's state: the parameter's own where the shapes are equal, else everywhere."""
  everywhere = NamedSharding(mesh, PartitionSpec())

  def place(path, leaf):
    names = [key.key for key in path if getattr(key, "key", None) in params]
    if names and leaf.shape == params[names[-1]].shape:
      return params[names[-1]].sharding
    return everywhere

  return jax.tree_util.tree_map_with_path(place, jax.eval_shape(tx.init, params))


def weights(state: TrainState) -> Params:
  """The trainables that are validated, evaluated and exported: said here and nowhere else.

  The moving average where one is kept; the averaged sequence of a schedule-free optimizer; else the params.
  """
  if state.ema:
    return state.ema
  for leaf in jax.tree.leaves(state.opt_state, is_leaf=_is_schedule_free):
    if _is_schedule_free(leaf):
      return schedule_free_average(state.params, leaf.z, leaf.b1)
  return state.params


def schedule_free_average(params: Params, z: Params, b1: jax.Array) -> Params:
  """The average x of a schedule-free optimizer, of y = `params` = b1 x + (1 - b1) z (arXiv 2405.15682)."""
  return {name: (y - (1 - b1) * z[name]) / b1 for name, y in params.items()}


def schedule_free_names(opt_state: Mapping[str, Any], params: Mapping[str, Any]):
  """Where a saved optimizer state keeps b1 and, by parameter, z; None where it is not schedule-free.

  Args:
    opt_state: by `jax.tree_util.keystr` of the leaf's path, as checkpoints name it.
  """
  for name in opt_state:
    if name.endswith(".b1"):
      moving = {ours: f"{name.removesuffix('.b1')}.z['{ours}']" for ours in params}
      if all(path in opt_state for path in moving.values()):
        return name, moving
  return None


def _is_schedule_free(leaf: Any) -> bool:
  return isinstance(leaf, optax.contrib.ScheduleFreeState)


def _by_name(state: nnx.State, prefix: str) -> dict[str, tuple[tuple, nnx.Variable]]:
  return {prefix + ".".join(map(str, path)): (path, variable) for path, variable in state.flat_state()}


def _place(item: tuple[tuple, nnx.Variable], mesh: Mesh) -> jax.Array:
  def moved(part, to):
    if isinstance(part, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=to)
    return part if part.sharding.is_equivalent_to(to, part.ndim) else jax.device_put(part, to)

  return jax.tree.map(moved, item[1].get_raw_value(), axes.sharding_of(item[1], mesh))


def _shell(item: tuple[tuple, nnx.Variable]) -> tuple[tuple, nnx.Variable]:
  path, variable = item
  shell = lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype)
  return path, variable.replace(jax.tree.map(shell, variable.get_raw_value()))
