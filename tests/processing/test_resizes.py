"""Who resizes a picture, and that nobody can tell."""

import numpy as np
import pytest

from spatialvlm.processing import resizes

RNG = np.random.default_rng(0)
LANCZOS, BOX = 1, 4
SIZES = ((20, 24), (32, 24), (8, 8))


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(resizes, "LEAST", 32 * 24)
  monkeypatch.setattr(resizes, "_ROOM", 8)
  for name in ("_seen", "_same", "_other"):
    monkeypatch.setattr(resizes, name, type(getattr(resizes, name))())


@pytest.fixture
def asked(monkeypatch):
  """Who was asked, in order."""
  found = []
  for name in ("_by_pillow", "_by_xla"):
    own = getattr(resizes, name)
    monkeypatch.setattr(resizes, name, lambda *a, own=own, name=name: found.append(name) or own(*a))
  return found


def picture(height: int = 10, width: int = 12) -> np.ndarray:
  return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_first_of_a_shape_are_pillow_s_and_one_is_compared(asked):
  images = [picture(9 + i % 2) for i in range(7)]  # of one shape to the compiler
  found = [resizes.resized(image, SIZES, LANCZOS, keep=2) for image in images]
  assert asked == ["_by_pillow"] * 4 + ["_by_xla", "_by_pillow"] + ["_by_xla"] * 2
  for image, (canvas, view) in zip(images, found, strict=True):
    expected = resizes._by_pillow(image, SIZES, LANCZOS, 1)
    np.testing.assert_array_equal(canvas, expected[0])
    np.testing.assert_array_equal(view, expected[1])
  assert canvas.shape == (32, 24, 3) and view.shape == (8, 8, 3)


def test_a_pillow_that_sums_otherwise_is_believed(asked, monkeypatch):
  monkeypatch.setattr(resizes.pillow, "down_first", lambda source, target: True)
  image = picture()
  found = [resizes.resized(image, SIZES, LANCZOS)[0] for _ in range(7)]
  assert asked == ["_by_pillow"] * 4 + ["_by_xla", "_by_pillow"] + ["_by_pillow"] * 2
  for one in found:
    np.testing.assert_array_equal(one, found[0])


@pytest.mark.parametrize(("sizes", "kind"), [(((8, 8),), LANCZOS), (SIZES, BOX), (((8, 8192),), LANCZOS)])
def test_small_ones_others_filters_and_endless_ones_are_pillow_s(asked, sizes, kind):
  for _ in range(6):
    resizes.resized(picture(), sizes, kind)
  assert asked == ["_by_pillow"] * 6


def test_a_size_that_a_picture_has_changes_nothing():
  image = picture(32, 24)
  for _ in range(6):
    np.testing.assert_array_equal(resizes.resized(image, ((32, 24),), LANCZOS)[0], image)
