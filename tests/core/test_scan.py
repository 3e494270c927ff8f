"""Blocks as a loop against the same blocks one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm.core import axes, scan
from spatialvlm.core.attention import AttentionConfig, KVCache
from spatialvlm.core.block import BlockConfig, Stack, looks
from spatialvlm.core.rope import rope_angles
from tests.models.support import jit

DEPTH, B, T, WIDTH = 4, 2, 5, 8
CONFIG = BlockConfig(AttentionConfig(WIDTH, 2, 1, 4), 12, "rms", 1e-5, "silu", True, False)
CAUSAL_BTS = jnp.tril(jnp.ones((1, T, T), bool)).repeat(B, 0)


def stack(depth=DEPTH, dtype=jnp.float32) -> Stack:
  return Stack(CONFIG, depth, dtype=dtype, rngs=nnx.Rngs(0))


def stream():
  return jnp.asarray(np.random.default_rng(0).normal(size=(B, T, WIDTH)), jnp.float32)


def angles():
  return rope_angles(jnp.arange(T)[None].repeat(B, 0), CONFIG.attention.head_dim, 1e4)


def both(blocks: Stack, function, *arguments):
  """What (graph, state, arguments) -> tree gives as a list and as a loop, and the loop's program."""
  found = []
  for blocks.scan in (False, True):
    graph, state = nnx.split(blocks)
    run = lambda state, *arguments, graph=graph: function(nnx.merge(graph, state), *arguments)
    found.append(jit(run)(state, *arguments))
    program = str(jax.make_jaxpr(run)(state, *arguments))
  return *found, program


def close(got, want, rtol=1e-6):
  """Within `rtol` of the largest value of each array."""
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_allclose(one, other, rtol=0, atol=rtol * max(1e-6, np.abs(other).max()))


def gradients(blocks: Stack, **kwargs):
  """Value and gradients of a loss over all that `read` gives; of weights, the stream and the kept past."""
  graph, state = nnx.split(blocks)

  def loss(state, x_BTD):
    out = nnx.merge(graph, state).read(x_BTD, CAUSAL_BTS, angles(), **kwargs)
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(out))

  return lambda x_BTD: jax.value_and_grad(loss, argnums=(0, 1))(state, x_BTD)


@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_gives_the_values_and_gradients_of_the_list(remat):
  blocks = stack()
  blocks.remat = remat
  found = []
  for blocks.scan in (False, True):
    run = gradients(blocks)
    found.append(jit(run)(stream()))
    program = str(jax.make_jaxpr(run)(stream()))
  close(found[1], found[0])
  assert "scan" in program and ("checkpoint" in program or "remat" in program) == remat
  # Forwards and backwards, of one block instead of four.
  assert program.count("dot_general") < 3 * 12


def test_all_that_is_wanted_on_the_way_is_there():
  blocks, at_BQ = stack(6), jnp.asarray([[4, 1], [3, 4]])
  wants = dict(layers=(0, 2, 5), attention=looks((3,)), at_BQ=at_BQ)
  found = []
  for blocks.scan in (False, True):
    found.append(jit(gradients(blocks, **wants))(stream()))
  close(found[1], found[0])
  one, other, program = both(blocks, lambda m, x: m.read(x, CAUSAL_BTS, angles(), **wants), stream())
  assert other.layers.keys() == {0, 2, 5} and other.attention.keys() == {3} and other.x_BTD.shape == (2, 2, 8)
  close(other, one)
  assert program.count("scan[") == 2  # blocks 1 and 2; 3 by itself; 4 and 5; 6 by itself


def test_blocks_that_stop_early_do_not_run():
  one, other, program = both(stack(), lambda m, x: m.read(x, stop=2, layers=(2,)), stream())
  close(other, one)
  assert "length=2" in program and "length=4" not in program


def test_masks_may_differ_between_blocks():
  near_BTS = CAUSAL_BTS & ~jnp.tril(jnp.ones((T, T), bool), -2)
  masks = (CAUSAL_BTS, near_BTS, CAUSAL_BTS, near_BTS)
  one, other, program = both(stack(), lambda m, x: m(x, masks, angles()), stream())
  close(other, one)
  assert program.count("scan[") == 1
  same = stack()(stream(), CAUSAL_BTS, angles())
  assert np.abs(np.asarray(other) - np.asarray(same)).max() > 0.01  # the masks were read
  padded = (CAUSAL_BTS[:, -1:], near_BTS, near_BTS, CAUSAL_BTS[:, -1:])  # one row for all queries
  one, other, _ = both(stack(), lambda m, x: m(x, padded, angles()), stream())
  close(other, one)


def test_a_cache_is_read_and_written():
  shape = (B, T + 2, 1, 4)
  rng = np.random.default_rng(1)
  keys, values = (tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(DEPTH)) for _ in "kv")
  cache = KVCache(keys, values, jnp.ones((B, T + 2), bool), jnp.int32(T + 1))
  seen_BTS = jnp.ones((B, T, T + 2), bool)
  one, other, _ = both(stack(), lambda m, x, c: m.extend(x, seen_BTS, angles(), c), stream(), cache)
  close(other, one)
  assert isinstance(other[1].keys, tuple) and len(other[1].keys) == DEPTH
  np.testing.assert_array_equal(other[1].keys[2][:, 0], keys[2][:, 0])  # what stood before stays
  assert np.abs(np.asarray(other[1].keys[2][:, 1:-1] - keys[2][:, 1:-1])).min() > 0


def test_what_stands_before_belongs_to_its_block():
  rng = np.random.default_rng(2)
  buffer = lambda: jnp.asarray(rng.normal(size=(B, 2 + T, 1, 4)), jnp.float32)
  past = [(buffer(), buffer(), jnp.int32(2)) for _ in range(DEPTH)]
  start = past[0][2]
  past = [(keys, values, start) for keys, values, _ in past]
  mask_BTS = jnp.concatenate([jnp.ones((B, T, 2), bool), CAUSAL_BTS], 2)

  def loss(blocks, x, past):
    graph, state = nnx.split(blocks)
    read = lambda state, kept: nnx.merge(graph, state).read(
      x, mask_BTS, angles(), past=[(*pair, start) for pair in kept]
    )
    total = lambda state, kept: jnp.sum(jnp.square(read(state, kept).x_BTD))
    return jax.value_and_grad(total, argnums=(0, 1))(state, [pair[:2] for pair in past])

  one, other, program = both(stack(), loss, stream(), past)
  close(other, one)
  assert program.count("scan[") == 2


def test_blocks_of_several_kinds_make_several_loops():
  blocks = stack(6)
  wide = Stack(
    BlockConfig(AttentionConfig(WIDTH, 4, 1, 2), 12, "rms", 1e-5, "silu", True, False),
    2,
    dtype=jnp.float32,
    rngs=nnx.Rngs(1),
  )
  blocks.layers[2], blocks.layers[3] = wide.layers
  parts = list(map(scan.parts, blocks.layers))
  assert list(scan.runs(parts)) == [(0, 2), (2, 4), (4, 6)]
  assert list(scan.runs(parts, ends=(1,), alone=(4,))) == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]
  one, other, program = both(blocks, lambda m, x: m(x, CAUSAL_BTS), stream())
  close(other, one)
  assert program.count("scan[") == 3


def test_what_all_blocks_share_is_not_copied():
  blocks = stack()
  for layer in blocks.layers:
    layer.mlp.down_proj.kernel = blocks.layers[0].mlp.down_proj.kernel

  def loss(blocks, x):
    graph, state = nnx.split(blocks)
    return jax.value_and_grad(lambda state: jnp.sum(nnx.merge(graph, state)(x) ** 2))(state)

  one, other, program = both(blocks, loss, stream())
  close(other, one)
  assert f"f32[{DEPTH},{WIDTH},12]" in program  # up and gate
  forward = program[: program.index("scan[")]
  assert f"f32[{DEPTH},12,{WIDTH}]" not in forward


def test_weights_stay_split_over_a_mesh():
  mesh = axes.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
  config = BlockConfig(AttentionConfig(16, 4, 2, 4), 24, "rms", 1e-5, "silu", True, False)
  make = lambda: Stack(config, DEPTH, dtype=jnp.float32, rngs=nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, T, 16)), jnp.float32)
  found = []
  for built, looped in ((make(), False), (axes.create_sharded(make, mesh), True)):
    built.scan = looped
    graph, state = nnx.split(built)
    loss = lambda state, x, graph=graph: jnp.sum(nnx.merge(graph, state)(x) ** 2)
    if looped:
      where = axes.shardings(state, mesh)
      with jax.set_mesh(mesh):
        sent = jax.device_put(x, axes.batch_sharding(mesh))
        run = jax.jit(jax.value_and_grad(loss), out_shardings=(None, where)).lower(state, sent).compile()
        found.append(run(state, sent))
        text = run.as_text()
    else:
      found.append(jit(jax.value_and_grad(loss))(state, x))
  close(found[1], found[0], rtol=1e-5)
  # (4, 16, 24): a device holds a fourth of it.
  assert f"f32[{DEPTH},8,12]" in text and f"f32[{DEPTH},16,24]" not in text
