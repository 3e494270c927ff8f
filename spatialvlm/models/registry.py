"""The model families that are known, by the `model_type` of their config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from spatialvlm.models import smolvlm
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class Family:
  """How checkpoints of one architecture are read.

  Attributes:
    parse_config: config.json -> VlmConfig.
    max_tiles: preprocessor_config.json -> most tiles of one image.
    rules: (name in the file, path here, operation); `{i}` stands for a layer's number.
    aliases: (regex, replacement) from other spellings of the names in the file.
    ignored: regexes of tensors that are left out.
    hf_class: transformers' class of the whole model, written into saved configs.
    head: path of the head, which a checkpoint with tied embeddings does not hold.
  """

  parse_config: Callable[..., VlmConfig]
  max_tiles: Callable[[Mapping[str, Any]], int]
  rules: tuple[tuple[str, str, str], ...]
  aliases: tuple[tuple[str, str], ...]
  ignored: tuple[str, ...]
  hf_class: str
  head: str = "decoder.lm_head.kernel"


def _smolvlm(hf_class: str) -> Family:
  return Family(
    smolvlm.parse_config, smolvlm.max_tiles, smolvlm.RULES, smolvlm.ALIASES, smolvlm.IGNORED, hf_class
  )


FAMILIES: dict[str, Family] = {
  "idefics3": _smolvlm("Idefics3ForConditionalGeneration"),
  "smolvlm": _smolvlm("SmolVLMForConditionalGeneration"),
}


def family_of(source: Mapping[str, Any], where: str) -> str:
  """The family of a config.json, which is its `model_type`.

  Raises:
    UserError: an architecture that is not known, with those that are.
  """
  kind = source.get("model_type")
  if kind not in FAMILIES:
    raise UserError(f"{where}: unknown architecture {kind!r}; supported: {', '.join(sorted(FAMILIES))}")
  return kind
