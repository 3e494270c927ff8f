"""Collation against what a reader would write by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from spatialvlm.data.batch import Bucket, bucket_of, collate, extra_kinds, grow, largest, with_extra
from spatialvlm.processing.tiling import dense_tiles
from spatialvlm.types import Extra, PixelTable, UserError
from tests.data.fakes import FakeEncoded


def encoded(length, tiles, supervised, value=1.0, **kwargs):
  loss = np.zeros(length, bool)
  loss[length - supervised :] = True
  slot = np.full(length, -1, np.int32)
  slot[: 2 * tiles] = np.arange(2 * tiles)
  pixels = np.full((tiles, 2, 2, 3), value, np.float32)
  return FakeEncoded(np.arange(10, 10 + length, dtype=np.int32), loss, slot, pixels, **kwargs)


SIZES = dict(lengths=(4, 8), tiles=(1, 3), targets=2)


def test_the_bucket_is_the_smallest_that_holds_all():
  assert bucket_of([encoded(4, 1, 1)], **SIZES) == Bucket(4, 1, 2)
  assert bucket_of([encoded(4, 1, 1), encoded(5, 0, 3)], **SIZES) == Bucket(8, 1, 4)
  assert bucket_of([encoded(5, 2, 5)], **SIZES) == Bucket(8, 3, 8)
  assert bucket_of([encoded(5, 0, 1)], **SIZES) == Bucket(8, 0, 2)
  assert bucket_of([encoded(5, 0, 1)], lengths=(8,), tiles=(1,), targets=0) == Bucket(8, 0, 0)
  assert largest([Bucket(8, 0, 2), Bucket(4, 3, 2)]) == Bucket(8, 3, 2)


@pytest.mark.parametrize("size, message", [((9, 1, 1), "9 tokens"), ((8, 4, 1), "4 image tiles")])
def test_what_fits_no_bucket_is_refused(size, message):
  with pytest.raises(UserError, match=message):
    bucket_of([encoded(*size)], **SIZES)


def test_rows_are_padded_on_the_right_and_tiles_stand_beside_their_sample():
  batch = collate(
    [encoded(3, 1, 1, 0.5), encoded(5, 0, 2), encoded(4, 2, 1, 0.25)],
    length=6, tiles=2, targets=2, pad_id=7, batch_size=4,
  )  # fmt: skip
  np.testing.assert_array_equal(batch.tokens_BT[0], [10, 11, 12, 7, 7, 7])
  np.testing.assert_array_equal(batch.valid_BT.sum(1), [3, 5, 4, 1])
  np.testing.assert_array_equal(batch.tokens_BT[3], [7] * 6)
  np.testing.assert_array_equal(batch.target_index_BK, [[2, -1], [3, 4], [3, -1], [-1, -1]])
  np.testing.assert_array_equal(batch.image_slot_BT[2], [0, 1, 2, 3, -1, -1])
  np.testing.assert_array_equal(batch.example_mask_B, [True, True, True, False])
  assert batch.tile_index_BI is None and batch.pixel_mask_NHW is None and batch.extra == {}
  np.testing.assert_array_equal(batch.pixels_NHWC[:, 0, 0, 0], [0.5, 0, 0, 0, 0.25, 0.25, 0, 0])
  assert batch.pixels_NHWC.dtype == np.float32 and batch.tokens_BT.dtype == np.int32


def test_masks_follow_their_tiles():
  mask = np.zeros((1, 2, 2), bool)
  batch = collate(
    [encoded(3, 1, 1), encoded(3, 1, 1, pixel_mask=mask)],
    length=4,
    tiles=1,
    targets=1,
    pad_id=0,
    batch_size=2,
  )
  np.testing.assert_array_equal(batch.pixel_mask_NHW.all((1, 2)), [True, False])


def test_dense_targets_stand_at_the_global_view_of_the_first_image():
  depth = np.full((4, 4), 3.0, np.float32)
  ids = np.full((4,), 6, np.int32)
  extra = dense_tiles({"depth": depth, "ids": ids}, (2, 1))
  rows = [encoded(3, 1, 1), encoded(8, 3, 1, images=(2, 1), extra=extra)]
  batch = collate(rows, length=8, tiles=3, targets=1, pad_id=0, batch_size=2)
  found, labels = batch.extra["depth"], batch.extra["ids"].array
  assert found.axis == "tile" and found.array.shape == (6, 4, 4) and labels.dtype == np.int32
  np.testing.assert_array_equal(np.isnan(found.array).all((1, 2)), [True] * 4 + [False, True])
  np.testing.assert_array_equal(labels[:, 0], [-1, -1, -1, -1, 6, -1])
  with pytest.raises(UserError, match="targets depth of an example without an image"):
    dense_tiles({"depth": depth}, ())


def extras(tiles, targets, value=1.0):
  """One array of each axis, as an example brings them."""
  return {
    "mask": Extra(np.full((tiles, 2, 2), value > 0), "tile"),
    "reward": Extra(np.float32(value), "sample"),
    "teacher": Extra(np.full((targets, 3), value, np.float32), "target"),
    "rank": Extra(np.full((targets,), int(value), np.int8), "target"),
  }


def test_extra_arrays_are_padded_along_the_axis_that_they_name():
  rows = [
    encoded(4, 2, 3, extra=extras(2, 3, 5.0)),
    encoded(3, 1, 1),
    encoded(4, 1, 1, extra=extras(1, 1, 7.0)),
  ]
  batch = collate(rows, length=4, tiles=3, targets=4, pad_id=0, batch_size=4)
  assert {name: extra.axis for name, extra in batch.extra.items()} == {
    "mask": "tile", "reward": "sample", "teacher": "target", "rank": "target"
  }  # fmt: skip
  arrays = {name: extra.array for name, extra in batch.extra.items()}
  np.testing.assert_array_equal(arrays["mask"].all((1, 2)), [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(arrays["reward"], [5, np.nan, 7, np.nan])
  np.testing.assert_array_equal(arrays["rank"], [[5, 5, 5, -1], [-1] * 4, [7, -1, -1, -1], [-1] * 4])
  assert arrays["teacher"].shape == (4, 4, 3) and arrays["rank"].dtype == np.int8
  np.testing.assert_array_equal(np.isnan(arrays["teacher"]).all(-1), arrays["rank"] < 0)
  alone = collate(rows, length=4, tiles=0, targets=0, pad_id=0, batch_size=4)
  assert list(alone.extra) == ["reward"]  # a batch without tiles or targets has none of theirs


@pytest.mark.parametrize(
  ("extra", "message"),
  [
    (
      Extra(np.zeros((2, 2, 2), np.float32), "tile"),
      "differs in axis, shape or type: tile .2, 2. bool; tile",
    ),
    (Extra(np.zeros((2, 2, 3), bool), "tile"), "differs in axis, shape or type"),
    (Extra(np.zeros((3, 2, 2), bool), "tile"), "'mask' holds 3 tiles, but the example has 2"),
    (Extra(np.zeros((2, 2, 2), bool), "target"), "differs in axis"),
    (Extra(np.bool_(True), "tile"), "a single number"),
  ],
)
def test_extra_arrays_that_do_not_fit_are_refused(extra, message):
  rows = [encoded(4, 2, 3, extra={"mask": extra}), encoded(4, 1, 1, extra=extras(1, 1))]
  with pytest.raises(UserError, match=message):
    collate(rows, length=4, tiles=3, targets=4, pad_id=0, batch_size=2)


def test_an_axis_or_a_type_without_meaning_is_refused():
  with pytest.raises(UserError, match="axis 'pixel'; known: tile, sample, target"):
    Extra(np.zeros(3), "pixel")
  rows = [encoded(4, 1, 1, extra={"class": Extra(np.uint8(3), "sample")})]
  with pytest.raises(UserError, match="uint8 cannot say where nothing is given"):
    collate(rows, length=4, tiles=1, targets=1, pad_id=0, batch_size=1)


def test_a_batch_without_images_has_no_pixels():
  batch = collate([encoded(3, 0, 1)], length=4, tiles=0, targets=1, pad_id=0, batch_size=2)
  assert batch.pixels_NHWC is None and batch.target_index_BK.shape == (2, 1)


def test_growing_equals_collating_into_the_larger_bucket():
  rows = [encoded(3, 1, 1, 0.5, extra=extras(1, 1)), encoded(4, 1, 2)]
  small = collate(rows, length=4, tiles=1, targets=2, pad_id=9, batch_size=3)
  large = collate(rows, length=8, tiles=3, targets=4, pad_id=9, batch_size=3)
  grown = grow(small, Bucket(8, 3, 4), pad_id=9, tile_size=2)
  for name in ("tokens_BT", "valid_BT", "image_slot_BT", "target_index_BK", "pixels_NHWC", "example_mask_B"):
    np.testing.assert_array_equal(getattr(grown, name), getattr(large, name), err_msg=name)
  assert grown.extra.keys() == large.extra.keys() == extras(1, 1).keys()
  for name, extra in large.extra.items():
    assert grown.extra[name].axis == extra.axis
    np.testing.assert_array_equal(grown.extra[name].array, extra.array, err_msg=name)


TABLE = PixelTable.of(np.linspace(-1, 1, 768, dtype=np.float32).reshape(256, 3))


def of_bytes(tiles, value):
  return dataclasses.replace(
    encoded(8, tiles, 1), tiles=np.full((tiles, 2, 2, 3), value, np.uint8), normal=TABLE
  )


def test_tiles_of_bytes_stay_bytes_and_say_what_they_stand_for():
  shape = dict(length=8, targets=1, pad_id=0, batch_size=3)
  rows = [of_bytes(2, 7), of_bytes(0, 0), of_bytes(1, 9)]
  batch = collate(rows, tiles=2, **shape)
  assert batch.pixels_NHWC.dtype == np.uint8 and batch.normal is TABLE
  np.testing.assert_array_equal(batch.pixels_NHWC[:, 0, 0, 0], [7, 7, 0, 0, 9, 0])
  grown = grow(batch, Bucket(8, 3, 1), pad_id=0, tile_size=2)
  np.testing.assert_array_equal(grown.pixels_NHWC, collate(rows, tiles=3, **shape).pixels_NHWC)
  assert grown.normal is TABLE
  # A process whose examples have no image, or which has none at all, runs the same program as the others.
  for none in ([of_bytes(0, 0)], []):
    grown = grow(collate(none, tiles=0, **shape, normal=TABLE), Bucket(8, 2, 1), pad_id=0, tile_size=2)
    assert jax.tree.structure(grown) == jax.tree.structure(batch)
    assert grown.pixels_NHWC.dtype == np.uint8 and grown.pixels_NHWC.shape == batch.pixels_NHWC.shape


def test_growing_gives_pixels_to_a_batch_without_any():
  small = collate([encoded(3, 0, 1)], length=4, tiles=0, targets=1, pad_id=0, batch_size=2)
  grown = grow(small, Bucket(4, 3, 1), pad_id=0, tile_size=2)
  assert grown.pixels_NHWC.shape == (6, 2, 2, 3) and not grown.pixels_NHWC.any()


def test_processes_that_brought_no_extra_array_get_one_without_values():
  """One process has labelled tiles, the other text alone: both must run one program."""
  shape = dict(length=8, targets=2, pad_id=0, batch_size=2)
  mine = collate([encoded(3, 0, 1)], tiles=0, **shape)
  others = collate([encoded(4, 1, 2, extra=extras(1, 2))], tiles=1, **shape)
  kinds = [extra_kinds(mine), extra_kinds(others)]
  assert kinds[0].shape == kinds[1].shape
  bucket = Bucket(8, 1, 2)
  grown = [grow(with_extra(batch, kinds), bucket, pad_id=0, tile_size=2) for batch in (mine, others)]
  shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), batch) for batch in grown]
  assert jax.tree.structure(grown[0]) == jax.tree.structure(grown[1]) and shapes[0] == shapes[1]
  for name, extra in grown[1].extra.items():
    np.testing.assert_array_equal(extra.array, others.extra[name].array)
  missing = {name: extra.array for name, extra in grown[0].extra.items()}
  assert np.isnan(missing["reward"]).all() and np.isnan(missing["teacher"]).all()
  assert (missing["rank"] == -1).all() and not missing["mask"].any()
  same = collate([encoded(3, 0, 1)], tiles=0, **shape)
  assert with_extra(same, [extra_kinds(same)] * 2).extra == {}
