"""A connector that joins larger squares: each new token is the mean of those that it stands for."""

import jax.numpy as jnp
import numpy as np
import pytest

from spatialvlm import hub
from spatialvlm.models.connector import Connector
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Features, UserError
from tests import tiny_edge


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Tiles of 4 x 4 patches, 2 x 2 image tokens."""
  return tiny_edge.write("smolvlm", tmp_path_factory.mktemp("fewer") / "tiny-smolvlm")


def test_tokens_are_means(folder, tmp_path):
  out = hub.fewer_tokens(folder, 2, tmp_path / "fewer")
  before, after = hub.load_model(folder), hub.load_model(out)
  assert after.config.connector.factor == 2 * before.config.connector.factor
  assert load_processor(out).tokens_per_tile == 1 and load_processor(folder).tokens_per_tile == 4
  patches = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 64)), jnp.float32)
  features = Features(patches, (4, 4))
  np.testing.assert_allclose(
    after.connector(features), before.connector(features).mean(1, keepdims=True), atol=2e-6
  )


def test_squares_stay_in_their_place(folder, tmp_path):
  """More tokens than one: of a connector for each patch, each new token is that of its own square."""
  vlm = hub.load_model(folder)
  one = hub.fewer_tokens(folder, 2, tmp_path / "two")
  patches = np.random.default_rng(1).normal(size=(1, 64, 64)).astype(np.float32)
  features = Features(jnp.asarray(patches), (8, 8))
  small = np.asarray(vlm.connector(features)).reshape(2, 2, 2, 2, -1).mean((1, 3)).reshape(4, -1)
  large: Connector = hub.load_model(one).connector
  np.testing.assert_allclose(large(features)[0], small, atol=2e-6)


@pytest.mark.parametrize(("by", "message"), [(3, r"--by=3: a tile has 2 x 2 .* one of \[2\]"), (1, "--by=1")])
def test_what_does_not_divide(folder, tmp_path, by, message):
  with pytest.raises(UserError, match=message):
    hub.fewer_tokens(folder, by, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_other_families(tmp_path):
  folder = tiny_edge.write("internvl", tmp_path / "internvl")
  with pytest.raises(UserError, match="only a connector of a single layer"):
    hub.fewer_tokens(folder, 2, tmp_path / "out")
