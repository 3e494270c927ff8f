"""What other libraries write where weights in full are wanted: quantised ones, or formats of their own.

Each is named, with what to load instead; nothing of it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spatialvlm import config

# Files that older versions write beside a config.json that says nothing.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
# Tensors that stand in place of a weight.
_TENSORS = {
  r".*\.(qweight|qzeros|g_idx)": "gptq or awq",
  r".*\.(SCB|weight\.(absmax|quant_map|quant_state\..*))": "bitsandbytes",
  r".*\.weight_(scale|scale_inv|packed|zero_point)": "compressed-tensors or fp8",
  r".*\.scales": "mlx",
}
_FORMATS = {
  "ONNX": ("*.onnx", "onnx/*.onnx"),
  "OpenVINO": ("openvino*.xml", "openvino/*.xml"),
  "Core ML": ("*.mlpackage", "*.mlmodel", "coreml/*"),
  "TensorFlow": ("*.h5", "saved_model.pb"),
  "LiteRT": ("*.tflite",),
  "StableHLO": ("*.exported", "*.mlir"),
  "Flax": ("*.msgpack",),
  "TensorRT": ("*.engine", "*.plan"),
  "NumPy": ("*.npz",),
}


def quantised(folder: Path) -> str:
  """How a folder's weights are quantised, as its files say: such as "gptq, 4 bits"; "" where they are not."""
  file = folder / "config.json"
  source = config.read_json(file, missing="a model folder needs it") if file.is_file() else {}
  for part in (source, *(value for key, value in source.items() if key.endswith("_config"))):
    if isinstance(part, Mapping) and (kind := _said(part)):
      return kind
  return next((kind for name, kind in _FILES.items() if (folder / name).is_file()), "")


def quantised_tensors(names: Iterable[str]) -> str:
  """The same by the names of the tensors, where no file says it."""
  found = (kind for name in names for pattern, kind in _TENSORS.items() if re.fullmatch(pattern, name))
  return next(found, "")


def refusal(folder: Path, kind: str) -> str:
  """What is said of quantised weights."""
  return (
    f"{folder}: its weights are quantised ({kind}), which is not supported here; name the model that they "
    "were made from, or write it out in full by transformers' dequantize() and save_pretrained()"
  )


def other_format(folder: Path) -> str:
  """Which other formats a folder without weights of ours holds, `; it holds ONNX (model.onnx) ...`, or ""."""
  found = []
  for kind, patterns in _FORMATS.items():
    if files := sorted(file for pattern in patterns for file in folder.glob(pattern)):
      found.append(f"{kind} ({files[0].relative_to(folder)})")
  if not found:
    return ""
  return f"; it holds {', '.join(found)}, which is not read: name the repository that it was made from"


def _said(part: Mapping[str, Any]) -> str:
  said = part.get("quantization_config")
  if isinstance(said, Mapping) and said.get("quant_method"):
    method = said["quant_method"]
  elif isinstance(said, Mapping) and "load_in_4bit" in said:
    method = "bitsandbytes"
  elif isinstance(quick := part.get("quantization"), Mapping) and quick:
    said, method = quick, "mlx"
  elif isinstance(said, Mapping) and said:
    method = "method not named"
  else:
    return ""
  bits = 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else said.get("bits")
  return f"{method}, {bits} bits" if bits else str(method)
