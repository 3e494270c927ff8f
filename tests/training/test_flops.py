"""FLOPs counted in programs, against arithmetic by hand."""

import jax
import jax.numpy as jnp

from spatialvlm.training import flops

A = jnp.ones((2, 3, 4))
B = jnp.ones((2, 4, 5))
ONE = 2 * 2 * 3 * 4 * 5  # of the product of both


def count(function, *arguments) -> float:
  return flops.count(jax.jit(function).trace(*arguments).jaxpr)


def product(a, b):
  return jnp.einsum("BTD,BDF->BTF", a, b)


def test_products_count_and_nothing_else():
  assert count(product, A, B) == ONE
  assert count(lambda a, b: jnp.tanh(product(a, b)) + 1, A, B) == ONE
  assert count(lambda a: jnp.exp(a).sum(), A) == 0
  # Both gradients beside it: three products; of one alone the product itself is not needed.
  assert count(jax.grad(lambda a, b: (product(a, b) ** 2).sum(), argnums=(0, 1)), A, B) == 3 * ONE
  assert count(jax.grad(lambda a, b: product(a, b).sum()), A, B) == ONE


def test_loops_count_as_often_as_they_run():
  square = jnp.ones((2, 4, 4))
  body = lambda x, _: (product(x, square), None)
  once = 2 * 2 * 3 * 4 * 4
  assert count(lambda a: jax.lax.scan(body, a, None, length=7)[0], A) == 7 * once
  nested = lambda a: jax.lax.scan(lambda x, _: jax.lax.scan(body, x, None, length=7), a, None, length=2)[0]
  assert count(nested, A) == 14 * once
  assert count(lambda a: jax.lax.map(lambda one: one @ square[0], a), A) == once
  assert count(lambda a: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: body(x, None)[0], a), A) == once


def test_what_is_not_needed_does_not_count_and_what_is_made_again_does():
  assert count(lambda a, b: (product(a, b), a)[1], A, B) == 0
  body = lambda x, _: (x, product(A, B).sum() + x.sum())
  assert count(lambda a: jax.lax.scan(body, a, None, length=3)[0], A) == 0
  twice = jax.checkpoint(lambda a, b: jnp.sin(product(a, b)).sum())
  assert count(jax.grad(twice, argnums=(0, 1)), A, B) == 3 * ONE  # the value itself is not asked for
  assert count(jax.value_and_grad(twice, argnums=(0, 1)), A, B) == 4 * ONE


def test_branches_and_convolutions():
  either = lambda a, b: jax.lax.cond(a.sum() > 0, lambda: product(a, b), lambda: 2 * product(a, b + 1))
  assert count(either, A, B) == ONE
  image, kernel = jnp.ones((1, 6, 6, 2)), jnp.ones((3, 3, 2, 5))
  convolve = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert count(convolve, image, kernel) == 2 * (4 * 4 * 5) * (3 * 3 * 2)
