"""PaliGemma (Beyer et al., 2024) and PaliGemma 2 (Steiner et al., 2024): configs and weight names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spatialvlm.models import texts, vits
from spatialvlm.models.connector import ConnectorConfig
from spatialvlm.models.fields import Rule, group, linear, under, whole
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError

# transformers' sizes where a config leaves out the whole part.
_VISION = {"hidden_size": 1152, "intermediate_size": 4096, "num_hidden_layers": 27}
_VISION |= {"num_attention_heads": 16, "patch_size": 14, "image_size": 224}
_TEXT = {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "vocab_size": 257152}
_TEXT |= {"num_attention_heads": 8, "num_key_value_heads": 1}

# Modules in transformers 5, from the names in published files; and from all spellings back.
MODULES: tuple[tuple[str, str], ...] = (
  (r"^language_model\.lm_head", "lm_head"),
  (r"^language_model\.model\.", "model.language_model."),
  (r"^vision_tower\.vision_model\.", "model.vision_tower."),
  (r"^multi_modal_projector\.", "model.multi_modal_projector."),
)
ALIASES: tuple[tuple[str, str], ...] = (
  (r"^lm_head", "language_model.lm_head"),
  (r"^model\.language_model\.", "language_model.model."),
  (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
  (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)
# A pooling head that nothing reads.
IGNORED: tuple[str, ...] = (r"vision_tower\.vision_model\.head\..*", r".*\.position_ids", r".*\.inv_freq")


def rules(second: bool) -> tuple[Rule, ...]:
  """Names of the tensors of PaliGemma, or of PaliGemma 2."""
  return (
    *under("vision_tower.vision_model.", "vision.", vits.siglip_rules()),
    *under("multi_modal_projector.", "connector.", linear("linear", "proj")),
    *under("language_model.model.", "decoder.", texts.rules(out_norms=second)),
    ("language_model.lm_head.weight", "decoder.lm_head.kernel", "transpose"),
  )


def parse_config(source: Mapping[str, Any], *, dtype: str, where: str) -> VlmConfig:
  """Reads a config.json of `model_type` paligemma, whose language model is Gemma or Gemma 2.

  Raises:
    UserError: a setting that these layers do not compute or that makes no sense, by its name.
  """
  parts = {}
  for key, absent in (("vision_config", _VISION), ("text_config", _TEXT)):
    parts[key] = absent if source.get(key) is None else group(source, key, where)
  text = texts.parse(parts["text_config"], ("gemma", "gemma2"), f"{where}: text_config")
  width = whole(source, "projection_dim", 2048, where)
  if width != text.block.width:
    raise UserError(f"{where}: projection_dim {width} is not the language model's width {text.block.width}")
  key = "image_token_index" if "image_token_index" in source else "image_token_id"
  return VlmConfig(
    family=family(source),
    vision=vits.siglip(parts["vision_config"], f"{where}: vision_config"),
    text=text,
    connector=ConnectorConfig(bias=True),
    image_token_id=whole(source, key, 256000, where, least=0),
    tied=bool(source.get("tie_word_embeddings", True)),
    prefix_lm=True,
    dtype=dtype,
    source=source,
  )


def family(source: Mapping[str, Any]) -> str:
  """PaliGemma 2 has the same `model_type`, but another language model."""
  text = source.get("text_config")
  second = isinstance(text, Mapping) and text.get("model_type") == "gemma2"
  return "paligemma2" if second else "paligemma"
