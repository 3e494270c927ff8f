"""The DINOv2 backbone of an ONNX file, as a folder in Hugging Face's format.

PyTorch's exporter keeps the name of a parameter that the graph uses as it is. The weight of a linear layer
is written transposed, under a number, and read by a MatMul node whose name tells the layer; the position
embedding is cut into the class token's and the grid's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.hub.save import write_folder
from spatialvlm.hub.tensors import lazy
from spatialvlm.types import UserError

PREFIX = "backbone."
_PREPROCESSOR = {
  "image_processor_type": "BitImageProcessor",
  "do_convert_rgb": True,
  "do_resize": True,
  "size": {"shortest_edge": 256},
  "resample": 3,
  "do_center_crop": True,
  "crop_size": {"height": 224, "width": 224},
  "do_rescale": True,
  "rescale_factor": 1 / 255,
  "do_normalize": True,
  "image_mean": [0.485, 0.456, 0.406],
  "image_std": [0.229, 0.224, 0.225],
}


def convert(file: Path, folder: Path) -> Path:
  """Writes `folder`, which `load_encoder` and transformers' Dinov2Model read; returns it.

  Raises:
    UserError: the package `onnx` is not installed, or the file holds no such backbone.
  """
  tensors = read_tensors(file)
  config = config_of(tensors, file)
  tensors["embeddings.mask_token"] = np.zeros((1, config["hidden_size"]), np.float32)  # of training alone
  written = {name: lazy(np.ascontiguousarray(array)) for name, array in sorted(tensors.items())}
  return write_folder(config, written, folder, None, {"preprocessor_config.json": _PREPROCESSOR})


def read_tensors(file: Path) -> dict[str, np.ndarray]:
  """The backbone's parameters by the names of transformers' Dinov2Model, but for the mask token."""
  try:
    import onnx
    from onnx import numpy_helper
  except ImportError:
    raise UserError(f"{file}: reading ONNX needs the package onnx; pip install 'spatialvlm[real]'") from None
  try:
    graph = onnx.load(str(file)).graph
  except Exception as error:  # protobuf's own, of no common kind
    raise UserError(f"{file}: no ONNX file ({type(error).__name__}); fetch it again") from None
  stored = {tensor.name: tensor for tensor in graph.initializer}
  found = {
    name.removeprefix(PREFIX): numpy_helper.to_array(tensor)
    for name, tensor in stored.items()
    if name.startswith(PREFIX)
  }
  cut: dict[tuple[int, ...], np.ndarray] = {}
  for node in graph.node:
    for name in node.input:
      if name not in stored or not node.name.startswith("/" + PREFIX.rstrip(".")):
        continue
      layer = node.name.strip("/").split("/")[1:-1]
      array = numpy_helper.to_array(stored[name])
      if node.op_type == "MatMul":
        found[".".join([*layer, "weight"])] = array.T
      elif layer == ["embeddings"] and array.ndim == 3 and not name.startswith(PREFIX):
        cut[array.shape] = array
  grids = [array for shape, array in cut.items() if shape[1] > 1]
  own = [array for shape, array in cut.items() if shape[1] == 1]
  if len(grids) == len(own) == 1:
    found["embeddings.position_embeddings"] = np.concatenate([own[0], grids[0]], axis=1)
  return found


def config_of(tensors: Mapping[str, np.ndarray], file: Path) -> dict[str, Any]:
  """The config.json that the shapes tell; heads are 64 wide, as in every published DINOv2.

  Raises:
    UserError: a tensor is missing.
  """
  try:
    width = tensors["layernorm.weight"].shape[0]
    patch = tensors["embeddings.patch_embeddings.projection.weight"].shape[-1]
    side = round((tensors["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    inner = tensors["encoder.layer.0.mlp.fc1.weight"].shape[0]
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer.")}
    for layer in layers:
      for part in ("attention.attention.query", "attention.output.dense", "mlp.fc1", "mlp.fc2"):
        tensors[f"encoder.layer.{layer}.{part}.weight"]
  except KeyError as error:
    raise UserError(f"{file}: holds no DINOv2 backbone; {json.dumps(error.args[0])} is not in it") from None
  return {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": width,
    "num_hidden_layers": len(layers),
    "num_attention_heads": width // 64,
    "mlp_ratio": inner // width,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": side * patch,
    "patch_size": patch,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
  }
