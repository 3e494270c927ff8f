"""Arrays of `Batch.extra` on their way to the devices: whole, sharded and cut into microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialvlm.config import MeshConfig
from spatialvlm.core import axes
from spatialvlm.training import step as step_lib
from spatialvlm.types import Batch, Extra

B, TILES, K = 16, 3, 2


def batch():
  rng = np.random.default_rng(0)
  extra = {
    "tile": Extra(rng.normal(size=(B * TILES, 4)).astype(np.float32), "tile"),
    "sample": Extra(rng.normal(size=B).astype(np.float32), "sample"),
    "target": Extra(rng.normal(size=(B, K)).astype(np.float32), "target"),
  }
  return Batch(np.arange(B * 5, dtype=np.int32).reshape(B, 5), np.ones((B, 5), bool), extra=extra)


def by_sample(part):
  """(B,): a number of every sample that is right only if all of its arrays still belong together."""
  arrays = {name: extra.array for name, extra in part.extra.items()}
  assert {name: extra.axis for name, extra in part.extra.items()} == {name: name for name in arrays}
  tiles_B = arrays["tile"].reshape(part.tokens_BT.shape[0], -1).sum(-1)
  return tiles_B * arrays["sample"] + arrays["target"].sum(-1) + part.tokens_BT[:, 0]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=4), MeshConfig(data=1)])
def test_extra_arrays_stay_beside_their_samples(mesh, accumulation):
  size = mesh.data * mesh.fsdp
  on_mesh = axes.make_mesh(mesh, jax.devices()[:size])
  sent = step_lib.to_devices(batch(), on_mesh, accumulation)
  shards = sent.extra["tile"].array.sharding.shard_shape(sent.extra["tile"].array.shape)
  assert np.prod(shards) == B * TILES * 4 // size  # along the batch, no device holds all
  read = by_sample if accumulation == 1 else lambda parts: jax.lax.map(by_sample, parts)
  with jax.set_mesh(on_mesh):
    found = np.asarray(jax.jit(read)(sent)).reshape(-1)
  expected = by_sample(jax.tree.map(jnp.asarray, batch()))
  np.testing.assert_allclose(found, expected, rtol=1e-6)
