"""Eyes out of a GGUF file (mmproj) beside a language model's: what `vision` writes, read back.

The two become one model of the family that the projector tells: its config.json, its processor's files, and
the tensors of both by the names that they have in such a checkpoint.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from spatialvlm.hub import pictures, rules
from spatialvlm.hub.gguf.file import PLAIN, GgufEntry, Header
from spatialvlm.hub.gguf.vision import ALONE, PROJECTORS, TOWER, USUAL_TILES
from spatialvlm.types import UserError

# A key of ours: the layout of pictures that the model was trained in, where that is not the checkpoint's own.
LAYOUT = "spatialvlm.layout"
_AT = "clip.vision."
_LANCZOS, _BICUBIC = 1, 3
# Projector -> family, its mark of a picture, and what stands before a causal language model's names.
_FAMILIES = {
  "idefics3": ("smolvlm", "<image>", {"model.": "model.text_model.", "lm_head.": "lm_head."}),
  "internvl": (
    "internvl",
    "<IMG_CONTEXT>",
    {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
  ),
}


def is_sight(header: Header) -> bool:
  """Whether a file holds eyes rather than a language model."""
  return header.keys.get("general.architecture") == "clip"


def projector(header: Header) -> str:
  """The projector's name.

  Raises:
    UserError: one that is not read.
  """
  name = header.key("clip.projector_type", str)
  if name not in _FAMILIES:
    known = ", ".join(_FAMILIES)
    raise UserError(f"{header.file}: eyes of the kind {name!r}, which are not read (known: {known})")
  return name


def files(header: Header, text: Mapping[str, Any], words: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
  """Of both files together: config.json, and the image processor's files.

  Args:
    text: config.json of the language model. words: its tokenizer's files.

  Raises:
    UserError: a key that is missing, or a vocabulary without the family's mark of a picture.
  """
  kind = projector(header)
  family, mark, _ = _FAMILIES[kind]
  added = {token["content"]: token["id"] for token in words["tokenizer.json"]["added_tokens"]}
  if mark not in added:
    raise UserError(f"{header.file}: the language model beside it has no token {mark}; it belongs to another")
  size, patch, factor = (
    _whole(header, key) for key in ("image_size", "patch_size", "projector.scale_factor")
  )
  vision = {
    "hidden_size": _whole(header, "embedding_length"),
    "intermediate_size": _whole(header, "feed_forward_length"),
    "num_hidden_layers": _whole(header, "block_count"),
    "num_attention_heads": _whole(header, "attention.head_count"),
    "image_size": size,
    "patch_size": patch,
    "layer_norm_eps": float(str(np.float32(header.keys.get(f"{_AT}attention.layer_norm_epsilon", 1e-6)))),
  }
  ids = words["generation_config.json"]
  config = {"image_token_id": added[mark], "tie_word_embeddings": text["tie_word_embeddings"], **ids}
  config |= {"text_config": dict(text), "dtype": "float32"}
  images = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 1 / 255,
    "image_mean": _three(header, "image_mean"),
    "image_std": _three(header, "image_std"),
  }
  make = _smolvlm if family == "smolvlm" else _internvl
  own, shown, outer = make(header, vision, size, (size // patch // factor) ** 2, factor)
  written = {
    "config.json": config | own,
    "preprocessor_config.json": images | shown,
    "processor_config.json": outer,
  }
  layout = header.key(LAYOUT, str)
  return written if layout is None else written | {pictures.FILE: {"layout": layout}}


def _smolvlm(header: Header, vision: dict, size: int, tokens: int, factor: int) -> tuple[dict, dict, dict]:
  vision |= {"model_type": "smolvlm_vision", "hidden_act": "gelu_pytorch_tanh"}
  edge = header.key(f"{_AT}preproc_image_size", int, size)
  own = {
    "model_type": "smolvlm",
    "architectures": ["SmolVLMForConditionalGeneration"],
    "scale_factor": factor,
    "vision_config": vision,
  }
  shown = {
    "image_processor_type": "SmolVLMImageProcessor",
    "do_image_splitting": True,
    "do_pad": True,
    "resample": _LANCZOS,
    "size": {"longest_edge": edge},
    "max_image_size": {"longest_edge": size},
  }
  return own, shown, {"processor_class": "SmolVLMProcessor", "image_seq_len": tokens}


def _internvl(header: Header, vision: dict, size: int, tokens: int, factor: int) -> tuple[dict, dict, dict]:
  vision |= {
    "model_type": "internvl_vision",
    "hidden_act": "silu" if header.keys.get("clip.use_silu") else "gelu",
    "attention_bias": "v.blk.0.attn_q.bias" in header.tensors,
  }
  least, most = (
    header.key(f"{_AT}preproc_{which}_tiles", int, usual)
    for which, usual in zip(("min", "max"), USUAL_TILES, strict=True)
  )
  own = {
    "model_type": "internvl",
    "architectures": ["InternVLForConditionalGeneration"],
    "downsample_ratio": 1 / factor,
    "image_seq_length": tokens,
    "vision_config": vision,
  }
  shown = {
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "crop_to_patches": True,
    "resample": _BICUBIC,
    "size": {"height": size, "width": size},
    "min_patches": least,
    "max_patches": most,
  }
  return own, shown, {"processor_class": "InternVLProcessor", "image_seq_length": tokens}


def entries(header: Header) -> dict[str, GgufEntry]:
  """The tensors of tower and projector by their names in a checkpoint, none of them read yet.

  Raises:
    UserError: tensors that such eyes do not have.
  """
  kind = projector(header)
  family, made = _FAMILIES[kind][0], PROJECTORS[kind]
  stems = {theirs: ours for ours, theirs in (TOWER | dict(made.connector)).items()}
  alone = {theirs: ours for ours, theirs in ALONE.items()}
  found, unknown = {}, []
  for name, tensor in header.tensors.items():
    path = _path(name, stems, alone)
    theirs = None if path is None else rules.to_hf(path, family)
    if theirs is None:
      unknown.append(name)
      continue
    undo = made.undo.get(name)
    dtype = PLAIN.get(tensor.quant, "F32")
    found[theirs] = GgufEntry(
      header.file, dtype, tensor.shape, tensor.start, tensor.count, tensor.quant, undo
    )
  if unknown:
    raise UserError(
      f"{header.file}: tensors that {kind} does not have here: {', '.join(sorted(unknown)[:6])}"
    )
  return found


def beside(found: Mapping[str, GgufEntry], header: Header) -> dict[str, GgufEntry]:
  """A language model's tensors by the names that they have beside these eyes."""
  prefixes = _FAMILIES[projector(header)][2]
  named = lambda name: next(
    new + name.removeprefix(old) for old, new in prefixes.items() if name.startswith(old)
  )
  return {named(name): dataclasses.replace(entry) for name, entry in found.items()}


def _path(name: str, stems: Mapping[str, str], alone: Mapping[str, str]) -> str | None:
  """Our path of a tensor."""
  number = re.search(r"\.blk\.(\d+)\.", name)
  general = name if number is None else name.replace(number[0], ".blk.{i}.", 1)
  found = alone.get(general)
  stem, _, part = general.rpartition(".")
  if found is None and stem in stems:
    weight = "scale" if re.search(r"norm$", stems[stem]) else "kernel"
    found = f"{stems[stem]}.{weight if part == 'weight' else part}"
  return found if found is None or number is None else found.replace("{i}", number[1])


def _whole(header: Header, key: str) -> int:
  value = header.key(f"{_AT}{key}", int)
  if not value or value < 1:
    raise UserError(f"{header.file}: holds no {_AT}{key}; the file is damaged")
  return value


def _three(header: Header, key: str) -> list[float]:
  value = header.keys.get(f"{_AT}{key}")
  if not isinstance(value, list) or len(value) != 3:
    raise UserError(f"{header.file}: holds no {_AT}{key} of three channels; the file is damaged")
  return [float(str(np.float32(number))) for number in value]
