"""Rotary position embeddings (Su et al., 2021) in the rotate-half layout of Llama's Hugging Face weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rope_angles(positions_BT: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
  """(cos, sin), each (B, T, head_dim / 2) float32, computed once and shared by all layers."""
  frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angles = positions_BT[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNH: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Turns the pairs (x[i], x[i + H/2]) of every head by their angles, in float32."""
  cos, sin = (a[:, :, None, :] for a in angles)
  first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_BTNH.dtype)
