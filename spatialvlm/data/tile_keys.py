"""Names for tiles, by what the vision tower sees of them, so that what it makes of one may be kept.

A tile's key travels beside its pixels as an array of axis "tile" (`types.Extra`), so that batches pad and
grow it like any other. It never reaches a device: `training.frozen_vision` takes it out.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from spatialvlm.types import Extra

if TYPE_CHECKING:
  from spatialvlm.processing.processor import Encoded

# The array's name in `Encoded.extra` and `Batch.extra`: int64 (I, 2) and (N, 2), 127 bits of a hash.
TILE_KEY = "tile_key"
# First number of a key that is none: a tile that pads a bucket (`types.missing_value`), and one that does not
# come again.
PADDING, ONCE = -1, -2


def with_keys(encoded: Encoded, *, again: bool = True) -> Encoded:
  """The example with a key for each of its tiles.

  Args:
    again: whether its pictures may be seen again; keys of others are all `ONCE`.
  """
  if not len(encoded.tiles):
    return encoded
  keys = tile_keys(encoded.tiles, encoded.pixel_mask) if again else np.full((len(encoded.tiles), 2), ONCE)
  return dataclasses.replace(encoded, extra={**encoded.extra, TILE_KEY: Extra(keys, "tile")})


def tile_keys(tiles: np.ndarray, pixel_mask: np.ndarray | None = None) -> np.ndarray:
  """int64 (I, 2): a hash of each tile's pixels, their type and shape, and of its mask where there is one."""
  keys = np.empty((len(tiles), 2), np.int64)
  for number, tile in enumerate(tiles):
    digest = hashlib.blake2b(f"{tile.dtype} {tile.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(tile).data)
    if pixel_mask is not None:
      digest.update(np.packbits(pixel_mask[number]).data)
    keys[number] = np.frombuffer(digest.digest(), np.int64)
  keys[:, 0] &= np.iinfo(np.int64).max  # below zero stands for no key
  return keys
