"""From a `Vlm` to a folder that transformers loads."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from spatialvlm.hub import rules
from spatialvlm.hub.tensors import Lazy, write_sharded
from spatialvlm.models.registry import FAMILIES
from spatialvlm.models.vlm import Vlm
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
  folder = Path(folder).expanduser()
  tensors = _tensors(vlm)
  config = hf_config(vlm)
  scratch = None
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    (scratch / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_sharded(scratch, tensors)
    if source is not None:
      copy_companions(Path(source), scratch)
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
  config["tie_word_embeddings"] = vlm.config.tied
  text = config.get("text_config") or {}
  if "tie_word_embeddings" in text:
    text["tie_word_embeddings"] = vlm.config.tied
  key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
  config[key] = vlm.config.dtype
  for part in ("text_config", "vision_config"):
    for name in ("torch_dtype", "dtype"):
      if (config.get(part) or {}).get(name) is not None:
        config[part][name] = vlm.config.dtype
  config["architectures"] = [FAMILIES[vlm.config.family].hf_class]
  return config


def copy_companions(source: Path, target: Path) -> None:
  """Copies tokenizer, processor and template files, as far as `source` has them."""
  for name in COMPANIONS:
    if (source / name).is_file():
      shutil.copyfile(source / name, target / name)


def _tensors(vlm: Vlm) -> dict[str, Lazy]:
  family = vlm.config.family
  tensors, unknown = {}, []
  for parts, variable in nnx.to_flat_state(nnx.state(vlm, nnx.Param)):
    path = ".".join(map(str, parts))
    name = rules.to_hf(path, family)
    if name is None:
      unknown.append(path)
      continue
    shape = rules.file_shape(variable.shape, path, family)
    tensors[name] = Lazy(np.dtype(variable.dtype), shape, _maker(variable, path, family))
  if unknown:
    raise UserError(
      "this model cannot be saved as a checkpoint, since these have no name there (merge adapters first): "
      + ", ".join(unknown)
    )
  return dict(sorted(tensors.items()))


def _maker(variable: nnx.Variable, path: str, family: str):
  def make() -> np.ndarray:
    value = variable[...]
    if not value.is_fully_addressable:
      from jax.experimental import multihost_utils

      value = multihost_utils.process_allgather(value, tiled=True)
    return rules.to_file(np.asarray(jax.device_get(value)), path, family)

  return make


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
