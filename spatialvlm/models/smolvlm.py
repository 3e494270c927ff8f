"""SmolVLM and SmolVLM2 (Marafioti et al., 2025), the architecture of Idefics3: configs and weight names.

No layers live here. Defaults of omitted fields are those of transformers' configuration classes, since
published configs rely on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spatialvlm.core.block import BlockConfig
from spatialvlm.models.decoder import DecoderConfig
from spatialvlm.models.encoders import VisionConfig
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu", "silu": "silu"}

_VISION = "model.vision_model."
_TEXT = "model.text_model."

# (name in the file, path here, what turns the one into the other: see `hub.rules.OPERATIONS`)
RULES: tuple[tuple[str, str, str], ...] = (
  (_VISION + "embeddings.patch_embedding.weight", "vision.patch_embed.kernel", "conv"),
  (_VISION + "embeddings.patch_embedding.bias", "vision.patch_embed.bias", "same"),
  (_VISION + "embeddings.position_embedding.weight", "vision.positions", "same"),
  *(
    (_VISION + f"encoder.layers.{{i}}.{theirs}", f"vision.stack.layers.{{i}}.{ours}", op)
    for name, mine in (
      ("self_attn.q_proj", "attn.q_proj"),
      ("self_attn.k_proj", "attn.k_proj"),
      ("self_attn.v_proj", "attn.v_proj"),
      ("self_attn.out_proj", "attn.o_proj"),
      ("mlp.fc1", "mlp.up_proj"),
      ("mlp.fc2", "mlp.down_proj"),
    )
    for theirs, ours, op in (
      (f"{name}.weight", f"{mine}.kernel", "transpose"),
      (f"{name}.bias", f"{mine}.bias", "same"),
    )
  ),
  *(
    (_VISION + f"encoder.layers.{{i}}.{theirs}.{leaf}", f"vision.stack.layers.{{i}}.{ours}.{mine}", "same")
    for theirs, ours in (("layer_norm1", "attn_norm"), ("layer_norm2", "mlp_norm"))
    for leaf, mine in (("weight", "scale"), ("bias", "bias"))
  ),
  (_VISION + "post_layernorm.weight", "vision.norm.scale", "same"),
  (_VISION + "post_layernorm.bias", "vision.norm.bias", "same"),
  ("model.connector.modality_projection.proj.weight", "connector.proj.kernel", "transpose"),
  (_TEXT + "embed_tokens.weight", "decoder.embed.embedding", "same"),
  *(
    (_TEXT + f"layers.{{i}}.{theirs}", f"decoder.stack.layers.{{i}}.{ours}", op)
    for name, mine in (
      *((f"self_attn.{p}_proj", f"attn.{p}_proj") for p in "qkvo"),
      *((f"mlp.{p}_proj", f"mlp.{p}_proj") for p in ("gate", "up", "down")),
    )
    for theirs, ours, op in (
      (f"{name}.weight", f"{mine}.kernel", "transpose"),
      (f"{name}.bias", f"{mine}.bias", "same"),
    )
  ),
  (_TEXT + "layers.{i}.input_layernorm.weight", "decoder.stack.layers.{i}.attn_norm.scale", "same"),
  (_TEXT + "layers.{i}.post_attention_layernorm.weight", "decoder.stack.layers.{i}.mlp_norm.scale", "same"),
  (_TEXT + "norm.weight", "decoder.norm.scale", "same"),
  ("lm_head.weight", "decoder.lm_head.kernel", "transpose"),
)

# Other spellings, by regex, of the names above: a base model saved without its head has no `model.` prefix.
ALIASES: tuple[tuple[str, str], ...] = ((r"^(vision_model|connector|text_model)\.", r"model.\1."),)

# Buffers that old files hold and nobody needs.
IGNORED: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq", r".*\.embeddings\.position_ids")


def parse_config(source: Mapping[str, Any], *, dtype: str, attention: str, where: str) -> VlmConfig:
  """Reads a config.json of `model_type` idefics3 or smolvlm.

  Raises:
    UserError: a setting that these layers do not compute, by its name.
  """
  vision = _vision(source.get("vision_config") or {}, attention, where)
  factor = int(source.get("scale_factor", 2))
  if vision.grid % factor:
    raise UserError(f"{where}: scale_factor {factor} does not divide the grid of {vision.grid} patches")
  text_source = source.get("text_config")
  if text_source is None:  # transformers: without a text config its norm has another default
    text_source = {"rms_norm_eps": 1e-5}
  return VlmConfig(
    family=source["model_type"],
    vision=vision,
    text=_text(text_source, attention, where),
    scale_factor=factor,
    image_token_id=int(source.get("image_token_id", 128257)),
    tied=bool(source.get("tie_word_embeddings", False)),
    dtype=dtype,
    source=source,
  )


def max_tiles(preprocessor: Mapping[str, Any]) -> int:
  """Most tiles of one image under a preprocessor_config.json: a square of tiles and the global view."""
  if not preprocessor.get("do_image_splitting", True):
    return 1
  longest = int((preprocessor.get("size") or {}).get("longest_edge", 4 * 364))
  tile = int((preprocessor.get("max_image_size") or {}).get("longest_edge", 364))
  side = -(-longest // tile)
  return side * side + 1 if side > 1 else 1


def _vision(source: Mapping[str, Any], attention: str, where: str) -> VisionConfig:
  width = int(source.get("hidden_size", 1152))
  heads = int(source.get("num_attention_heads", 16))
  if width % heads:
    raise UserError(f"{where}: vision_config: {heads} heads do not divide hidden_size {width}")
  return VisionConfig(
    block=BlockConfig(
      width=width,
      heads=heads,
      kv_heads=heads,
      head_dim=width // heads,
      mlp_width=int(source.get("intermediate_size", 3072)),
      norm="layer",
      eps=float(source.get("layer_norm_eps", 1e-6)),
      activation=_activation(source.get("hidden_act", "gelu_pytorch_tanh"), f"{where}: vision_config"),
      gated=False,
      attention_bias=True,
      mlp_bias=True,
      attention=attention,
    ),
    depth=int(source.get("num_hidden_layers", 12)),
    image_size=_side(source.get("image_size", 224), f"{where}: vision_config.image_size"),
    patch_size=_side(source.get("patch_size", 32), f"{where}: vision_config.patch_size"),
    channels=int(source.get("num_channels", 3)),
  )


def _text(source: Mapping[str, Any], attention: str, where: str) -> DecoderConfig:
  kind = source.get("model_type", "llama")
  if kind != "llama":
    raise UserError(f"{where}: text_config.model_type {kind!r} is not supported (only 'llama')")
  width, heads = int(source.get("hidden_size", 4096)), int(source.get("num_attention_heads", 32))
  kv_heads = int(source.get("num_key_value_heads") or heads)
  if heads % kv_heads:
    raise UserError(f"{where}: text_config: {kv_heads} key-value heads do not divide {heads} heads")
  return DecoderConfig(
    block=BlockConfig(
      width=width,
      heads=heads,
      kv_heads=kv_heads,
      head_dim=int(source.get("head_dim") or width // heads),
      mlp_width=int(source.get("intermediate_size", 11008)),
      norm="rms",
      eps=float(source.get("rms_norm_eps", 1e-6)),
      activation=_activation(source.get("hidden_act", "silu"), f"{where}: text_config"),
      gated=True,
      attention_bias=bool(source.get("attention_bias", False)),
      mlp_bias=bool(source.get("mlp_bias", False)),
      attention=attention,
    ),
    depth=int(source.get("num_hidden_layers", 32)),
    vocab_size=int(source.get("vocab_size", 32000)),
    rope_theta=_rope_theta(source, where),
    max_length=int(source.get("max_position_embeddings", 2048)),
    init_std=float(source.get("initializer_range", 0.02)),
  )


def _rope_theta(source: Mapping[str, Any], where: str) -> float:
  """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
  parameters = source.get("rope_parameters") or source.get("rope_scaling") or {}
  kind = parameters.get("rope_type", parameters.get("type", "default"))
  if kind != "default":
    raise UserError(f"{where}: text_config: rope type {kind!r} is not supported (only 'default')")
  return float(parameters.get("rope_theta") or source.get("rope_theta") or 10000.0)


def _activation(name: str, where: str) -> str:
  if name not in ACTIVATIONS:
    raise UserError(f"{where}.hidden_act {name!r} is not supported (known: {', '.join(ACTIVATIONS)})")
  return ACTIVATIONS[name]


def _side(value: Any, where: str) -> int:
  sides = set(value) if isinstance(value, (list, tuple)) else {value}
  if len(sides) != 1:
    raise UserError(f"{where} {value!r} is not square")
  return int(sides.pop())
