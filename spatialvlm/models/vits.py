"""Vision transformers by the `model_type` of their config.json: sizes and tensor names.

No layers live here. Defaults of omitted fields are those of transformers' configuration classes, since
published configs rely on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spatialvlm.core.attention import AttentionConfig
from spatialvlm.core.block import BlockConfig
from spatialvlm.models.encoders import VisionConfig
from spatialvlm.models.fields import Rule, activation, linear, norm, number, side, whole
from spatialvlm.types import UserError


def siglip(source: Mapping[str, Any], where: str) -> VisionConfig:
  """SigLIP and SigLIP 2 of fixed resolution (Zhai et al., 2023; Tschannen et al., 2025)."""
  block = _block(source, where, act="gelu_pytorch_tanh", eps=1e-6)
  return VisionConfig(block, **_sizes(source, where, patch=16), positions="bicubic")


def clip(source: Mapping[str, Any], where: str) -> VisionConfig:
  """CLIP (Radford et al., 2021)."""
  block = _block(source, where, act="quick_gelu", eps=1e-5)
  return VisionConfig(
    block,
    **_sizes(source, where, patch=32),
    positions="bicubic",
    patch_bias=False,
    class_token=True,
    embedding_norm=True,
    final_norm="pooled",
  )


def dinov2(source: Mapping[str, Any], where: str) -> VisionConfig:
  """DINOv2 (Oquab et al., 2023), with registers too (Darcet et al., 2024)."""
  registers = source["model_type"] == "dinov2_with_registers"
  width = whole(source, "hidden_size", 768, where)
  hidden = int(width * number(source, "mlp_ratio", 4, where))
  gated = bool(source.get("use_swiglu_ffn", False))
  if gated:
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
  block = _block(
    {**source, "intermediate_size": hidden} | ({"hidden_act": "silu"} if gated else {}),
    where,
    act="gelu",
    eps=1e-6,
    gated=gated,
    bias=bool(source.get("qkv_bias", True)),
    layer_scale=True,
  )
  return VisionConfig(
    block,
    **_sizes(source, where, patch=14 if not registers else 16),
    # A square image of the trained size takes the table as it is, others the resampled one.
    positions="bicubic_antialias" if registers else "bicubic",
    class_token=True,
    registers=whole(source, "num_register_tokens", 4, where) if registers else 0,
    mask_token=bool(source.get("use_mask_token", True)),
  )


def dinov3(source: Mapping[str, Any], where: str) -> VisionConfig:
  """DINOv3's ViT (Simeoni et al., 2025)."""
  biases = {name: bool(source.get(f"{name}_bias", True)) for name in ("query", "value", "proj")}
  if biases["query"] != biases["value"]:
    raise UserError(f"{where}: query_bias and value_bias must be alike, got {biases}")
  block = _block(
    source,
    where,
    act="gelu",
    eps=1e-5,
    gated=bool(source.get("use_gated_mlp", False)),
    bias=biases["query"],
    key_bias=bool(source.get("key_bias", False)),
    out_bias=biases["proj"],
    mlp_bias=bool(source.get("mlp_bias", True)),
    layer_scale=True,
    sizes=(384, 6, 1536),
  )
  return VisionConfig(
    block,
    **_sizes(source, where, patch=16),
    positions="rope",
    rope_theta=number(source, "rope_theta", 100.0, where),
    class_token=True,
    registers=whole(source, "num_register_tokens", 0, where, least=0),
    mask_token=True,
  )


def internvit(source: Mapping[str, Any], where: str) -> VisionConfig:
  """InternViT in InternVL's `-hf` format (Chen et al., 2024)."""
  norms = {"layer_norm": "layer", "rms_norm": "rms"}
  kind = source.get("norm_type", "layer_norm")
  if kind not in norms:
    raise UserError(f"{where}.norm_type {kind!r} is not supported (known: {', '.join(norms)})")
  block = _block(
    source,
    where,
    act="gelu",
    eps=1e-6,
    norm_kind=norms[kind],
    bias=bool(source.get("attention_bias", False)),
    out_bias=True,
    qk_norm=bool(source.get("use_qk_norm", False)),
    layer_scale=True,
    sizes=(1024, 16, 4096),
  )
  return VisionConfig(
    block,
    **_sizes(source, where, patch=14, depth=24, image=448),
    positions="bicubic" if source.get("use_absolute_position_embeddings", True) else "none",
    class_token=True,
    mask_token=bool(source.get("use_mask_token", False)),
    final_norm="none" if source.get("use_mean_pooling", True) else "tokens",
  )


def _block(
  source: Mapping[str, Any],
  where: str,
  *,
  act: str,
  eps: float,
  gated: bool = False,
  bias: bool = True,
  key_bias: bool = True,
  out_bias: bool | None = None,
  mlp_bias: bool = True,
  norm_kind: str = "layer",
  qk_norm: bool = False,
  layer_scale: bool = False,
  sizes: tuple[int, int, int] = (768, 12, 3072),
) -> BlockConfig:
  width = whole(source, "hidden_size", sizes[0], where)
  heads = whole(source, "num_attention_heads", sizes[1], where)
  if width % heads:
    raise UserError(f"{where}: {heads} heads do not divide hidden_size {width}")
  attention = AttentionConfig(
    width, heads, heads, width // heads, bias=bias, key_bias=key_bias, out_bias=out_bias, qk_norm=qk_norm
  )
  return BlockConfig(
    attention=attention,
    mlp_width=whole(source, "intermediate_size", sizes[2], where),
    norm=norm_kind,
    eps=number(source, "layer_norm_eps", eps, where),
    activation=activation(source.get("hidden_act", act), where),
    gated=gated,
    mlp_bias=mlp_bias,
    layer_scale=layer_scale,
  )


def _sizes(
  source: Mapping[str, Any], where: str, *, patch: int, depth: int = 12, image: int = 224
) -> dict[str, int]:
  return {
    "depth": whole(source, "num_hidden_layers", depth, where),
    "image_size": side(source.get("image_size") or image, f"{where}.image_size"),
    "patch_size": side(source.get("patch_size") or patch, f"{where}.patch_size"),
    "channels": whole(source, "num_channels", 3, where),
  }


def siglip_rules() -> Iterator[Rule]:
  """Names of SigLIP's and CLIP's tensors, without the prefix `vision_model.`."""
  yield "embeddings.patch_embedding.weight", "patch_embed.kernel", "conv"
  yield "embeddings.patch_embedding.bias", "patch_embed.bias", "same"
  yield "embeddings.position_embedding.weight", "positions", "same"
  yield "embeddings.class_embedding", "class_token", "row"
  yield from norm("pre_layrnorm", "embedding_norm")  # misspelt in the files
  theirs, ours = "encoder.layers.{i}.", "stack.layers.{i}."
  for name in ("q_proj", "k_proj", "v_proj"):
    yield from linear(f"{theirs}self_attn.{name}", f"{ours}attn.{name}")
  yield from linear(f"{theirs}self_attn.out_proj", f"{ours}attn.o_proj")
  yield from linear(f"{theirs}mlp.fc1", f"{ours}mlp.up_proj")
  yield from linear(f"{theirs}mlp.fc2", f"{ours}mlp.down_proj")
  yield from norm(f"{theirs}layer_norm1", f"{ours}attn_norm")
  yield from norm(f"{theirs}layer_norm2", f"{ours}mlp_norm")
  yield from norm("post_layernorm", "norm")


def dinov2_rules(gated: bool = False) -> Iterator[Rule]:
  """DINOv2's, with registers; gated (SwiGLU), its `weights_in` holds gate and value one above the other."""
  yield from _tokens()
  yield "embeddings.position_embeddings", "positions", "unbatch"
  yield from _patches("embeddings.patch_embeddings.projection")
  theirs, ours = "encoder.layer.{i}.", "stack.layers.{i}."
  for name, mine in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
    yield from linear(f"{theirs}attention.attention.{name}", f"{ours}attn.{mine}")
  yield from linear(f"{theirs}attention.output.dense", f"{ours}attn.o_proj")
  if gated:
    for name, mine in (("weights_in.weight", "kernel"), ("weights_in.bias", "bias")):
      yield f"{theirs}mlp.{name}", f"{ours}mlp.gate_proj.{mine}", f"first_half_{mine}"
      yield f"{theirs}mlp.{name}", f"{ours}mlp.up_proj.{mine}", f"second_half_{mine}"
    yield from linear(f"{theirs}mlp.weights_out", f"{ours}mlp.down_proj")
  else:
    yield from _mlp(theirs, ours)
  yield from _scales(theirs, ours, "layer_scale1.lambda1", "layer_scale2.lambda1")
  yield from norm(f"{theirs}norm1", f"{ours}attn_norm")
  yield from norm(f"{theirs}norm2", f"{ours}mlp_norm")
  yield from norm("layernorm", "norm")


def dinov3_rules() -> Iterator[Rule]:
  yield from _tokens(mask="unbatch")
  yield from _patches("embeddings.patch_embeddings")
  theirs, ours = "layer.{i}.", "stack.layers.{i}."
  for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
    yield from linear(f"{theirs}attention.{name}", f"{ours}attn.{name}")
  for name in ("gate_proj", "up_proj", "down_proj"):
    yield from linear(f"{theirs}mlp.{name}", f"{ours}mlp.{name}")
  yield from _scales(theirs, ours, "layer_scale1.lambda1", "layer_scale2.lambda1")
  yield from norm(f"{theirs}norm1", f"{ours}attn_norm")
  yield from norm(f"{theirs}norm2", f"{ours}mlp_norm")
  yield from norm("norm", "norm")


def internvit_rules() -> Iterator[Rule]:
  yield from _tokens(mask="unbatch")
  yield "embeddings.position_embeddings", "positions", "unbatch"
  yield from _patches("embeddings.patch_embeddings.projection")
  theirs, ours = "encoder.layer.{i}.", "stack.layers.{i}."
  for name in ("q_proj", "k_proj", "v_proj"):
    yield from linear(f"{theirs}attention.{name}", f"{ours}attn.{name}")
  yield from linear(f"{theirs}attention.projection_layer", f"{ours}attn.o_proj")
  yield from norm(f"{theirs}attention.q_norm", f"{ours}attn.q_norm")
  yield from norm(f"{theirs}attention.k_norm", f"{ours}attn.k_norm")
  yield from _mlp(theirs, ours)
  yield from _scales(theirs, ours, "lambda_1", "lambda_2")
  yield from norm(f"{theirs}layernorm_before", f"{ours}attn_norm")
  yield from norm(f"{theirs}layernorm_after", f"{ours}mlp_norm")
  yield from norm("layernorm", "norm")


def _tokens(mask: str = "same") -> Iterator[Rule]:
  yield "embeddings.cls_token", "class_token", "unbatch"
  yield "embeddings.register_tokens", "registers", "unbatch"
  yield "embeddings.mask_token", "mask_token", mask


def _patches(theirs: str) -> Iterator[Rule]:
  yield f"{theirs}.weight", "patch_embed.kernel", "conv"
  yield f"{theirs}.bias", "patch_embed.bias", "same"


def _mlp(theirs: str, ours: str) -> Iterator[Rule]:
  yield from linear(f"{theirs}mlp.fc1", f"{ours}mlp.up_proj")
  yield from linear(f"{theirs}mlp.fc2", f"{ours}mlp.down_proj")


def _scales(theirs: str, ours: str, first: str, second: str) -> Iterator[Rule]:
  yield f"{theirs}{first}", f"{ours}attn_scale", "same"
  yield f"{theirs}{second}", f"{ours}mlp_scale", "same"
