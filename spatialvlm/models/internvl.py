"""InternVL 2.5 and 3 in the `-hf` format (Chen et al., 2024; Zhu et al., 2025): configs and weight names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from spatialvlm.models import texts, vits
from spatialvlm.models.connector import ConnectorConfig
from spatialvlm.models.fields import Rule, activation, group, linear, norm, number, under, whole
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError

TEXTS = ("qwen2", "llama")
_CONNECTOR = "multi_modal_projector."

RULES: tuple[Rule, ...] = (
  *under("vision_tower.", "vision.", vits.internvit_rules()),
  *under(_CONNECTOR, "connector.", norm("layer_norm", "norm")),
  *under(_CONNECTOR, "connector.", linear("linear_1", "hidden")),
  *under(_CONNECTOR, "connector.", linear("linear_2", "proj")),
  *under("language_model.model.", "decoder.", texts.rules()),
  ("language_model.lm_head.weight", "decoder.lm_head.kernel", "transpose"),
)

# Modules in transformers 4.52 and later, from the names in published files, and back.
MODULES: tuple[tuple[str, str], ...] = (
  (r"^language_model\.lm_head", "lm_head"),
  (r"^language_model\.model\.", "model.language_model."),
  (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
)
ALIASES: tuple[tuple[str, str], ...] = (
  (r"^lm_head", "language_model.lm_head"),
  (r"^model\.language_model\.", "language_model.model."),
  (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
)


def parse_config(source: Mapping[str, Any], *, dtype: str, where: str) -> VlmConfig:
  """Reads a config.json of `model_type` internvl.

  Raises:
    UserError: a setting that these layers do not compute or that makes no sense, by its name.
  """
  vision = vits.internvit(group(source, "vision_config", where), f"{where}: vision_config")
  ratio = number(source, "downsample_ratio", 0.5, where)
  factor = int(1 / ratio)
  if vision.grid % factor or ratio * factor != 1:
    raise UserError(f"{where}: downsample_ratio {ratio} does not divide the grid of {vision.grid} patches")
  act = activation(source.get("projector_hidden_act", "gelu"), where, "projector_hidden_act")
  return VlmConfig(
    family="internvl",
    vision=dataclasses.replace(vision, feature_layer=_feature_layer(source, vision.depth, where)),
    text=texts.parse(group(source, "text_config", where), TEXTS, f"{where}: text_config"),
    connector=ConnectorConfig(factor, norm=True, activation=act, bias=True),
    image_token_id=whole(source, "image_token_id", 151667, where, least=0),
    tied=bool(source.get("tie_word_embeddings", True)),
    dtype=dtype,
    source=source,
  )


def _feature_layer(source: Mapping[str, Any], depth: int, where: str) -> int | None:
  """Which layer's patches the connector reads, as of `VisionConfig.feature_layer`.

  Numbers are those of transformers' `hidden_states`; -1 is the last output behind its norm. Refused is what
  transformers cannot run either: several layers, 0 (counted from the end it works), and "full": a square of
  patches and the class token make no square, which the pixel shuffle needs.
  """
  layer = source.get("vision_feature_layer", -1)
  kept = source.get("vision_feature_select_strategy", "default")
  if kept != "default":
    raise UserError(
      f"{where}: vision_feature_select_strategy {kept!r} cannot be computed, nor can transformers: with the"
      " class token the patches make no square, which downsample_ratio needs; use 'default'"
    )
  fits = isinstance(layer, int) and not isinstance(layer, bool) and -depth - 1 <= layer <= depth
  if not fits or layer == 0:
    raise UserError(
      f"{where}: vision_feature_layer {layer!r}: expected one layer, 1 to {depth}, or {-depth - 1} to -1"
    )
  return None if layer == -1 else layer % (depth + 1)
