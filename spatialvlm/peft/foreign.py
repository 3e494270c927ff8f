"""What an adapter_config.json written by Hugging Face PEFT asks for, in our terms.

The rules of matching are those of peft 0.21: `check_target_module_exists`, `get_pattern_key` and
`_set_trainable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spatialvlm.hub import contents
from spatialvlm.hub.resolve import read_json
from spatialvlm.peft.lora import LoraSpec
from spatialvlm.types import UserError

# What is read below.
_READ = (
  "peft_type",
  "r",
  "lora_alpha",
  "lora_dropout",
  "use_rslora",
  "use_dora",
  "target_modules",
  "exclude_modules",
  "layers_to_transform",
  "layers_pattern",
  "rank_pattern",
  "alpha_pattern",
  "modules_to_save",
  "ensure_weight_tying",
  "bias",
  "init_lora_weights",
)
# What says nothing about the values that a finished adapter computes.
_HARMLESS = (
  "task_type",
  "auto_mapping",
  "base_model_name_or_path",
  "revision",
  "inference_mode",
  "peft_version",
  "megatron_core",
  "eva_config",
  "qalora_group_size",
  "runtime_config",
)
# A tensor's name with its adapter's in it: module, kind, adapter, what follows.
_NAMED = re.compile(
  r"(.*)\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l|modules_to_save)\.(?!weight$)([^.]+)(\..*)?"
)
# Ways to draw the factors that leave the base's weights as they were.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


def read_config(file: Path) -> dict[str, Any]:
  """The adapter's config, refused where it asks for what is not supported.

  Raises:
    UserError: missing, not JSON, not LoRA, with options that are not supported (all of them are named), or
      with a value that cannot be.
  """
  if not file.is_file():
    raise UserError(f"{file}: missing; a PEFT folder needs it{contents.way_on(file.parent, adapters=True)}")
  config = read_json(file)
  if config.get("peft_type") != "LORA":
    raise UserError(f"{file}: peft_type {config.get('peft_type')!r} is not supported (only 'LORA')")
  wrong = [f"{k}={v!r}" for k, v in config.items() if v and k not in (*_READ, *_HARMLESS)]
  if config.get("bias", "none") != "none":
    wrong.append(f"bias={config['bias']!r}")
  if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
    # such starts move a part of the base into the adapter: it fits a changed base only
    wrong.append(f"init_lora_weights={config['init_lora_weights']!r}")
  if wrong:
    raise UserError(f"{file}: not supported: {', '.join(sorted(wrong))}")
  for key, fits in _FITS.items():
    value = config.get(key)
    if not fits(value) and (value is not None or key in _REQUIRED):
      raise UserError(f"{file}: {key} is {value!r}")
  for pattern in _regexes(config):
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(f"{file}: {pattern!r} is not a regular expression: {error}") from None
  return config


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_rank(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_names(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(name, str) for name in value)


_REQUIRED = ("r", "lora_alpha", "target_modules")
_FITS = {
  "r": _is_rank,
  "lora_alpha": _is_number,
  "lora_dropout": _is_number,
  "target_modules": lambda value: isinstance(value, str) or _is_names(value),
  "exclude_modules": lambda value: isinstance(value, str) or _is_names(value),
  "modules_to_save": _is_names,
  "layers_pattern": lambda value: isinstance(value, str) or _is_names(value),
  "rank_pattern": lambda value: isinstance(value, Mapping) and all(map(_is_rank, value.values())),
  "alpha_pattern": lambda value: isinstance(value, Mapping) and all(map(_is_number, value.values())),
}


def _regexes(config: Mapping[str, Any]) -> list[str]:
  """What is matched as regular expressions; lists of modules are plain names."""
  patterns = [*(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ())]
  return patterns + [v for k in ("target_modules", "exclude_modules") if isinstance(v := config.get(k), str)]


def specs(
  config: Mapping[str, Any], linears: Iterable[str], head: str, dropout: float | None
) -> dict[str, LoraSpec]:
  """Module name -> spec of every linear layer that the adapter's config targets.

  Args:
    linears: names of all linear layers.
    head: name of the head, which "all-linear" leaves out.
    dropout: instead of the config's, unless None.
  """
  ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
  return {
    name: LoraSpec(
      rank=int(_pattern_value(ranks, name, config["r"])),
      alpha=float(_pattern_value(alphas, name, config["lora_alpha"])),
      rslora=bool(config.get("use_rslora")),
      dora=bool(config.get("use_dora")),
      dropout=float(config.get("lora_dropout") or 0.0) if dropout is None else dropout,
    )
    for name in linears
    if _targets(config, name, head)
  }


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


def without_adapter_names(names: Iterable[str], where: str) -> dict[str, str]:
  """Tensor's name -> as peft's `save_pretrained` writes it, without an adapter's (`lora_A.default.weight`).

  Such names come from a plain `state_dict()`, which holds `modules_to_save.default` too, and beside it the
  `original_module` that it replaces, which is left out.

  Raises:
    UserError: there are several adapters' names.
  """
  found, adapters = {}, set()
  for name in names:
    if ".original_module." in name:
      continue
    named = _NAMED.fullmatch(name)
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


def why_unmapped(name: str, linears: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
  """Why a tensor of the folder has no place in the model."""
  module, _, kind = re.sub(r"\.weight$", "", name).rpartition(".")
  if kind.startswith("lora_embedding"):
    return "adapters on embeddings are not supported"
  if kind not in ("lora_A", "lora_B", "lora_magnitude_vector"):
    return (
      "modules_to_save does not name its module" if name in parameters else "the model has no such parameter"
    )
  if module in linears:
    return "target_modules does not name this layer"
  if f"{module}.weight" in parameters:
    return "adapters on layers that are not linear are not supported"
  return "the model has no such linear layer"


def _targets(config: Mapping[str, Any], name: str, head: str) -> bool:
  """peft's `check_target_module_exists`, and what it makes of "all-linear"."""
  excluded = config.get("exclude_modules") or ()
  if re.fullmatch(excluded, name) if isinstance(excluded, str) else _ends(name, excluded):
    return False
  if any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in config.get("modules_to_save") or ()):
    return False
  target = config["target_modules"]
  if isinstance(target, str):
    if target.lower() == "all-linear":
      return name != head
    return re.fullmatch(target, name) is not None
  if name in target:
    return True
  return _ends(name, target) and _layer_is_chosen(config, name)


def _ends(name: str, ends: Iterable[str]) -> bool:
  return any(name == end or name.endswith(f".{end}") for end in ends)


def _layer_is_chosen(config: Mapping[str, Any], name: str) -> bool:
  """`layers_to_transform` and `layers_pattern`: the first number in the name, behind one of the patterns."""
  chosen = config.get("layers_to_transform")
  if chosen is None or chosen == []:
    return True
  patterns = config.get("layers_pattern") or []
  patterns = [patterns] if isinstance(patterns, str) else patterns
  forms = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in patterns] or [r".*?\.[^.]*\.(\d+)\."]
  found = next((m for form in forms if (m := re.match(form, name))), None)
  return found is not None and int(found[1]) in ([chosen] if isinstance(chosen, int) else chosen)


def _pattern_value(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
  return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _above(parameter: str) -> list[str]:
  """The names of all modules around a parameter."""
  parts = parameter.split(".")
  return [".".join(parts[:n]) for n in range(1, len(parts))]
