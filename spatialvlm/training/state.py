"""What training changes, held apart from what it only reads.

A model is cut once, by `Split`, into flat dicts of arrays by dotted name. From there on everything is plain
JAX: a dict flattens in C++, so that a step costs little Python however many layers there are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialvlm.core import axes
from spatialvlm.types import UserError

Params = dict[str, jax.Array]


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


class Split:
  """A model cut into trainables and the rest, and the way back.

  Attributes:
    params: trainable arrays by name; frozen: all other arrays by name. Both lie on `mesh`.
  """

  def __init__(self, model: nnx.Module, trainable: Any, mesh: Mesh):
    """Cuts `model`.

    Args:
      trainable: an nnx filter, `(path, variable) -> bool`.
      mesh: arrays that do not lie on it yet (new adapters) are put to their logical places.

    Raises:
      UserError: nothing is trainable, or a trainable is no float32 array.
    """
    self.graphdef, params, frozen = nnx.split(model, trainable, ...)
    self.mesh = mesh
    params, frozen = _by_name(params), _by_name(frozen)
    if not params:
      raise UserError("nothing is trained: config.peft names no adapter and no parameter; set target or full")
    self.params = {name: _place(v, mesh) for name, v in params.items()}
    self.frozen = {name: _place(v, mesh) for name, v in frozen.items()}
    for name, value in self.params.items():
      if value.dtype != jnp.float32:
        raise UserError(f"{name}: trained parameters must be float32, not {value.dtype}")
    # Only the shells stay here: a second reference would keep donated buffers alive.
    self._params = {name: _shell(v) for name, v in params.items()}
    self._frozen = {name: _shell(v) for name, v in frozen.items()}

  def model(self, params: Params, frozen: Params) -> nnx.Module:
    """A model of these arrays; inside of a traced function it is a traced model."""
    states = [
      nnx.State.from_flat_path({path: shell.replace(values[name]) for name, (path, shell) in shells.items()})
      for values, shells in ((params, self._params), (frozen, self._frozen))
    ]
    return nnx.merge(self.graphdef, *states)


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


def opt_shardings(params: Params, tx: optax.GradientTransformation, mesh: Mesh) -> Any:
  """Of the optimizer's state: the parameter's own where the shapes are equal, else everywhere."""
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
  averages = [
    leaf for leaf in jax.tree.leaves(state.opt_state, is_leaf=_is_schedule_free) if _is_schedule_free(leaf)
  ]
  if averages:
    return optax.contrib.schedule_free_eval_params(averages[0], state.params)
  return state.params


def _is_schedule_free(leaf: Any) -> bool:
  return isinstance(leaf, optax.contrib.ScheduleFreeState)


def _by_name(state: nnx.State) -> dict[str, tuple[tuple, nnx.Variable]]:
  return {".".join(map(str, path)): (path, variable) for path, variable in state.flat_state()}


def _place(item: tuple[tuple, nnx.Variable], mesh: Mesh) -> jax.Array:
  value = item[1].get_raw_value()
  sharding = axes.sharding_of(item[1], mesh)
  return value if value.sharding.is_equivalent_to(sharding, value.ndim) else jax.device_put(value, sharding)


def _shell(item: tuple[tuple, nnx.Variable]) -> tuple[tuple, nnx.Variable]:
  path, variable = item
  value = variable.get_raw_value()
  return path, variable.replace(jax.ShapeDtypeStruct(value.shape, value.dtype))
