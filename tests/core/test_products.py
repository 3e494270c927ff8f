"""Products in bfloat16 on a CPU: summed in float32 and rounded once, forwards and backwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm.core import products
from spatialvlm.core.mlp import linear


def _drawn(*shapes, dtype=jnp.bfloat16):
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def _rounded(x):
  return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)


def test_a_product_in_bfloat16_is_the_float32_sum_rounded_once():
  x, w = _drawn((2, 5, 64), (64, 7))
  exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
  y = products.matmul(x, w)
  assert y.dtype == jnp.bfloat16
  # a sum that lies on the border of two roundings may go either way: one unit of bfloat16's 8 bits
  np.testing.assert_allclose(np.asarray(y, np.float32), exact, rtol=2**-8, atol=1e-6)
  assert (np.asarray(y, np.float32) == _rounded(exact)).mean() > 0.97


def test_gradients_in_bfloat16_are_those_of_float32_rounded():
  x, w, dy = _drawn((2, 5, 64), (64, 7), (2, 5, 7))
  dx, dw = jax.vjp(products.matmul, x, w)[1](dy)
  wide = [np.asarray(a, np.float64) for a in (x, w, dy)]
  assert dx.dtype == dw.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(dx, np.float32), wide[2] @ wide[1].T, rtol=2**-8, atol=1e-5)
  exact = np.einsum("btk,btn->kn", wide[0], wide[2])
  np.testing.assert_allclose(np.asarray(dw, np.float32), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  "spec, shapes", [("BTD,VD->BTV", ((2, 5, 8), (9, 8))), ("BKTH,BKSH->BKTS", ((2, 3, 5, 8), (2, 3, 4, 8)))]
)
def test_einsum_gives_float32_and_its_gradients(spec, shapes, dtype):
  a, b = _drawn(*shapes, dtype=dtype)
  wide = [np.asarray(x, np.float64) for x in (a, b)]
  out = products.einsum(spec, a, b)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, np.einsum(spec, *wide), rtol=1e-5, atol=1e-5)
  dy = jnp.cos(out)  # in bfloat16 a cotangent is rounded before its products, as on GPUs
  dy = np.asarray(dy.astype(dtype), np.float64)
  (of_a, of_b), of_out = spec.split("->")[0].split(","), spec.split("->")[1]
  wanted = (
    np.einsum(f"{of_out},{of_b}->{of_a}", dy, wide[1]),
    np.einsum(f"{of_a},{of_out}->{of_b}", wide[0], dy),
  )
  ours = jax.grad(lambda a, b: jnp.sin(products.einsum(spec, a, b)).sum(), (0, 1))(a, b)
  for mine, other in zip(ours, wanted, strict=True):
    assert mine.dtype == dtype
    close = dict(rtol=2**-8, atol=1e-4) if dtype == jnp.bfloat16 else dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(mine, np.float32), other, **close)


def test_float32_is_left_as_it_was():
  x, w = _drawn((3, 64), (64, 7), dtype=jnp.float32)
  assert (products.matmul(x, w) == jnp.dot(x, w)).all()


def test_linear_layers_sum_in_float32_on_a_cpu():
  """What XLA is asked for: a product of two bfloat16 arrays into float32, forwards and backwards."""
  layer = linear(64, 7, (None, None), bias=False, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  graphdef, state = nnx.split(layer)
  loss = lambda state, x: nnx.merge(graphdef, state)(x).astype(jnp.float32).sum()
  text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(state, jnp.ones((3, 64), jnp.bfloat16)))
  dots = [line for line in text.splitlines() if "dot_general[" in line]
  assert len(dots) == 3
  assert all("f32" in line.split("=")[0] for line in dots)
