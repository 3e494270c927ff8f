"""The layout of transformers' processors: text and tiles into such arrays, such arrays into a `Batch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spatialvlm.types import IMAGE_MARK, Batch, UserError


def images_by_prompt(images: Any, texts: Sequence[str] | None) -> list[list[Any]]:
  """Images as one list per prompt, as transformers' `prepare_inputs_layout` arranges them.

  Args:
    images: one image, a list that is handed to the prompts in order by their `<image>` marks, or a list of
      lists.

  Raises:
    UserError: there are lists for more or fewer prompts than `texts`.
  """
  if not isinstance(images, (list, tuple)):
    images = [images]
  if images and all(isinstance(image, (list, tuple)) for image in images):
    nested = [list(sample) for sample in images]
  elif texts is None:
    nested = [list(images)]
  else:
    nested, at = [], 0
    for text in texts:
      count = text.count(IMAGE_MARK)
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
  image_token_id: int,
  vocab_size: int,
  tokens_of_tile: Callable[[int, int], int],
  length: int | None = None,
) -> Batch:
  """What transformers' SmolVLM makes of the same arrays, on the host.

  Images whose pixels are all exactly 0 are padding and are left out. The k-th image token of the batch, row
  after row, takes the k-th image feature, image after image. Without `pixel_values` an image token is
  embedded like any other token.

  Args:
    input_ids: integers (B, T).
    attention_mask: (B, T), nonzero at tokens that count; padding may stand on either side. None: all count.
    pixel_values: (B, I, 3, H, W), normalised.
    pixel_attention_mask: (B, I, H, W), nonzero at real pixels.
    token_type_ids: (B, T); checked and otherwise without effect, since these decoders are causal throughout.
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
  if token_type_ids is not None:
    _like(token_type_ids, (B, T), "token_type_ids")
  fields: dict[str, Any] = {}
  if pixel_values is not None:
    pixels, mask = _images(pixel_values, pixel_attention_mask, B)
    is_image_BT = tokens_BT == image_token_id
    real_BI = pixels.any(axis=(2, 3, 4))
    if not real_BI.any() and is_image_BT.any():
      real_BI[0, 0] = True  # transformers' rule: of an all-black batch the first image counts
    if real_BI.any():
      per_tile = tokens_of_tile(*pixels.shape[3:])
      fields = _placed(pixels[real_BI], None if mask is None else mask[real_BI], is_image_BT, per_tile)
  elif pixel_attention_mask is not None:
    raise UserError("pixel_attention_mask: given without pixel_values")
  if length is not None and length > T:
    width = ((0, 0), (0, length - T))
    tokens_BT, valid_BT = np.pad(tokens_BT, width), np.pad(valid_BT, width)
    if "image_slot_BT" in fields:
      fields["image_slot_BT"] = np.pad(fields["image_slot_BT"], width, constant_values=-1)
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


def _images(pixel_values: Any, pixel_attention_mask: Any, B: int) -> tuple[np.ndarray, np.ndarray | None]:
  pixels = np.asarray(pixel_values, np.float32)
  if pixels.ndim != 5 or pixels.shape[0] != B or pixels.shape[2] != 3:
    raise UserError(f"pixel_values: expected shape ({B}, images, 3, height, width), got {pixels.shape}")
  if pixel_attention_mask is None:
    return pixels, None
  mask = _like(pixel_attention_mask, (*pixels.shape[:2], *pixels.shape[3:]), "pixel_attention_mask") != 0
  # Whole images need no mask in the vision tower. Padding images have an empty one and are dropped.
  return pixels, None if mask[pixels.any(axis=(2, 3, 4))].all() else mask


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
