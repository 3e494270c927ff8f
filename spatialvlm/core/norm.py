"""Layer norm and root-mean-square norm, computed in float32 whatever the dtype of their input."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from spatialvlm.core.axes import logical


class LayerNorm(nnx.Module):
  """(x - mean) / sqrt(var + eps) * scale + bias (Ba et al., 2016)."""

  def __init__(self, width: int, eps: float, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.scale = nnx.Param(jnp.ones((width,), dtype), **logical("embed"))
    self.bias = nnx.Param(jnp.zeros((width,), dtype), **logical("embed"))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]
    return y.astype(x.dtype)


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x^2) + eps) * (offset + scale) (Zhang and Sennrich, 2019)."""

  def __init__(
    self,
    width: int,
    eps: float,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    axis: str = "embed",
    offset: float = 0.0,
  ):
    self.scale = nnx.Param(jnp.full((width,), 1 - offset, dtype), **logical(axis))
    self.eps, self.offset = eps, offset

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    scale = self.scale[...]
    if self.offset:
      scale = self.offset + scale.astype(jnp.float32)  # in bfloat16 the sum would lose the weight's last bits
    return (x32 * jax.lax.rsqrt(mean_square + self.eps) * scale).astype(x.dtype)


NORMS = {"layer": LayerNorm, "rms": RMSNorm, "rms_offset": functools.partial(RMSNorm, offset=1.0)}
