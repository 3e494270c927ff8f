"""Arrays of transformers' layout into a Batch: which tile each image token reads."""

import numpy as np
import pytest

from spatialvlm.processing.arrays import batch_from_arrays
from spatialvlm.types import UserError

IMAGE = 9


def convert(**kwargs):
  return batch_from_arrays(
    image_token_id=IMAGE, vocab_size=10, tokens_of_tile=lambda h, w: (h // 2) * (w // 2), **kwargs
  )


def pixels(*real, images=2):
  """(B, images, 3, 2, 4): image j of sample i filled with 10 i + j + 1 where it is real, else padding."""
  out = np.zeros((len(real), images, 3, 2, 4), np.float32)
  for i, row in enumerate(real):
    for j in row:
      out[i, j] = 10 * i + j + 1
  return out


def read(batch):
  """For each image token of the batch, row by row: (value of its tile's pixels, place in the tile)."""
  result = []
  for row, slots in enumerate(batch.image_slot_BT):
    for slot in slots[slots >= 0]:
      tile = batch.tile_index_BI[row, slot // 2]
      assert tile >= 0
      result.append((float(batch.pixels_NHWC[tile, 0, 0, 0]), int(slot % 2)))
  return result


def test_image_tokens_read_real_images_in_order():
  ids = np.array([[1, 9, 9, 2, 9, 9, 3], [4, 5, 6, 7, 8, 1, 2], [1, 2, 9, 9, 3, 4, 5]])
  batch = convert(input_ids=ids, pixel_values=pixels([0, 1], [], [1]))
  assert batch.pixels_NHWC.shape == (3, 2, 4, 3)
  assert read(batch) == [(1, 0), (1, 1), (2, 0), (2, 1), (22, 0), (22, 1)]
  np.testing.assert_array_equal(batch.image_slot_BT >= 0, ids == IMAGE)
  assert batch.pixel_mask_NHW is None and batch.valid_BT.all()
  assert batch.tokens_BT.dtype == np.int32


def test_the_flat_order_counts_not_the_sample():
  """As in transformers' masked_scatter, an image may even lie in another sample's row."""
  ids = np.array([[1, 9, 9, 9], [9, 2, 3, 4]])
  assert read(convert(input_ids=ids, pixel_values=pixels([0], [0]))) == [(1, 0), (1, 1), (11, 0), (11, 1)]
  ids = np.array([[1, 9, 9, 2], [9, 9, 3, 4]])
  assert read(convert(input_ids=ids, pixel_values=pixels([0, 1], []))) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_text_only():
  ids = np.array([[1, 2, 3]])
  for values in (None, pixels([])):
    batch = convert(input_ids=ids, pixel_values=values)
    assert batch.pixels_NHWC is None and batch.image_slot_BT is None
  assert convert(input_ids=np.array([[1, 9]])).image_slot_BT is None


def test_of_an_all_black_batch_the_first_image_counts():
  batch = convert(input_ids=np.array([[1, 9, 9]]), pixel_values=pixels([]))
  assert batch.pixels_NHWC.shape[0] == 1


def test_pixel_mask_follows_its_images():
  mask = np.ones((1, 2, 2, 4), int)
  mask[0, 1, :, 2:] = 0
  batch = convert(input_ids=np.array([[9, 9]]), pixel_values=pixels([1]), pixel_attention_mask=mask)
  np.testing.assert_array_equal(batch.pixel_mask_NHW, mask[:, 1] == 1)
  mask = np.zeros((1, 2, 2, 4), int)
  mask[0, 1] = 1
  batch = convert(input_ids=np.array([[9, 9]]), pixel_values=pixels([1]), pixel_attention_mask=mask)
  assert batch.pixel_mask_NHW is None


def test_padded_to_a_length():
  batch = convert(
    input_ids=np.array([[1, 9, 9]]), attention_mask=[[0, 1, 1]], pixel_values=pixels([0]), length=5
  )
  assert batch.tokens_BT.tolist() == [[1, 9, 9, 0, 0]]
  assert batch.valid_BT.tolist() == [[False, True, True, False, False]]
  assert batch.image_slot_BT.tolist() == [[-1, 0, 1, -1, -1]]


def test_flat_images_all_count():
  ids = np.array([[1, 9, 9, 9, 9], [1, 2, 3, 9, 9]])
  flat = np.concatenate([pixels([0, 1])[0], np.zeros((1, 3, 2, 4), np.float32)])
  assert read(convert(input_ids=ids, pixel_values=flat)) == [
    (1, 0), (1, 1), (2, 0), (2, 1), (0, 0), (0, 1)
  ]  # fmt: skip
  mask = np.ones((3, 2, 4), int)
  mask[1, :, 2:] = 0
  batch = convert(input_ids=ids, pixel_values=flat, pixel_attention_mask=mask)
  np.testing.assert_array_equal(batch.pixel_mask_NHW, mask == 1)
  assert convert(input_ids=[[1, 2]], pixel_values=flat[:0]).pixels_NHWC is None


def test_kinds_of_tokens_mark_a_prefix():
  kinds = dict(
    input_ids=[[3, 1, 2, 4], [1, 2, 4, 3]],
    attention_mask=[[0, 1, 1, 1], [1, 1, 1, 0]],
    token_type_ids=[[0, 0, 0, 1], [0, 1, 1, 0]],
  )
  assert convert(**kinds).mask_ar_BT is None  # a causal decoder knows no prefix
  batch = convert(**kinds, bidirectional=True, length=5)
  np.testing.assert_array_equal(batch.mask_ar_BT[0], [False, False, False, True, True])
  np.testing.assert_array_equal(batch.mask_ar_BT[1, :3], [False, True, True])
  assert convert(input_ids=[[1, 2]], bidirectional=True).mask_ar_BT is None
  for wrong in ([[0, 0, 0, 2], [0, 1, 1, 0]], [[0, 0, 1, 0], [0, 1, 1, 0]]):
    with pytest.raises(UserError, match="expected 0 at each row's prefix"):
      convert(**(kinds | {"token_type_ids": wrong}), bidirectional=True)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"input_ids": [1, 2]}, "expected integers of shape"),
    ({"input_ids": [[1.0, 2.0]]}, "expected integers"),
    ({"input_ids": [[]]}, "expected integers of shape"),
    ({"input_ids": [[1, 10]]}, "outside the vocabulary of 10"),
    ({"input_ids": [[-1, 2]]}, "outside the vocabulary"),
    ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "attention_mask: expected shape"),
    ({"input_ids": [[1, 2]], "token_type_ids": [[1]]}, "token_type_ids: expected shape"),
    ({"input_ids": [[1, 2]], "pixel_values": np.ones((1, 2, 2, 4))}, "pixel_values: expected shape"),
    ({"input_ids": [[1, 2]], "pixel_values": np.ones((2, 1, 3, 2, 4))}, "pixel_values: expected shape"),
    ({"input_ids": [[1, 2]], "pixel_attention_mask": np.ones((1, 1, 2, 4))}, "without pixel_values"),
    (
      {"input_ids": [[9, 9, 9]], "pixel_values": pixels([0])},
      "3 image tokens, but the 1 images .* make 2",
    ),
    ({"input_ids": [[1, 2]], "pixel_values": pixels([0])}, "hold 0 image tokens"),
    (
      {"input_ids": [[9, 9]], "pixel_values": pixels([0]), "pixel_attention_mask": np.ones((1, 2, 4, 2))},
      "pixel_attention_mask: expected shape",
    ),
  ],
)
def test_what_does_not_belong_together(kwargs, message):
  with pytest.raises(UserError, match=message):
    convert(**kwargs)
