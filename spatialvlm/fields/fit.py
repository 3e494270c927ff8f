"""Fitting a field to views: one jitted step, states on disk that an interrupted fit goes on from.

What a step sees follows from the seed and its number alone, so that a fit that was stopped and continued ends
with the same bits as one that was not.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy

from spatialvlm import workdir
from spatialvlm.config import FieldConfig
from spatialvlm.fields import grid, render
from spatialvlm.fields.posed.cameras import View
from spatialvlm.types import UserError

_WARMUP, _LOWEST = 50, 1 / 30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bank:
  """All pixels of the fitted views, flat.

  Attributes:
    colour: (P, 3) uint8. depth: (P,) float32 metres, 0 where not known.
    starts: (V,) int32, each view's first pixel. width: (V,) int32.
    intrinsics: (V, 4), poses: (V, 3, 4) float32.
  """

  colour: jax.Array
  depth: jax.Array
  starts: jax.Array
  width: jax.Array
  intrinsics: jax.Array
  poses: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Attributes: step () int32, how many were taken; params of the field; optimizer, Optax's own state."""

  step: jax.Array
  params: grid.Params
  optimizer: Any


def bank(views: Sequence[View]) -> Bank:
  """The pixels of views, of any sizes."""
  counts = [view.image.shape[0] * view.image.shape[1] for view in views]
  depth = [
    np.zeros(n, np.float32) if v.depth is None else v.depth.ravel()
    for v, n in zip(views, counts, strict=True)
  ]
  return Bank(
    colour=jnp.asarray(np.concatenate([v.image.reshape(-1, 3) for v in views])),
    depth=jnp.asarray(np.concatenate(depth)),
    starts=jnp.asarray(np.cumsum([0, *counts[:-1]]), jnp.int32),
    width=jnp.asarray([v.camera.size[0] for v in views], jnp.int32),
    intrinsics=jnp.asarray(np.stack([v.camera.intrinsics for v in views])),
    poses=jnp.asarray(np.stack([v.camera.pose[:3] for v in views]), jnp.float32),
  )


def start(config: FieldConfig) -> State:
  """The state before the first step."""
  params = grid.init(jax.random.key(config.seed), config)
  return State(jnp.zeros((), jnp.int32), params, _optimizer(config).init(params))


@functools.lru_cache(maxsize=4)
def make_step(config: FieldConfig, space: grid.Space) -> Callable[[State, Bank], tuple[State, jax.Array]]:
  """The jitted step: (state, pixels) -> (state, mean squared error of the colours)."""
  optimizer = _optimizer(config)

  def loss(params, bank, key):
    first, second = jax.random.split(key)
    at = jax.random.randint(first, (config.rays,), 0, len(bank.colour))
    origins, directions = _rays(bank, at)
    seen = render.rays(params, config, space, origins, directions, second)
    error = ((seen.colour - bank.colour[at].astype(jnp.float32) / 255) ** 2).mean()
    total = error + render.proposal_loss(seen) + config.distortion * render.distortion(seen)
    if config.smoothness:
      total += config.smoothness * grid.variation(params)
    if config.depth_weight:
      known = bank.depth[at]
      off = jnp.abs(seen.mean - known) / jnp.maximum(known, 1e-3)
      total += config.depth_weight * jnp.where(known > 0, off, 0.0).mean()
    return total, error

  @jax.jit
  def step(state, bank):
    key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
    (_, error), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, bank, key)
    change, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    return State(state.step + 1, optax.apply_updates(state.params, change), optimizer_state), error

  return step


def run(
  config: FieldConfig,
  space: grid.Space,
  views: Sequence[View],
  state: State,
  keep: Callable[[State], None],
  show: Callable[[int, int], None] = lambda done, total: None,
  say: Callable[[str], None] = print,
) -> State:
  """Steps on from `state` to `config.steps`.

  Args:
    views: that are fitted.
    keep: called every `config.checkpoint_every` steps, at the end, and when the fit is interrupted.
    show: called after every step with (done, total). say: gets a line where a state is kept.

  Raises:
    UserError: the loss is not finite.
  """
  step, pixels = make_step(config, space), bank(views)
  done, errors, kept = int(state.step), [], int(state.step)
  try:
    while done < config.steps:
      state, error = step(state, pixels)
      errors.append(float(error))
      done += 1
      show(done, config.steps)
      if done % config.checkpoint_every == 0 or done == config.steps:
        if not np.isfinite(errors).all():
          raise UserError(
            f"the loss is not a number by step {done}; set a lower config.learning_rate, and see that the "
            "poses and config.radius are right"
          )
        keep(state)
        kept = done
        # Jittered rays of fitted views: what is measured of held-out ones stands in the report.
        noise = -10 * np.log10(max(np.mean(errors[-100:]), 1e-10))
        say(f"step {done}: {noise:.1f} dB on the rays of the last steps")
        errors.clear()
  except KeyboardInterrupt:
    if int(state.step) > kept and np.isfinite(errors).all():
      keep(state)
    raise
  return state


def save(path: pathlib.Path, state: State) -> None:
  """Writes a state as one safetensors file, whole or not at all; errors as `workdir.write_bytes`."""
  workdir.write_bytes(path, safetensors.numpy.save(named(state)))


def restore(path: pathlib.Path, like: State) -> State:
  """The state that `save` wrote, to the bit.

  Args:
    like: a state of the same config.

  Raises:
    UserError: the file is damaged, or of another config.
  """
  found = read_tensors(path)
  wanted = named(like)
  if {k: (v.shape, v.dtype) for k, v in found.items()} != {k: (v.shape, v.dtype) for k, v in wanted.items()}:
    raise UserError(f"{path}: holds other tensors than this fit's; delete it to fit from the start")
  leaves, tree = jax.tree.flatten(like)
  return jax.tree.unflatten(tree, [jnp.asarray(found[name]) for name, _ in zip(wanted, leaves, strict=True)])


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a safetensors file; raises a UserError where it is none."""
  try:
    return safetensors.numpy.load(path.read_bytes())
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None
  except safetensors.SafetensorError as error:
    raise UserError(
      f"{path}: no safetensors file, or a damaged one ({error}); delete it to fit anew"
    ) from None


def named(tree: Any) -> dict[str, np.ndarray]:
  """The leaves of a tree by their dotted places, in the tree's order."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def _rays(bank: Bank, at: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Origins and directions (R, 3) of pixels by their number in the bank."""
  view = jnp.searchsorted(bank.starts, at, side="right") - 1
  place = at - bank.starts[view]
  column, row = place % bank.width[view], place // bank.width[view]
  inside = bank.intrinsics[view]
  x = (column + 0.5 - inside[:, 2]) / inside[:, 0]
  y = (row + 0.5 - inside[:, 3]) / inside[:, 1]
  pose = bank.poses[view]
  local = jnp.stack([x, y, jnp.ones_like(x)], -1)
  return pose[:, :, 3], jnp.einsum("rij,rj->ri", pose[:, :, :3], local)


def _optimizer(config: FieldConfig) -> optax.GradientTransformation:
  rate = config.learning_rate
  warmup = min(_WARMUP, config.steps // 2)
  schedule = optax.warmup_cosine_decay_schedule(rate / 10, rate, warmup, config.steps, rate * _LOWEST)
  # instant-ngp's: most cells of a plane are not seen by a step, and their moments must not be held down.
  return optax.adam(schedule, b1=0.9, b2=0.99, eps=1e-15)
