"""Adapters as Hugging Face PEFT folders: adapter_config.json and adapter_model.safetensors, out and in.

Follows peft 0.21 (`check_target_module_exists`, `ModulesToSaveWrapper`); what a method writes and reads is
its own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from spatialvlm.hub import contents, rules, tensors
from spatialvlm.hub.resolve import read_json, resolve
from spatialvlm.models import registry
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import foreign, full, methods, select
from spatialvlm.peft.method import Folder, Method
from spatialvlm.peft.variables import Trained, host
from spatialvlm.types import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_adapter(vlm: Vlm, folder: str | Path, base_id: str | None = None) -> Path:
  """Writes what was trained of `vlm` as a folder that `peft.PeftModel.from_pretrained` loads.

  All of it is written in float32. The folder is written beside its place and renamed, so that nothing
  half-written stays. Every process of a run must call this; the first one writes.

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


def load_adapter(vlm: Vlm, folder: str | Path, *, takes_priors: bool = False) -> Vlm:
  """Puts the adapter of a PEFT folder on `vlm`, in place, and returns it. Nothing is changed on an error.

  Args:
    folder: local folder or hub id.
    takes_priors: whether the caller reads the priors that lie beside it (`priors.attach_from`).

  Raises:
    UserError: no such folder, a pickle, an option or a kind of adapter that is not supported, or tensors that
      do not fit the model: all of them are listed; priors lie beside it, which nobody takes.
  """
  if not takes_priors:
    contents.refuse_priors(resolve(folder))
  return restore(vlm, folder)


def restore(vlm: Vlm, folder: str | Path, method: Method | None = None, options: Any = None) -> Vlm:
  """As `load_adapter`, for training to go on.

  Args:
    method: which the folder's must be, None for any.
    options: the method's, of the run that goes on.
  """
  if any(isinstance(part, Trained) for _, part in nnx.iter_graph(vlm)):
    raise UserError(f"{folder}: the model already carries an adapter, or priors; load it on a fresh base")
  folder = resolve(folder)
  found, said = read_config(folder / CONFIG)
  if method is not None and found is not method:
    raise UserError(f"{folder}: an adapter of method {found.name!r}; set config.peft.method to it")
  said = foreign.with_todays_names(said, vlm.config.family)
  entries = _read_entries(folder, vlm.config.family, found)
  full.join_or_untie(vlm, entries, found.repeats)
  parameters, head = select.parameter_paths(vlm), full.head(vlm)
  whole = foreign.whole_parameters(said, parameters, entries)
  own = found.wanted(vlm, said, head)
  _check_fit(vlm, entries, own | full.shapes(vlm, whole), found, folder)
  read = lambda names: {name: np.asarray(entries[name].read(), np.float32) for name in names}
  found.restore(vlm, Folder(str(folder), said, read(own), head), options)
  full.restore(vlm, read(whole))
  return vlm


def read_config(file: Path) -> tuple[Method, dict[str, Any]]:
  """The method of a PEFT folder and its config, refused where it asks for what is not supported.

  Raises:
    UserError: missing, not JSON, of a method that is not known, with options that are not supported (all of
      them are named), or with a value that cannot be.
  """
  if not file.is_file():
    raise UserError(f"{file}: missing; a PEFT folder needs it{contents.way_on(file.parent, adapters=True)}")
  said = read_json(file)
  method = methods.of_type(said.get("peft_type"), file)
  foreign.check(said, file, method.fields, method.refused(said))
  return method, said


def check_claims(vlm: nnx.Module, claimed: Iterable[select.Path] = ()) -> None:
  """Raises a UserError that names the trained variables which no exporter would write.

  Args:
    claimed: paths that somebody else exports.
  """
  known = set(claimed) | full.claims(vlm)
  for method in methods.carried(vlm):
    known |= method.claims(vlm)
    if method.peft_type and not method.ties and full.ties(vlm):
      raise UserError(
        f"peft.full: names the embedding that is also the head; a PEFT folder of method {method.name!r} has"
        " no place for it, one of 'lora' has"
      )
  trained = (path for path, variable in nnx.iter_graph(vlm) if isinstance(variable, Trained))
  lost = [".".join(map(str, path)) for path in trained if path not in known]
  if lost:
    raise UserError(f"trained, but nothing would export it: {', '.join(sorted(lost))}")


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
  found = methods.carried(vlm)
  if not found:
    raise UserError("no layer carries an adapter, so there is none to save; save the whole model instead")
  if len(found) > 1:
    both = ", ".join(method.name for method in found)
    raise UserError(f"the model carries adapters of several methods ({both}); a PEFT folder holds one")
  if found[0].peft_type is None:
    raise UserError(f"PEFT knows no folder for method {found[0].name!r}; save the whole model instead")
  check_claims(vlm)
  own = found[0].export(vlm)
  modules, whole = full.export(vlm)
  kind = registry.family(vlm.config.family)
  config = {
    "peft_type": found[0].peft_type,
    "task_type": None,
    "auto_mapping": {
      "base_model_class": kind.hf_class,
      "parent_library": f"transformers.models.{kind.hf_type}.modeling_{kind.hf_type}",
    },
    "base_model_name_or_path": base_id,
    "revision": None,
    "inference_mode": True,
    "modules_to_save": modules or None,
    **({"ensure_weight_tying": full.ties(vlm)} if found[0].ties else {}),
    **own.config,
  }
  arrays = {**own.arrays, **whole}
  written = lambda name: name if name in found[0].bare else found[0].prefix + name
  return config, {written(name): tensors.lazy(value) for name, value in arrays.items()}


def _read_entries(folder: Path, family: str, method: Method) -> dict[str, tensors.Entry]:
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
  plain = foreign.without_adapter_names(entries, str(file), method.kinds)
  entries = {plain[name]: entry for name, entry in entries.items() if name in plain}
  bare, prefix = {name: entry for name, entry in entries.items() if name in method.bare}, method.prefix
  strange = [name for name in entries if not name.startswith(prefix) and name not in bare]
  if strange:
    raise UserError(f"{file}: tensor names must start with {prefix!r}: {', '.join(strange)}")
  name_of = lambda name: rules.as_module(rules.canonical(name.removeprefix(prefix), family), family)
  return bare | {name_of(name): entry for name, entry in entries.items() if name not in bare}


def _check_fit(
  vlm: Vlm,
  entries: Mapping[str, tensors.Entry],
  wanted: Mapping[str, tuple[int, ...]],
  method: Method,
  folder: Path,
) -> None:
  """Raises one UserError with every tensor that is missing, unmapped or mis-shaped."""
  parameters = select.parameter_paths(vlm)
  problems = [f"{name}: missing" for name in wanted if name not in entries]
  for name, entry in entries.items():
    base = foreign.base_of(name)
    if base in parameters and name not in wanted:
      if not _is_base(vlm, parameters[base], entry):
        problems.append(f"{name}: not the model's own weight; the adapter belongs to another base")
    elif name not in wanted:
      problems.append(f"{name}: {method.why_unmapped(vlm, name, parameters)}")
    elif entry.shape != tuple(wanted[name]):
      problems.append(f"{name}: shape {list(entry.shape)}, wanted {list(wanted[name])}")
  if problems:
    raise UserError(f"{folder}: {len(problems)} tensor(s) do not fit the model: " + "; ".join(problems))


def _is_base(vlm: Vlm, path: select.Path, entry: tensors.Entry) -> bool:
  """Whether a base weight that peft saved beside its adapter is the one that the model has."""
  variable, dotted = select.get(vlm, path), ".".join(map(str, path))
  if entry.shape != rules.file_shape(variable.shape, dotted, vlm.config.family):
    return False
  theirs = rules.from_file(entry.read(), dotted, vlm.config.family).astype(variable.dtype)
  return np.array_equal(theirs.astype(np.float32), host(variable))
