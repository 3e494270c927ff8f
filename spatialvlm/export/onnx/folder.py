"""A model as the folder that transformers.js and onnxruntime run: `onnx/*.onnx` beside the usual files.

Of a model with eyes `vision_encoder`, `embed_tokens` and `decoder_model_merged`, of a language model by
itself `model`; each once for every form of numbers, told apart by the suffix of its name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spatialvlm import peft, priors
from spatialvlm.core.quantised import formats
from spatialvlm.export import whole
from spatialvlm.export.exporter import Exportable, no_merging
from spatialvlm.export.onnx import graph as graphs
from spatialvlm.export.onnx import language, sight
from spatialvlm.export.onnx.numbers import FORMS, Form
from spatialvlm.hub import contents
from spatialvlm.hub.resolve import read_json
from spatialvlm.hub.save import COMPANIONS, hf_config
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.processing import mtmd
from spatialvlm.processing.processor import Processor
from spatialvlm.processing.processor_family import Files
from spatialvlm.processing.prompts import ChatTemplate
from spatialvlm.processing.tilers import Idefics3Tiler

# The settings that transformers.js sizes a cache by.
_SIZES = {
  "num_hidden_layers": lambda text: text.depth,
  "hidden_size": lambda text: text.block.width,
  "num_attention_heads": lambda text: text.block.attention.heads,
  "num_key_value_heads": lambda text: text.block.attention.kv_heads,
  "head_dim": lambda text: text.block.attention.head_dim,
}
Build = Callable[[Vlm, Form], language.Built]
_WITH_EYES: Mapping[str, Build] = {
  "vision_encoder": sight.eyes,
  "embed_tokens": language.embedding,
  "decoder_model_merged": language.decoder,
}
_ALONE: Mapping[str, Build] = {"model": language.whole}
# What has eyes, and is run by transformers.js with the graphs that are written here. Eyes are one graph,
# whatever is in it, so that other encoders run as well.
_SEEING = ("smolvlm", "idefics3", "smolvlm-gemma2")


def why_not(vlm: Vlm) -> str | None:
  """Why a model has no such folder; None where it has."""
  config = vlm.config
  if told := ", ".join(priors.configs_of(vlm)):
    return f"transformers.js knows no priors ({told}), which are added to this model's image tokens"
  base = config.family.partition("+")[0]
  if config.vision is not None and base not in _SEEING:
    return f"models of the family {base!r} are not written as ONNX (with eyes: {', '.join(_SEEING)})"
  return no_merging(vlm)


def write(model: Exportable, folder: Path) -> Path:
  """Writes the folder, whole or not at all.

  Raises:
    UserError: the package `onnx` is missing; numbers that a form does not hold, or that are none; a tokenizer
      or image settings that cannot be read; a full disk.
  """
  graphs.library()
  if kinds := ", ".join(formats(model.vlm)):
    contents.note(
      f"{folder}: the base is kept in {kinds}; what is written are its decoded weights, adapters merged"
    )
  vlm, processor = peft.merge(model.vlm), whole.read_processor(model)
  texts = _texts(model, vlm.config, processor)
  beside: dict[str, int] = {}
  files: dict[str, Callable[[Path], None]] = {}
  for name in model.numbers:
    for part, build in (_WITH_EYES if vlm.config.vision is not None else _ALONE).items():
      files[f"onnx/{part}{FORMS[name].suffix}.onnx"] = _graph_writer(vlm, FORMS[name], build, beside)
  for name, text in texts.items():
    files[name] = lambda file, text=text: write_text(file, text)
  config = _config(vlm, model.numbers, processor)
  # Last, since it names what lies beside the graphs.
  files["config.json"] = lambda file: write_text(file, json_text(_told(config, beside)))
  return whole.write_files(files, folder)


def _graph_writer(vlm: Vlm, form: Form, build: Build, beside: dict[str, int]) -> Callable[[Path], None]:
  def write(file: Path) -> None:
    graph, inputs, outputs = build(vlm, form)
    if count := graph.write(file, inputs, outputs):
      beside[file.name] = count

  return write


def write_text(file: Path, text: str) -> None:
  """A whole text file."""
  file.write_text(text, encoding="utf-8")


def json_text(value: Mapping[str, Any]) -> str:
  """As the files of a model's folder are laid out."""
  return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _config(vlm: Vlm, forms: tuple[str, ...], processor: Processor) -> dict[str, Any]:
  """config.json with what transformers.js asks of it, in its words."""
  config, told = hf_config(vlm), vlm.config
  text = {name: of(told.text) for name, of in _SIZES.items()}
  if "+" in told.family:  # other eyes: they are inside of a graph, and the rest is the base's
    config = config["base"] | {"dtype": told.dtype, "scale_factor": told.connector.factor}
    config["vision_config"] = config.get("vision_config", {}) | {
      "image_size": told.vision.image_size,
      "patch_size": told.vision.patch_size,
    }
  if told.vision is None:
    config |= text
  else:
    config["text_config"] = {"model_type": "llama"} | (config.get("text_config") or {}) | text
    config["image_token_id"] = processor.image_id
  halves = {name: "float16" for name in forms if FORMS[name].half}
  return config | {"transformers.js_config": {"kv_cache_dtype": halves} if halves else {}}


def _told(config: dict[str, Any], beside: Mapping[str, int]) -> dict[str, Any]:
  """With how many files of arrays lie beside each graph."""
  key = "transformers.js_config"
  return config | {key: config[key] | {"use_external_data_format": dict(beside)}} if beside else config


def _texts(model: Exportable, config: VlmConfig, processor: Processor) -> dict[str, str]:
  """Tokenizer, processor and generation files by their names, with what transformers.js misses in some."""
  folder = model.folder
  files = {
    name: (folder / name).read_text(encoding="utf-8") for name in COMPANIONS if (folder / name).is_file()
  }
  words = read_json(folder / "tokenizer_config.json") if "tokenizer_config.json" in files else {}
  if isinstance(processor.template, ChatTemplate):
    words = words | {"chat_template": processor.template.source}
  files["tokenizer_config.json"] = json_text(words)
  said = read_json(folder / "generation_config.json") if "generation_config.json" in files else {}
  ends = {"eos_token_id": list(processor.stop_ids), "pad_token_id": processor.pad_id}
  files["generation_config.json"] = json_text(said | ends)
  if config.vision is None:
    return files
  kind = "Idefics3Processor" if config.family.startswith("idefics3") else "SmolVLMProcessor"
  images = dict(Files.read(folder).inner) | _images(model, processor)
  files["preprocessor_config.json"] = json_text(images | {"processor_class": kind})
  files["processor_config.json"] = json_text(
    {"image_seq_len": processor.tokens_per_tile, "processor_class": kind}
  )
  return files


def _images(model: Exportable, processor: Processor) -> dict[str, Any]:
  """How pictures are cut, as near to the model's way as transformers.js can be told; the rest is a note."""
  own = processor.tiler
  theirs = deployed(own)
  if differs := mtmd.difference(own, theirs):
    contents.note(
      f"{model.base}: transformers.js shows pictures otherwise than this model was trained with: {differs}"
      " (docs/edge.md)"
    )
  return {
    "do_image_splitting": theirs.split,
    "max_image_size": {"longest_edge": theirs.tile_size},
    "size": {"longest_edge": theirs.longest_edge},
  }


def deployed(own: Idefics3Tiler) -> Idefics3Tiler:
  """A tiler that has a longest edge alone, the greatest that keeps within the budget of `own`."""
  fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(Idefics3Tiler)}
  plain = Idefics3Tiler(**fields | {"max_tiles": None, "enlarge": True, "direct": False})
  if own.max_tiles is None or not own.split:
    return plain
  size = own.tile_size
  edges = [own.longest_edge, *range((own.longest_edge - 1) // size * size, size, -size)]
  for edge in edges:
    found = dataclasses.replace(plain, longest_edge=edge)
    if found.most_tiles <= own.max_tiles:
      return found
  return dataclasses.replace(plain, split=False)
