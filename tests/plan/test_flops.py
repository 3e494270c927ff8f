"""Products counted in traced programs, beside what they are by hand."""

import jax
import jax.numpy as jnp
import pytest

from spatialvlm.plan import flops

A = jax.ShapeDtypeStruct((4, 8), jnp.float32)
B = jax.ShapeDtypeStruct((8, 16), jnp.float32)
ONE = 2 * 4 * 8 * 16


def counted(function, *arguments) -> float:
  return flops.count(jax.jit(function).trace(*arguments).jaxpr)


def test_products_and_convolutions():
  assert counted(lambda a, b: jnp.tanh(a @ b), A, B) == ONE
  batched = jax.ShapeDtypeStruct((3, 4, 8), jnp.float32)
  assert counted(lambda a, b: jnp.einsum("nij,jk->nik", a, b), batched, B) == 3 * ONE
  image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  kernel = jax.ShapeDtypeStruct((4, 4, 3, 5), jnp.float32)
  patches = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert counted(patches, image, kernel) == 2 * (2 * 2 * 2 * 5) * (4 * 4 * 3)


def test_loops_branches_and_what_no_result_needs():
  square = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  scan = lambda a, w: jax.lax.scan(lambda x, _: (x @ w, None), a, length=5)[0]
  assert counted(scan, A, square) == 5 * 2 * 4 * 8 * 8
  both = lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((4, 16)))
  assert counted(both, A, B) == ONE
  assert counted(lambda a, b: (a @ b, a + 1)[1], A, B) == 0


@pytest.mark.parametrize("remat", [False, True])
def test_the_backward_pass_counts_what_it_computes_again(remat):
  def loss(w, a, v):
    inner = lambda w, a: jnp.tanh(a @ w)
    return ((jax.checkpoint(inner) if remat else inner)(w, a) @ v).sum()

  v = jax.ShapeDtypeStruct((16, 2), jnp.float32)
  later = 2 * 4 * 16 * 2
  # Both products, back through the second, the weight's gradient; again the first one.
  assert counted(jax.value_and_grad(loss), B, A, v) == 2 * ONE + 2 * later + remat * ONE
