"""The table of methods, and the settings of a run completed from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from spatialvlm.config import PeftConfig, from_config_dict, nearest, to_dict
from spatialvlm.peft.bottleneck import Houlsby, Parallel, Pfeiffer
from spatialvlm.peft.ia3 import Ia3
from spatialvlm.peft.ln_tuning import LnTuning
from spatialvlm.peft.lora import Lora
from spatialvlm.peft.lycoris import Loha, Lokr
from spatialvlm.peft.method import Method
from spatialvlm.peft.p_tuning import PTuning
from spatialvlm.peft.prefix import Prefix
from spatialvlm.peft.prompt import Prompt
from spatialvlm.peft.trainable_tokens import TrainableTokens
from spatialvlm.peft.vera import Vera
from spatialvlm.types import UserError


class Nothing(Method):
  """No adapter: what `PeftConfig.full` names is trained, and nothing else."""

  name = "none"


METHODS: dict[str, Method] = {
  method.name: method
  for method in (
    Lora(),
    Ia3(),
    LnTuning(),
    Loha(),
    Lokr(),
    Vera(),
    Prompt(),
    Prefix(),
    PTuning(),
    Houlsby(),
    Pfeiffer(),
    Parallel(),
    TrainableTokens(),
    Nothing(),
  )
}


def named(name: str, where: str = "config.peft") -> Method:
  """The method that a config names.

  Raises:
    UserError: there is none of that name; the nearest is named.
  """
  if name not in METHODS:
    raise UserError(f"{where}.method: there is no {name!r}; {nearest(name, METHODS)}")
  return METHODS[name]


def of_type(peft_type: Any, where: Any) -> Method:
  """The method of an adapter_config.json's `peft_type`.

  Raises:
    UserError: none reads such folders; those that can be read are named.
  """
  known = {
    kind: method
    for method in METHODS.values()
    for kind in ((method.peft_type,) if method.reads is None else method.reads)
    if kind
  }
  if peft_type not in known:
    raise UserError(f"{where}: peft_type {peft_type!r} is not supported (only {', '.join(map(repr, known))})")
  return known[peft_type]


def carried(vlm: nnx.Module) -> list[Method]:
  """The methods that have put something into a model."""
  return [method for method in METHODS.values() if method.claims(vlm)]


def carries(vlm: nnx.Module) -> tuple[str, ...]:
  """Names of the methods that have put something into a model; none for a plain one."""
  return tuple(method.name for method in carried(vlm))


def options_of(config: PeftConfig, where: str = "config.peft") -> Any:
  """The method's own settings, typed.

  Raises:
    UserError: an unknown method or setting (the nearest is named), a wrong type, or a value without sense.
  """
  method = named(config.method, where)
  own = {field.name for field in dataclasses.fields(method.Options)}
  shared = {field.name for field in dataclasses.fields(PeftConfig)} - {"options"}
  for key in config.options:
    if key not in own:
      owner = next((m.name for m in METHODS.values() if key in m.Options.__dataclass_fields__), None)
      why = f"it belongs to method {owner!r}, not {method.name!r}" if owner else nearest(key, own | shared)
      raise UserError(f"{where}.{key}: unknown key; {why}")
  options = from_config_dict(config.options, method.Options, where)
  method.check(options)
  return options


def completed(config: PeftConfig, where: str = "config.peft") -> PeftConfig:
  """The settings with the method's defaults written out, so that a run's config.json says them all.

  Raises:
    UserError: as `options_of`.
  """
  options = options_of(config, where)
  target = named(config.method, where).target if config.target is None else config.target
  return dataclasses.replace(config, target=target, options=to_dict(options))
