"""The architectures that are known, by the `model_type` of their config.json."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from spatialvlm.models import internvl, joined, paligemma, smolvlm, vits
from spatialvlm.models.connector import ConnectorConfig
from spatialvlm.models.encoders import EncoderConfig, VisionConfig
from spatialvlm.models.fields import Rule, activation, group, linear, norm, number, under, whole
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError


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
  """A vision-language model.

  Attributes:
    hf_type: `model_type` of its config.json.
    parse_config: config.json -> VlmConfig.
    max_tiles: preprocessor_config.json -> most tiles of one image.
    vision: prefix of the vision tower's names in the file.
    modules: (regex, replacement) from the file's names to those of transformers' modules, which adapters use.
    head: path of the head, which a checkpoint with tied embeddings does not hold.
  """

  hf_type: str
  parse_config: Callable[..., VlmConfig]
  max_tiles: Callable[[Mapping[str, Any]], int]
  vision: str
  modules: tuple[tuple[str, str], ...] = ()
  head: str = "decoder.lm_head.kernel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder(Checkpoint):
  """A vision encoder that stands alone.

  Attributes:
    parse_config: (config of the vision part, attention, where) -> VisionConfig.
    hf_type: `model_type` of saved configs.
    extra: what saved configs say beside it.
  """

  parse_config: Callable[[Mapping[str, Any], str, str], VisionConfig]
  hf_type: str
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _smolvlm(hf_type: str, hf_class: str) -> Family:
  return Family(
    hf_type=hf_type,
    parse_config=smolvlm.parse_config,
    max_tiles=smolvlm.max_tiles,
    rules=smolvlm.RULES,
    aliases=smolvlm.ALIASES,
    ignored=smolvlm.IGNORED,
    hf_class=hf_class,
    vision="model.vision_model.",
  )


def _paligemma(second: bool) -> Family:
  return Family(
    hf_type="paligemma",
    parse_config=paligemma.parse_config,
    max_tiles=paligemma.max_tiles,
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
  "internvl": Family(
    hf_type="internvl",
    parse_config=internvl.parse_config,
    max_tiles=internvl.max_tiles,
    rules=internvl.RULES,
    aliases=internvl.ALIASES,
    modules=internvl.MODULES,
    ignored=(r".*\.inv_freq",),
    hf_class="InternVLForConditionalGeneration",
    vision="vision_tower.",
  ),
  "paligemma": _paligemma(second=False),
  "paligemma2": _paligemma(second=True),
}

_TYPES = sorted({family.hf_type for family in FAMILIES.values()})

# What a file of both towers, or a pooling head, holds beside the vision tower.
_OTHERS = (r"text_model\..*", r"logit_(scale|bias)", r"(visual|text)_projection\..*", r"head\..*")
_BUFFERS = (r".*\.position_ids",)
_BARE = ((r"^vision_model\.", ""),)

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
    parse_config=vits.dinov2, rules=tuple(vits.dinov2_rules()), hf_class="Dinov2Model", hf_type="dinov2"
  ),
  "dinov2_with_registers": Encoder(
    parse_config=vits.dinov2,
    rules=tuple(vits.dinov2_rules()),
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
  FAMILIES | ENCODERS | {f"{name}/vision": _tower(family) for name, family in FAMILIES.items()}
)


# `model_type` of a model whose eyes were changed, which no other library knows.
JOINED = "spatialvlm"


@functools.cache
def family(name: str) -> Family:
  """A family by its key; `BASE+ENCODER`, `BASE+ENCODER+ENCODER`...: that of a model with other eyes.

  Its decoder's tensors have the base's names, an encoder's its own behind `encoders.NUMBER.`.
  """
  if name in FAMILIES:
    return FAMILIES[name]
  base, *eyes = name.split("+")
  rules = [rule for rule in FAMILIES[base].rules if rule[1].startswith("decoder.")]
  for place, eye in enumerate(eyes):
    rules += under(f"encoders.{place}.", f"vision.encoders.{place}.", CHECKPOINTS[eye].rules)
  for part in (norm("norm", "norm"), linear("hidden", "hidden"), linear("proj", "proj")):
    rules += under("model.connector.", "connector.", part)
  return dataclasses.replace(
    FAMILIES[base],
    rules=tuple(rules),
    hf_type=JOINED,
    hf_class="SpatialVlm",
    parse_config=_parse_joined,
    vision="encoders.",
  )


def checkpoint(name: str) -> Checkpoint:
  """The tensors of a family, an encoder, or a family's tower (`FAMILY/vision`)."""
  return CHECKPOINTS[name] if name in CHECKPOINTS else family(name)


def _parse_joined(source: Mapping[str, Any], *, dtype: str, attention: str, where: str) -> VlmConfig:
  """Reads a config.json of `model_type` spatialvlm; docs/eyes.md says what it holds."""
  base = group(source, "base", where)
  config = FAMILIES[family_of(base, f"{where}: base")].parse_config(
    base, dtype=dtype, attention=attention, where=f"{where}: base"
  )
  tile, parts = group(source, "tile", where), source["encoders"]
  eyes = tuple(
    _eye(part, tile, config.vision, attention, f"{where}: encoders[{i}]") for i, part in enumerate(parts)
  )
  vision = joined.JoinedConfig(eyes, whole(tile, "size", 0, f"{where}: tile"))
  said, at = group(source, "connector", where), f"{where}: connector"
  connector = ConnectorConfig(
    factor=whole(said, "factor", 1, at),
    norm=bool(said.get("norm", True)),
    activation=activation(said["activation"], at, "activation") if said.get("activation") else None,
    bias=bool(said.get("bias", True)),
    init_scale=number(said, "init_scale", 1.0, at),
  )
  if vision.image_size % (vision.patch_size * connector.factor):
    raise UserError(
      f"{where}: tiles of {vision.image_size} pixels are no multiple of patches of {vision.patch_size} pixels"
      f" times the connector's {connector.factor}"
    )
  return dataclasses.replace(
    config, family=family_of(source, where), vision=vision, connector=connector, source=source
  )


def _eye(
  part: Mapping[str, Any], tile: Mapping[str, Any], own: VisionConfig, attention: str, where: str
) -> joined.Eye:
  """One entry of `encoders`: an encoder that stands alone, or a tower, of the base without a config."""
  name, source = part["family"], group(part, "config", where)
  if not name.endswith("/vision"):
    vision = encoder_config(source, dtype="float32", attention=attention, where=where).vision
  elif source:
    tower = FAMILIES[name.removesuffix("/vision")]
    vision = tower.parse_config(source, dtype="float32", attention=attention, where=where).vision
  else:
    vision = own
  colours = zip(tile["mean"], tile["std"], part["mean"], part["std"], strict=True)
  affine = [(std / own_std, (mean - own_mean) / own_std) for mean, std, own_mean, own_std in colours]
  return joined.Eye(name, vision, *map(tuple, zip(*affine, strict=True)))


def family_of(source: Mapping[str, Any], where: str) -> str:
  """The family of a config.json: its `model_type`, or which of two that share one.

  Raises:
    UserError: an architecture that is not known, with those that are.
  """
  kind = source.get("model_type")
  if kind == "paligemma":
    return paligemma.family(source)
  if kind == JOINED:
    return _joined_family(source, where)
  if kind in FAMILIES:
    return kind
  if _encoder_of(source):
    raise UserError(
      f"{where}: {kind!r} is a vision encoder, where a vision-language model is wanted"
      f" ({', '.join(_TYPES)}); `load_encoder` reads it"
    )
  raise UserError(f"{where}: unknown architecture {kind!r}; supported: {', '.join(_TYPES)}")


def _joined_family(source: Mapping[str, Any], where: str) -> str:
  parts = source.get("encoders")
  if not isinstance(parts, list) or not parts:
    raise UserError(f"{where}: encoders: expected a list of encoders, got {parts!r}")
  for part in parts:
    if not isinstance(part, Mapping) or part.get("family") not in CHECKPOINTS:
      raise UserError(f"{where}: encoders: {part!r} is none that is known")
    if not {"mean", "std"} <= set(part):
      raise UserError(f"{where}: encoders: {part['family']} has no mean and std of its pixels")
  if not {"size", "mean", "std"} <= set(group(source, "tile", where)):
    raise UserError(f"{where}: tile: size, mean and std of a tile are wanted, got {source.get('tile')!r}")
  base = family_of(group(source, "base", where), f"{where}: base")
  return "+".join([base, *(part["family"] for part in parts)])


def encoder_config(source: Mapping[str, Any], *, dtype: str, attention: str, where: str) -> EncoderConfig:
  """Reads the config.json of a vision encoder, or of a model of two towers that holds one.

  Raises:
    UserError: an architecture that is not known, with those that are; what its reader raises.
  """
  family = _encoder_of(source)
  if family is None:
    known = sorted({name.removesuffix("-swiglu") for name in ENCODERS} | set(_TYPES))
    raise UserError(
      f"{where}: unknown encoder {source.get('model_type')!r}; supported: {', '.join(known)} (of a"
      " vision-language model its vision tower)"
    )
  if source["model_type"] in ("siglip", "clip"):
    source = group(source, "vision_config", where)
    where = f"{where}: vision_config"
  source = {**source, "model_type": ENCODERS[family].hf_type} | ENCODERS[family].extra
  vision = ENCODERS[family].parse_config(source, attention, where)
  return EncoderConfig(family, vision, dtype, source)


def _encoder_of(source: Mapping[str, Any]) -> str | None:
  kind = str(source.get("model_type"))
  name = kind.removesuffix("_vision_model")
  if name.startswith("dinov2") and source.get("use_swiglu_ffn"):
    name += "-swiglu"
  return name if name in ENCODERS else None
