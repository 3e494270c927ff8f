"""One vision transformer. A family's checkpoint chooses its sizes; SmolVLM's SigLIP is the first."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.core.axes import logical
from spatialvlm.core.block import BlockConfig, Stack
from spatialvlm.core.init import truncated_normal
from spatialvlm.core.norm import NORMS
from spatialvlm.types import Features


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Sizes of a `VisionEncoder`: `depth` blocks over square patches of `patch_size` pixels.

  `image_size` fixes the grid of the position table; images may be larger or smaller.
  """

  block: BlockConfig
  depth: int
  image_size: int
  patch_size: int
  channels: int

  @property
  def grid(self) -> int:
    return self.image_size // self.patch_size


class PatchEmbed(nnx.Module):
  """A convolution whose stride is its kernel, written as one product over flattened patches."""

  def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    p, width = config.patch_size, config.block.width
    axes = (None, None, None, "embed")
    init = truncated_normal((p * p * config.channels) ** -0.5, *axes)
    self.kernel = nnx.Param(init(rngs.params(), (p, p, config.channels, width), dtype), **logical(*axes))
    self.bias = nnx.Param(jnp.zeros((width,), dtype), **logical("embed"))

  def __call__(self, pixels_NHWC: jax.Array) -> jax.Array:
    """(N, rows, columns, D); pixels that fill no whole patch are dropped, as a valid convolution does."""
    p, _, channels, width = self.kernel.shape
    N, H, W, _ = pixels_NHWC.shape
    rows, columns = H // p, W // p
    x = pixels_NHWC[:, : rows * p, : columns * p].reshape(N, rows, p, columns, p, channels)
    x = x.swapaxes(2, 3).reshape(N, rows, columns, p * p * channels)
    return x @ self.kernel[...].reshape(-1, width) + self.bias[...]


class VisionEncoder(nnx.Module):
  """SigLIP's ViT (Zhai et al., 2023) with NaViT-style positions, as in Idefics3 and SmolVLM.

  Pre-norm blocks without a class token, learned positions, a norm after the last block.
  """

  def __init__(self, config: VisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    block = config.block
    self.config = config
    self.patch_embed = PatchEmbed(config, dtype=dtype, rngs=rngs)
    init = truncated_normal(block.width**-0.5, None, "embed")
    table = init(rngs.params(), (config.grid**2, block.width), dtype)
    self.positions = nnx.Param(table, **logical(None, "embed"))
    self.stack = Stack(block, config.depth, dtype=dtype, rngs=rngs)
    self.norm = NORMS[block.norm](block.width, block.eps, dtype=dtype, rngs=rngs)

  def __call__(self, pixels_NHWC: jax.Array, pixel_mask_NHW: jax.Array | None = None) -> Features:
    """Encodes normalised images.

    Args:
      pixel_mask_NHW: true at real pixels. A patch with none of them is hidden from the others; it still
        has an output. None where all pixels are real.
    """
    x_NRCD = self.patch_embed(pixels_NHWC.astype(self.positions.dtype))
    N, rows, columns, width = x_NRCD.shape
    if pixel_mask_NHW is None:
      valid_NRC, mask_NPS = jnp.ones((1, rows, columns), bool), None
    else:
      valid_NRC = patch_mask(pixel_mask_NHW, self.config.patch_size)
      mask_NPS = valid_NRC.reshape(N, 1, rows * columns)
    x_NRCD += self.positions[...][position_ids(valid_NRC, self.config.grid)]
    x_NPD = self.norm(self.stack(x_NRCD.reshape(N, rows * columns, width), mask_NPS))
    return Features(x_NPD, (rows, columns))


def patch_mask(pixel_mask_NHW: jax.Array, patch_size: int) -> jax.Array:
  """(N, rows, columns), true for patches with at least one real pixel."""
  N, H, W = pixel_mask_NHW.shape
  rows, columns = H // patch_size, W // patch_size
  whole = pixel_mask_NHW[:, : rows * patch_size, : columns * patch_size].astype(bool)
  return whole.reshape(N, rows, patch_size, columns, patch_size).any(axis=(2, 4))


def position_ids(valid_NRC: jax.Array, grid: int) -> jax.Array:
  """int32 (N, rows, columns): rows of the position table, 0 for patches that are not valid.

  The valid part of an image is stretched over the whole table: patch i of n stands at i / n and takes the
  cell that this falls in (NaViT, Dehghani et al., 2023; arithmetic as in transformers 5).
  """
  # In float32 the last boundary may come out just below 1 or be missing, as it may in torch.arange.
  boundaries = jnp.asarray(np.arange(1 / grid, 1.0, 1 / grid).astype(np.float32))

  def cells(count_N: jax.Array, size: int) -> jax.Array:
    step = jnp.float32(1) / count_N.astype(jnp.float32)
    coordinates = jnp.minimum(jnp.arange(size, dtype=jnp.float32) * step[:, None], jnp.float32(1 - 1e-6))
    return jnp.searchsorted(boundaries, coordinates, side="right").astype(jnp.int32)

  _, rows, columns = valid_NRC.shape
  down = cells(valid_NRC[:, :, 0].sum(axis=1), rows)
  across = cells(valid_NRC[:, 0, :].sum(axis=1), columns)
  return jnp.where(valid_NRC, down[:, :, None] * grid + across[:, None, :], 0)
