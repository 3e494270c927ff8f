import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialvlm.core import attention
from spatialvlm.core.attention import IMPLEMENTATIONS, KVCache, attend, attention_probabilities
from spatialvlm.core.axes import make_mesh
from spatialvlm.core.masks import attention_mask, cached_mask, positions, windowed
from tests.models.support import jit

RNG = np.random.default_rng(0)


def slow(q, k, v, mask):
  """Attention head by head and query by query, in float64."""
  B, T, N, H = q.shape
  group = N // k.shape[2]
  out = np.zeros(q.shape)
  for b in range(B):
    for n in range(N):
      for t in range(T):
        scores = k[b, :, n // group] @ q[b, t, n] / np.sqrt(H)
        if mask is not None:
          scores = np.where(mask[b, min(t, mask.shape[1] - 1)], scores, -np.inf)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, :, n // group]
  return out


def draw(T, S, N, K, H=4, B=2):
  return (RNG.normal(size=(B, T, N, H)), RNG.normal(size=(B, S, K, H)), RNG.normal(size=(B, S, K, H)))


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("kind", ["none", "full", "keys"])
def test_attend(heads, kv_heads, kind):
  q, k, v = draw(5, 7, heads, kv_heads)
  mask = {"none": None, "full": RNG.random((2, 5, 7)) < 0.6, "keys": RNG.random((2, 1, 7)) < 0.6}[kind]
  if mask is not None:
    mask[..., 0] = True
  f32 = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
  got = jit(attend, static_argnums=4)(*f32, None if mask is None else jnp.asarray(mask), "xla")
  np.testing.assert_allclose(got, slow(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize("block", [1 << 20, 40, 8])
@pytest.mark.parametrize("kind, softcap", [("none", None), ("full", 1.5), ("keys", None)])
def test_blocks_change_no_value_and_no_gradient(kind, softcap, block, monkeypatch):
  """Blocks of a whole head, of parts of its queries, and smaller than one query's scores."""
  monkeypatch.setattr(attention, "_BLOCK", block)
  q, k, v = (jnp.asarray(x, jnp.float32) for x in draw(6, 5, 4, 2))
  mask = {"none": None, "full": RNG.random((2, 6, 5)) < 0.6, "keys": RNG.random((2, 1, 5)) < 0.6}[kind]
  if mask is not None:
    mask[..., 0] = True
    mask[1, -1] = False  # and one that sees nothing
    mask = jnp.asarray(mask)
  chunks = attention._chunks(6, 2 * 5)
  assert chunks == {1 << 20: 1, 40: 2, 8: 1}[block]

  def both(q, k, v):
    loss = lambda fn: jax.value_and_grad(lambda *x: jnp.sum(jnp.sin(fn(*x))), argnums=(0, 1, 2))(q, k, v)
    whole = lambda q, k, v: attention._whole(q, k, v, mask, 0.7, softcap)
    blocks = lambda q, k, v: IMPLEMENTATIONS["blocked"].run(q, k, v, mask, 0.7, softcap)
    return loss(whole), loss(blocks)

  one, other = jit(both)(q, k, v)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    # Sums in another order: a few units of float32 rounding on gradients of size one.
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_long_sequences_on_a_cpu_are_done_in_blocks(monkeypatch):
  called = []
  monkeypatch.setattr(attention, "_blocked", lambda q, *_: called.append(q.shape[1]) or q)
  q = jnp.zeros((1, 1024, 12, 8))
  attend(q, q, q, None, "xla")
  attend(q[:, :64], q, q, None, "xla")
  assert called == [1024]  # one tile: a head at a time; a short question: at once
  with jax.set_mesh(make_mesh({"data": 8})):
    jax.eval_shape(lambda q: attend(q, q, q, None, "xla"), q)
  assert called == [1024]  # and never on several devices


@pytest.mark.parametrize("softcap, scale", [(None, None), (1.5, 0.7)])
def test_probabilities_are_those_that_the_product_takes(softcap, scale):
  q, k, v = (jnp.asarray(x, jnp.float32) for x in draw(5, 7, 6, 2))
  mask = jnp.asarray(RNG.random((2, 5, 7)) < 0.6).at[..., 0].set(True).at[1, 2].set(False)
  p_BNTS = attention_probabilities(q, k, mask, scale, softcap)
  assert p_BNTS.shape == (2, 6, 5, 7) and p_BNTS.dtype == jnp.float32
  np.testing.assert_allclose(p_BNTS.sum(-1), 1, atol=1e-6)
  np.testing.assert_allclose(p_BNTS[1, :, 2], 1 / 7, atol=1e-6)  # a query that sees nothing
  want = jnp.einsum("BNTS,BSNH->BTNH", p_BNTS, jnp.repeat(v, 3, axis=2))
  np.testing.assert_allclose(attend(q, k, v, mask, "xla", scale, softcap), want, atol=1e-6)


def test_query_that_sees_nothing_makes_no_nan():
  q, k, v = (jnp.asarray(x, jnp.float32) for x in draw(2, 3, 2, 2))
  mask = jnp.zeros((2, 2, 3), bool).at[:, 0].set(True)
  out, grads = jax.value_and_grad(lambda q: jnp.sum(attend(q, k, v, mask, "xla") ** 2))(q)
  assert np.isfinite(out) and np.isfinite(grads).all()
  np.testing.assert_allclose(attend(q, k, v, mask, "xla")[:, 1], np.asarray(v).mean(1), atol=1e-6)


def test_positions_count_valid_tokens():
  valid = jnp.asarray([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
  np.testing.assert_array_equal(positions(valid), [[0, 0, 0, 1, 2], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])


def test_masks():
  valid = jnp.asarray([[1, 1, 1, 0]], bool)
  causal = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
  np.testing.assert_array_equal(attention_mask(valid)[0], np.array(causal, bool))
  prefix = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
  ar = jnp.asarray([[False, False, True, True]])
  np.testing.assert_array_equal(attention_mask(valid, ar)[0], np.array(prefix, bool))


def test_cached_mask_is_the_rest_of_the_whole_mask():
  valid = jnp.asarray([[1, 1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 0]], bool)
  whole = attention_mask(valid)
  got = cached_mask(valid, jnp.int32(3), 3)
  np.testing.assert_array_equal(got, whole[:, 3:6])


def test_cache_marks_slots():
  empty = KVCache((), (), jnp.zeros((2, 5), bool), jnp.int32(0))
  one = empty.extend(jnp.asarray([[True, True], [False, True]]))
  two = one.extend(jnp.asarray([[True], [True]]))
  assert int(two.length) == 3
  np.testing.assert_array_equal(two.valid_BS, [[1, 1, 1, 0, 0], [0, 1, 1, 0, 0]])


def test_sequences_of_a_row_do_not_see_each_other_and_count_from_their_begin():
  """Three in a row, the second with a prefix; padding carries on the last one's number."""
  segment = jnp.array([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2]])
  valid = jnp.arange(10)[None] < 9
  causal = jnp.array([[1, 1, 1, 0, 0, 0, 1, 1, 1, 1]], bool)
  assert positions(valid, segment).tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1, 1]]
  mask = attention_mask(valid, causal, segment)
  wanted = np.zeros((10, 10), bool)
  for first, end, prefix in ((0, 3, 0), (3, 7, 3), (7, 10, 0)):
    wanted[first:end, first:end] = np.tri(end - first, dtype=bool)
    wanted[first : first + prefix, first : first + prefix] = True
  wanted[:, 9] = False
  np.testing.assert_array_equal(mask[0], wanted)
  near = windowed(mask, positions(valid, segment), positions(valid, segment), 2, causal, segment)
  prefix = np.isin(np.arange(10), (3, 4, 5))
  close = np.arange(10)[:, None] - np.arange(10) < 2
  np.testing.assert_array_equal(near[0, :9], (wanted & (close | prefix[:, None]))[:9])
