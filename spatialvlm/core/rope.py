"""Rotary position embeddings (Su et al., 2021) in the rotate-half layout of Hugging Face weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Slower rotation for contexts longer than the first training's, as `rope_type` "llama3" has it.

  Pairs that turn fewer than `low` times within `length` positions turn `factor` times slower, those that turn
  more than `high` times as before, those between by a mixture.
  """

  factor: float
  low: float
  high: float
  length: int

  def __call__(self, frequencies: jax.Array) -> jax.Array:
    turns = self.length * frequencies / (2 * jnp.pi)
    kept = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return kept * frequencies + (1 - kept) * frequencies / self.factor


def rope_angles(
  positions_BT: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
  """(cos, sin), each (B, T, head_dim / 2) float32, computed once and shared by all layers."""
  angles = positions_BT[..., None].astype(jnp.float32) * rope_frequencies(head_dim, theta, scaling)
  return jnp.cos(angles), jnp.sin(angles)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> jax.Array:
  """float32 (head_dim / 2,): by how much each pair turns from one position to the next."""
  frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  return frequencies if scaling is None else scaling(frequencies)


def rotate(x_BTNH: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Turns the pairs (x[i], x[i + H/2]) of every head by their angles, in float32."""
  cos, sin = (a[:, :, None, :] for a in angles)
  first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_BTNH.dtype)
