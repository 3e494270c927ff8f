"""The adapted layer by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import PeftConfig
from spatialvlm.peft.lora_layers import adapted
from tests.peft import support

ALL = r".*_proj|.*fc\d|.*modality_projection\.proj|lm_head"


def layer(dtype=jnp.float32, bias=True, **spec):
  """(LoraLinear of 6 -> 5 with random factors, and its numbers as float64 arrays)."""
  rng = np.random.default_rng(0)
  base = nnx.Linear(6, 5, use_bias=bias, param_dtype=dtype, rngs=nnx.Rngs(0))
  base.kernel[...] = jnp.asarray(rng.normal(size=(6, 5)), dtype)
  if bias:
    base.bias[...] = jnp.asarray(rng.normal(size=5), dtype)
  spec = peft.LoraSpec(rank=3, alpha=6.0, **spec)
  magnitude = rng.uniform(0.5, 2, 5) if spec.dora else None
  made = adapted(base, spec, rng.normal(size=(6, 3)), rng.normal(size=(3, 5)), magnitude, 11)
  numbers = [None if v is None else np.float64(v[...]) for v in (made.kernel, made.lora_a, made.lora_b)]
  return made, (*numbers, np.float64(made.bias[...]) if bias else 0.0, magnitude)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rslora", [True, False])
def test_lora_is_its_formula(rslora, bias):
  made, (w, a, b, c, _) = layer(rslora=rslora, bias=bias)
  x = np.random.default_rng(1).normal(size=(2, 4, 6))
  scale = 6.0 / (3**0.5 if rslora else 3)
  np.testing.assert_allclose(
    made(jnp.asarray(x, jnp.float32)), x @ w + c + scale * x @ a @ b, rtol=1e-5, atol=1e-5
  )


def test_dora_is_its_formula_and_its_norm_is_a_constant():
  made, (w, a, b, c, m) = layer(dora=True)
  x = np.random.default_rng(1).normal(size=(4, 6))
  kernel = w + 2 * a @ b
  norm = np.linalg.norm(kernel, axis=0)
  np.testing.assert_allclose(
    made(jnp.asarray(x, jnp.float32)), x @ kernel * (m / norm) + c, rtol=1e-5, atol=1e-5
  )
  graphdef, params, rest = nnx.split(made, peft.AdapterParam, ...)
  gradient = jax.grad(lambda p: nnx.merge(graphdef, p, rest)(jnp.asarray(x, jnp.float32)).sum())(params)
  ones = np.ones((4, 5)) * (m / norm)
  np.testing.assert_allclose(gradient["lora_b"][...], 2 * (x @ a).T @ ones, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(gradient["lora_a"][...], 2 * x.T @ ones @ b.T, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(gradient["magnitude"][...], (x @ kernel / norm).sum(0), rtol=1e-4, atol=1e-5)


def equations(jaxpr):
  """Those of functions that are called in it as well."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


@pytest.mark.parametrize("dora", [False, True])
def test_bfloat16_stays_bfloat16_through_adapters_and_full_training(dora):
  vlm = support.build("bfloat16")
  full = r"model\.(text_model\.norm|vision_model\.embeddings|text_model\.embed_tokens)|.*layer_norm1"
  peft.apply(vlm, PeftConfig(target=ALL, full=full, options={"dora": dora}))
  trained = jax.tree.leaves(nnx.state(vlm, support.TRAINED))
  assert {leaf.dtype for leaf in trained} == {jnp.dtype("float32")}
  assert jax.eval_shape(vlm.encode_images, support.batch().pixels_NHWC).dtype == jnp.bfloat16
  assert jax.eval_shape(vlm.hidden, support.batch()).dtype == jnp.bfloat16
  assert vlm.init_cache(1, 4).keys[0].dtype == jnp.bfloat16
  # not one product of activations is computed in float32
  jaxpr = jax.make_jaxpr(vlm.hidden)(support.batch())
  shapes = [[v.aval for v in e.invars] for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
  assert len(shapes) > 50
  tokens = {2, 8, 16, 4}  # leading axes of activations: samples, positions, patches
  mixed = [p for p in shapes if p[0].dtype != jnp.bfloat16 and p[0].ndim > 2 and p[0].shape[1] in tokens]
  assert not mixed


def test_dropout_is_off_until_a_step_turns_it_on():
  made, _ = layer(dropout=0.5)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(64, 6)), jnp.float32)
  still = made(x)
  assert np.array_equal(still, made(x))
  graphdef, params, rest = nnx.split(made, peft.AdapterParam, ...)

  @jax.jit
  def step(key):
    return peft.seed_dropout(nnx.merge(graphdef, params, rest), key)(x)

  first, again, other = step(jax.random.key(1)), step(jax.random.key(1)), step(jax.random.key(2))
  assert np.array_equal(first, again)
  assert not np.allclose(first, other) and not np.allclose(first, still)
  # inverted dropout: the mean over many masks is the value without
  mean = np.mean([step(jax.random.key(i)) for i in range(200)], axis=0)
  np.testing.assert_allclose(np.mean(mean - still, axis=0), 0, atol=0.2)
  # the base's own product never drops anything
  quiet = nnx.merge(graphdef, jax.tree.map(jnp.zeros_like, params), rest)
  assert np.array_equal(peft.seed_dropout(quiet, jax.random.key(1))(x), x @ made.kernel[...] + made.bias[...])


def test_layers_draw_different_masks_and_no_key_is_kept():
  vlm = support.build()
  peft.apply(vlm, PeftConfig(target=r".*text_model.*q_proj", options={"dropout": 0.3}))
  peft.seed_dropout(vlm, jax.random.key(0))
  first, second = (block.attn.q_proj for block in vlm.decoder.stack.layers)
  assert not np.array_equal(
    jax.random.key_data(first.dropout_key[...]), jax.random.key_data(second.dropout_key[...])
  )
  fresh = peft.apply(support.build(), PeftConfig(target=r".*text_model.*q_proj", options={"dropout": 0.3}))
  _, params, frozen = nnx.split(fresh, support.TRAINED, ...)
  kinds = {type(v) for _, v in nnx.to_flat_state(params)} | {type(v) for _, v in nnx.to_flat_state(frozen)}
  assert kinds == {peft.AdapterParam, nnx.Param}


def products(jaxpr):
  """The shapes of all matrix products in a program, those of its inner programs included."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      yield equation.outvars[0].aval.shape
    for value in equation.params.values():
      for inner in value if isinstance(value, (list, tuple)) else [value]:
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          yield from products(inner)


def test_nothing_frozen_is_differentiated():
  """No gradient of a frozen kernel is computed, and no backward pass of a tower without trainables."""
  vlm = peft.apply(support.build(), PeftConfig(target=r".*text_model.*\.(q|v)_proj", options={"rank": 3}))
  graphdef, params, frozen = nnx.split(vlm, support.TRAINED, ...)
  batch = support.batch()
  loss = lambda params: nnx.merge(graphdef, params, frozen).hidden(batch).sum()
  shapes = list(products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
  kernels = {leaf.shape for leaf in jax.tree.leaves(frozen) if leaf.ndim == 2}
  assert not [s for s in shapes if s in kernels or s[::-1] in kernels]
  assert {(24, 3), (3, 32), (3, 16)} <= {s if s in ((24, 3), (3, 32), (3, 16)) else s[::-1] for s in shapes}
  forward = jax.make_jaxpr(vlm.encode_images)(batch.pixels_NHWC).jaxpr
  sight = [s for s in products(forward) if s[:2] == (2, 16)]  # (samples, patches, ...)
  assert sight and len([s for s in shapes if s[:2] == (2, 16)]) == len(sight)
