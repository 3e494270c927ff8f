"""A model as GGUF files: `language.gguf`, and of one with eyes `mmproj.gguf`, for llama.cpp and its mtmd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spatialvlm import peft, priors
from spatialvlm.core.quantised import formats
from spatialvlm.export import whole
from spatialvlm.export.exporter import Exportable, no_merging
from spatialvlm.hub import contents
from spatialvlm.hub.gguf import language, sight, tokens, vision, writing
from spatialvlm.hub.gguf.numbers import Numbers
from spatialvlm.models.vlm import Vlm
from spatialvlm.processing import layouts, mtmd
from spatialvlm.processing.processor import Processor, load_processor
from spatialvlm.processing.prompts import ChatTemplate
from spatialvlm.processing.served import served
from spatialvlm.processing.tilers import CropTiler, Idefics3Tiler
from spatialvlm.types import UserError

LANGUAGE, EYES = "language.gguf", "mmproj.gguf"
# What mtmd looks for by its text, and how texts around pictures are written there.
_SINGLE = {"idefics3": ("\n", "\n\n", "<fake_token_around_image>", "<global-img>")}


def why_not(vlm: Vlm) -> str | None:
  """Why llama.cpp could not run a model as it is here; None where it can."""
  config = vlm.config
  if told := ", ".join(priors.configs_of(vlm)):
    return f"llama.cpp knows no priors ({told}), which are added to this model's image tokens"
  eyes = vision.why_not(config) if config.vision is not None else None
  return eyes or language.why_not(config) or no_merging(vlm)


def write(model: Exportable, folder: Path) -> Path:
  """Writes the files, all of them or none.

  Raises:
    UserError: a tokenizer, image settings or numbers that cannot be written, or a full disk.
  """
  if kinds := ", ".join(formats(model.vlm)):
    contents.note(
      f"{folder}: the base is kept in {kinds}; what is written are its decoded weights, adapters merged"
    )
  vlm, processor = peft.merge(model.vlm), whole.read_processor(model)
  files: dict[str, Callable[[Path], None]] = {
    LANGUAGE: lambda file: write_language(vlm, model, processor, file),
  }
  if vlm.config.vision is not None:
    check_prompts(processor, model)
    files[EYES] = lambda file: write_eyes(vlm, model, processor, file)
  return whole.write_files(files, folder)


def write_language(vlm: Vlm, model: Exportable, processor: Processor, file: Path) -> None:
  """One file of the language model with its tokenizer and the chat template that a server needs."""
  said: Numbers = model.numbers
  out = writing.new_keys(language.kind_of(vlm.config), "model")
  tensors = language.tensors(vlm, said)
  writing.describe(out, model.folder, Path(model.base).name, tensors)
  language.keys(out, vlm.config, said)
  tokens.keys(out, model.folder, vlm.config.text.vocab_size, _template(processor, model))
  writing.write(file, out, tensors)


def write_eyes(vlm: Vlm, model: Exportable, processor: Processor, file: Path) -> None:
  """One file of the vision tower and the projector."""
  said: Numbers = model.numbers
  out = writing.new_keys("clip", "mmproj")
  tensors = vision.tensors(vlm, said)
  writing.describe(out, model.folder, Path(model.base).name, tensors)
  vision.keys(out, vlm.config, _picture(processor, vlm, model), said)
  if model.trained is not None and model.trained.layout != layouts.OWN:
    out.add_string(sight.LAYOUT, model.trained.layout)
  writing.write(file, out, tensors)


def check_prompts(processor: Processor, model: Exportable) -> None:
  """Tells the user how pictures will be shown otherwise than in training; see `processing.mtmd`.

  Raises:
    UserError: a tokenizer whose pieces mtmd does not find.
  """
  family = "idefics3" if isinstance(processor.tiler, Idefics3Tiler) else "internvl"
  for text in _SINGLE.get(family, ()):
    if len(processor.word_ids(text)) != 1:
      raise UserError(
        f"{model.folder}: mtmd wants {text!r} to be one token, and this tokenizer has none of it"
      )
  if differs := mtmd.difference(processor.tiler, _deployed(processor, model)):
    contents.note(
      f"{model.base}: llama.cpp shows pictures otherwise than this model was trained with: {differs}; train"
      " and score it with model.layout=mtmd (docs/edge.md)"
    )


def _deployed(processor: Processor, model: Exportable):
  """mtmd's tiler, as near to the model's own as mtmd can be told."""
  tiler = processor.tiler
  if isinstance(tiler, (mtmd.MtmdGrid, mtmd.MtmdCrops)):
    return tiler
  kept: dict[str, Any] = {}
  if model.trained is not None:
    kept = {"longest_edge": model.trained.longest_edge}
    if isinstance(tiler, Idefics3Tiler):
      kept["split_images"] = model.trained.split_images
    if tiler.max_tiles is not None and tiler.max_tiles > 1:
      kept["max_tiles"] = tiler.max_tiles
    elif tiler.max_tiles == 1 and isinstance(tiler, Idefics3Tiler):
      kept["split_images"] = False  # one tile: a grid of one, and the whole
  return load_processor(model.folder, layout="mtmd", **kept).tiler


def _picture(processor: Processor, vlm: Vlm, model: Exportable) -> vision.Picture:
  tiler = _deployed(processor, model)
  if tiler.tile_size != vlm.config.vision.image_size:
    raise UserError(
      f"{model.folder}: tiles of {tiler.tile_size} pixels before a tower of {vlm.config.vision.image_size};"
      " llama.cpp cuts tiles as large as the tower's"
    )
  if tiler.rescale is None or abs(tiler.rescale * 255 - 1) > 1e-6:
    raise UserError(f"{model.folder}: rescale_factor {tiler.rescale}; llama.cpp divides pixels by 255")
  mean, std = tiler.mean or (0.0,) * 3, tiler.std or (1.0,) * 3
  if isinstance(tiler, CropTiler):
    return vision.Picture(mean, std, tiles=(1, tiler.max_patches))
  return vision.Picture(mean, std, edge=tiler.longest_edge)


def _template(processor: Processor, model: Exportable) -> str | None:
  template = processor.template
  if not isinstance(template, ChatTemplate):
    return None
  if not processor.sees:
    return template.source
  source, differs = served(template, processor.format.mark)
  if differs:
    contents.note(
      f"{model.base}: its chat template gives other prompts within llama.cpp's server ({differs!r}); send"
      " whole prompts to /completion, or mend the template"
    )
  return source
