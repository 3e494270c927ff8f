"""The families of models that there are processors for, and which of them a folder's files belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from spatialvlm.config import read_json
from spatialvlm.processing import language, prompts, tilers
from spatialvlm.processing.processor_files import group
from spatialvlm.processing.prompts import PromptFormat
from spatialvlm.processing.tiling import TileOptions, Tiler
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class Files:
  """JSON files of a folder, each empty where it is missing.

  Attributes:
    config: config.json; of a model whose encoder was replaced, its base's.
    outer: processor_config.json.
    inner: the image processor's part of it, or else preprocessor_config.json.
    tile: of a model whose encoder was replaced: `size` in pixels, and `tokens` that it makes; else None.
  """

  folder: Path
  config: Mapping[str, Any]
  outer: Mapping[str, Any]
  inner: Mapping[str, Any]
  tile: Mapping[str, Any] | None = None

  @classmethod
  def read(cls, folder: Path) -> Files:
    """Raises a UserError where a file is broken."""
    outer = read_json(folder / "processor_config.json")
    inner = outer.get("image_processor") or read_json(folder / "preprocessor_config.json")
    config = read_json(folder / "config.json")
    if config.get("model_type") == "spatialvlm":
      base, tile = (group(config, key, folder) for key in ("base", "tile"))
      return cls(folder, base, outer, inner, tile)
    return cls(folder, config, outer, inner)


Names = Mapping[str, str]
Dialogue = Callable[["Family", str | None, Tokenizer, Names, str], tuple[PromptFormat, prompts.Template]]


def _chat(family: Family, template: str | None, tokenizer: Tokenizer, names: Names, where: str):
  """Prompts come from the checkpoint's chat template."""
  if template is None:
    raise UserError(f"{where}: no chat template; copy the base model's chat_template.jinja there")
  return family.format, prompts.ChatTemplate(template, names, where)


def _prefixes(family: Family, template: str | None, tokenizer: Tokenizer, names: Names, where: str):
  """PaliGemma's; its processor also adds tokens."""
  tokenizer.add_tokens(list(prompts.PALIGEMMA_PLACES))
  return family.format, prompts.PrefixTemplate(where)


def _texts(family: Family, template: str | None, tokenizer: Tokenizer, names: Names, where: str):
  return language.dialogue(template, tokenizer, names, where)


@dataclasses.dataclass(frozen=True)
class Family:
  """One family's ways.

  Attributes:
    model_types: of config.json.
    image_processors: their names in transformers, without the suffixes Fast and Pil.
    tiler: (image settings, where, options, image processor's name) -> Tiler.
    made: (tile size, files) -> image tokens of a tile by config.json, None where that does not say.
    said: files -> that number by its names where the files repeat it; None where one does not.
    tokens: that number where no file says it.
    dialogue: (family, source of the folder's chat template or None, tokenizer, special tokens, where) -> form
      and template of its texts.
    images: it reads them.
    padding_side, context: where the files name none.
  """

  format: PromptFormat
  model_types: tuple[str, ...]
  image_processors: tuple[str, ...]
  tiler: Callable[[Mapping[str, Any], str, TileOptions, str], Tiler]
  made: Callable[[int, Files], int | None]
  said: Callable[[Files], dict[str, Any]]
  tokens: int
  dialogue: Dialogue = _chat
  images: bool = True
  padding_side: str = "right"
  context: int | None = None

  def tokens_per_tile(self, tile_size: int, files: Files) -> int:
    """Image tokens of one tile.

    Raises:
      UserError: files that name different numbers, or none that can be.
    """
    if files.tile is not None:
      if files.tile.get("size") != tile_size or not isinstance(files.tile.get("tokens"), int):
        raise UserError(
          f"{files.folder}: config.json was made for tiles of {files.tile.get('size')!r} pixels, but the"
          f" processor's have {tile_size}; restore the files that came with it"
        )
      return files.tile["tokens"]
    made = self.made(tile_size, files)
    said = {name: number for name, number in self.said(files).items() if number is not None}
    wanted = made if made is not None else next(iter(said.values()), self.tokens)
    for name, number in said.items():
      if number != wanted:
        raise UserError(
          f"{files.folder}: {name} {number}, but tiles of {tile_size} pixels make {wanted} tokens by"
          " config.json; correct one of them"
        )
    return wanted


def _idefics3_tokens(tile_size: int, files: Files) -> int | None:
  vision = group(files.config, "vision_config", files.folder)
  if "patch_size" not in vision:
    return None
  patch, factor = vision["patch_size"], files.config.get("scale_factor", 2)
  if not all(isinstance(n, int) and n > 0 for n in (patch, factor)):
    raise UserError(
      f"{files.folder}/config.json: patch_size {patch!r} and scale_factor {factor!r} must be numbers"
    )
  return (tile_size // patch // factor) ** 2


def _internvl_tokens(tile_size: int, files: Files) -> int | None:
  vision = group(files.config, "vision_config", files.folder)
  if "patch_size" not in vision:
    return None
  patch, ratio = _one(vision["patch_size"]), files.config.get("downsample_ratio", 0.5)
  if not (isinstance(patch, int) and patch > 0 and isinstance(ratio, (int, float)) and 0 < ratio <= 1):
    raise UserError(
      f"{files.folder}/config.json: patch_size {vision['patch_size']!r} must be one number of pixels, and"
      f" downsample_ratio {ratio!r} lie between 0 and 1"
    )
  side = tile_size // patch * ratio
  if tile_size % patch or side != int(side):
    raise UserError(
      f"{files.folder}: tiles of {tile_size} pixels make no whole number of patches of {patch} pixels, or one"
      f" that downsample_ratio {ratio} does not divide; correct size in preprocessor_config.json"
    )
  return int(side) ** 2


def _paligemma_tokens(tile_size: int, files: Files) -> int | None:
  vision = group(files.config, "vision_config", files.folder)
  if not files.config:
    return None
  patch = vision.get("patch_size", 14)  # what transformers' PaliGemmaConfig takes
  trained = _one(vision.get("image_size", 224))
  if tile_size != trained and files.tile is None:
    raise UserError(
      f"{files.folder}: the processor makes images of {tile_size} pixels, but config.json says image_size"
      f" {trained!r} of its vision_config; copy the processor files of the model there"
    )
  if not isinstance(patch, int) or patch < 1 or tile_size % patch:
    raise UserError(
      f"{files.folder}: tiles of {tile_size} pixels make no whole number of patches of {patch!r} pixels;"
      " correct size in preprocessor_config.json"
    )
  return (tile_size // patch) ** 2


def _idefics3_said(files: Files) -> dict[str, Any]:
  return {"processor_config.json says image_seq_len": files.outer.get("image_seq_len")}


def _internvl_said(files: Files) -> dict[str, Any]:
  return {
    "processor_config.json says image_seq_length": files.outer.get("image_seq_length"),
    "config.json says image_seq_length": files.config.get("image_seq_length"),
  }


def _paligemma_said(files: Files) -> dict[str, Any]:
  # num_image_tokens of config.json is not asked: transformers overwrites it by the sizes of image and patch.
  return {"preprocessor_config.json says image_seq_length": files.inner.get("image_seq_length")}


FAMILIES = (
  Family(
    format=prompts.SMOLVLM,
    model_types=("smolvlm", "idefics3"),
    image_processors=("SmolVLMImageProcessor", "Idefics3ImageProcessor"),
    tiler=tilers.idefics3_tiler,
    made=_idefics3_tokens,
    said=_idefics3_said,
    tokens=169,
  ),
  Family(
    format=prompts.INTERNVL,
    model_types=("internvl",),
    image_processors=("GotOcr2ImageProcessor",),
    tiler=tilers.crop_tiler,
    made=_internvl_tokens,
    said=_internvl_said,
    tokens=256,
    padding_side="left",
    context=32768,
  ),
  Family(
    format=prompts.PALIGEMMA,
    model_types=("paligemma",),
    image_processors=("SiglipImageProcessor",),
    tiler=tilers.square_tiler,
    made=_paligemma_tokens,
    said=_paligemma_said,
    tokens=256,
    dialogue=_prefixes,
    padding_side="left",
    context=8192,
  ),
  Family(
    format=language.FORMAT,
    model_types=("llama", "qwen2", "gemma", "gemma2"),
    image_processors=(),
    tiler=language.no_tiler,
    made=lambda tile_size, files: 0,
    said=lambda files: {},
    tokens=0,
    dialogue=_texts,
    images=False,
  ),
)


def family_of(files: Files) -> tuple[Family, str]:
  """The family of a folder, and its image processor's name without suffixes.

  config.json's model_type and the image processor must be of one family; either may be missing.

  Raises:
    UserError: they are not, or one of them is of no family here.
  """
  kind, said = files.config.get("model_type"), files.inner.get("image_processor_type")
  name = str(said or "").removesuffix("Fast").removesuffix("Pil")
  by_model = next((family for family in FAMILIES if kind in family.model_types), None)
  by_images = next((family for family in FAMILIES if name in family.image_processors), None)
  if kind is not None and by_model is None:
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise UserError(f"{files.folder}/config.json: unknown architecture {kind!r}; supported: {known}")
  if not files.inner and (by_model is None or by_model.images):
    raise UserError(
      f"{files.folder}: no preprocessor_config.json; copy the base model's processor files there"
    )
  if said is not None and by_images is None:
    known = ", ".join(name for family in FAMILIES for name in family.image_processors)
    raise UserError(f"{files.folder}: image processor {said!r} is not one of {known}")
  if by_model is not None and by_images is not None and by_model is not by_images:
    raise UserError(
      f"{files.folder}: config.json says model_type {kind!r} ({by_model.format.family}), but the image"
      f" processor is {said} ({by_images.format.family}); copy the processor files of the model there"
    )
  family = by_model or by_images or FAMILIES[0]
  return family, name or next(iter(family.image_processors), "")


def _one(value: Any) -> Any:
  """A side that may stand for itself or for two of the same length."""
  if isinstance(value, (list, tuple)) and len(set(value)) == 1:
    return value[0]
  return value
