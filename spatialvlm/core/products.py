"""Products of activations and weights, by the fastest way that a device has for their dtype."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from spatialvlm.core import backend

_LAST_BY_FIRST = lambda ndim: (((ndim - 1,), (0,)), ((), ()))


def dot_general(
  lhs: jax.Array,
  rhs: jax.Array,
  dimension_numbers: Any,
  precision: Any = None,
  preferred_element_type: Any = None,
  **kwargs: Any,
) -> jax.Array:
  """`jax.lax.dot_general`, for `nnx.Linear`; bfloat16 times bfloat16 on a CPU by its matrix unit.

  XLA has a CPU multiply bfloat16 in float32 unless the result is float32 too, forwards as backwards. With it
  as the type of the sum, and one rounding after it, Intel's AMX takes the product: 5 times as fast, and the
  same numbers as on GPU and TPU, which sum in float32 as well.
  """
  plain = preferred_element_type in (None, jnp.bfloat16) and dimension_numbers == _LAST_BY_FIRST(lhs.ndim)
  bfloat16 = lhs.dtype == rhs.dtype == jnp.bfloat16
  if plain and bfloat16 and rhs.ndim == 2 and not any(kwargs.values()) and backend.platform() == "cpu":
    return _rounded_once(lhs, rhs)
  return jax.lax.dot_general(
    lhs, rhs, dimension_numbers, precision=precision, preferred_element_type=preferred_element_type, **kwargs
  )


def matmul(x: jax.Array, w: jax.Array, precision: Any = None, out_dtype: Any = None) -> jax.Array:
  """x (..., K) times w (K, N), as `dot_general`."""
  return dot_general(x, w, _LAST_BY_FIRST(x.ndim), precision, out_dtype)


@jax.custom_vjp
def _rounded_once(x: jax.Array, w: jax.Array) -> jax.Array:
  return _product(x, w, _LAST_BY_FIRST(x.ndim))


def _forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _rounded_once(x, w), (x, w)


def _backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  # Left to JAX, the cotangent would be float32 and the product of mixed types.
  x, w = kept
  others = tuple(range(x.ndim - 1))
  return _product(dy, w, (((x.ndim - 1,), (1,)), ((), ()))), _product(x, dy, ((others, others), ((), ())))


_rounded_once.defvjp(_forward, _backward)


def _product(a: jax.Array, b: jax.Array, dimension_numbers: Any) -> jax.Array:
  return jax.lax.dot_general(a, b, dimension_numbers, preferred_element_type=jnp.float32).astype(a.dtype)


def einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """`jnp.einsum` of two arrays with the result in float32, by the same way as `dot_general`.

  Where that is taken, cotangents are rounded to bfloat16 before their products, as kernels for GPUs do.

  Args:
    spec: every letter of an operand stands in the other one or in the result.
  """
  if a.dtype == b.dtype == jnp.bfloat16 and backend.platform() == "cpu":
    return _einsum(spec, a, b)
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _einsum_forward(spec: str, a: jax.Array, b: jax.Array):
  return _einsum(spec, a, b), (a, b)


def _einsum_backward(spec: str, kept, dy: jax.Array):
  a, b = kept
  (of_a, of_b), out = spec.split("->")[0].split(","), spec.split("->")[1]
  dy = dy.astype(a.dtype)
  da = jnp.einsum(f"{out},{of_b}->{of_a}", dy, b, preferred_element_type=jnp.float32)
  db = jnp.einsum(f"{of_a},{out}->{of_b}", a, dy, preferred_element_type=jnp.float32)
  return da.astype(a.dtype), db.astype(b.dtype)


_einsum.defvjp(_einsum_forward, _einsum_backward)
