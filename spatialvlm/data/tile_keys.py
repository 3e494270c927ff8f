"""Names for tiles, by what the vision tower sees of them, so that what it makes of one may be kept.

A tile's key travels beside its pixels as an array of axis "tile" (`types.Extra`), so that batches pad and
grow it like any other. It never reaches a device: `training.frozen_vision` takes it out.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from spatialvlm.processing.tiling import Tiler, Tiles
from spatialvlm.types import Deferred, Example, Extra

if TYPE_CHECKING:
  from spatialvlm.processing.processor import Encoded

# The array's name in `Encoded.extra` and `Batch.extra`: int64 (I, 2) and (N, 2), 126 bits of a hash.
TILE_KEY = "tile_key"
# First number of a key that is none: a tile that pads a bucket (`types.missing_value`), and one that does not
# come again.
PADDING, ONCE = -1, -2
# Set in the first number of a key that stands for the name of a picture, not for pixels. What a name shows
# may change with the code that draws it, so such keys hold within one process.
NAMED = 2**62


Known = Callable[[tuple[int, int]], bool]
"""Whether what the vision tower makes of a tile of this key is kept, for as long as the process lives."""


def settled(example: Example, tiler: Tiler, known: Known) -> tuple[Example, tuple[np.ndarray | None, ...]]:
  """The example without `Deferred` pictures, and the keys of the tiles of those that it had.

  A picture that is known is not made: it is cut into as many tiles as it has, of zeros, which nobody will
  look at.

  Returns:
    The example; for each of its images int64 (tiles, 2), None where the image was none of them.
  """
  images, keys = [], []
  for image in example.images:
    keys.append(None)
    if isinstance(image, Deferred):
      rows, columns = tiler.grid(*image.shape[:2])
      keys[-1] = _named(image.key, rows * columns + 1)
      if all(map(known, map(tuple, keys[-1].tolist()))):
        size = tiler.tile_size
        image = Tiles(np.zeros((len(keys[-1]), size, size, 3), np.uint8), rows, columns)
      else:
        image = image.make()
    images.append(image)
  return dataclasses.replace(example, images=tuple(images)), tuple(keys)


def with_keys(
  encoded: Encoded,
  keys: Sequence[np.ndarray | None] = (),
  *,
  again: bool = True,
  pictures: Sequence[np.ndarray | Tiles] = (),
  tiler: Tiler | None = None,
) -> Encoded:
  """The example with a key for each of its tiles.

  Args:
    keys: of the tiles of each image, where `settled` gave them.
    again: whether its pictures may be seen again; keys of others are all `ONCE`.
    pictures: what the images were cut of, by `tiler`, so that these few bytes are read in place of the
      tiles'; keys of images that came in tiles, and of all without `pictures`, are made of the tiles.

  Raises:
    ValueError: an image has not as many tiles as keys.
  """
  if not len(encoded.tiles):
    return encoded
  found = np.full((len(encoded.tiles), 2), ONCE)
  start = 0
  for number, count in enumerate(encoded.images):
    place = slice(start, start + count)
    own = keys[number] if number < len(keys) else None
    picture = pictures[number] if len(pictures) == len(encoded.images) else None
    if own is not None:
      if len(own) != count:
        raise ValueError(f"{len(own)} keys of an image of {count} tiles")
      found[place] = own
    elif again and isinstance(picture, np.ndarray) and encoded.pixel_mask is None:
      found[place] = _cut_keys(picture, tiler, count)
    elif again:
      mask = encoded.pixel_mask
      found[place] = tile_keys(encoded.tiles[place], None if mask is None else mask[place])
    start += count
  return dataclasses.replace(encoded, extra={**encoded.extra, TILE_KEY: Extra(found, "tile")})


def _cut_keys(picture: np.ndarray, tiler: Tiler | None, count: int) -> np.ndarray:
  """Keys of the tiles that a tiler cuts a picture into, which follow from the two and each one's place."""
  digest = hashlib.blake2b(f"{tiler!r} {picture.dtype} {picture.shape}".encode(), digest_size=32)
  digest.update(np.ascontiguousarray(picture).data)
  return _numbered(digest.hexdigest(), count, b"cut")


def _named(key: str, count: int) -> np.ndarray:
  """Keys of the tiles of a picture that names itself, apart from those of pixels."""
  keys = _numbered(key, count, b"named")
  keys[:, 0] |= NAMED
  return keys


def _numbered(key: str, count: int, kind: bytes) -> np.ndarray:
  """int64 (count, 2): a hash of a name and each number; those of other kinds are apart."""
  digests = [
    hashlib.blake2b(f"{key} tile {i}".encode(), digest_size=16, person=kind).digest() for i in range(count)
  ]
  keys = np.frombuffer(b"".join(digests), np.int64).reshape(count, 2).copy()
  keys[:, 0] &= NAMED - 1
  return keys


def tile_keys(tiles: np.ndarray, pixel_mask: np.ndarray | None = None) -> np.ndarray:
  """int64 (I, 2): a hash of each tile's pixels, their type and shape, and of its mask where there is one."""
  keys = np.empty((len(tiles), 2), np.int64)
  for number, tile in enumerate(tiles):
    digest = hashlib.blake2b(f"{tile.dtype} {tile.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(tile).data)
    if pixel_mask is not None:
      digest.update(np.packbits(pixel_mask[number]).data)
    keys[number] = np.frombuffer(digest.digest(), np.int64)
  keys[:, 0] &= NAMED - 1
  return keys
