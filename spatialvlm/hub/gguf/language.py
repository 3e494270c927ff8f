"""A model's language part as keys and tensors of a GGUF file, as llama.cpp's own converter makes them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from spatialvlm.hub.gguf import models, numbers
from spatialvlm.hub.gguf.numbers import Numbers
from spatialvlm.hub.gguf.writing import Keys, Out
from spatialvlm.hub.save import tensors_of
from spatialvlm.hub.tensors import Lazy, lazy
from spatialvlm.models.decoder import DecoderConfig
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.types import UserError

_EMBEDDING = ("token_embd", "output")


def kind_of(config: VlmConfig) -> str:
  """`model_type` of the language model within."""
  source: Mapping[str, Any] = config.source
  if config.vision is None:
    return source["model_type"]
  default = "qwen2" if source.get("model_type") == "internvl" else "llama"
  return (source.get("text_config") or {}).get("model_type") or default


def why_not(config: VlmConfig) -> str | None:
  """One line for a language model that llama.cpp would compute otherwise; None where it does the same."""
  kind, text = kind_of(config), config.text
  if kind not in models.ARCHITECTURES:
    return f"llama.cpp's {kind!r} is not written here (known: {', '.join(models.ARCHITECTURES)})"
  attention = text.block.attention
  if kind == "qwen2" and text.windows:
    return "its layers see windows (use_sliding_window), which a qwen2 of llama.cpp does not have"
  if kind == "gemma2":
    wide = text.depth == 46  # llama.cpp goes by the depth
    head = attention.width // attention.heads if wide else attention.head_dim
    if abs(attention.scale * head**0.5 - 1) > 1e-6:
      return f"its scores are scaled by {attention.scale:.4g}, where llama.cpp takes 1 / sqrt({head})"
    if text.windows != tuple(w if i % 2 == 0 else 0 for i, w in enumerate(text.windows)):
      return "its windows stand in other layers than every second one, as llama.cpp has them"
  return None


def keys(out: Keys, config: VlmConfig, said: Numbers) -> None:
  """Adds the keys of a model's sizes."""
  text, attention = config.text, config.text.block.attention
  out.add_block_count(text.depth)
  out.add_context_length(text.max_length)
  out.add_embedding_length(attention.width)
  out.add_feed_forward_length(text.block.mlp_width)
  out.add_head_count(attention.heads)
  out.add_head_count_kv(attention.kv_heads)
  out.add_rope_freq_base(text.rope_theta)
  out.add_layer_norm_rms_eps(text.block.eps)
  out.add_key_length(attention.head_dim)
  out.add_value_length(attention.head_dim)
  kind = kind_of(config)
  if kind == "llama":
    out.add_vocab_size(text.vocab_size)
    out.add_rope_dimension_count(attention.head_dim)
  if kind == "gemma2":
    out.add_attn_logit_softcapping(attention.softcap or 0.0)
    out.add_final_logit_softcapping(text.softcap or 0.0)
    out.add_sliding_window(max(text.windows, default=0))
  out.add_quantization_version(2)
  out.add_file_type(numbers.FILE_TYPES[said.language])


def tensors(vlm: Vlm, said: Numbers) -> list[Out]:
  """The decoder's tensors in the converter's order, by ggml's names.

  Raises:
    UserError: blocks do not divide a tensor's rows.
  """
  kind = kind_of(vlm.config)
  arch = models.ARCHITECTURES[kind]
  found = []
  if vlm.config.text.rope_scaling is not None:
    found.append(Out("rope_freqs.weight", lazy(_rope_factors(vlm.config.text)), "F32", "language"))
  for name, tensor in tensors_of(vlm.decoder, kind, "decoder.").items():
    ggml = models.to_gguf(name, kind)
    if ggml is None:
      raise UserError(f"{name}: a {kind} of llama.cpp has no such tensor")
    change = None
    if arch.offset_norms and name.endswith("norm.weight"):
      change = _plus_one
    elif arch.permuted and (part := re.search(r"\.([qk])_proj\.", name)):
      attention = vlm.config.text.block.attention
      heads = attention.heads if part[1] == "q" else attention.kv_heads
      change = functools.partial(models.paired, heads=heads)
    found.append(_out(ggml, tensor, said, change))
  return found


def _out(name: str, tensor: Lazy, said: Numbers, change) -> Out:
  part = "embedding" if name.split(".")[0] in _EMBEDDING else "language"
  kind = "F32" if len(tensor.shape) < 2 else getattr(said, part)
  numbers.check_rows(name, tensor.shape, kind, part)
  return Out(name, tensor, kind, part, change)


def _plus_one(norm: np.ndarray) -> np.ndarray:
  return norm.astype(np.float32) + np.float32(1)


def _rope_factors(text: DecoderConfig) -> np.ndarray:
  """float32 (head_dim / 2,): by how much Llama 3 slows each frequency; in float32, as the converter."""
  scaling, dim, one = text.rope_scaling, text.block.attention.head_dim, np.float32(1)
  frequency = one / np.float32(text.rope_theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
  turns = np.float32(scaling.length) / (np.float32(2 * np.pi) / frequency)
  smooth = (turns - np.float32(scaling.low)) / np.float32(scaling.high - scaling.low)
  between = one / ((one - smooth) / np.float32(scaling.factor) + smooth)
  slow = np.where(turns < scaling.low, np.float32(scaling.factor), between)
  return np.where(turns > scaling.high, one, slow)
