"""The shape of a model without its weights: of a folder, of the hub's cache, or of a published model.

What needs a shape alone (`spatialvlm.plan`) downloads nothing: a config.json is enough, and those of the
models that recipes name stand here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialvlm import shipped
from spatialvlm.config import check_dtype
from spatialvlm.hub import contents
from spatialvlm.hub.load import read_config, tied_as
from spatialvlm.hub.resolve import read_entries, read_json, resolve, weight_files
from spatialvlm.models import registry
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError

_BASE = dict(hidden_size=768, num_attention_heads=12, image_size=512, patch_size=16)
_SO400M = dict(
  hidden_size=1152,
  num_hidden_layers=27,
  num_attention_heads=16,
  intermediate_size=4304,
  image_size=384,
  patch_size=14,
)


def _smolvlm(
  vision: dict, factor: int, image: int, width: int, depth: int, heads: tuple, mlp: int, words: int
):
  text = dict(model_type="llama", hidden_size=width, num_hidden_layers=depth, intermediate_size=mlp)
  text |= dict(num_attention_heads=heads[0], num_key_value_heads=heads[1], vocab_size=words, head_dim=64)
  text |= dict(max_position_embeddings=8192 if words == 49280 else 16384, rms_norm_eps=1e-5)
  vision = vision | {"model_type": "idefics3_vision"}
  more = dict(image_token_id=image, tie_word_embeddings=False, scale_factor=factor)
  return dict(model_type="idefics3", vision_config=vision, text_config=text, **more)


# What of a config.json says sizes, by hub id.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
  "HuggingFaceTB/SmolVLM-256M-Instruct": _smolvlm(_BASE, 4, 49190, 576, 30, (9, 3), 1536, 49280),
  "HuggingFaceTB/SmolVLM-500M-Instruct": _smolvlm(_BASE, 4, 49190, 960, 32, (15, 5), 2560, 49280),
  "HuggingFaceTB/SmolVLM-Instruct": _smolvlm(_SO400M, 3, 49153, 2048, 24, (32, 32), 8192, 49155),
}


def read_shape(path_or_id: str, revision: str | None = None, dtype: str = "float32") -> VlmConfig:
  """The config of a model whose weights are not read, and need not be there.

  Args:
    path_or_id: a folder with a config.json, a model that ships with the project, a hub id of `PUBLISHED`, or
      one whose config.json lies in the hub's cache.

  Raises:
    UserError: none of these; nothing is fetched.
  """
  check_dtype(dtype)
  path = Path(path_or_id).expanduser()
  if path.exists() or path.parts[:1] == (shipped.CHECKPOINTS,) or path_or_id in shipped.checkpoints():
    folder = resolve(path_or_id)
    config = read_config(folder, dtype=dtype)
    return tied_as(config, read_entries(weight_files(folder))[0]) if contents.has_model(folder) else config
  if path_or_id in PUBLISHED and revision is None:
    return _parsed(PUBLISHED[path_or_id], dtype, path_or_id)
  if (file := _cached(path_or_id, revision)) is not None:
    return _parsed(read_json(file), dtype, str(file))
  raise UserError(
    f"{path_or_id}: no such folder, and no shape of it is known here; give a folder with its config.json (it"
    f" needs no weights), or one of {', '.join(PUBLISHED)}"
  )


def _parsed(source: Mapping[str, Any], dtype: str, where: str) -> VlmConfig:
  family = registry.family(registry.family_of(source, where))
  return dataclasses.replace(family.parse_config(source, dtype=dtype, where=where), source=source)


def _cached(name: str, revision: str | None) -> Path | None:
  """A repository's config.json in the hub's cache; None where it is not there."""
  import huggingface_hub
  from huggingface_hub import errors

  try:
    found = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
  except errors.HFValidationError:  # no name of a repository
    return None
  return Path(found) if isinstance(found, str) else None
