"""Initial values, drawn straight onto their shards."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spatialvlm.core.axes import context_mesh, spec

# Deviation of a standard normal that is cut at two deviations.
_CUT = 0.87962566103423978


def truncated_normal(std: float, *names: str | None) -> Callable[..., jax.Array]:
  """An initializer (key, shape, dtype) -> array of deviation `std`, cut at about 2.3 of them.

  Under `jax.set_mesh` the array is born on its shards by the logical axes `names`, with the same values as
  on one device.
  """

  def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    mesh = context_mesh()
    place = None if mesh is None else spec(names, shape, mesh)
    return _draw(tuple(shape), jnp.dtype(dtype), place)(key, jnp.float32(std / _CUT))

  return init


@functools.cache
def _draw(shape: tuple[int, ...], dtype: jnp.dtype, place: PartitionSpec | None) -> Callable[..., jax.Array]:
  # One small program per shape: in one program for the whole model every draw would be compiled anew.
  def draw(key: jax.Array, scale: jax.Array) -> jax.Array:
    return (scale * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)).astype(dtype)

  return jax.jit(draw, out_shardings=place)
