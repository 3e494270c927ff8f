"""The layout of transformers' processors: text and tiles into such arrays, such arrays into a `Batch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spatialvlm.types import IMAGE_MARK, Batch, UserError


def images_by_prompt(
  images: Any, texts: Sequence[str] | None, mark: str = IMAGE_MARK, one_each: bool = False
) -> list[list[Any]]:
  """Images as one list per prompt, as transformers' `prepare_inputs_layout` arranges them.

  Args:
    images: one image, a list that is handed to the prompts in order by their marks, or a list of lists.
    one_each: hand a list to the prompts one by one, as transformers does for PaliGemma's without marks.

  Raises:
    UserError: there are lists, or with `one_each` images, for more or fewer prompts than `texts`.
  """
  if not isinstance(images, (list, tuple)):
    images = [images]
  if images and all(isinstance(image, (list, tuple)) for image in images):
    nested = [list(sample) for sample in images]
  elif texts is None:
    nested = [list(images)]
  elif one_each and images:
    nested = [[image] for image in images]
  else:
    nested, at = [], 0
    for text in texts:
      count = text.count(mark)
      nested.append(list(images[at : at + count]))
      at += count
    nested[-1] += images[at:]
  if texts is not None and len(nested) != len(texts):
    raise UserError(f"processor: {len(texts)} prompts, but images for {len(nested)}")
  return nested


def token_arrays(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> dict[str, np.ndarray]:
  """input_ids and attention_mask (B, T) int64, padded on one side to the longest row."""
  if side not in ("left", "right"):
    raise UserError(f"padding_side must be 'left' or 'right', got {side!r}")
  length = max(map(len, rows))
  ids = np.full((len(rows), length), pad_id, np.int64)
  mask = np.zeros((len(rows), length), np.int64)
  for index, row in enumerate(rows):
    place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
    ids[index, place] = row
    mask[index, place] = 1
  return {"input_ids": ids, "attention_mask": mask}


def prefix_arrays(
  rows: Sequence[Sequence[int]], prefixes: Sequence[int], pad_id: int, side: str, labels: bool
) -> dict[str, np.ndarray]:
  """`token_arrays` with token_type_ids (B, T) int64: 1 behind the first so many tokens of each row, else 0.

  Args:
    labels: with labels (B, T) int64 too: the ids behind the prefix, and -100 elsewhere.
  """
  result = token_arrays(rows, pad_id, side)
  kinds = [[0] * prefix + [1] * (len(row) - prefix) for row, prefix in zip(rows, prefixes, strict=True)]
  result["token_type_ids"] = token_arrays(kinds, 0, side)["input_ids"]
  if labels:
    result["labels"] = np.where(result["token_type_ids"] == 1, result["input_ids"], -100)
  return result


def pixel_arrays(tiles: Sequence[np.ndarray], size: int) -> dict[str, np.ndarray]:
  """pixel_values (B, I, 3, S, S) float32 and pixel_attention_mask (B, I, S, S) int64, padded with zeros.

  Args:
    tiles: for each sample (I, S, S, 3) normalised tiles, or nothing.
    size: S.
  """
  most = max(map(len, tiles))
  pixels = np.zeros((len(tiles), most, 3, size, size), np.float32)
  mask = np.zeros((len(tiles), most, size, size), np.int64)
  for index, sample in enumerate(tiles):
    if len(sample):
      pixels[index, : len(sample)] = sample.transpose(0, 3, 1, 2)
      mask[index, : len(sample)] = 1
  return {"pixel_values": pixels, "pixel_attention_mask": mask}


def batch_from_arrays(
  input_ids: Any,
  attention_mask: Any = None,
  pixel_values: Any = None,
  pixel_attention_mask: Any = None,
  token_type_ids: Any = None,
  *,
  image_token_id: int | None,
  vocab_size: int,
  tokens_of_tile: Callable[[int, int], int],
  length: int | None = None,
  bidirectional: bool = False,
) -> Batch:
  """What transformers' models make of the same arrays, on the host.

  Of nested images those whose pixels are all exactly 0 are padding and are left out. The k-th image token of
  the batch, row after row, takes the k-th image feature, image after image. Without `pixel_values` an image
  token is embedded like any other token.

  Args:
    image_token_id: None of a language model, which has none.
    input_ids: integers (B, T).
    attention_mask: (B, T), nonzero at tokens that count; padding may stand on either side. None: all count.
    pixel_values: (B, I, 3, H, W), normalised; or flat, (N, 3, H, W), where every image counts.
    pixel_attention_mask: (B, I, H, W) or (N, H, W), nonzero at real pixels.
    token_type_ids: (B, T), 0 in a bidirectional prefix and 1 behind it. Checked, and without effect on a
      decoder that is causal throughout. None leaves `mask_ar_BT` None.
    bidirectional: the decoder knows such prefixes.
    tokens_of_tile: (H, W) -> image tokens of one image.
    length: T of the batch, padded on the right to it; None for that of `input_ids`.

  Raises:
    UserError: shapes that do not belong together, an id outside the vocabulary, or image tokens and images
      that differ in number.
  """
  tokens_BT = _integers(input_ids, "input_ids")
  B, T = tokens_BT.shape
  if tokens_BT.min() < 0 or tokens_BT.max() >= vocab_size:
    span = f"{tokens_BT.min()} to {tokens_BT.max()}"
    raise UserError(f"input_ids: ids run from {span}, outside the vocabulary of {vocab_size}")
  valid_BT = np.ones((B, T), bool)
  if attention_mask is not None:
    valid_BT = _like(attention_mask, (B, T), "attention_mask") != 0
  fields: dict[str, Any] = {}
  if token_type_ids is not None:
    kinds_BT = _like(token_type_ids, (B, T), "token_type_ids")
    if bidirectional:
      fields["mask_ar_BT"] = _mask_ar(kinds_BT, valid_BT)
  if pixel_values is not None:
    is_image_BT = np.zeros((B, T), bool) if image_token_id is None else tokens_BT == image_token_id
    pixels_NCHW, mask_NHW = _images(pixel_values, pixel_attention_mask, B, is_image_BT.any())
    if len(pixels_NCHW):
      fields |= _placed(pixels_NCHW, mask_NHW, is_image_BT, tokens_of_tile(*pixels_NCHW.shape[2:]))
  elif pixel_attention_mask is not None:
    raise UserError("pixel_attention_mask: given without pixel_values")
  if length is not None and length > T:
    width = ((0, 0), (0, length - T))
    tokens_BT, valid_BT = np.pad(tokens_BT, width), np.pad(valid_BT, width)
    if "image_slot_BT" in fields:
      fields["image_slot_BT"] = np.pad(fields["image_slot_BT"], width, constant_values=-1)
    if "mask_ar_BT" in fields:
      fields["mask_ar_BT"] = np.pad(fields["mask_ar_BT"], width, constant_values=True)
  return Batch(tokens_BT=tokens_BT.astype(np.int32), valid_BT=valid_BT, **fields)


def _placed(pixels_NCHW, mask_NHW, is_image_BT, per_tile: int) -> dict[str, Any]:
  """The pixel fields of a Batch: tiles flat, and for each sample the tiles that its image tokens read."""
  wanted, found = len(pixels_NCHW) * per_tile, int(is_image_BT.sum())
  if wanted != found:
    raise UserError(
      f"input_ids hold {found} image tokens, but the {len(pixels_NCHW)} images of pixel_values make {wanted}"
      f" ({per_tile} each); was the text cut, or the processor of another model used?"
    )
  counts_B = is_image_BT.sum(axis=1)
  first_B = np.cumsum(counts_B) - counts_B
  # A sample usually begins at a tile's first token; if not, its slots count from that tile's beginning.
  tile_B, offset_B = first_B // per_tile, first_B % per_tile
  tiles = int(np.max(-(-(offset_B + counts_B) // per_tile)))
  index_BI = tile_B[:, None] + np.arange(tiles)
  held_BI = np.arange(tiles) * per_tile < (offset_B + counts_B)[:, None]
  slot_BT = np.cumsum(is_image_BT, axis=1) - 1 + offset_B[:, None]
  return {
    "pixels_NHWC": np.ascontiguousarray(pixels_NCHW.transpose(0, 2, 3, 1)),
    "pixel_mask_NHW": mask_NHW,
    "tile_index_BI": np.where(held_BI, index_BI, -1).astype(np.int32),
    "image_slot_BT": np.where(is_image_BT, slot_BT, -1).astype(np.int32),
  }


def _images(
  pixel_values: Any, pixel_attention_mask: Any, B: int, expected: bool
) -> tuple[np.ndarray, np.ndarray | None]:
  """Pixels (N, 3, H, W) of the images that count, and their mask, None where it is whole.

  Args:
    expected: whether the text has image tokens.
  """
  pixels = np.asarray(pixel_values, np.float32)
  flat = pixels.ndim == 4
  if pixels.ndim not in (4, 5) or pixels.shape[-3] != 3 or not (flat or pixels.shape[0] == B):
    raise UserError(
      f"pixel_values: expected shape ({B}, images, 3, height, width) or (all images, 3, height, width),"
      f" got {pixels.shape}"
    )
  mask = None
  if pixel_attention_mask is not None:
    shape = (*pixels.shape[:-3], *pixels.shape[-2:])
    mask = _like(pixel_attention_mask, shape, "pixel_attention_mask") != 0
  real = np.ones(len(pixels), bool) if flat else pixels.any(axis=(2, 3, 4))
  # Whole images need no mask in the vision tower.
  if mask is not None and mask[real].all():
    mask = None
  if not flat and not real.any() and expected:
    real[0, 0] = True  # transformers' rule: of an all-black batch the first image counts
  return pixels[real], None if mask is None else mask[real]


def _mask_ar(kinds_BT: np.ndarray, valid_BT: np.ndarray) -> np.ndarray:
  """False in the prefix; refused are kinds beyond 0 and 1, and a 0 behind a 1."""
  causal_BT = kinds_BT == 1
  ordered = not (~causal_BT & valid_BT & (np.cumsum(causal_BT & valid_BT, axis=1) > 0)).any()
  if not ordered or not np.isin(kinds_BT, (0, 1)).all():
    raise UserError("token_type_ids: expected 0 at each row's prefix, then 1 at its suffix")
  return causal_BT


def _integers(value: Any, name: str) -> np.ndarray:
  array = np.asarray(value)
  if array.ndim != 2 or 0 in array.shape or not np.issubdtype(array.dtype, np.integer):
    raise UserError(f"{name}: expected integers of shape (batch, length), got {array.dtype} {array.shape}")
  return array


def _like(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
  array = np.asarray(value)
  if array.shape != shape:
    raise UserError(f"{name}: expected shape {shape}, got {array.shape}")
  return array
