"""From a `Vlm` to a folder that transformers loads."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx

from spatialvlm.hub import rules
from spatialvlm.hub.tensors import Lazy, write_sharded
from spatialvlm.models.encoders import EncoderConfig, VisionEncoder
from spatialvlm.models.families import ENCODERS, FAMILIES
from spatialvlm.models.registry import JOINED
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.types import UserError

# What makes a folder whole beside config and weights: tokenizer, processor, template, generation defaults.
COMPANIONS = (
  "generation_config.json",
  "preprocessor_config.json",
  "processor_config.json",
  "video_preprocessor_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.json",
  "chat_template.jinja",
  "pictures.json",
)


def save_model(vlm: Vlm, folder: str | Path, source: str | Path | None = None) -> Path:
  """Writes config.json, safetensors (in shards above 5 GB), and the companions found in `source`.

  All is written to a folder beside `folder` and renamed at the end, so that nothing half-written stays.
  Files of an existing `folder` that are not written anew are kept.

  Args:
    source: local folder whose tokenizer and processor files are copied.

  Raises:
    UserError: adapters have not been merged, or the disk is full or not writable.
  """
  return write_folder(hf_config(vlm), tensors_of(vlm, vlm.config.family), folder, source)


def save_encoder(
  encoder: VisionEncoder, config: EncoderConfig, folder: str | Path, source: str | Path | None = None
) -> Path:
  """Writes an encoder that stands alone, as `save_model` does a model; a pooling head is left out.

  Raises:
    UserError: as `save_model`.
  """
  written = copy.deepcopy(dict(config.source))
  written |= {"architectures": [ENCODERS[config.family].hf_class], "dtype": config.dtype}
  written.pop("torch_dtype", None)
  return write_folder(written, tensors_of(encoder, config.family), folder, source)


def write_folder(
  config: Mapping[str, Any],
  tensors: Mapping[str, Lazy] | None,
  folder: str | Path,
  source: str | Path | None,
  companions: Mapping[str, Mapping[str, Any] | str | None] = MappingProxyType({}),
) -> Path:
  """Writes a checkpoint's folder, whole or not at all.

  Args:
    tensors: None for a folder without weights.
    companions: files instead of those of `source`, JSON values or text; None for one that is left out.

  Raises:
    UserError: the disk is full or not writable.
  """
  folder = Path(folder).expanduser()
  scratch = None
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    (scratch / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if tensors is not None:
      write_sharded(scratch, tensors)
    if source is not None:
      copy_companions(Path(source), scratch)
    for name, value in companions.items():
      (scratch / name).unlink(missing_ok=True)
      if value is not None:
        text = value if isinstance(value, str) else json.dumps(value, indent=2) + "\n"
        (scratch / name).write_text(text, encoding="utf-8")
    _move(scratch, folder)
  except OSError as error:
    raise UserError(
      f"{folder}: could not be saved ({error.strerror or error}); nothing was left behind"
    ) from None
  finally:
    if scratch is not None:
      shutil.rmtree(scratch, ignore_errors=True)
  return folder


def hf_config(vlm: Vlm) -> dict[str, Any]:
  """The checkpoint's own config.json with what this model has changed: its dtype and whether it is tied."""
  config = copy.deepcopy(dict(vlm.config.source))
  if config.get("model_type") != JOINED:
    return _changed(config, vlm.config.family, vlm.config)
  base = vlm.config.family.partition("+")[0]
  return config | {"base": _changed(config["base"], base, vlm.config), "dtype": vlm.config.dtype}


def _changed(config: dict[str, Any], family: str, of: VlmConfig) -> dict[str, Any]:
  config["tie_word_embeddings"] = of.tied
  text = config.get("text_config") or {}
  if "tie_word_embeddings" in text:
    text["tie_word_embeddings"] = of.tied
  key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
  config[key] = of.dtype
  for part in ("text_config", "vision_config"):
    for name in ("torch_dtype", "dtype"):
      if (config.get(part) or {}).get(name) is not None:
        config[part][name] = of.dtype
  config["architectures"] = [FAMILIES[family].hf_class]
  return config


def copy_companions(source: Path, target: Path) -> None:
  """Copies tokenizer, processor and template files, as far as `source` has them."""
  for name in COMPANIONS:
    if (source / name).is_file():
      shutil.copyfile(source / name, target / name)


def tensors_of(model: nnx.Module, family: str, prefix: str = "") -> dict[str, Lazy]:
  """The parameters of a model, or of the part of one at `prefix`, as tensors of a file by their names there.

  Raises:
    UserError: one has no name there, as adapters have none.
  """
  variables: dict[str, dict[str, nnx.Variable]] = {}
  unknown = []
  for parts, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    path = prefix + ".".join(map(str, parts))
    name = rules.to_hf(path, family)
    if name is None:
      unknown.append(path)
    else:
      variables.setdefault(name, {})[path] = variable
  if unknown:
    raise UserError(
      "this model cannot be saved as a checkpoint, since these have no name there (merge adapters first): "
      + ", ".join(unknown)
    )
  return {name: _lazy(parts, family) for name, parts in sorted(variables.items())}


def _lazy(parts: Mapping[str, nnx.Variable], family: str) -> Lazy:
  """One tensor of the file, from the variables that it holds."""
  path, variable = next(iter(parts.items()))
  make = lambda: rules.joined([(path, whole(v)) for path, v in parts.items()], family)
  return Lazy(np.dtype(variable.dtype), rules.file_shape(variable.shape, path, family), make)


def whole(variable: nnx.Variable) -> np.ndarray:
  """A parameter's values in this process's memory, wherever their shards lie."""
  value = variable[...]
  if not value.is_fully_addressable:
    from jax.experimental import multihost_utils

    value = multihost_utils.process_allgather(value, tiled=True)
  return np.asarray(jax.device_get(value))


def _move(scratch: Path, folder: Path) -> None:
  """Puts the files of `scratch` in their place, weights of an older save gone first."""
  if not folder.exists():
    scratch.chmod(0o755)
    scratch.rename(folder)
    return
  new = {file.name for file in scratch.iterdir()}
  for file in scratch.iterdir():
    file.replace(folder / file.name)
  for old in [*folder.glob("model*.safetensors"), *folder.glob("model.safetensors.index.json")]:
    if old.name not in new:
      old.unlink()
