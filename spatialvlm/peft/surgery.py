"""Surgery on a loaded model, what of it is trained, and whether all of that can be exported."""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax
from flax import nnx

from spatialvlm.config import PeftConfig
from spatialvlm.hub import rules
from spatialvlm.hub.resolve import resolve
from spatialvlm.peft import folder, full, methods, select
from spatialvlm.peft.method import NOTHING, Given
from spatialvlm.peft.variables import FullParam, Trained
from spatialvlm.types import UserError


def apply(vlm: nnx.Module, config: PeftConfig, given: Given = NOTHING) -> nnx.Module:
  """Makes `vlm` ready for training as `config` says, in place, and returns it.

  Parameters that `config.full` names become float32 `FullParam`; the layers that `config.target` names are
  adapted by `config.method`. With `config.resume_from` the adapter and its layers come from that PEFT folder,
  and of `config` only `full`, `seed`, and what of the method's options leaves the adapter's shape alone
  (dropout) are used.

  Args:
    given: what first values may be made of; without it a method that needs some refuses.

  Raises:
    UserError: an unknown method or option, a pattern that matches nothing (near misses are shown), a layer
      that `full` and `target` both name, a model that already carries an adapter, or a folder that does not
      fit or is of another method.
  """
  options = methods.options_of(config)
  method = methods.named(config.method)
  for other in methods.carried(vlm):
    raise UserError(
      f"peft: the model already carries an adapter ({other.name}); merge it before another is added"
    )
  if config.resume_from:
    folder.restore(vlm, config.resume_from, method, options)
  if config.full:
    names = select.parameter_paths(vlm)
    full.train_in_full(vlm, select.match_parameters(config.full, names, "peft.full"))
  if config.resume_from:
    _check_apart(vlm)
  else:
    method.apply(vlm, config, options, given)
  return vlm


def check_layers(vlm: nnx.Module, config: PeftConfig) -> None:
  """Raises a UserError where a pattern of `config` names nothing in `vlm`, which may be abstract."""
  options = methods.options_of(config)
  if config.full:
    select.match_parameters(config.full, select.parameter_paths(vlm), "peft.full")
  if not config.resume_from:
    methods.named(config.method).check_layers(vlm, config, options)


def of_batches(config: PeftConfig) -> bool:
  """Whether a fresh adapter is made of the run's data, so that what it begins with must be kept.

  Raises:
    UserError: no such method or option.
  """
  options = methods.options_of(config)
  return not config.resume_from and methods.named(config.method).of_batches(options)


def positions(config: PeftConfig) -> int:
  """Places of the model's context that a run's method takes.

  Raises:
    UserError: no such method or option; a folder in `config.resume_from` that is none.
  """
  options, said = methods.options_of(config), None
  if config.resume_from:
    said = folder.read_config(resolve(config.resume_from) / folder.CONFIG)[1]
  return methods.named(config.method).positions(options, said)


def trainable_filter(vlm: nnx.Module, config: PeftConfig) -> nnx.filterlib.Filter:
  """The filter for `nnx.split(vlm, filter, ...)`: what is marked as trained.

  Raises:
    UserError: nothing in `vlm` is trainable.
  """
  if not jax.tree.leaves(nnx.state(vlm, Trained)):
    raise UserError(f"peft: nothing is trained with method {config.method!r}; name parameters in peft.full")
  return Trained


def count_parameters(vlm: nnx.Module, trainable: nnx.filterlib.Filter) -> tuple[int, int]:
  """Numbers (trainable, total) of the model's parameters, adapters counted in both."""
  count = lambda wanted: sum(math.prod(variable.shape) for _, variable in nnx.state(vlm, wanted).flat_state())
  return count(nnx.All(nnx.Param, trainable)), count(nnx.Param)


def check_claims(vlm: nnx.Module, claimed: Iterable[select.Path] = ()) -> None:
  """Holds that all of the model can be written when training ends: call it before the first step.

  Every trained variable must be written by its method or as one trained in full, and every other parameter
  have a name in the family's checkpoints.

  Args:
    claimed: paths that somebody else exports, such as an objective its own heads.

  Raises:
    UserError: the variables that nobody would write.
  """
  folder.check_claims(vlm, claimed)
  strange = [
    ".".join(map(str, path))
    for path, variable in nnx.to_flat_state(nnx.state(vlm, nnx.Param))
    if not issubclass(variable.type, Trained) or issubclass(variable.type, FullParam)
  ]
  strange = [dotted for dotted in strange if rules.to_hf(dotted, vlm.config.family) is None]
  if strange:
    raise UserError(f"checkpoints of {vlm.config.family} have no place for {', '.join(strange)}")


def seed_dropout(model: nnx.Module, key: jax.Array) -> nnx.Module:
  """Lays keys for one training step into a model, whichever method it carries; returns the same `model`."""
  for method in methods.METHODS.values():
    method.reseed(model, key)
  return model


def _check_apart(vlm: nnx.Module) -> None:
  """Holds that no weight of a layer with an adapter is trained in full too: PEFT would load one of them."""
  adapted = {path[:-1] for method in methods.carried(vlm) for path in method.claims(vlm)}
  twice = sorted(".".join(map(str, path)) for path in full.claims(vlm) if path[:-1] in adapted)
  if twice:
    raise UserError(f"peft.full: names {', '.join(twice)} of layers whose adapter peft.resume_from brings")
