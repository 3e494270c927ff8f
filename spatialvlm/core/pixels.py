"""Pixels of 8 bits into the numbers that a vision tower reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from spatialvlm.types import PixelTable


def looked_up(pixels_NHWC: jax.Array, table_XC: jax.Array) -> jax.Array:
  """Float32 (N, H, W, C): for uint8 pixels the values of a table (256, C), exactly."""
  return table_XC[pixels_NHWC, jnp.arange(pixels_NHWC.shape[-1])]


def normalised(pixels_NHWC: jax.Array, table: PixelTable | None) -> jax.Array:
  """Normalised pixels: those of 8 bits are looked up in the table, floating ones are normalised already.

  Raises:
    ValueError: whole numbers without a table, or floating ones with one.
  """
  whole = not jnp.issubdtype(pixels_NHWC.dtype, jnp.floating)
  if whole != (table is not None):
    raise ValueError(f"pixels of {pixels_NHWC.dtype} {'with' if table else 'without'} a table (Batch.normal)")
  return pixels_NHWC if table is None else looked_up(pixels_NHWC, jnp.asarray(table.values))
