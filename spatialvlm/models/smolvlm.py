"""SmolVLM and SmolVLM2 (Marafioti et al., 2025), the architecture of Idefics3: configs and weight names.

No layers live here. Defaults of omitted fields are those of transformers' configuration classes, since
published configs rely on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from spatialvlm.core.block import BlockConfig
from spatialvlm.models import vits
from spatialvlm.models.decoder import DecoderConfig
from spatialvlm.models.fields import Rule, activation, group, linear, norm, number, under, whole
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError


def llama_rules() -> Iterator[Rule]:
  """A Llama-like decoder, without its head."""
  yield "embed_tokens.weight", "embed.embedding", "same"
  theirs, ours = "layers.{i}.", "stack.layers.{i}."
  for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
    yield from linear(f"{theirs}self_attn.{name}", f"{ours}attn.{name}")
  for name in ("gate_proj", "up_proj", "down_proj"):
    yield from linear(f"{theirs}mlp.{name}", f"{ours}mlp.{name}")
  yield from norm(f"{theirs}input_layernorm", f"{ours}attn_norm")
  yield from norm(f"{theirs}post_attention_layernorm", f"{ours}mlp_norm")
  yield from norm("norm", "norm")


_VISION_DEFAULTS = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
_VISION = "model.vision_model."
_TEXT = "model.text_model."

# (name in the file, path here, what turns the one into the other: see `hub.rules.OPERATIONS`)
RULES: tuple[Rule, ...] = (
  *under(_VISION, "vision.", vits.siglip_rules()),
  ("model.connector.modality_projection.proj.weight", "connector.proj.kernel", "transpose"),
  *under(_TEXT, "decoder.", llama_rules()),
  ("lm_head.weight", "decoder.lm_head.kernel", "transpose"),
)

# Other spellings, by regex, of the names above: a base model saved without its head has no `model.` prefix.
ALIASES: tuple[tuple[str, str], ...] = ((r"^(vision_model|connector|text_model)\.", r"model.\1."),)

# Buffers that old files hold and nobody needs.
IGNORED: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq", r".*\.embeddings\.position_ids")


def parse_config(source: Mapping[str, Any], *, dtype: str, attention: str, where: str) -> VlmConfig:
  """Reads a config.json of `model_type` idefics3 or smolvlm.

  Raises:
    UserError: a setting that these layers do not compute or that makes no sense, by its name.
  """
  given = {key: value for key, value in group(source, "vision_config", where).items() if value is not None}
  vision = vits.siglip(_VISION_DEFAULTS | given, attention, f"{where}: vision_config")
  vision = dataclasses.replace(vision, positions="navit")
  factor = whole(source, "scale_factor", 2, where)
  if vision.grid % factor:
    raise UserError(f"{where}: scale_factor {factor} does not divide the grid of {vision.grid} patches")
  text_source = group(source, "text_config", where)
  if source.get("text_config") is None:  # transformers: without a text config its norm has another default
    text_source = {"rms_norm_eps": 1e-5}
  return VlmConfig(
    family=source["model_type"],
    vision=vision,
    text=_text(text_source, attention, where),
    scale_factor=factor,
    image_token_id=whole(source, "image_token_id", 128257, where, least=0),
    tied=bool(source.get("tie_word_embeddings", False)),
    dtype=dtype,
    source=source,
  )


def max_tiles(preprocessor: Mapping[str, Any]) -> int:
  """Most tiles of one image under a preprocessor_config.json: a square of tiles and the global view."""
  if not preprocessor.get("do_image_splitting", True):
    return 1
  where = "preprocessor_config.json"
  longest = whole(group(preprocessor, "size", where), "longest_edge", 4 * 364, f"{where}: size")
  tile = whole(group(preprocessor, "max_image_size", where), "longest_edge", 364, f"{where}: max_image_size")
  side = -(-longest // tile)
  return side * side + 1 if side > 1 else 1


def _text(source: Mapping[str, Any], attention: str, where: str) -> DecoderConfig:
  part = f"{where}: text_config"
  kind = source.get("model_type", "llama")
  if kind != "llama":
    raise UserError(f"{part}.model_type {kind!r} is not supported (only 'llama')")
  width, heads = whole(source, "hidden_size", 4096, part), whole(source, "num_attention_heads", 32, part)
  kv_heads = whole(source, "num_key_value_heads", heads, part)
  if heads % kv_heads:
    raise UserError(f"{part}: {kv_heads} key-value heads do not divide {heads} heads")
  return DecoderConfig(
    block=BlockConfig(
      width=width,
      heads=heads,
      kv_heads=kv_heads,
      head_dim=whole(source, "head_dim", width // heads, part),
      mlp_width=whole(source, "intermediate_size", 11008, part),
      norm="rms",
      eps=number(source, "rms_norm_eps", 1e-6, part),
      activation=activation(source.get("hidden_act", "silu"), part),
      gated=True,
      attention_bias=bool(source.get("attention_bias", False)),
      mlp_bias=bool(source.get("mlp_bias", False)),
      attention=attention,
    ),
    depth=whole(source, "num_hidden_layers", 32, part),
    vocab_size=whole(source, "vocab_size", 32000, part),
    rope_theta=_rope_theta(source, where),
    max_length=whole(source, "max_position_embeddings", 2048, part),
    init_std=number(source, "initializer_range", 0.02, part),
  )


def _rope_theta(source: Mapping[str, Any], where: str) -> float:
  """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
  part = f"{where}: text_config"
  key = "rope_parameters" if source.get("rope_parameters") else "rope_scaling"
  parameters = group(source, key, part)
  kind = parameters.get("rope_type", parameters.get("type", "default"))
  if kind != "default":
    raise UserError(f"{part}: rope type {kind!r} is not supported (only 'default')")
  return number(parameters, "rope_theta", source.get("rope_theta") or 10000.0, part)
