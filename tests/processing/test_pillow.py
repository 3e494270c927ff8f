"""Pillow's resize, bit for bit."""

import numpy as np
import pytest
from PIL import Image

from spatialvlm.core import resample
from spatialvlm.processing import pillow

RNG = np.random.default_rng(0)


def resized(pixels: np.ndarray, target: tuple[int, int], kind: int) -> np.ndarray:
  source = pixels.shape[:2]
  passes = [(resample.across, 1), (resample.down, 0)]
  for run, edge in reversed(passes) if pillow.down_first(source, target) else passes:
    if source[edge] != target[edge]:
      pixels = run(pixels, *pillow.axis(source[edge], target[edge], kind))
  return np.asarray(pixels)


@pytest.mark.parametrize("kind", pillow.FILTERS)
@pytest.mark.parametrize(
  ("source", "target"),
  [
    ((15, 20), (48, 64)),  # both larger
    ((48, 64), (20, 13)),  # both smaller
    ((50, 20), (16, 33)),  # heights first
    ((20, 50), (33, 50)),  # one edge alone
  ],
)
def test_every_bit_is_pillow_s(source, target, kind):
  pixels = RNG.integers(0, 256, (*source, 3), dtype=np.uint8)
  expected = Image.fromarray(pixels).resize(target[::-1], Image.Resampling(kind))
  np.testing.assert_array_equal(resized(pixels, target, kind), np.asarray(expected))


def test_padding_of_source_and_result_changes_nothing():
  pixels = RNG.integers(0, 256, (10, 6, 3), dtype=np.uint8)
  padded = np.pad(pixels, ((0, 6), (0, 26), (0, 0)), constant_values=77)
  found = resample.down(padded, *pillow.axis(10, 25, 1, room=32))
  whole = resample.down(pixels, *pillow.axis(10, 25, 1))
  np.testing.assert_array_equal(found[:25, :6], whole)
  assert not np.asarray(found[25:]).any()


def test_weights_of_few_shapes():
  assert pillow.axis(10, 30, 1).weights.shape == (30, 6)
  assert pillow.axis(30, 10, 1).weights.shape == (10, 18)
  assert pillow.axis(30, 10, 2).weights.shape == (10, 6)
