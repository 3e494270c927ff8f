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
    UserError: a setting that these layers do not compute or that makes no sense, by its name.
  """
  vision = _vision(_group(source, "vision_config", where), attention, where)
  factor = _whole(source, "scale_factor", 2, where)
  if vision.grid % factor:
    raise UserError(f"{where}: scale_factor {factor} does not divide the grid of {vision.grid} patches")
  text_source = _group(source, "text_config", where)
  if source.get("text_config") is None:  # transformers: without a text config its norm has another default
    text_source = {"rms_norm_eps": 1e-5}
  return VlmConfig(
    family=source["model_type"],
    vision=vision,
    text=_text(text_source, attention, where),
    scale_factor=factor,
    image_token_id=_whole(source, "image_token_id", 128257, where, least=0),
    tied=bool(source.get("tie_word_embeddings", False)),
    dtype=dtype,
    source=source,
  )


def max_tiles(preprocessor: Mapping[str, Any]) -> int:
  """Most tiles of one image under a preprocessor_config.json: a square of tiles and the global view."""
  if not preprocessor.get("do_image_splitting", True):
    return 1
  where = "preprocessor_config.json"
  longest = _whole(_group(preprocessor, "size", where), "longest_edge", 4 * 364, f"{where}: size")
  tile = _whole(
    _group(preprocessor, "max_image_size", where), "longest_edge", 364, f"{where}: max_image_size"
  )
  side = -(-longest // tile)
  return side * side + 1 if side > 1 else 1


def _vision(source: Mapping[str, Any], attention: str, where: str) -> VisionConfig:
  part = f"{where}: vision_config"
  width = _whole(source, "hidden_size", 1152, part)
  heads = _whole(source, "num_attention_heads", 16, part)
  if width % heads:
    raise UserError(f"{part}: {heads} heads do not divide hidden_size {width}")
  return VisionConfig(
    block=BlockConfig(
      width=width,
      heads=heads,
      kv_heads=heads,
      head_dim=width // heads,
      mlp_width=_whole(source, "intermediate_size", 3072, part),
      norm="layer",
      eps=_number(source, "layer_norm_eps", 1e-6, part),
      activation=_activation(source.get("hidden_act", "gelu_pytorch_tanh"), part),
      gated=False,
      attention_bias=True,
      mlp_bias=True,
      attention=attention,
    ),
    depth=_whole(source, "num_hidden_layers", 12, part),
    image_size=_side(source.get("image_size", 224), part + ".image_size"),
    patch_size=_side(source.get("patch_size", 32), part + ".patch_size"),
    channels=_whole(source, "num_channels", 3, part),
  )


def _text(source: Mapping[str, Any], attention: str, where: str) -> DecoderConfig:
  part = f"{where}: text_config"
  kind = source.get("model_type", "llama")
  if kind != "llama":
    raise UserError(f"{part}.model_type {kind!r} is not supported (only 'llama')")
  width, heads = _whole(source, "hidden_size", 4096, part), _whole(source, "num_attention_heads", 32, part)
  kv_heads = _whole(source, "num_key_value_heads", heads, part)
  if heads % kv_heads:
    raise UserError(f"{part}: {kv_heads} key-value heads do not divide {heads} heads")
  return DecoderConfig(
    block=BlockConfig(
      width=width,
      heads=heads,
      kv_heads=kv_heads,
      head_dim=_whole(source, "head_dim", width // heads, part),
      mlp_width=_whole(source, "intermediate_size", 11008, part),
      norm="rms",
      eps=_number(source, "rms_norm_eps", 1e-6, part),
      activation=_activation(source.get("hidden_act", "silu"), part),
      gated=True,
      attention_bias=bool(source.get("attention_bias", False)),
      mlp_bias=bool(source.get("mlp_bias", False)),
      attention=attention,
    ),
    depth=_whole(source, "num_hidden_layers", 32, part),
    vocab_size=_whole(source, "vocab_size", 32000, part),
    rope_theta=_rope_theta(source, where),
    max_length=_whole(source, "max_position_embeddings", 2048, part),
    init_std=_number(source, "initializer_range", 0.02, part),
  )


def _rope_theta(source: Mapping[str, Any], where: str) -> float:
  """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
  part = f"{where}: text_config"
  key = "rope_parameters" if source.get("rope_parameters") else "rope_scaling"
  parameters = _group(source, key, part)
  kind = parameters.get("rope_type", parameters.get("type", "default"))
  if kind != "default":
    raise UserError(f"{part}: rope type {kind!r} is not supported (only 'default')")
  return _number(parameters, "rope_theta", source.get("rope_theta") or 10000.0, part)


def _activation(name: str, where: str) -> str:
  if name not in ACTIVATIONS:
    raise UserError(f"{where}.hidden_act {name!r} is not supported (known: {', '.join(ACTIVATIONS)})")
  return ACTIVATIONS[name]


def _side(value: Any, where: str) -> int:
  sides = set(value) if isinstance(value, (list, tuple)) else {value}
  if len(sides) != 1:
    raise UserError(f"{where} {value!r} is not square")
  return _as_whole(sides.pop(), where)


def _group(source: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
  """A nested object of a config, empty where it is left out or null."""
  value = source.get(key)
  if value is not None and not isinstance(value, Mapping):
    raise UserError(f"{where}: {key}: expected an object, got {value!r}")
  return value or {}


def _whole(source: Mapping[str, Any], key: str, default: int, where: str, least: int = 1) -> int:
  """A whole number of a config, `default` where it is left out or null."""
  value = source.get(key)
  return _as_whole(default if value is None else value, f"{where}.{key}", least)


def _as_whole(value: Any, where: str, least: int = 1) -> int:
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not number or value % 1 or value < least:
    raise UserError(f"{where}: expected a whole number of at least {least}, got {value!r}")
  return int(value)


def _number(source: Mapping[str, Any], key: str, default: float, where: str) -> float:
  value = source.get(key)
  value = default if value is None else value
  if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
    raise UserError(f"{where}.{key}: expected a number above 0, got {value!r}")
  return float(value)
