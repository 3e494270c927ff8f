"""Where patches stand: tables of learned positions for any grid, and rotary angles over the image plane."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


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
  _, rows, columns = valid_NRC.shape
  down = stretched(valid_NRC[:, :, 0].sum(axis=1), rows, grid)
  across = stretched(valid_NRC[:, 0, :].sum(axis=1), columns, grid)
  return jnp.where(valid_NRC, down[:, :, None] * grid + across[:, None, :], 0)


def stretched(count_N: jax.Array, size: int, grid: int) -> jax.Array:
  """int32 (N, size): in which of the table's `grid` cells each of `size` patches of a line falls, the first
  `count` of which fill the table."""
  # In float32 the last boundary may come out just below 1 or be missing, as it may in torch.arange.
  boundaries = jnp.asarray(np.arange(1 / grid, 1.0, 1 / grid).astype(np.float32))
  step = jnp.float32(1) / count_N.astype(jnp.float32)
  coordinates = jnp.minimum(jnp.arange(size, dtype=jnp.float32) * step[:, None], jnp.float32(1 - 1e-6))
  # Counted, not searched: not every runtime that a model is exported to can search.
  return (coordinates[..., None] >= boundaries).sum(axis=-1, dtype=jnp.int32)


def resample(table_PD: jax.Array, rows: int, columns: int, antialias: bool) -> jax.Array:
  """(rows * columns, D): a square table of positions on another grid, computed in float32.

  As torch's `interpolate(mode="bicubic", align_corners=False)`; `antialias` as its flag of that name.
  """
  P, D = table_PD.shape
  side = int(P**0.5)
  if (rows, columns) == (side, side):
    return table_PD
  down, across = (bicubic(side, size, antialias) for size in (rows, columns))
  square = table_PD.reshape(side, side, D).astype(jnp.float32)
  out = jnp.einsum("ri,cj,ijd->rcd", down, across, square, precision=jax.lax.Precision.HIGHEST)
  return out.reshape(rows * columns, D).astype(table_PD.dtype)


@functools.cache
def bicubic(size_in: int, size_out: int, antialias: bool) -> np.ndarray:
  """float32 (size_out, size_in), the weights of torch's bicubic interpolation along one axis.

  Keys' kernel with a = -0.75, pixels beyond the edge repeated; antialiased, a = -0.5, the kernel widened by
  the shrinkage, and pixels beyond the edge left out. (`jax.image.resize` has a = -0.5 in both.)
  """
  scale = size_in / size_out
  centers = (np.arange(size_out) + 0.5) * scale - 0.5
  weights = np.zeros((size_out, size_in))
  if antialias:
    width = max(scale, 1.0)
    weights = _keys((np.arange(size_in) - centers[:, None]) / width, -0.5)
    weights /= weights.sum(axis=1, keepdims=True)
  else:
    first = np.floor(centers).astype(int)
    for tap in range(-1, 3):
      index = np.clip(first + tap, 0, size_in - 1)
      np.add.at(weights, (np.arange(size_out), index), _keys(first + tap - centers, -0.75))
  return weights.astype(np.float32)


def _keys(x: np.ndarray, a: float) -> np.ndarray:
  x = np.abs(x)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def plane_angles(
  rows: int, columns: int, head_dim: int, theta: float, prefix: int
) -> tuple[jax.Array, jax.Array]:
  """(cos, sin) of DINOv3's rotary positions (Simeoni et al., 2025), each (1, prefix + P, head_dim / 2).

  Half of the pairs turn by the patch's row, half by its column, each from -1 to 1; the first `prefix` tokens
  are not turned.
  """
  frequencies = theta ** -np.arange(0, 1, 4 / head_dim)
  down, across = (2 * (np.arange(size) + 0.5) / size - 1 for size in (rows, columns))
  places_P2 = np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1).reshape(-1, 2)
  angles = (2 * np.pi * places_P2[:, :, None] * frequencies).reshape(len(places_P2), -1)
  angles = np.concatenate([np.zeros((prefix, head_dim // 2)), angles])[None]
  return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
