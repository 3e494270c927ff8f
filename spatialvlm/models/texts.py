"""Language models by the `model_type` of their config.json: sizes, parts and tensor names.

No layers live here. Defaults of omitted fields are those of transformers' configuration classes, since
published configs rely on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from spatialvlm.core.attention import AttentionConfig
from spatialvlm.core.block import BlockConfig
from spatialvlm.core.rope import RopeScaling
from spatialvlm.models.decoder import DecoderConfig
from spatialvlm.models.fields import Rule, activation, group, linear, norm, number, whole
from spatialvlm.types import UserError

Source = Mapping[str, Any]


def parse(source: Source, allowed: Sequence[str], where: str) -> DecoderConfig:
  """Reads a `text_config`; without a `model_type` it is the first of `allowed`.

  Raises:
    UserError: a language model that is not among `allowed`, or a setting that these layers do not compute.
  """
  kind = source.get("model_type") or allowed[0]
  if kind not in allowed:
    known = ", ".join(map(repr, allowed))
    raise UserError(f"{where}.model_type {kind!r} is not supported (only {known})")
  return _READERS[kind](source, where)


def _llama(source: Source, where: str) -> DecoderConfig:
  """Llama (Touvron et al., 2023), and SmolLM2."""
  sizes = dict(width=4096, heads=32, mlp=11008, depth=32, vocab=32000, context=2048)
  return _decoder(
    source,
    where,
    sizes,
    attention={"bias": bool(source.get("attention_bias", False))},
    mlp_bias=bool(source.get("mlp_bias", False)),
  )


def _qwen2(source: Source, where: str) -> DecoderConfig:
  """Qwen2 and Qwen2.5 (Yang et al., 2024)."""
  sizes = dict(width=4096, heads=32, mlp=22016, depth=32, vocab=151936, context=32768)
  config = _decoder(source, where, sizes, attention={"bias": True, "out_bias": False})
  if not source.get("use_sliding_window", False):
    return config
  first = whole(source, "max_window_layers", 28, where, least=0)
  kinds = [kind == "sliding_attention" for kind in source.get("layer_types") or ()]
  windowed = kinds or [layer >= first for layer in range(config.depth)]
  return _windowed(config, windowed, whole(source, "sliding_window", 4096, where))


def _gemma(source: Source, where: str) -> DecoderConfig:
  """Gemma (Gemma team, 2024)."""
  sizes = dict(width=3072, heads=16, kv=16, head_dim=256, mlp=24576, depth=28, vocab=256000, context=8192)
  act = source.get("hidden_act", source.get("hidden_activation"))
  # Files of the first release say "gelu" and mean the approximation.
  act = "gelu_pytorch_tanh" if act in (None, "gelu") else act
  attention = {"bias": bool(source.get("attention_bias", False))}
  config = _decoder({**source, "hidden_act": act}, where, sizes, attention=attention, norm="rms_offset")
  return dataclasses.replace(config, embed_scale=config.block.width**0.5)


def _gemma2(source: Source, where: str) -> DecoderConfig:
  """Gemma 2 (Gemma team, 2024): bounded scores and logits, windows in every other layer, four norms."""
  sizes = dict(width=2304, heads=8, kv=4, head_dim=256, mlp=9216, depth=26, vocab=256000, context=8192)
  cap = lambda key, default: number(source, key, default, where) if source.get(key, default) else None
  act = source.get("hidden_activation") or source.get("hidden_act") or "gelu_pytorch_tanh"
  config = _decoder(
    {**source, "hidden_act": "gelu_pytorch_tanh" if act == "gelu" else act},
    where,
    sizes,
    attention={
      "bias": bool(source.get("attention_bias", False)),
      "scale": number(source, "query_pre_attn_scalar", 256, where) ** -0.5,
      "softcap": cap("attn_logit_softcapping", 50.0),
    },
    norm="rms_offset",
    out_norms=True,
  )
  kinds = [kind == "sliding_attention" for kind in source.get("layer_types") or ()]
  config = dataclasses.replace(
    config, embed_scale=config.block.width**0.5, softcap=cap("final_logit_softcapping", 30.0)
  )
  if source.get("sliding_window", 4096) is None:
    return config
  windowed = kinds or [layer % 2 == 0 for layer in range(config.depth)]
  return _windowed(config, windowed, whole(source, "sliding_window", 4096, where))


_READERS: dict[str, Callable[[Source, str], DecoderConfig]] = {
  "llama": _llama,
  "qwen2": _qwen2,
  "gemma": _gemma,
  "gemma2": _gemma2,
}


# What is known, by `model_type`.
KINDS = tuple(_READERS)


def _windowed(config: DecoderConfig, layers: Sequence[bool], size: int) -> DecoderConfig:
  return dataclasses.replace(config, windows=tuple(size if windowed else 0 for windowed in layers))


def _decoder(
  source: Source,
  where: str,
  sizes: Mapping[str, int],
  *,
  attention: Mapping[str, Any],
  norm: str = "rms",
  mlp_bias: bool = False,
  **block: Any,
) -> DecoderConfig:
  """The sizes, with a family's own defaults, and the parts of a block and its attention."""
  width = whole(source, "hidden_size", sizes["width"], where)
  heads = whole(source, "num_attention_heads", sizes["heads"], where)
  kv_heads = whole(source, "num_key_value_heads", sizes.get("kv", heads), where)
  if heads % kv_heads:
    raise UserError(f"{where}: {kv_heads} key-value heads do not divide {heads} heads")
  head_dim = whole(source, "head_dim", sizes.get("head_dim", width // heads), where)
  config = BlockConfig(
    attention=AttentionConfig(width, heads, kv_heads, head_dim, **attention),
    mlp_width=whole(source, "intermediate_size", sizes["mlp"], where),
    norm=norm,
    eps=number(source, "rms_norm_eps", 1e-6, where),
    activation=activation(source.get("hidden_act") or "silu", where),
    gated=True,
    mlp_bias=mlp_bias,
    **block,
  )
  return DecoderConfig(
    block=config,
    depth=whole(source, "num_hidden_layers", sizes["depth"], where),
    vocab_size=whole(source, "vocab_size", sizes["vocab"], where),
    **_rope(source, where),
    max_length=whole(source, "max_position_embeddings", sizes["context"], where),
    init_std=number(source, "initializer_range", 0.02, where),
  )


def _rope(source: Source, where: str) -> dict[str, Any]:
  """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
  key = "rope_parameters" if source.get("rope_parameters") else "rope_scaling"
  parameters = group(source, key, where)
  kind = parameters.get("rope_type", parameters.get("type", "default"))
  theta = number(parameters, "rope_theta", source.get("rope_theta") or 10000.0, where)
  # "dynamic" (InternVL's) slows the rotation beyond max_position_embeddings only, where no text goes here.
  if kind in ("default", "dynamic"):
    return {"rope_theta": theta}
  if kind != "llama3":
    raise UserError(f"{where}: rope type {kind!r} is not supported (only default, dynamic and llama3)")
  numbers = (
    number(parameters, name, 0.0, where) for name in ("factor", "low_freq_factor", "high_freq_factor")
  )
  length = whole(parameters, "original_max_position_embeddings", 0, where)
  return {"rope_theta": theta, "rope_scaling": RopeScaling(*numbers, length)}


def rules(out_norms: bool = False) -> Iterator[Rule]:
  """Names of the tensors, without the head; `out_norms`: Gemma 2's, which has four norms a layer."""
  yield "embed_tokens.weight", "embed.embedding", "same"
  theirs, ours = "layers.{i}.", "stack.layers.{i}."
  for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
    yield from linear(f"{theirs}self_attn.{name}", f"{ours}attn.{name}")
  for name in ("gate_proj", "up_proj", "down_proj"):
    yield from linear(f"{theirs}mlp.{name}", f"{ours}mlp.{name}")
  yield from norm(f"{theirs}input_layernorm", f"{ours}attn_norm")
  if out_norms:
    yield from norm(f"{theirs}post_attention_layernorm", f"{ours}attn_out_norm")
    yield from norm(f"{theirs}pre_feedforward_layernorm", f"{ours}mlp_norm")
    yield from norm(f"{theirs}post_feedforward_layernorm", f"{ours}mlp_out_norm")
  else:
    yield from norm(f"{theirs}post_attention_layernorm", f"{ours}mlp_norm")
  yield from norm("norm", "norm")
