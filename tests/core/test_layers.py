"""Norms, rotary positions, feed-forward and remat against float64 arithmetic written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm.core.attention import AttentionConfig
from spatialvlm.core.block import BlockConfig, Stack
from spatialvlm.core.mlp import ACTIVATIONS, Mlp
from spatialvlm.core.norm import LayerNorm, RMSNorm
from spatialvlm.core.rope import rope_angles, rotate
from tests.models.support import jit

F32 = jnp.dtype("float32")
RNG = np.random.default_rng(0)


def test_layer_norm():
  x, scale, bias = RNG.normal(3, 2, (5, 8)), RNG.normal(size=8), RNG.normal(size=8)
  norm = LayerNorm(8, 1e-3, dtype=F32, rngs=nnx.Rngs(0))
  norm.scale[...], norm.bias[...] = jnp.asarray(scale, F32), jnp.asarray(bias, F32)
  want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * scale + bias
  np.testing.assert_allclose(norm(jnp.asarray(x, F32)), want, atol=1e-5)


def test_rms_norm():
  x, scale = RNG.normal(3, 2, (5, 8)), RNG.normal(size=8)
  norm = RMSNorm(8, 1e-3, dtype=F32, rngs=nnx.Rngs(0))
  norm.scale[...] = jnp.asarray(scale, F32)
  want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * scale
  np.testing.assert_allclose(norm(jnp.asarray(x, F32)), want, atol=1e-5)


def test_norms_compute_in_float32_and_keep_the_dtype():
  x = jnp.asarray(RNG.normal(0, 1, (2, 512)) + 200, jnp.bfloat16)
  for kind in (LayerNorm, RMSNorm):
    norm = kind(512, 1e-6, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0))
    assert norm(x).dtype == jnp.bfloat16
    want = kind(512, 1e-6, dtype=F32, rngs=nnx.Rngs(0))(x.astype(F32))
    np.testing.assert_allclose(norm(x).astype(F32), want, rtol=1e-2, atol=1e-2)


def test_rotation_turns_pairs_and_only_distance_counts():
  theta, size = 100.0, 6
  x, y = RNG.normal(size=size), RNG.normal(size=size)

  def turned(vector, place):
    angles = rope_angles(jnp.asarray([[place]]), size, theta)
    return np.asarray(rotate(jnp.asarray(vector, F32)[None, None, None], angles)).ravel()

  angle = 5 * theta ** (-2 / size)  # the second pair
  want = x[1] * math.cos(angle) - x[4] * math.sin(angle)
  assert turned(x, 5)[1] == pytest.approx(want, abs=1e-5)
  assert turned(x, 9) @ turned(y, 4) == pytest.approx(turned(x, 105) @ turned(y, 100), abs=1e-4)
  np.testing.assert_allclose(turned(x, 0), x, atol=1e-6)


@pytest.mark.parametrize("name, want", [("silu", 0.7310586), ("gelu", 0.8413447), ("gelu_tanh", 0.8411920)])
def test_activations(name, want):
  assert float(ACTIVATIONS[name](jnp.float32(1.0))) == pytest.approx(want, abs=1e-6)


def test_gated_mlp():
  mlp = Mlp(4, 6, activation="silu", gated=True, bias=False, dtype=F32, rngs=nnx.Rngs(0))
  x = RNG.normal(size=(3, 4))
  gate, up, down = (
    np.asarray(p.kernel[...], np.float64) for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
  )
  want = (x @ gate / (1 + np.exp(-(x @ gate))) * (x @ up)) @ down
  np.testing.assert_allclose(mlp(jnp.asarray(x, F32)), want, atol=1e-6)


def test_remat_changes_no_value_and_no_gradient():
  config = BlockConfig(AttentionConfig(8, 2, 1, 4), 12, "rms", 1e-5, "silu", True, False)
  stack = Stack(config, 2, dtype=F32, rngs=nnx.Rngs(0))
  x = jnp.asarray(RNG.normal(size=(2, 3, 8)), F32)

  def gradients():
    graphdef, params = nnx.split(stack)
    loss = lambda params: jnp.sum(jnp.square(nnx.merge(graphdef, params)(x)))
    return jit(jax.value_and_grad(loss))(params), str(jax.make_jaxpr(jax.grad(loss))(params))

  plain, plain_program = gradients()
  stack.remat = True
  again, program = gradients()
  assert "checkpoint" in program or "remat" in program
  assert "checkpoint" not in plain_program
  for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
