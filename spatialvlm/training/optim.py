"""Optimizers by name, learning rate schedules, and which parameters decay."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from spatialvlm.config import OptimConfig, nearest
from spatialvlm.types import UserError

Schedule = Callable[[Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Shape:
  """How a schedule falls.

  Attributes:
    decay: `(config, steps) -> n`: the fall takes the last n of so many steps.
    at: `(done, config) -> factor` of the peak, where a share `done` of the fall is over.
  """

  decay: Callable[[OptimConfig, int], int]
  at: Callable[[jax.Array, OptimConfig], Any]


def span(config: OptimConfig, steps: int) -> np.ndarray:
  """(2,) float32: the step at which the rate begins to fall, and how many steps that takes.

  A step's program takes it as an argument, so that runs of other lengths need no other program. `steps` is
  the length of the run, which `config.schedule_steps` overrides where it is not 0.

  Raises:
    UserError: an unknown schedule.
  """
  if config.schedule not in SCHEDULES:
    raise UserError(
      f"config.optim.schedule: unknown {config.schedule!r}; {nearest(config.schedule, SCHEDULES)}"
    )
  steps = config.schedule_steps or steps
  decay = SCHEDULES[config.schedule].decay(config, steps)
  return np.asarray([steps - decay, max(decay, 1)], np.float32)


def schedule(config: OptimConfig, span: Any) -> Schedule:
  """Learning rate of step 0, 1, ...: a linear warm-up to the peak, then what `config.schedule` names.

  The first step has a rate of `learning_rate / warmup_steps`, not zero; the last ends the decay.

  Args:
    span: what `span` returns, or a traced array of the same.
  """
  shape = SCHEDULES[config.schedule]

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    done = jnp.clip((step - span[0]) / span[1], 0, 1)
    return jnp.float32(config.learning_rate) * warm * shape.at(done, config)

  return rate


def _cosine(done, config: OptimConfig):
  return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * done))


def _linear(done, config: OptimConfig):
  return 1 - (1 - config.final_fraction) * done


SCHEDULES = {
  "cosine": Shape(lambda config, steps: steps - config.warmup_steps, _cosine),
  # Warm-up, stable, decay (Hu et al., MiniCPM, arXiv 2404.06395), with a linear decay.
  "wsd": Shape(lambda config, steps: max(round(config.decay_fraction * steps), 1), _linear),
  "constant": Shape(lambda config, steps: 0, lambda done, config: 1.0),
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """How an optimizer is made.

  Attributes:
    make: `(learning_rate, **kwargs) -> GradientTransformation`.
    decay: its argument for the weight decay; None where it has none of its own, and decay times the weights
      is added to the gradient (L2).
    mask: its argument for the mask of the decay; None where it takes no mask.
    whole: whether it sees all parameters as one, so that no group of them can have a rate of its own.
  """

  make: Callable[..., optax.GradientTransformation]
  decay: str | None = "weight_decay"
  mask: str | None = "mask"
  whole: bool = False


# Tables that are looked up, and heads: no linear maps between hidden states.
_LOOKUP = re.compile(r"embed|positions|lm_head")


def _muon(learning_rate, *, weight_decay=0.0, weight_decay_mask=None, **kwargs):
  """Muon for the matrices of linear layers, AdamW for embeddings and the rest (Jordan et al., 2024).

  The decay is one for both, and outside of optax's muon, which would give its AdamW no mask.
  """

  def dimensions(params):
    if not isinstance(params, Mapping):  # optax probes with a tree that has no leaves
      return params
    # The nodes that optax masks out have no axes.
    matrix = lambda name, x: getattr(x, "ndim", 0) == 2 and not _LOOKUP.search(name)
    return {n: contrib.MuonDimensionNumbers() if matrix(n, x) else None for n, x in params.items()}

  tx = _looped(contrib.muon(learning_rate, muon_weight_dimension_numbers=dimensions, **kwargs), **kwargs)
  if not weight_decay:
    return tx
  decay = _decoupled_decay(learning_rate, weight_decay)
  return optax.chain(tx, optax.masked(decay, weight_decay_mask) if weight_decay_mask else decay)


def _looped(tx: optax.GradientTransformation, ns_steps: int = 5, **_) -> optax.GradientTransformation:
  """Muon's iterations as a loop of the program, where optax writes them out matrix by matrix.

  It does so of one triple of coefficients; where each iteration has its own, it takes a loop. Of some 60
  matrices the step compiled in 6.0 s in place of 7.9 and ran 3 % faster (the small model on two cores).
  """

  def changed(state, change):
    muon = lambda node: isinstance(node, contrib.MuonState)
    one = lambda node: node._replace(ns_coeffs=change(node.ns_coeffs)) if muon(node) else node
    return jax.tree.map(one, state, is_leaf=muon)

  def update(updates, state, params=None):
    state = changed(state, lambda triple: jnp.broadcast_to(triple, (ns_steps, 3)))
    updates, state = tx.update(updates, state, params)
    return updates, changed(state, lambda rows: rows[0])

  return optax.GradientTransformation(tx.init, update)


def _decoupled_decay(rate: Schedule, weight_decay: float) -> optax.GradientTransformation:
  """Adds `-rate * weight_decay * parameter` to updates that are final otherwise."""

  def update(updates, state, params):
    factor = rate(state.count) * weight_decay
    updates = jax.tree.map(lambda u, p: u - factor * p, updates, params)
    return updates, optax.ScaleByScheduleState(state.count + 1)

  init = lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
  return optax.GradientTransformation(init, update)


def _schedule_free_adamw(learning_rate, *, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, mask=None, **kwargs):
  """As `optax.contrib.schedule_free_adamw`, with a schedule and a decay mask."""
  base = optax.adamw(learning_rate, b1=0.0, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)
  return contrib.schedule_free(base, learning_rate, b1=b1, **kwargs)


def _sm3(learning_rate, momentum=0.9):
  """As `optax.sm3`, with a schedule."""
  return optax.chain(optax.scale_by_sm3(momentum), optax.scale_by_learning_rate(learning_rate))


def _schedule_free_sgd(learning_rate, *, b1=0.9, **kwargs):
  return contrib.schedule_free(optax.sgd(learning_rate), learning_rate, b1=b1, **kwargs)


OPTIMIZERS: dict[str, Entry] = {
  "adabelief": Entry(optax.adabelief, None, None),
  "adafactor": Entry(optax.adafactor, "weight_decay_rate", "weight_decay_mask"),
  "adagrad": Entry(optax.adagrad, None, None),
  "adam": Entry(optax.adam, None, None),
  "adamax": Entry(optax.adamax, None, None),
  "adamaxw": Entry(optax.adamaxw),
  "adamw": Entry(optax.adamw),
  "adan": Entry(optax.adan),
  "ademamix": Entry(contrib.ademamix),
  "adopt": Entry(contrib.adopt, None, None),
  "amsgrad": Entry(optax.amsgrad, None, None),
  "lamb": Entry(optax.lamb),
  "lion": Entry(optax.lion),
  "madgrad": Entry(contrib.madgrad, None, None),
  "muon": Entry(_muon, "weight_decay", "weight_decay_mask"),
  "nadam": Entry(optax.nadam, None, None),
  "nadamw": Entry(optax.nadamw),
  "novograd": Entry(optax.novograd, "weight_decay", None),
  "prodigy": Entry(contrib.prodigy, "weight_decay", None, whole=True),
  "radam": Entry(optax.radam, None, None),
  "rmsprop": Entry(optax.rmsprop, None, None),
  "schedule_free_adamw": Entry(_schedule_free_adamw, whole=True),
  "schedule_free_sgd": Entry(_schedule_free_sgd, None, None, whole=True),
  "sgd": Entry(optax.sgd, None, None),
  "sign_sgd": Entry(optax.sign_sgd, None, None),
  "sm3": Entry(_sm3, None, None),
  "yogi": Entry(optax.yogi, None, None),
}


def make_optimizer(config: OptimConfig, rate: Schedule, params: Mapping[str, jax.Array]):
  """The optax optimizer of a run; clipping is the step's own affair.

  Raises:
    UserError: an unknown optimizer or argument, a decay mask or a group that names no parameter, or groups of
      an optimizer that sees all parameters as one.
  """
  if config.name not in OPTIMIZERS:
    raise UserError(
      f"config.optim.name: unknown optimizer {config.name!r}; {nearest(config.name, OPTIMIZERS)}"
    )
  entry = OPTIMIZERS[config.name]
  kwargs = {k: _argument(entry, config.name, k, v) for k, v in config.kwargs.items()}
  if entry.decay:
    # Given even where it is zero: lion, adamw and others decay by default.
    kwargs[entry.decay] = config.weight_decay
  mask = decay_mask(config.weight_decay_mask, params) if config.weight_decay else None
  if entry.mask and mask is not None:
    kwargs[entry.mask] = mask
  elif mask is not None and entry.decay and not all(mask.values()) and config.weight_decay_mask != "matrices":
    raise UserError(
      f"config.optim.weight_decay_mask: {config.name} takes no mask; use '.*' or another optimizer"
    )

  def make(factor: float) -> optax.GradientTransformation:
    tx = entry.make(rate if factor == 1 else lambda step: factor * rate(step), **kwargs)
    decays = mask is not None and entry.decay is None
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask), tx) if decays else tx

  if not config.groups:
    return make(1)
  if entry.whole:
    raise UserError(f"config.optim.groups: {config.name} sees all parameters as one; use another optimizer")
  factors = group_factors(config.groups, params)
  return optax.partition({factor: make(factor) for factor in set(factors.values())}, factors)


def group_factors(groups: Mapping[str, float], params: Mapping[str, jax.Array]) -> dict[str, float]:
  """By parameter, the factor of its learning rate: of the first pattern that matches its name in full, or 1.

  Raises:
    UserError: a pattern is no regex or no parameter is left for it, or a factor is not above zero.
  """
  found: dict[str, float] = {}
  for pattern, factor in groups.items():
    where = f"config.optim.groups: {pattern!r}"
    try:
      compiled = re.compile(pattern)
    except re.error as e:
      raise UserError(f"{where} is not a regular expression: {e}") from None
    if not factor > 0:
      raise UserError(f"{where}: a factor of {factor}; it must be above 0 (what is not trained: config.peft)")
    names = [name for name in params if name not in found and compiled.fullmatch(name)]
    if not names:
      taken = any(map(compiled.fullmatch, params))
      why = "names only parameters that earlier patterns name" if taken else "names no trained parameter"
      raise UserError(f"{where} {why}; trained are {', '.join(_ends(params))}")
    found |= dict.fromkeys(names, float(factor))
  return {name: found.get(name, 1.0) for name in params}


def _ends(params: Mapping[str, jax.Array]) -> list[str]:
  """One name of each kind of parameter."""
  kinds = {re.sub(r"\.\d+\.", ".0.", name): name for name in reversed(list(params))}
  return sorted({name.rpartition(".")[2]: name for name in kinds.values()}.values())[:8]


def decay_mask(pattern: str, params: Mapping[str, jax.Array]) -> dict[str, bool]:
  """Which parameters decay: "matrices" for those of two or more axes, else a regex over full names.

  Raises:
    UserError: no regex, or one that names no parameter.
  """
  if pattern == "matrices":
    return {name: value.ndim >= 2 for name, value in params.items()}
  where = "config.optim.weight_decay_mask"
  try:
    compiled = re.compile(pattern)
  except re.error as e:
    raise UserError(f"{where}: {pattern!r} is not a regular expression: {e}") from None
  mask = {name: compiled.fullmatch(name) is not None for name in params}
  if not any(mask.values()):
    raise UserError(f"{where}: {pattern!r} names no trained parameter; {nearest(pattern, list(params)[:8])}")
  return mask


def _argument(entry: Entry, name: str, key: str, value: float) -> Any:
  """Checks an argument's name, and gives it the type of its default: a config holds floats only."""
  parameters = {}
  for function in (entry.make, getattr(contrib, name, None), getattr(optax, name, None)):
    if function is not None:
      parameters |= inspect.signature(function).parameters
  known = [
    p
    for p, v in parameters.items()
    if v.kind is not v.VAR_KEYWORD and p not in ("learning_rate", "warmup_steps", entry.decay, entry.mask)
  ]
  if key not in known:
    raise UserError(f"config.optim.kwargs.{key}: {name} has no such argument; {nearest(key, known)}")
  default = parameters[key].default
  if isinstance(default, (bool, int)) and float(value).is_integer():
    return type(default)(value)
  return value
