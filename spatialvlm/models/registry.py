"""From a config.json, or the name of a family, to what reads it; models with other encoders among them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from spatialvlm.models import joined, paligemma, smolvlm
from spatialvlm.models.connector import ConnectorConfig
from spatialvlm.models.encoders import EncoderConfig, VisionConfig
from spatialvlm.models.families import CHECKPOINTS, ENCODERS, FAMILIES, Checkpoint, Family
from spatialvlm.models.fields import activation, group, linear, norm, number, under, whole
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError

# `model_type` of a model whose encoder was replaced, which no other library knows.
JOINED = "spatialvlm"
_TYPES = sorted({family.hf_type for family in FAMILIES.values()})
_WITH_SIGHT = sorted({family.hf_type for family in FAMILIES.values() if family.vision})


@functools.cache
def family(name: str) -> Family:
  """A family by its key; `BASE+ENCODER`, `BASE+ENCODER+ENCODER`...: that of a model with other encoders.

  Its decoder's tensors have the base's names, an encoder's its own behind `encoders.NUMBER.`.
  """
  if name in FAMILIES:
    return FAMILIES[name]
  base, *parts = name.split("+")
  rules = [rule for rule in FAMILIES[base].rules if rule[1].startswith("decoder.")]
  for place, part in enumerate(parts):
    rules += under(f"encoders.{place}.", f"vision.encoders.{place}.", CHECKPOINTS[part].rules)
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


def _parse_joined(source: Mapping[str, Any], *, dtype: str, where: str) -> VlmConfig:
  """Reads a config.json of `model_type` spatialvlm; docs/eyes.md says what it holds."""
  base = group(source, "base", where)
  config = FAMILIES[family_of(base, f"{where}: base")].parse_config(base, dtype=dtype, where=f"{where}: base")
  tile, parts = group(source, "tile", where), source["encoders"]
  parts = tuple(_part(part, tile, config.vision, f"{where}: encoders[{i}]") for i, part in enumerate(parts))
  vision = joined.JoinedConfig(parts, whole(tile, "size", 0, f"{where}: tile"))
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


def _part(
  part: Mapping[str, Any], tile: Mapping[str, Any], own: VisionConfig, where: str
) -> joined.JoinedPart:
  """One entry of `encoders`: an encoder that stands alone, or a tower, of the base without a config."""
  name, source = part["family"], group(part, "config", where)
  if not name.endswith("/vision"):
    vision = encoder_config(source, dtype="float32", where=where).vision
  elif source:
    tower = FAMILIES[name.removesuffix("/vision")]
    vision = tower.parse_config(source, dtype="float32", where=where).vision
  else:
    vision = own
  colours = zip(tile["mean"], tile["std"], part["mean"], part["std"], strict=True)
  affine = [(std / own_std, (mean - own_mean) / own_std) for mean, std, own_mean, own_std in colours]
  return joined.JoinedPart(name, vision, *map(tuple, zip(*affine, strict=True)))


def family_of(source: Mapping[str, Any], where: str) -> str:
  """The family of a config.json: its `model_type`, or which of two that share one.

  Raises:
    UserError: an architecture that is not known, with those that are.
  """
  kind = source.get("model_type")
  if kind == "paligemma":
    return paligemma.family(source)
  if kind == "smolvlm":
    return smolvlm.family(source)
  if kind == JOINED:
    return _joined_family(source, where)
  if kind in FAMILIES:
    return kind
  if _encoder_of(source):
    raise UserError(
      f"{where}: {kind!r} is a vision encoder, where a vision-language or language model is wanted"
      f" ({', '.join(_TYPES)}); `load_encoder` reads it, and --to=onnx-encoder writes it as ONNX"
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


def encoder_config(source: Mapping[str, Any], *, dtype: str, where: str) -> EncoderConfig:
  """Reads the config.json of a vision encoder, or of a model of two towers that holds one.

  Raises:
    UserError: an architecture that is not known, with those that are; what its reader raises.
  """
  family = _encoder_of(source)
  if family is None:
    known = sorted({name.removesuffix("-swiglu") for name in ENCODERS} | set(_WITH_SIGHT))
    if "model_type" not in source and "architecture" in source:
      raise UserError(
        f"{where}: a model of timm ({source['architecture']}), which is not read; name the same weights as"
        f" transformers has them; supported: {', '.join(known)}"
      )
    raise UserError(
      f"{where}: unknown encoder {source.get('model_type')!r}; supported: {', '.join(known)} (of a"
      " vision-language model its vision tower)"
    )
  if source["model_type"] in ("siglip", "clip"):
    source = group(source, "vision_config", where)
    where = f"{where}: vision_config"
  source = {**source, "model_type": ENCODERS[family].hf_type} | ENCODERS[family].extra
  vision = ENCODERS[family].parse_config(source, where)
  return EncoderConfig(family, vision, dtype, source)


def _encoder_of(source: Mapping[str, Any]) -> str | None:
  kind = str(source.get("model_type"))
  name = kind.removesuffix("_vision_model")
  if name.startswith("dinov2") and source.get("use_swiglu_ffn"):
    name += "-swiglu"
  return name if name in ENCODERS else None
