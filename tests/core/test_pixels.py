"""Pixels of 8 bits become on the device the very numbers that the host computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialvlm.core.pixels import normalised
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Batch, PixelTable
from tests.tiny_families import write_internvl, write_paligemma
from tests.tiny_processor import write_processor

WRITERS = {"smolvlm": write_processor, "internvl": write_internvl, "paligemma": write_paligemma}


@pytest.mark.parametrize("family", WRITERS)
def test_looking_up_is_exact(family, tmp_path):
  processor = load_processor(WRITERS[family](tmp_path))
  pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
  expected = processor.tiler.normalise(pixels)
  table = processor.normal
  np.testing.assert_array_equal(table(pixels), expected)
  found = np.asarray(jax.jit(lambda x: normalised(x, table))(pixels))
  assert found.dtype == expected.dtype == np.float32
  np.testing.assert_array_equal(found, expected)


def test_channels_have_values_of_their_own():
  table = PixelTable.of(np.arange(768).reshape(256, 3))
  pixels = np.array([[[[0, 1, 255]]]], np.uint8)
  np.testing.assert_array_equal(normalised(jnp.asarray(pixels), table), [[[[0, 4, 767]]]])


def test_what_has_no_meaning_is_refused():
  table, floats = PixelTable.of(np.zeros((256, 3))), jnp.zeros((1, 2, 2, 3))
  assert normalised(floats, None) is floats
  with pytest.raises(ValueError, match="pixels of uint8 without a table"):
    normalised(jnp.zeros((1, 2, 2, 3), jnp.uint8), None)
  with pytest.raises(ValueError, match="pixels of float32 with a table"):
    normalised(floats, table)


def test_a_table_is_a_constant_of_the_program():
  """Batches with equal tables share a program; another table makes another one."""
  calls = []

  @jax.jit
  def read(batch):
    calls.append(1)
    return normalised(batch.pixels_NHWC, batch.normal)

  pixels = jnp.ones((2, 2, 2, 3), jnp.uint8)
  for value in (2.0, 2.0, 3.0):
    table = PixelTable.of(np.full((256, 3), value))
    assert (np.asarray(read(Batch(None, None, pixels_NHWC=pixels, normal=table))) == value).all()
  assert len(calls) == 2
