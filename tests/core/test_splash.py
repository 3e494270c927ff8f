"""The TPU kernel's steps, computed one by one on this processor, against the scores written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spatialvlm.core import attention, splash
from spatialvlm.core.axes import make_mesh
from spatialvlm.training import flops

RNG = np.random.default_rng(0)


def draw(B, T, S, N, K, H):
  shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H))
  return [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in shapes]


def masked(kind, B, T, S):
  if kind == "none":
    return None
  mask = RNG.random((B, 1 if kind == "keys" else T, S)) < 0.6
  mask[0, 0] = kind == "keys"  # with a mask of its own, a query that sees nothing
  return jnp.asarray(mask)


def both(arrays, mask, **options):
  """Values and gradients of the scores written out and of the kernel."""
  weights = jnp.asarray(RNG.normal(size=arrays[0].shape), jnp.float32)
  scale, softcap = options.get("scale"), options.get("softcap")

  def of(call):
    total = lambda q, k, v: (lambda out: ((out * weights).sum(), out))(call(q, k, v, mask, scale, softcap))
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*arrays)

  return of(attention._whole), of(lambda *some: splash.run(*some, interpret=True))


@pytest.mark.parametrize(
  "kind, sizes, options",
  [
    ("none", (2, 130, 130, 3, 3, 16), {}),
    ("full", (2, 150, 150, 6, 2, 64), {}),
    ("full", (1, 70, 140, 4, 2, 72), {"softcap": 2.0, "scale": 0.3}),
    ("keys", (2, 64, 64, 2, 1, 16), {}),
  ],
)
def test_values_and_gradients_are_those_of_scores_written_out(kind, sizes, options):
  """Lengths that no block divides, groups of heads, sizes of heads that no lane divides."""
  B, T, S, *_ = sizes
  ((_, want), wants), ((_, got), gots) = both(draw(*sizes), masked(kind, B, T, S), **options)
  np.testing.assert_allclose(got, want, atol=2e-5)
  for own, other in zip(gots, wants, strict=True):
    np.testing.assert_allclose(own, other, atol=2e-5 * float(jnp.abs(other).max()))


def test_devices_compute_their_own_rows_and_heads():
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  arrays, mask = draw(4, 64, 64, 4, 2, 16), masked("full", 4, 64, 64)
  want = attention._whole(*arrays, mask, None, None)
  place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
  parted = [place(x, ("data", "fsdp"), None, "tensor") for x in arrays]
  call = jax.jit(lambda q, k, v, mask: splash.run(q, k, v, mask, None, None, interpret=True))
  with jax.set_mesh(mesh):
    lowered = call.lower(*parted, place(mask, ("data", "fsdp")))
    got = call(*parted, place(mask, ("data", "fsdp")))
  np.testing.assert_allclose(got, want, atol=2e-5)
  assert got.sharding.spec == PartitionSpec(("data", "fsdp"), None, "tensor")
  assert not any(kind in lowered.compile().as_text() for kind in ("all-gather", "all-reduce", "all-to-all"))


@pytest.mark.parametrize("length, block", [(64, 128), (128, 128), (192, 256), (1024, 512), (1280, 256)])
def test_blocks_fill_a_length_up_as_little_as_can_be(length, block):
  assert splash._block(length) == block


@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_its_products_are_counted_as_those_of_scores_written_out(sizes):
  """Of the forward pass: backwards it makes the scores again, twice."""
  arrays = draw(8, 256, 256, 4, 2, 16)
  mesh = make_mesh(sizes, jax.devices()[: 8 if sizes else 1])
  with jax.set_mesh(mesh):
    counted = [
      flops.count(jax.make_jaxpr(lambda q, k, v, call=call: call(q, k, v, None, None, None))(*arrays))
      for call in (attention._whole, splash.run)
    ]
  assert counted[0] == counted[1] == 2 * 2 * 8 * 4 * 256 * 256 * 16


def test_a_few_queries_are_written_out(monkeypatch):
  called = []
  monkeypatch.setattr(splash, "run", lambda *arguments: called.append(arguments[0].shape[1]))
  for length in (1, 127, 128):
    attention.attend(*draw(1, length, 130, 2, 2, 8), None, "splash")
  assert called == [128]
