"""What the adapter_config.json of any method asks for, as Hugging Face PEFT reads it.

The rules of matching are those of peft 0.21: `check_target_module_exists`, `get_pattern_key` and
`_set_trainable`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from spatialvlm.hub import rules
from spatialvlm.types import UserError

# What is read below, of any method.
_READ = (
  "peft_type",
  "target_modules",
  "exclude_modules",
  "layers_to_transform",
  "layers_pattern",
  "modules_to_save",
)
# What says nothing about the values that a finished adapter computes.
_HARMLESS = (
  "task_type",
  "auto_mapping",
  "base_model_name_or_path",
  "revision",
  "inference_mode",
  "peft_version",
  "runtime_config",
)


def is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_names(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_modules(value: Any) -> bool:
  """A regex, or names of modules."""
  return isinstance(value, str) or is_names(value)


@dataclasses.dataclass(frozen=True)
class Fields:
  """What a method reads of adapter_config.json, beside what all methods share.

  Attributes:
    reads: fields that it understands; any other with a value is refused.
    needs: those of them that must be there.
    fits: field -> whether a value can be one.
    regexes: fields that hold a regex, or regexes as keys; lists of modules are plain names.
    layers: whether it changes layers, so that `target_modules` must name them.
  """

  reads: tuple[str, ...] = ()
  needs: tuple[str, ...] = ()
  fits: Mapping[str, Callable[[Any], bool]] = dataclasses.field(default_factory=dict)
  regexes: tuple[str, ...] = ()
  layers: bool = True


_SHARED = Fields(
  reads=_READ,
  fits={
    "target_modules": is_modules,
    "exclude_modules": is_modules,
    "modules_to_save": is_names,
    "layers_pattern": is_modules,
  },
  regexes=("target_modules", "exclude_modules"),
)


def check(said: Mapping[str, Any], file: Path, fields: Fields, refused: Iterable[str] = ()) -> None:
  """Holds an adapter's config against what is understood.

  Args:
    refused: `field=value` of what the method itself cannot do.

  Raises:
    UserError: options that are not supported (all of them are named), or a value that cannot be.
  """
  shared = _SHARED.reads if fields.layers else ("peft_type", "modules_to_save")
  known, needs = {*shared, *_HARMLESS, *fields.reads}, {*fields.needs, *(("target_modules",) * fields.layers)}
  wrong = [f"{k}={v!r}" for k, v in said.items() if v and k not in known]
  wrong += refused
  if wrong:
    raise UserError(f"{file}: not supported: {', '.join(sorted(wrong))}")
  for key, fit in {**_SHARED.fits, **fields.fits}.items():
    value = said.get(key)
    if not fit(value) and (value is not None or key in needs):
      raise UserError(f"{file}: {key} is {value!r}")
  for key in (*_SHARED.regexes, *fields.regexes):
    value = said.get(key) or ()
    for pattern in (value,) if isinstance(value, str) else value if isinstance(value, Mapping) else ():
      try:
        re.compile(pattern)
      except re.error as error:
        raise UserError(f"{file}: {pattern!r} is not a regular expression: {error}") from None


def whole_parameters(config: Mapping[str, Any], parameters: Iterable[str], found: Iterable[str]) -> list[str]:
  """Names of the parameters that the folder holds in full.

  They are those of `modules_to_save`, and embeddings and heads saved beside them (`save_embedding_layers`).
  """
  saved, found = tuple(config.get("modules_to_save") or ()), set(found)
  beside = ("embed_tokens.weight", "lm_head.weight")
  return [
    name
    for name in parameters
    if (saved and any(module.endswith(saved) for module in _above(name)))
    or (name in found and name.endswith(beside))
  ]


def base_of(name: str) -> str | None:
  """The base's parameter that a tensor repeats, where peft saved the layer under an adapter with it."""
  return name.replace(".base_layer.", ".") if ".base_layer." in name else None


def without_adapter_names(names: Iterable[str], where: str, kinds: Iterable[str]) -> dict[str, str]:
  """Tensor's name -> as peft's `save_pretrained` writes it, without an adapter's (`lora_A.default.weight`).

  Such names come from a plain `state_dict()`, which holds `modules_to_save.default` too, and beside it the
  `original_module` that it replaces, which is left out.

  Args:
    kinds: what stands before an adapter's name, such as `lora_A`.

  Raises:
    UserError: there are several adapters' names.
  """
  kinds = "|".join([*map(re.escape, kinds), "lora_embedding_[AB]", "modules_to_save"])
  # module, kind, adapter, what follows
  pattern = re.compile(rf"(.*)\.({kinds})\.(?!(?:weight|bias)$)([^.]+)(\..*)?")
  found, adapters = {}, set()
  for name in names:
    if ".original_module." in name:
      continue
    named = pattern.fullmatch(name)
    if named is None:
      found[name] = name
      continue
    module, kind, adapter, end = named.groups()
    adapters.add(adapter)
    kind = {"modules_to_save": "", "lora_magnitude_vector": ".lora_magnitude_vector"}.get(kind, f".{kind}")
    found[name] = module + kind + ("" if kind == ".lora_magnitude_vector" else end or "")
  if len(adapters) > 1:
    raise UserError(
      f"{where}: holds several adapters ({', '.join(sorted(adapters))}); save the one you want, by peft's "
      "save_pretrained(selected_adapters=[...])"
    )
  return found


def with_todays_names(said: Mapping[str, Any], family: str) -> dict[str, Any]:
  """An adapter's config in which modules that it names in full, as older versions called them, go by today's.

  A key of `rank_pattern` or `alpha_pattern` is a name in full where it is nothing but a name, escaped or not.
  """
  said = dict(said)
  for key in ("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules"):
    if isinstance(said.get(key), list):
      said[key] = [rules.todays_name(name, family) for name in said[key]]
  for key in ("rank_pattern", "alpha_pattern"):
    if said.get(key):
      plain = {name: re.sub(r"\\(.)", r"\1", name) for name in said[key]}
      mere = {name for name, bare in plain.items() if re.fullmatch(r"[\w.]+", bare)}
      said[key] = {
        re.escape(rules.todays_name(plain[name], family)) if name in mere else name: value
        for name, value in said[key].items()
      }
  return said


def is_linear(layer: nnx.Module, name: str, head: str) -> bool:
  """Whether "all-linear" means a layer: all linear ones but the head."""
  return isinstance(layer, nnx.Linear) and name != head


def targets(config: Mapping[str, Any], name: str, linear: bool, older: Iterable[str] = ()) -> bool:
  """Whether the layer `name` is adapted: peft's `check_target_module_exists`, and its "all-linear".

  Args:
    linear: whether the layer is one of those that "all-linear" means.
    older: other spellings of its name, which a regex may mean.
  """
  excluded = config.get("exclude_modules") or ()
  if isinstance(excluded, str):
    if any(re.fullmatch(excluded, spelling) for spelling in (name, *older)):
      return False
  elif _ends(name, excluded):
    return False
  if any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in config.get("modules_to_save") or ()):
    return False
  target = config["target_modules"]
  if isinstance(target, str):
    if target.lower() == "all-linear":
      return linear
    return any(re.fullmatch(target, spelling) for spelling in (name, *older))
  if name in target:
    return True
  return _ends(name, target) and _layer_is_chosen(config, name)


def _ends(name: str, ends: Iterable[str]) -> bool:
  return any(name == end or name.endswith(f".{end}") for end in ends)


def _layer_is_chosen(config: Mapping[str, Any], name: str) -> bool:
  """`layers_to_transform` and `layers_pattern`."""
  chosen = config.get("layers_to_transform")
  if chosen is None or chosen == []:
    return True
  number = block_number(config.get("layers_pattern") or (), name)
  return number is not None and number in ([chosen] if isinstance(chosen, int) else chosen)


def block_number(patterns: str | Iterable[str], name: str) -> int | None:
  """The first number in a layer's name, behind one of the patterns where there are some; None for none."""
  patterns = [patterns] if isinstance(patterns, str) and patterns else patterns
  forms = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in patterns] or [r".*?\.[^.]*\.(\d+)\."]
  found = next((m for form in forms if (m := re.match(form, name))), None)
  return None if found is None else int(found[1])


def pattern_value(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
  """The value of the first pattern that matches the end of `name`: peft's `get_pattern_key`."""
  return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _above(parameter: str) -> list[str]:
  """The names of all modules around a parameter."""
  parts = parameter.split(".")
  return [".".join(parts[:n]) for n in range(1, len(parts))]
