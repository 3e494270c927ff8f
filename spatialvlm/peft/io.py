"""Adapters as Hugging Face PEFT folders: adapter_config.json and adapter_model.safetensors, out and in.

Follows peft 0.21 (`LoraConfig`, `check_target_module_exists`, `get_pattern_key`, `ModulesToSaveWrapper`).
"""

from __future__ import annotations

import collections
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from spatialvlm.hub import rules, tensors
from spatialvlm.hub.resolve import resolve
from spatialvlm.models import registry
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import foreign, select, surgery
from spatialvlm.peft.lora import FullParam, LoraLinear, LoraSpec
from spatialvlm.types import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_EMBEDDING = "decoder.embed.embedding"


def save_adapter(vlm: Vlm, folder: str | Path, base_id: str | None = None) -> Path:
  """Writes what was trained of `vlm` as a folder that `peft.PeftModel.from_pretrained` loads.

  Factors and parameters trained in full are written in float32. The folder is written beside its place and
  renamed, so that nothing half-written stays. Every process of a run must call this; the first one writes.

  Args:
    base_id: hub id or path of the base model, for those who load the adapter.

  Raises:
    UserError: `vlm` carries no adapter, or something trained has no place in a PEFT folder, or the
      disk is full.
  """
  config, weights = _export(vlm, base_id)
  folder = Path(folder).expanduser()
  if jax.process_index() == 0:
    _write(folder, config, weights)
  return folder


def load_adapter(vlm: Vlm, folder: str | Path, dropout: float | None = None) -> Vlm:
  """Puts the adapter of a PEFT folder on `vlm`, in place, and returns it. Nothing is changed on an error.

  Args:
    folder: local folder or hub id.
    dropout: of further training; None for the folder's own.

  Raises:
    UserError: no such folder, a pickle, an option or a kind of adapter that is not supported, or tensors that
      do not fit the model: all of them are listed.
  """
  if any(isinstance(part, (LoraLinear, FullParam)) for _, part in nnx.iter_graph(vlm)):
    raise UserError(f"{folder}: the model already carries an adapter; load it on a fresh base")
  folder = resolve(folder)
  config = foreign.read_config(folder / CONFIG)
  entries = _read_entries(folder, vlm.config.family)
  _join_or_untie(vlm, entries)
  linears, parameters = select.linear_paths(vlm), select.parameter_paths(vlm)
  specs = foreign.specs(config, linears, _head(vlm), dropout)
  whole = foreign.whole_parameters(config, parameters, entries)
  _check_fit(vlm, entries, specs, whole, folder)
  for name, spec in specs.items():
    factor = lambda suffix, name=name: np.asarray(entries[name + suffix].read(), np.float32)
    base = select.get(vlm, linears[name])
    magnitude = factor(".lora_magnitude_vector") if spec.dora else None
    layer = surgery.adapted(
      base,
      spec,
      factor(".lora_A.weight").T,
      factor(".lora_B.weight").T,
      magnitude,
      surgery.layer_id(name),
    )
    select.put(vlm, linears[name], layer)
  surgery.train_in_full(vlm, whole)
  for name in whole:
    variable = select.get(vlm, parameters[name])
    dotted = ".".join(map(str, parameters[name]))
    value = rules.from_file(np.asarray(entries[name].read(), np.float32), dotted, vlm.config.family)
    sharding = surgery.mesh_sharding(variable.get_raw_value())
    variable.set_raw_value(surgery.placed(value, sharding, sharding and sharding.spec))
  return vlm


def _write(folder: Path, config: Mapping[str, Any], weights: Mapping[str, tensors.Lazy]) -> None:
  scratch = None
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    tensors.write(scratch / WEIGHTS, dict(sorted(weights.items())))
    (scratch / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if folder.exists():
      for name in (WEIGHTS, CONFIG):
        (scratch / name).replace(folder / name)
    else:
      scratch.chmod(0o755)
      scratch.rename(folder)
  except OSError as error:
    raise UserError(f"{folder}: the adapter could not be saved ({error.strerror or error})") from None
  finally:
    if scratch is not None:
      shutil.rmtree(scratch, ignore_errors=True)


def _export(vlm: Vlm, base_id: str | None) -> tuple[dict[str, Any], dict[str, tensors.Lazy]]:
  paths, linears = select.parameter_paths(vlm), select.linear_paths(vlm)
  weights: dict[str, tensors.Lazy] = {}
  specs: dict[str, LoraSpec] = {}
  for name, path in linears.items():
    layer = select.get(vlm, path)
    if isinstance(layer, LoraLinear):
      specs[name] = layer.spec
      weights[f"{PREFIX}{name}.lora_A.weight"] = tensors.lazy(_host(layer.lora_a).T)
      weights[f"{PREFIX}{name}.lora_B.weight"] = tensors.lazy(_host(layer.lora_b).T)
      if layer.magnitude is not None:
        weights[f"{PREFIX}{name}.lora_magnitude_vector"] = tensors.lazy(_host(layer.magnitude))
  if not specs:
    raise UserError("no layer carries an adapter, so there is none to save; save the whole model instead")
  whole = sorted(
    {n.rpartition(".")[0] for n, path in paths.items() if isinstance(select.get(vlm, path), FullParam)}
  )
  for name, path in paths.items():
    if name.rpartition(".")[0] in whole:
      dotted = ".".join(map(str, path))
      if rules.to_module(dotted, vlm.config.family) is None:
        raise UserError(f"{dotted} was trained, but a PEFT folder of this family has no place for it")
      value = rules.to_file(_host(select.get(vlm, path)), dotted, vlm.config.family)
      weights[PREFIX + name] = tensors.lazy(value)
  embedding = PREFIX + rules.to_module(_EMBEDDING, vlm.config.family)
  tied = vlm.config.tied and embedding in weights
  if tied:  # peft wants both of a tied pair
    weights[f"{PREFIX}{_head(vlm)}.weight"] = weights[embedding]
  return _config(vlm, specs, whole, tied, base_id), weights


def _config(
  vlm: Vlm, specs: Mapping[str, LoraSpec], whole: list[str], tied: bool, base_id: str | None
) -> dict:
  """adapter_config.json; layers that differ from the commonest rank or alpha are named one by one."""
  common = lambda field: collections.Counter(getattr(s, field) for s in specs.values()).most_common(1)[0][0]
  rank, alpha = common("rank"), common("alpha")
  one = next(iter(specs.values()))
  family = vlm.config.family
  kind = registry.family(family).hf_type
  number = lambda value: int(value) if float(value).is_integer() else value
  return {
    "peft_type": "LORA",
    "task_type": None,
    "auto_mapping": {
      "base_model_class": registry.family(family).hf_class,
      "parent_library": f"transformers.models.{kind}.modeling_{kind}",
    },
    "base_model_name_or_path": base_id,
    "revision": None,
    "inference_mode": True,
    "r": rank,
    "lora_alpha": number(alpha),
    "lora_dropout": one.dropout,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "use_rslora": one.rslora,
    "use_dora": one.dora,
    "target_modules": sorted(specs),
    "rank_pattern": {re.escape(n): s.rank for n, s in specs.items() if s.rank != rank},
    "alpha_pattern": {re.escape(n): number(s.alpha) for n, s in specs.items() if s.alpha != alpha},
    "modules_to_save": whole or None,
    "ensure_weight_tying": bool(tied),
  }


def _read_entries(folder: Path, family: str) -> dict[str, tensors.Entry]:
  """The folder's tensors by the names of transformers' modules, whichever spelling they come in."""
  file = folder / WEIGHTS
  if not file.is_file():
    if (folder / "adapter_model.bin").exists():
      raise UserError(
        f"{folder}: adapter_model.bin is a pickle, which can run code when it is read; "
        "save the adapter again with peft's save_pretrained(safe_serialization=True)"
      )
    raise UserError(f"{file}: missing; a PEFT folder needs it")
  entries = tensors.read_header(file)
  plain = foreign.without_adapter_names(entries, str(file))
  entries = {plain[name]: entry for name, entry in entries.items() if name in plain}
  strange = [name for name in entries if not name.startswith(PREFIX)]
  if strange:
    raise UserError(f"{file}: tensor names must start with {PREFIX!r}: {', '.join(strange)}")
  name_of = lambda name: rules.as_module(rules.canonical(name.removeprefix(PREFIX), family), family)
  return {name_of(name): entry for name, entry in entries.items()}


def _check_fit(vlm, entries, specs: Mapping[str, LoraSpec], whole: list[str], folder: Path) -> None:
  """Raises one UserError with every tensor that is missing, unmapped or mis-shaped."""
  linears, parameters = select.linear_paths(vlm), select.parameter_paths(vlm)
  wanted: dict[str, tuple[int, ...]] = {}
  for name, spec in specs.items():
    layer = select.get(vlm, linears[name])
    wanted[f"{name}.lora_A.weight"] = (spec.rank, layer.in_features)
    wanted[f"{name}.lora_B.weight"] = (layer.out_features, spec.rank)
    if spec.dora:
      wanted[f"{name}.lora_magnitude_vector"] = (layer.out_features,)
  for name in whole:
    path = parameters[name]
    dotted = ".".join(map(str, path))
    wanted[name] = rules.file_shape(select.get(vlm, path).shape, dotted, vlm.config.family)
  problems = [f"{name}: missing" for name in wanted if name not in entries]
  for name, entry in entries.items():
    base = foreign.base_of(name)
    if base in parameters:
      if not _is_base(vlm, parameters[base], entry):
        problems.append(f"{name}: not the model's own weight; the adapter belongs to another base")
    elif name not in wanted:
      problems.append(f"{name}: {foreign.why_unmapped(name, linears, parameters)}")
    elif entry.shape != tuple(wanted[name]):
      problems.append(f"{name}: shape {list(entry.shape)}, wanted {list(wanted[name])}")
  if problems:
    raise UserError(f"{folder}: {len(problems)} tensor(s) do not fit the model: " + "; ".join(problems))


def _head(vlm: Vlm) -> str:
  return rules.to_module(registry.family(vlm.config.family).head, vlm.config.family).removesuffix(".weight")


def _join_or_untie(vlm: Vlm, entries: dict[str, tensors.Entry]) -> None:
  """Of a tied pair that was trained as one, drops the head; unties `vlm` where an adapter parts the two."""
  if not vlm.config.tied:
    return
  embedding, head = rules.to_module(_EMBEDDING, vlm.config.family), _head(vlm)
  pair = [entries[name] for name in (embedding, f"{head}.weight") if name in entries]
  if len(pair) == 2 and pair[0].shape == pair[1].shape and np.array_equal(pair[0].read(), pair[1].read()):
    del entries[f"{head}.weight"]
  elif pair or any(name.startswith(f"{head}.") for name in entries):
    surgery.untie(vlm)


def _is_base(vlm: Vlm, path: select.Path, entry: tensors.Entry) -> bool:
  """Whether a base weight that peft saved beside its adapter is the one that the model has."""
  variable, dotted = select.get(vlm, path), ".".join(map(str, path))
  if entry.shape != rules.file_shape(variable.shape, dotted, vlm.config.family):
    return False
  theirs = rules.from_file(entry.read(), dotted, vlm.config.family).astype(variable.dtype)
  return np.array_equal(theirs.astype(np.float32), _host(variable))


def _host(variable: nnx.Variable) -> np.ndarray:
  """The whole float32 array in this process's memory, wherever its shards lie."""
  value = variable.get_raw_value()
  if not value.is_fully_addressable:
    from jax.experimental import multihost_utils

    value = multihost_utils.process_allgather(value, tiled=True)
  return np.asarray(jax.device_get(value), np.float32)
