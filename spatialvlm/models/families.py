"""The architectures that are known: how their config.json is read and how their tensors are named."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from spatialvlm.models import internvl, language, paligemma, smolvlm, vits
from spatialvlm.models.encoders import VisionConfig
from spatialvlm.models.fields import Rule
from spatialvlm.models.vlm import VlmConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """How the tensors of one architecture's checkpoints are named.

  Attributes:
    rules: (name in the file, path here, operation); `{i}` stands for a layer's number.
    hf_class: transformers' class of the whole model, written into saved configs.
    aliases: (regex, replacement) from other spellings of the names in the file.
    ignored: regexes of tensors that are left out.
  """

  rules: tuple[Rule, ...]
  hf_class: str
  aliases: tuple[tuple[str, str], ...] = ()
  ignored: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(Checkpoint):
  """A vision-language model, or a language model by itself.

  Attributes:
    hf_type: `model_type` of its config.json.
    parse_config: config.json -> VlmConfig.
    vision: prefix of the vision tower's names in the file; "" of a language model by itself.
    modules: (regex, replacement) from the file's names to those of transformers' modules, which adapters use.
    head: path of the head, which a checkpoint with tied embeddings does not hold.
  """

  hf_type: str
  parse_config: Callable[..., VlmConfig]
  vision: str
  modules: tuple[tuple[str, str], ...] = ()
  head: str = "decoder.lm_head.kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder(Checkpoint):
  """A vision encoder that stands alone.

  Attributes:
    parse_config: (config of the vision part, where) -> VisionConfig.
    hf_type: `model_type` of saved configs.
    extra: what saved configs say beside it.
  """

  parse_config: Callable[[Mapping[str, Any], str], VisionConfig]
  hf_type: str
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _smolvlm(hf_type: str, hf_class: str, gemma2: bool = False) -> Family:
  return Family(
    hf_type=hf_type,
    parse_config=smolvlm.parse_config,
    rules=smolvlm.rules(gemma2),
    aliases=smolvlm.ALIASES,
    ignored=smolvlm.IGNORED,
    hf_class=hf_class,
    vision="model.vision_model.",
  )


def _language(kind: str) -> Family:
  return Family(
    hf_type=kind,
    parse_config=language.parse_config,
    rules=language.rules(kind),
    aliases=language.ALIASES,
    ignored=language.IGNORED,
    hf_class=language.CLASSES[kind][0],
    vision="",
  )


def _paligemma(second: bool) -> Family:
  return Family(
    hf_type="paligemma",
    parse_config=paligemma.parse_config,
    rules=paligemma.rules(second),
    aliases=paligemma.ALIASES,
    modules=paligemma.MODULES,
    ignored=paligemma.IGNORED,
    hf_class="PaliGemmaForConditionalGeneration",
    vision="vision_tower.",
  )


FAMILIES: dict[str, Family] = {
  "idefics3": _smolvlm("idefics3", "Idefics3ForConditionalGeneration"),
  "smolvlm": _smolvlm("smolvlm", "SmolVLMForConditionalGeneration"),
  "smolvlm-gemma2": _smolvlm("smolvlm", "SmolVLMForConditionalGeneration", gemma2=True),
  "internvl": Family(
    hf_type="internvl",
    parse_config=internvl.parse_config,
    rules=internvl.RULES,
    aliases=internvl.ALIASES,
    modules=internvl.MODULES,
    ignored=(r".*\.inv_freq",),
    hf_class="InternVLForConditionalGeneration",
    vision="vision_tower.",
  ),
  "paligemma": _paligemma(second=False),
  "paligemma2": _paligemma(second=True),
  **{kind: _language(kind) for kind in language.CLASSES},
}

# What an image classifier holds behind its encoder, whatever the architecture.
CLASSIFIER = r"classifier\..*"
# What a file of both towers, or a pooling head, holds beside the vision tower.
_OTHERS = (r"text_model\..*", r"logit_(scale|bias)", r"(visual|text)_projection\..*", r"head\..*", CLASSIFIER)
_BUFFERS = (r".*\.position_ids",)
_BARE = ((r"^vision_model\.", ""),)
# A whole model's name for the encoder within it, as image classifiers save it.
_DINOV2 = ((r"^dinov2(_with_registers)?\.", ""),)

ENCODERS: dict[str, Encoder] = {
  "siglip": Encoder(
    parse_config=vits.siglip,
    rules=tuple(vits.siglip_rules()),
    aliases=_BARE,
    ignored=_OTHERS + _BUFFERS,
    hf_class="SiglipVisionModel",
    hf_type="siglip_vision_model",
    extra={"vision_use_head": False},
  ),
  "clip": Encoder(
    parse_config=vits.clip,
    rules=tuple(vits.siglip_rules()),
    aliases=_BARE,
    ignored=_OTHERS + _BUFFERS,
    hf_class="CLIPVisionModel",
    hf_type="clip_vision_model",
  ),
  "dinov2": Encoder(
    parse_config=vits.dinov2,
    rules=tuple(vits.dinov2_rules()),
    aliases=_DINOV2,
    ignored=(CLASSIFIER,),
    hf_class="Dinov2Model",
    hf_type="dinov2",
  ),
  "dinov2_with_registers": Encoder(
    parse_config=vits.dinov2,
    rules=tuple(vits.dinov2_rules()),
    aliases=_DINOV2,
    ignored=(CLASSIFIER,),
    hf_class="Dinov2WithRegistersModel",
    hf_type="dinov2_with_registers",
  ),
  "dinov3_vit": Encoder(
    parse_config=vits.dinov3,
    rules=tuple(vits.dinov3_rules()),
    aliases=((r"^model\.layer\.", "layer."),),
    hf_class="DINOv3ViTModel",
    hf_type="dinov3_vit",
  ),
  "internvl_vision": Encoder(
    parse_config=vits.internvit,
    rules=tuple(vits.internvit_rules()),
    hf_class="InternVLVisionModel",
    hf_type="internvl_vision",
  ),
}

# Their giants have gated networks, whose tensors are joined in the files.
for _name in ("dinov2", "dinov2_with_registers"):
  ENCODERS[f"{_name}-swiglu"] = dataclasses.replace(
    ENCODERS[_name], rules=tuple(vits.dinov2_rules(gated=True))
  )


def _tower(family: Family) -> Checkpoint:
  """The vision tower of a family's checkpoints alone, by the names that it has there."""
  inner = tuple(
    (name, path.removeprefix("vision."), op) for name, path, op in family.rules if path.startswith("vision.")
  )
  others = f"(?!{re.escape(family.vision)}).*"
  return Checkpoint(rules=inner, hf_class="", aliases=family.aliases, ignored=(*family.ignored, others))


CHECKPOINTS: Mapping[str, Checkpoint] = (
  FAMILIES
  | ENCODERS
  | {f"{name}/vision": _tower(family) for name, family in FAMILIES.items() if family.vision}
)
