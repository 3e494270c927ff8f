"""Layer norm and root-mean-square norm, computed in float32 whatever the dtype of their input."""

from __future__ import annotations

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
  """x / sqrt(mean(x^2) + eps) * scale (Zhang and Sennrich, 2019), as Llama does it."""

  def __init__(self, width: int, eps: float, *, dtype: jnp.dtype, rngs: nnx.Rngs, axis: str = "embed"):
    self.scale = nnx.Param(jnp.ones((width,), dtype), **logical(axis))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean_square + self.eps) * self.scale[...]).astype(x.dtype)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}
