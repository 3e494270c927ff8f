"""Resizing pictures of 8 bits with whole weights, on any device, bit for bit.

Pillow resizes one axis after the other in integers: a pixel is the sum of its neighbours by weights of 22
bits, rounded to 8 bits after each axis. Sums of integers are exact in any order, so the same weights give the
same pixels wherever they are summed; XLA sums whole rows in vectors, in a fraction of Pillow's time. The
weights are `processing.pillow`'s.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

BITS = 22
"""Weights are in units of 2**-22."""
_STRIP = 16


@jax.jit
def down(pixels_HWC: jax.Array, start_M: jax.Array, weights_MK: jax.Array) -> jax.Array:
  """Resizes the first axis: uint8 (M, W, C)."""
  H, W, C = pixels_HWC.shape
  return _rows(pixels_HWC.reshape(H, W * C), start_M, weights_MK).reshape(-1, W, C)


@jax.jit
def across(pixels_HWC: jax.Array, start_M: jax.Array, weights_MK: jax.Array) -> jax.Array:
  """Resizes the second axis: uint8 (H, M, C). `H` is best a multiple of 16."""
  H, W, C = pixels_HWC.shape
  strip = math.gcd(H, _STRIP)
  # Turned in strips of a few rows, which a core's cache holds, so that here too whole rows are summed.
  turned = pixels_HWC.reshape(H // strip, strip, W, C).transpose(0, 2, 1, 3).reshape(-1, W, strip * C)
  out = jax.lax.map(lambda rows_WX: _rows(rows_WX, start_M, weights_MK), turned)
  return out.reshape(H // strip, -1, strip, C).transpose(0, 2, 1, 3).reshape(H, -1, C)


def _rows(rows_NX: jax.Array, start_M: jax.Array, weights_MK: jax.Array) -> jax.Array:
  """Rows summed by their weights: uint8 (M, X)."""
  last = rows_NX.shape[0] - 1
  total = jnp.full((start_M.shape[0], rows_NX.shape[1]), 1 << (BITS - 1), jnp.int32)
  for k in range(weights_MK.shape[1]):
    taken = rows_NX[jnp.minimum(start_M + k, last)].astype(jnp.int32)  # beyond the last the weight is 0
    total = total + weights_MK[:, k, None] * taken
  return jnp.clip(total >> BITS, 0, 255).astype(jnp.uint8)
