"""SmolVLM and SmolVLM2 (Marafioti et al., 2025), the architecture of Idefics3: configs and weight names.

No layers live here. Defaults of omitted fields are those of transformers' configuration classes, since
published configs rely on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from spatialvlm.models import texts, vits
from spatialvlm.models.connector import ConnectorConfig
from spatialvlm.models.fields import Rule, group, under, whole
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError

_VISION_DEFAULTS = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
_VISION = "model.vision_model."
_TEXT = "model.text_model."


# (name in the file, path here, what turns the one into the other: see `hub.rules.OPERATIONS`)
def rules(out_norms: bool = False) -> tuple[Rule, ...]:
  """`out_norms`: with Gemma 2 as its language model."""
  return (
    *under(_VISION, "vision.", vits.siglip_rules()),
    ("model.connector.modality_projection.proj.weight", "connector.proj.kernel", "transpose"),
    *under(_TEXT, "decoder.", texts.rules(out_norms)),
    ("lm_head.weight", "decoder.lm_head.kernel", "transpose"),
  )


# Other spellings, by regex, of the names above: a base model saved without its head has no `model.` prefix.
ALIASES: tuple[tuple[str, str], ...] = ((r"^(vision_model|connector|text_model)\.", r"model.\1."),)

# Buffers that old files hold and nobody needs.
IGNORED: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq", r".*\.embeddings\.position_ids")


def family(source: Mapping[str, Any]) -> str:
  """Gemma 2 as its language model has tensors of its own; none is published, but one may be assembled."""
  text = source.get("text_config")
  second = isinstance(text, Mapping) and text.get("model_type") == "gemma2"
  return f"{source['model_type']}-gemma2" if second else source["model_type"]


def parse_config(source: Mapping[str, Any], *, dtype: str, where: str) -> VlmConfig:
  """Reads a config.json of `model_type` idefics3 or smolvlm.

  Raises:
    UserError: a setting that these layers do not compute or that makes no sense, by its name.
  """
  given = {key: value for key, value in group(source, "vision_config", where).items() if value is not None}
  vision = vits.siglip(_VISION_DEFAULTS | given, f"{where}: vision_config")
  vision = dataclasses.replace(vision, positions="navit")
  factor = whole(source, "scale_factor", 2, where)
  if vision.grid % factor:
    raise UserError(f"{where}: scale_factor {factor} does not divide the grid of {vision.grid} patches")
  text_source = group(source, "text_config", where)
  if source.get("text_config") is None:  # transformers: without a text config its norm has another default
    text_source = {"rms_norm_eps": 1e-5}
  return VlmConfig(
    family=family(source),
    vision=vision,
    text=texts.parse(text_source, texts.KINDS, f"{where}: text_config"),
    connector=ConnectorConfig(factor),
    image_token_id=whole(source, "image_token_id", 128257, where, least=0),
    tied=bool(source.get("tie_word_embeddings", False)),
    dtype=dtype,
    source=source,
  )
