"""A vision encoder that stands alone as `onnx/model.onnx`: normalised pixels to `last_hidden_state`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spatialvlm import hub
from spatialvlm.config import ModelConfig
from spatialvlm.export import whole
from spatialvlm.export.exporter import Exportable
from spatialvlm.export.onnx import graph as graphs
from spatialvlm.export.onnx import sight
from spatialvlm.export.onnx.folder import json_text, write_text
from spatialvlm.export.onnx.numbers import FORMS, Form
from spatialvlm.hub.resolve import read_json
from spatialvlm.models.encoders import VisionEncoder
from spatialvlm.processing.resize import resizer_from_config
from spatialvlm.types import UserError

_IMAGES = "preprocessor_config.json"


def find(model: ModelConfig) -> Exportable:
  """The encoder of a folder or hub id; of a vision-language model its tower, without an adapter.

  Raises:
    UserError: as `hub.load_encoder`.
  """
  folder = hub.resolve(model.path, model.revision)
  encoder, _ = hub.load_encoder(folder, dtype=model.dtype)
  return Exportable(encoder, model.path, folder)


def write(model: Exportable, folder: Path) -> Path:
  """Writes the folder, whole or not at all: the graphs, config.json, and how pictures become pixels.

  Raises:
    UserError: the package `onnx` is missing; numbers that a form does not hold; images that are not square,
      or fill no whole patches; a full disk.
  """
  graphs.library()
  side = side_of(model)
  files: dict[str, Callable[[Path], None]] = {}
  beside: dict[str, int] = {}
  for name in model.numbers:
    files[f"onnx/model{FORMS[name].suffix}.onnx"] = _writer(model.vlm, side, FORMS[name], beside)
  source = read_json(model.folder / "config.json")
  config = dict(source.get("vision_config") or source)
  if (model.folder / _IMAGES).is_file():
    text = (model.folder / _IMAGES).read_text(encoding="utf-8")
    files[_IMAGES] = lambda file: write_text(file, text)
  told = lambda: {"transformers.js_config": {"use_external_data_format": beside}} if beside else {}
  files["config.json"] = lambda file: write_text(file, json_text(config | told()))
  return whole.write_files(files, folder)


def side_of(model: Exportable) -> int:
  """Side of the images that the graph reads, in pixels: as the folder's image processor makes them, else the
  tower's own.

  Raises:
    UserError: it makes none that are square, or such as fill no whole patches.
  """
  config, file = model.vlm.config, model.folder / _IMAGES
  side = config.image_size
  if file.is_file():
    output = resizer_from_config(read_json(file), str(file)).output
    if output is None or output[0] != output[1]:
      said = "sizes of their own" if output is None else f"{output[1]} x {output[0]} pixels"
      raise UserError(f"{file}: images come out in {said}, and a graph reads squares; set size and crop_size")
    side = output[0]
  if side % config.patch_size:
    raise UserError(
      f"{model.folder}: images of {side} pixels are no whole number of patches of {config.patch_size};"
      f" correct the size in {_IMAGES}"
    )
  return side


def _writer(encoder: VisionEncoder, side: int, form: Form, beside: dict[str, int]) -> Callable[[Path], None]:
  def write(file: Path) -> None:
    graph, inputs, outputs = sight.encoder(encoder, side, form)
    if count := graph.write(file, inputs, outputs):
      beside[file.name] = count

  return write
