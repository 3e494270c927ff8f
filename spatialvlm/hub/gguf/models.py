"""GGUF's architectures as Hugging Face's: which keys are which settings, and which tensors which.

The tables go both ways. They are those of llama.cpp's converter (`convert_hf_to_gguf.py`) and of its loader.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spatialvlm.hub.gguf.file import PLAIN, GgufEntry, Header
from spatialvlm.types import UserError

Change = Callable[[np.ndarray], np.ndarray]

# Tensors that all of them have, `.weight` and `.bias` left out; `{i}` stands for a layer's number.
_NAMES = (
  ("token_embd", "model.embed_tokens"),
  ("output", "lm_head"),
  ("output_norm", "model.norm"),
  ("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
  ("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
  ("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
  ("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
  ("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
  ("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj"),
  ("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
  ("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
)
_TWO_NORMS = (("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm"),)
_FOUR_NORMS = (
  ("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
  ("blk.{i}.ffn_norm", "model.layers.{i}.pre_feedforward_layernorm"),
  ("blk.{i}.post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm"),
)
# Key behind the architecture's name -> setting of config.json: whole numbers, then others.
_WHOLE = {
  "block_count": "num_hidden_layers",
  "context_length": "max_position_embeddings",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
}
_NUMBERS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta"}
# Keys that are looked at elsewhere, or say what is known: (key -> values that change nothing).
_LOOKED_AT = {"vocab_size", "attention.key_length", "attention.value_length", "rope.dimension_count"}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  "rope.scaling.type": ("none",),
  "rope.scaling.factor": (0.0, 1.0),
  "rope.scaling.attn_factor": (1.0,),
  "rope.scale_linear": (1.0,),
  "expert_count": (0,),
  "expert_used_count": (0,),
  "attention.causal": (True,),
  "tensor_data_layout": ("Meta AI original pth",),
  "logit_scale": (1.0,),
}
_ROPE_FREQS = "rope_freqs.weight"


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One of ggml's architectures.

  Attributes:
    hf_class: transformers' class.
    names: (ggml's name, Hugging Face's) of tensors, beside those that all have.
    activation: `hidden_act`.
    numbers: further keys of numbers that it may have, to settings.
    whole: the same of whole numbers.
    permuted: rows of q and k lie in pairs within a head, as its rotation wants them there.
    offset_norms: norms hold 1 + weight.
  """

  hf_class: str
  names: tuple[tuple[str, str], ...] = _TWO_NORMS
  activation: str = "silu"
  numbers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  whole: Mapping[str, str] = dataclasses.field(default_factory=dict)
  permuted: bool = False
  offset_norms: bool = False


ARCHITECTURES: dict[str, Architecture] = {
  "llama": Architecture("LlamaForCausalLM", permuted=True),
  "qwen2": Architecture("Qwen2ForCausalLM"),
  "gemma": Architecture("GemmaForCausalLM", activation="gelu_pytorch_tanh", offset_norms=True),
  "gemma2": Architecture(
    "Gemma2ForCausalLM",
    names=_FOUR_NORMS,
    activation="gelu_pytorch_tanh",
    numbers={
      "attn_logit_softcapping": "attn_logit_softcapping",
      "final_logit_softcapping": "final_logit_softcapping",
    },
    whole={"attention.sliding_window": "sliding_window"},
    offset_norms=True,
  ),
}


def architecture(header: Header) -> str:
  """The architecture's name.

  Raises:
    UserError: one that is not read, or no model at all.
  """
  name, kind = header.key("general.architecture", str), header.key("general.type", str, "model")
  if name == "clip" or kind == "mmproj":
    raise UserError(
      f"{header.file}: a vision tower and projector (mmproj); name the file of the language model"
    )
  if kind == "adapter":
    raise UserError(
      f"{header.file}: a LoRA adapter in GGUF, which is not read; name a PEFT folder, or the model"
    )
  if header.key("split.count", int, 1) > 1:
    count = header.keys["split.count"]
    raise UserError(
      f"{header.file}: one of {count} parts of a model; join them first (llama-gguf-split --merge)"
    )
  if name not in ARCHITECTURES:
    known = ", ".join(ARCHITECTURES)
    raise UserError(f"{header.file}: GGUF of the architecture {name!r}, which is not read (known: {known})")
  return name


def config_json(header: Header) -> dict[str, Any]:
  """The config.json of the model in a file, ids of special tokens left out.

  Raises:
    UserError: a key that is missing, damaged, or of a setting that is not known here, by its name.
  """
  kind = architecture(header)
  arch, at = ARCHITECTURES[kind], f"{kind}."
  config: dict[str, Any] = {
    "model_type": kind,
    "architectures": [arch.hf_class],
    "hidden_act": arch.activation,
  }
  for key, setting in (_WHOLE | arch.whole).items():
    if (value := _same(header, at + key, int)) is not None:
      config[setting] = value
  for key, setting in (_NUMBERS | arch.numbers).items():
    if (value := header.key(at + key, (int, float))) is not None:
      config[setting] = float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06
  needed = ("block_count", "context_length", "embedding_length", "attention.head_count")
  missing = [at + key for key in needed if at + key not in header.keys]
  missing += [] if "token_embd.weight" in header.tensors else ["token_embd.weight"]
  if missing:
    raise UserError(f"{header.file}: holds no {' and no '.join(missing)}; the file is damaged")
  known = {*_WHOLE, *arch.whole, *_NUMBERS, *arch.numbers, *_LOOKED_AT}
  for key, value in header.keys.items():
    rest = key.removeprefix(at)
    if key != rest and rest not in known and value not in _NEUTRAL.get(rest, ()):
      raise UserError(f"{header.file}: {key} = {value!r} is a setting that is not known here")
  _fill(header, config, kind)
  return config


def _fill(header: Header, config: dict[str, Any], kind: str) -> None:
  """What follows from several keys, or from the tensors."""
  at, rows = f"{kind}.", header.tensors["token_embd.weight"].shape[0]
  said = header.key(f"{at}vocab_size", int, rows)
  if said != rows:
    raise UserError(f"{header.file}: {at}vocab_size says {said}, but token_embd has {rows} rows")
  heads = config["num_attention_heads"]
  dims = {header.key(at + key, int) for key in ("attention.key_length", "attention.value_length")} - {None}
  dims = dims or {config["hidden_size"] // max(heads, 1)}
  dims |= {header.key(f"{at}rope.dimension_count", int, next(iter(dims)))}
  if len(dims) > 1:
    raise UserError(
      f"{header.file}: heads whose keys, values and rotation differ in size ({sorted(dims)}) are not read"
    )
  config |= {
    "vocab_size": rows,
    "head_dim": dims.pop(),
    "tie_word_embeddings": "output.weight" not in header.tensors,
  }
  config.setdefault("num_key_value_heads", heads)
  config["dtype"] = "float32"
  if kind == "llama":
    config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
  if kind == "gemma2":
    # No key says it; llama.cpp goes by the depth: the 27B model alone divides by its width.
    wide = config["num_hidden_layers"] == 46
    config["query_pre_attn_scalar"] = config["hidden_size"] // heads if wide else config["head_dim"]
  theta = config.pop("rope_theta", 10000.0)
  config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta} | _scaling(header, config, theta)


def _same(header: Header, key: str, kind: type) -> Any:
  """A number that some files give for each layer."""
  value = header.keys.get(key)
  if isinstance(value, list):
    if len(set(value)) != 1:
      raise UserError(f"{header.file}: {key} differs from layer to layer, which is not known here")
    return value[0]
  return header.key(key, kind)


def _scaling(header: Header, config: Mapping[str, Any], theta: float) -> dict[str, Any]:
  """Llama 3's slowed rotation, which a file holds as factors of each frequency; empty where there are none.

  The factors' makers (8 for 3.1, 32 for 3.2, both of a context of 8,192) are known, and are held to them.
  """
  if _ROPE_FREQS not in header.tensors:
    return {}
  found = _entry(header, _ROPE_FREQS).read().astype(np.float64)
  settings = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
  settings["factor"] = float(found.max())
  waves = 2 * np.pi * theta ** (np.arange(0, config["head_dim"], 2) / config["head_dim"])
  smooth = np.clip((8192 / waves - 1.0) / 3.0, 0.0, 1.0)
  made = 1 / ((1 - smooth) / settings["factor"] + smooth)
  if made.shape != found.shape or not np.allclose(made, found, rtol=1e-4):
    raise UserError(
      f"{header.file}: {_ROPE_FREQS}: a rotation scaled otherwise than Llama 3's is not known here"
    )
  return {"rope_type": "llama3", **settings}


def entries(header: Header) -> dict[str, GgufEntry]:
  """The tensors by Hugging Face's names, none of them read yet.

  Raises:
    UserError: tensors that this architecture does not have.
  """
  kind, config = architecture(header), config_json(header)
  arch, found, unknown = ARCHITECTURES[kind], {}, []
  for name in header.tensors:
    if name == _ROPE_FREQS:
      continue
    theirs = to_hf(name, kind)
    if theirs is None:
      unknown.append(name)
      continue
    undo: Change | None = None
    if arch.offset_norms and theirs.endswith("norm.weight"):
      undo = _less_one
    elif arch.permuted and (part := re.search(r"\.self_attn\.([qk])_proj\.", theirs)):
      heads = config["num_attention_heads" if part[1] == "q" else "num_key_value_heads"]
      if header.tensors[name].shape[0] % (2 * heads):
        raise UserError(f"{header.file}: {name}: its rows are no pairs of {heads} heads; the file is damaged")
      undo = functools.partial(unpaired, heads=heads)
    found[theirs] = _entry(header, name, undo)
  if unknown:
    raise UserError(
      f"{header.file}: tensors that a {kind} does not have here: {', '.join(sorted(unknown)[:6])}"
    )
  return found


def _entry(header: Header, name: str, undo: Change | None = None) -> GgufEntry:
  tensor = header.tensors[name]
  dtype = "F32" if undo is _less_one else PLAIN.get(tensor.quant, "F32")
  return GgufEntry(header.file, dtype, tensor.shape, tensor.start, tensor.count, tensor.quant, undo)


def to_hf(name: str, kind: str) -> str | None:
  """Hugging Face's name of a tensor of an architecture; None if it has none."""
  return _translated(name, [*_NAMES, *ARCHITECTURES[kind].names])


def to_gguf(name: str, kind: str) -> str | None:
  """GGUF's name of a tensor by its name in transformers' causal language model; None if it has none."""
  return _translated(name, [(theirs, ours) for ours, theirs in (*_NAMES, *ARCHITECTURES[kind].names)])


def _translated(name: str, table: list[tuple[str, str]]) -> str | None:
  stem, dot, part = name.rpartition(".")
  number = re.search(r"\.(\d+)\.", stem)
  general = stem if number is None else stem.replace(number[0], ".{i}.", 1)
  for source, target in table:
    if general == source and part in ("weight", "bias"):
      return (target if number is None else target.replace("{i}", number[1])) + dot + part
  return None


def unpaired(rows: np.ndarray, heads: int) -> np.ndarray:
  """Rows of q or k in transformers' order, (all, ...): halves of a head, where GGUF has pairs."""
  shape = (heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
  return np.ascontiguousarray(rows.reshape(shape).swapaxes(1, 2)).reshape(rows.shape)


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
  """The inverse of `unpaired`."""
  shape = (heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
  return np.ascontiguousarray(rows.reshape(shape).swapaxes(1, 2)).reshape(rows.shape)


def _less_one(norm: np.ndarray) -> np.ndarray:
  return norm.astype(np.float32) - np.float32(1)
