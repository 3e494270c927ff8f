"""One vision transformer. A family's checkpoint chooses its sizes and parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core.axes import logical
from spatialvlm.core.block import BlockConfig, Stack
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

  @property
  def stacks(self) -> list[Stack]:
    """The blocks, as `joined.JoinedEncoder` has them of each encoder."""
    return [self.stack]

  def __call__(self, pixels_NHWC: jax.Array, pixel_mask_NHW: jax.Array | None = None) -> Features:
    """Patches after the last block and its norm.

    Args:
      pixels_NHWC: normalised images.
      pixel_mask_NHW: true at real pixels, for "navit" positions. A patch with none of them is hidden from
        the others; it still has an output. None where all pixels are real.
    """
    x_NTD, grid = self.tokens(pixels_NHWC, pixel_mask_NHW)
    return Features(x_NTD[:, self.config.prefix :], grid)

  def tokens(
    self, pixels_NHWC: jax.Array, pixel_mask_NHW: jax.Array | None = None
  ) -> tuple[jax.Array, tuple[int, int]]:
    """(N, T, D), all tokens as transformers' `last_hidden_state`, and the grid of the patches among them."""
    x_NTD, mask_NTS, angles, grid = self._embed(pixels_NHWC, pixel_mask_NHW)
    x_NTD = self.stack(x_NTD, mask_NTS, angles)
    return self.norm(x_NTD) if self.config.final_norm == "tokens" else x_NTD, grid

  def hidden(self, pixels_NHWC: jax.Array, layers: Sequence[int]) -> tuple[list[jax.Array], tuple[int, int]]:
    """[(N, T, D)] after so many blocks (0: none), as transformers' `hidden_states`, and the patches' grid.

    What no named layer needs is not computed. No final norm is applied.
    """
    x_NTD, mask_NTS, angles, grid = self._embed(pixels_NHWC, None)
    found, done = {}, 0
    for stop in sorted(set(layers)):
      x_NTD = found[stop] = self.stack(x_NTD, mask_NTS, angles, start=done, stop=stop)
      done = stop
    return [found[layer] for layer in layers], grid

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
      angles = plane_angles(rows, columns, config.block.head_dim, config.rope_theta, config.prefix)
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
