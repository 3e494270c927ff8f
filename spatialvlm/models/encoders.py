"""One vision transformer. A family's checkpoint chooses its sizes and parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core.axes import logical
from spatialvlm.core.block import BlockConfig, Stack, layer_numbers, looks
from spatialvlm.core.init import truncated_normal
from spatialvlm.core.norm import NORMS
from spatialvlm.models.positions import patch_mask, plane_angles, position_ids, resample
from spatialvlm.types import Features


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Sizes and parts of a `VisionEncoder`: `depth` blocks over square patches of `patch_size` pixels.

  Attributes:
    image_size: fixes the grid of the position table; images may be larger or smaller.
    positions: "navit" (the table stretched over the real part of an image), "bicubic" or
      "bicubic_antialias" (the table resampled to the image's grid), "rope" (no table), or "none".
    rope_theta: base of the rotary frequencies.
    patch_bias: whether the patch projection has a bias.
    class_token: whether a learned token leads the sequence; it has a position of its own in the table.
    registers: learned tokens between it and the patches, without positions.
    mask_token: whether the checkpoint holds one, which nothing here reads.
    embedding_norm: a norm before the first block.
    final_norm: a norm after the last one: "tokens", "none", or "pooled": checkpoints hold it for the class
      token alone, and the tokens go out without it.
    feature_layer: whose patches a language model reads: so many blocks from the first one on, without the
      final norm; None for the last block, with it.
  """

  block: BlockConfig
  depth: int
  image_size: int
  patch_size: int
  channels: int
  positions: str = "navit"
  rope_theta: float = 100.0
  patch_bias: bool = True
  class_token: bool = False
  registers: int = 0
  mask_token: bool = False
  embedding_norm: bool = False
  final_norm: str = "tokens"
  feature_layer: int | None = None

  @property
  def width(self) -> int:
    return self.block.width

  @property
  def grid(self) -> int:
    return self.image_size // self.patch_size

  @property
  def prefix(self) -> int:
    """Tokens before those of the patches."""
    return int(self.class_token) + self.registers


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """An encoder that stands alone.

  Attributes:
    family: key of `models.families.ENCODERS`.
    dtype: "float32" or "bfloat16", of weights and activations.
    source: the checkpoint's own config.json, of the vision part alone, kept for saving.
  """

  family: str
  vision: VisionConfig
  dtype: str = "float32"
  source: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)


class PatchEmbed(nnx.Module):
  """A convolution whose stride is its kernel, written as one product over flattened patches."""

  def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    p, width = config.patch_size, config.block.width
    axes = (None, None, None, "embed")
    init = truncated_normal((p * p * config.channels) ** -0.5, *axes)
    self.kernel = nnx.Param(init(rngs.params(), (p, p, config.channels, width), dtype), **logical(*axes))
    self.bias = nnx.Param(jnp.zeros((width,), dtype), **logical("embed")) if config.patch_bias else None

  def __call__(self, pixels_NHWC: jax.Array) -> jax.Array:
    """(N, rows, columns, D); pixels that fill no whole patch are dropped, as a valid convolution does."""
    p, _, channels, width = self.kernel.shape
    N, H, W, _ = pixels_NHWC.shape
    rows, columns = H // p, W // p
    x = pixels_NHWC[:, : rows * p, : columns * p].reshape(N, rows, p, columns, p, channels)
    x = x.swapaxes(2, 3).reshape(N, rows, columns, p * p * channels)
    x = x @ self.kernel[...].reshape(-1, width)
    return x if self.bias is None else x + self.bias[...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderOutput:
  """What `VisionEncoder.read` gives. T counts all tokens: class token and registers, then the patches.

  Attributes:
    features: the patches of `VisionConfig.feature_layer`, what a connector reads; None if not wanted.
    tokens_NTD: after the last block and its norm, transformers' `last_hidden_state`; None if not wanted.
    layers: by layer as it was asked for, the residual stream (N, T, D): 0 is what the first block reads, i
      what stands after i blocks, negative ones count from the end; no final norm.
    attention: by layer as it was asked for, the probabilities (N, heads, T, T) in float32 in the block before
      it, 1 for the first.
    attention_mean: by layer as it was asked for, their mean over heads (N, T, T).
    prefix: how many tokens stand before the patches.
  """

  features: Features | None
  tokens_NTD: jax.Array | None
  layers: dict[int, jax.Array]
  attention: dict[int, jax.Array]
  attention_mean: dict[int, jax.Array]
  prefix: int = dataclasses.field(metadata={"static": True})


class VisionEncoder(nnx.Module):
  """A pre-norm ViT (Dosovitskiy et al., 2021) in the variants that `VisionConfig` names.

  SigLIP (Zhai et al., 2023) has no class token; Idefics3 and SmolVLM give it NaViT's positions.
  """

  def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    block = config.block
    self.config = config
    self.patch_embed = PatchEmbed(config, dtype=dtype, rngs=rngs)
    init = truncated_normal(block.width**-0.5, None, "embed")
    rows = lambda count: nnx.Param(init(rngs.params(), (count, block.width), dtype), **logical(None, "embed"))
    norm = lambda: NORMS[block.norm](block.width, block.eps, dtype=dtype, rngs=rngs)
    if config.positions not in ("rope", "none"):
      self.positions = rows(config.class_token + config.grid**2)
    if config.class_token:
      self.class_token = rows(1)
    if config.registers:
      self.registers = rows(config.registers)
    if config.mask_token:
      self.mask_token = rows(1)
    if config.embedding_norm:
      self.embedding_norm = norm()
    self.stack = Stack(block, config.depth, dtype=dtype, rngs=rngs)
    if config.final_norm != "none":
      self.norm = norm()

  def __call__(self, pixels_NHWC: jax.Array, pixel_mask_NHW: jax.Array | None = None) -> Features:
    """Patches, of `VisionConfig.feature_layer` or after the last block and its norm.

    Args:
      pixels_NHWC: normalised images.
      pixel_mask_NHW: true at real pixels, for "navit" positions. A patch with none of them is hidden from
        the others; it still has an output. None where all pixels are real.
    """
    return self.read(pixels_NHWC, pixel_mask_NHW).features

  def read(
    self,
    pixels_NHWC: jax.Array,
    pixel_mask_NHW: jax.Array | None = None,
    *,
    layers: Iterable[int] = (),
    attention: Iterable[int] = (),
    attention_mean: Iterable[int] = (),
    traces: Mapping[int, jax.Array] | None = None,
    features: bool = True,
    tokens: bool = False,
  ) -> EncoderOutput:
    """Reads images, arguments as of the call, and gives what is asked for; blocks beyond that do not run.

    Args:
      layers, attention, attention_mean, features, tokens: what is wanted, as of `EncoderOutput`.
      traces: by layer, from 1 on, zeros (N, T, T) whose gradient is `core.attention.traced`'s.

    Raises:
      UserError: a layer that is not there.
    """
    depth, chosen = self.config.depth, self.config.feature_layer
    streams = layer_numbers(layers, depth, "encoder")
    attended = layer_numbers(attention, depth, "encoder's attention", first=1)
    means = layer_numbers(attention_mean, depth, "encoder's attention", first=1)
    inner = {chosen} if features and chosen is not None else set()
    last = tokens or (features and chosen is None)
    x_NTD, mask_NTS, angles, grid = self._embed(pixels_NHWC, pixel_mask_NHW)
    out = self.stack.read(
      x_NTD,
      mask_NTS,
      angles,
      layers=inner.union(streams.values()),
      attention=looks(attended.values(), means.values(), traces=traces),
      stop=depth if last else max([0, *inner, *streams.values(), *attended.values(), *means.values()]),
    )
    tokens_NTD = None
    if last:
      tokens_NTD = self.norm(out.x_BTD) if self.config.final_norm == "tokens" else out.x_BTD
    source_NTD = out.layers[chosen] if inner else tokens_NTD
    return EncoderOutput(
      features=Features(source_NTD[:, self.config.prefix :], grid) if features else None,
      tokens_NTD=tokens_NTD if tokens else None,
      layers={layer: out.layers[number] for layer, number in streams.items()},
      attention={layer: out.attention[number] for layer, number in attended.items()},
      attention_mean={layer: out.attention_mean[number] for layer, number in means.items()},
      prefix=self.config.prefix,
    )

  def _embed(self, pixels_NHWC: jax.Array, pixel_mask_NHW: jax.Array | None):
    """What the first block reads: tokens, mask, rotary angles; and the grid."""
    config = self.config
    x_NRCD = self.patch_embed(pixels_NHWC.astype(self.patch_embed.kernel.dtype))
    N, rows, columns, width = x_NRCD.shape
    mask_NTS, angles = None, None
    if config.positions == "navit":
      valid_NRC = jnp.ones((1, rows, columns), bool)
      if pixel_mask_NHW is not None:
        valid_NRC = patch_mask(pixel_mask_NHW, config.patch_size)
        mask_NTS = valid_NRC.reshape(N, 1, rows * columns)
      x_NRCD += self.positions[...][position_ids(valid_NRC, config.grid)]
    x_NTD = x_NRCD.reshape(N, rows * columns, width)
    if config.positions.startswith("bicubic"):
      table = self.positions[...][int(config.class_token) :]
      x_NTD += resample(table, rows, columns, config.positions == "bicubic_antialias")
    if config.positions == "rope":
      angles = plane_angles(rows, columns, config.block.attention.head_dim, config.rope_theta, config.prefix)
    lead = self._prefix()
    if lead is not None:
      lead_NTD = jnp.broadcast_to(lead, (N, *lead.shape))
      x_NTD = jnp.concatenate([lead_NTD, x_NTD], axis=1)
    return self.embedding_norm(x_NTD) if config.embedding_norm else x_NTD, mask_NTS, angles, (rows, columns)

  def _prefix(self) -> jax.Array | None:
    """The tokens before the patches, (config.prefix, D)."""
    parts = []
    if self.config.class_token:
      place = self.positions[...][:1] if hasattr(self, "positions") else 0.0
      parts.append(self.class_token[...] + place)
    if self.config.registers:
      parts.append(self.registers[...])
    return jnp.concatenate(parts) if parts else None
