"""Features of scenes: cells, costs, what is kept on disk."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from spatialvlm import UserError, load_encoder
from spatialvlm.config import ProbeConfig
from spatialvlm.models.encoders import VisionEncoder
from spatialvlm.probing import cost, drawings, features, worlds
from tests.probing.support import numbers, recorded_encoder

CONFIG = ProbeConfig(image_size=24, grid=4, batch_size=8, layers=(0, -1), pictures=2)
QUIET = lambda done, total: None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return recorded_encoder(tmp_path_factory.mktemp("e") / "clip")


@pytest.fixture(scope="module")
def encoder(folder):
  return load_encoder(folder)


@pytest.fixture(scope="module")
def seen(encoder):
  return features.see(encoder, numbers(20), CONFIG, QUIET)


def test_every_scene_at_every_layer(encoder, seen):
  scenes = numbers(20)
  assert {layer: cells.shape for layer, cells in seen.layers.items()} == {0: (20, 16, 16), -1: (20, 16, 16)}
  assert seen.shown.shape == (2, 6, 6, 16)
  # One scene alone, by hand: 6 x 6 patches on 4 x 4 cells.
  pixels = encoder.preprocess(scenes.images[17], (24, 24))
  patches = np.asarray(encoder.features(pixels, layer=-1).patches_NPD)[0].reshape(6, 6, 16)
  wanted = (4 * patches[0, 0] + 2 * patches[0, 1] + 2 * patches[1, 0] + patches[1, 1]) / 9
  np.testing.assert_allclose(seen.layers[-1][17, 0], wanted, atol=1e-5)


def test_drawn_weights_see_otherwise(encoder, seen):
  other = features.see(features.drawn(encoder, 3), numbers(20), CONFIG, QUIET)
  assert other.layers[-1].shape == seen.layers[-1].shape
  assert np.abs(other.layers[-1] - seen.layers[-1]).max() > 0.01
  assert other.facts["parameters"] == seen.facts["parameters"]


def test_facts(seen, encoder, folder):
  facts = seen.facts
  assert (facts["tokens"], facts["patches"], facts["image_size"]) == (37, 36, 24)
  with safe_open(folder / "model.safetensors", "numpy") as file:
    assert facts["parameters"] == sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
  assert facts["images_per_s"] > 0 and facts["compile_s"] >= 0


def test_flops_are_what_the_compiler_counts(folder):
  """XLA counts norms and activations too: a few per cent of a wide encoder."""
  vision = load_encoder(folder).config.vision
  wide = jax.numpy.zeros((1, 48, 48, 3))
  attention = dataclasses.replace(vision.block.attention, width=256, head_dim=128)
  block = dataclasses.replace(vision.block, attention=attention, mlp_width=768)
  vision = dataclasses.replace(vision, block=block)
  graphdef, state = nnx.split(
    nnx.eval_shape(lambda: VisionEncoder(vision, dtype=jax.numpy.float32, rngs=nnx.Rngs(0)))
  )
  tokens = lambda state, x: nnx.merge(graphdef, state).read(x, tokens=True).tokens_NTD
  lowered = jax.jit(tokens).lower(state, wide)
  counted = cost.flops(vision, 48, 48)
  assert counted <= lowered.cost_analysis()["flops"] <= 1.05 * counted


def test_cells_of_the_same_grid_are_the_patches():
  np.testing.assert_array_equal(features.averages((4, 4), 4.0, 4), np.eye(16))


def test_cells_beyond_the_last_whole_patch():
  """27 pixels hold one patch of 14: cells in its second half read it too."""
  found = features.averages((1, 1), 27 / 14, 4)
  np.testing.assert_allclose(found, np.ones((16, 1)))
  uneven = features.averages((2, 2), 2.5, 2)
  np.testing.assert_allclose(uneven.sum(1), 1)
  np.testing.assert_allclose(uneven[0], np.outer([0.8, 0.2], [0.8, 0.2]).ravel(), atol=1e-6)


def test_kept_and_read_again(seen, tmp_path):
  path = tmp_path / "features" / "a.npz"
  assert features.read(path) is None
  features.save(path, seen)
  again = features.read(path)
  np.testing.assert_array_equal(again.layers[-1], seen.layers[-1])
  np.testing.assert_array_equal(again.shown, seen.shown)
  assert again.facts == seen.facts and [p.name for p in path.parent.iterdir()] == ["a.npz"]
  path.write_bytes(path.read_bytes()[:300])
  with pytest.raises(UserError, match=r"a\.npz: cannot be read .*delete it"):
    features.read(path)


def test_controls():
  scenes = numbers(6)
  pixels = features.pixel_cells(scenes.images, 4)
  assert pixels.shape == (6, 16, 432) and pixels.min() >= 0 and pixels.max() <= 1
  corner = scenes.images[2, :12, 36:].mean((0, 1)) / 255  # the cell at the end of the first row
  np.testing.assert_allclose(pixels[2, 3].reshape(-1, 3).mean(0), corner, atol=1e-6)
  np.testing.assert_array_equal(features.place_cells(6, 16)[5], np.eye(16))


def test_principal_components():
  """A ramp along one direction is a ramp in the first colour; the second image continues the first."""
  ramp = np.linspace(0, 1, 32).reshape(2, 4, 4, 1) * np.array([3.0, -1, 0.2])
  noise = 1e-3 * np.random.default_rng(0).normal(size=ramp.shape)
  found = drawings.principal(ramp + noise).astype(int)
  assert found.shape == (2, 4, 4, 3) and found[0, 0, 0, 0] == 0 and found[1, -1, -1, 0] == 255
  assert (np.diff(found[..., 0].ravel()) >= -1).all()
  assert drawings.principal(np.ones((1, 2, 2, 2))).shape == (1, 2, 2, 3)


def test_cell_means():
  map_HW = np.arange(36, dtype=np.float32).reshape(6, 6)
  np.testing.assert_allclose(worlds.cell_means(map_HW, 2), [7, 10, 25, 28])
