"""What llama.cpp's mtmd makes of pictures, so that a model can be trained and scored as it will run.

Written after `tools/mtmd` of llama.cpp (build 11549). Its resizing is Pillow's, bit for bit; what differs is:

- SmolVLM, Idefics3: a picture that fits one tile is shown twice, as the one tile of a grid, with its marker,
  and as the global view. There is one longest edge for all, and no other budget of tiles.
- InternVL: a picture no larger than a tile is the global view alone; any other gets the grid that leaves the
  most of its pixels, also one of a single tile, and is laid on it in black borders where transformers would
  stretch it.

What a server makes of a chat template is in `served`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
from PIL import Image

from spatialvlm.processing.tilers import CropTiler, Idefics3Tiler
from spatialvlm.processing.tiling import Tiler, Tiles
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MtmdGrid(Idefics3Tiler):
  """mtmd's Idefics3: the grid and the global view, always both."""

  @property
  def most_tiles(self) -> int:
    """Most tiles that one image can become."""
    return max(2, super().most_tiles)

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that an image of this size is cut into, one of each at least."""
    rows, cols = super().grid(height, width)
    return max(rows, 1), max(cols, 1)

  def __call__(self, image: np.ndarray) -> Tiles:
    """Cuts a uint8 (H, W, 3) image."""
    tiles = super().__call__(image)
    return tiles if tiles.rows else Tiles(np.concatenate([tiles.pixels] * 2), 1, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MtmdCrops(CropTiler):
  """mtmd's InternVL: of all grids that which leaves most of the pixels, and wastes the least room."""

  even: ClassVar[bool] = False

  @property
  def most_tiles(self) -> int:
    """Most tiles that one image can become."""
    return self._most_patches + 1

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that an image of this size is cut into; (0, 0) for a single global view."""
    size, found, kept, wasted = self.tile_size, (1, 1), 0, math.inf
    if height <= size and width <= size:
      return 0, 0
    for cols in range(self._fewest_patches, self._most_patches + 1):
      low = max(-(-self._fewest_patches // cols), self._fewest_patches)
      for rows in range(low, min(self._most_patches // cols, self._most_patches) + 1):
        scale = min(np.float32(cols * size) / np.float32(width), np.float32(rows * size) / np.float32(height))
        used = min(int(np.float32(width) * scale) * int(np.float32(height) * scale), width * height)
        waste = rows * cols * size**2 - used
        if used > kept or (used == kept and waste < wasted):
          found, kept, wasted = (rows, cols), used, waste
    return found

  def __call__(self, image: np.ndarray) -> Tiles:
    """Cuts a uint8 (H, W, 3) image."""
    rows, cols = self.grid(*image.shape[:2])
    size = self.tile_size
    whole = _resized(image, size, size, self.resample)
    if not rows:
      return Tiles(whole[None], 0, 0)
    canvas = _bordered(image, rows * size, cols * size, self.resample)
    cut = canvas.reshape(rows, size, cols, size, 3).swapaxes(1, 2).reshape(rows * cols, size, size, 3)
    return Tiles(np.concatenate([cut, whole[None]]), rows, cols)


def tiler(own: Tiler, where: str) -> Tiler:
  """mtmd's tiler in the place of a checkpoint's own.

  Raises:
    UserError: a family that mtmd does not run, or a budget of tiles that it does not know.
  """
  if isinstance(own, Idefics3Tiler):
    return _grid(own, where)
  if isinstance(own, CropTiler):
    return _crops(own, where)
  raise UserError(
    f"{where}: layout='mtmd': llama.cpp runs no model that cuts pictures as this one; leave it out"
  )


def _grid(own: Idefics3Tiler, where: str) -> MtmdGrid:
  if own.direct:
    raise UserError(f"{where}: layout='mtmd' resizes as transformers does; leave pixels='fast' out")
  if not own.enlarge:
    raise UserError(f"{where}: layout='mtmd' enlarges every picture to longest_edge; leave enlarge=False out")
  edge = own.longest_edge if own.split else own.tile_size
  if own.max_tiles is not None:
    side = math.isqrt(max(own.max_tiles - 1, 0))
    if not side:
      raise UserError(
        f"{where}: layout='mtmd' shows a picture as two tiles at least; set max_tiles to 2 or more"
      )
    edge = min(edge, side * own.tile_size)
  return MtmdGrid(**_fields(own, longest_edge=edge, split=True, max_tiles=None))


def _crops(own: CropTiler, where: str) -> MtmdCrops:
  if own.min_patches != 1:
    raise UserError(
      f"{where}: layout='mtmd': min_patches {own.min_patches} cannot be told to mtmd; set it to 1"
    )
  if not own.split:
    raise UserError(f"{where}: layout='mtmd' always splits larger pictures; leave split_images=False out")
  most = own.max_patches if own.max_tiles is None else min(own.max_patches, own.max_tiles - 1)
  if most < 1:
    raise UserError(
      f"{where}: layout='mtmd' shows a picture as two tiles at least; set max_tiles to 2 or more"
    )
  return MtmdCrops(**_fields(own, max_patches=most, max_tiles=None))


def _fields(own: Tiler, **changed) -> dict:
  return {field.name: getattr(own, field.name) for field in dataclasses.fields(own)} | changed


def _resized(image: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
  if image.shape[:2] == (height, width):
    return image
  return np.asarray(Image.fromarray(image).resize((width, height), resample))


def _bordered(image: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
  """The image as large as it fits into (height, width), in the middle of black."""
  if image.shape[:2] == (height, width):
    return image
  rows, cols = image.shape[:2]
  scale = min(np.float32(width) / np.float32(cols), np.float32(height) / np.float32(rows))
  inner = tuple(
    min(math.ceil(np.float32(side) * scale), room) for side, room in ((rows, height), (cols, width))
  )
  canvas = np.zeros((height, width, 3), np.uint8)
  top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
  canvas[top : top + inner[0], left : left + inner[1]] = _resized(image, *inner, resample)
  return canvas


# Sizes of pictures, height and width in tiles, by which layouts are compared.
_SIZES = ((0.5, 0.5), (1, 1), (1, 2), (2, 1), (1.5, 2), (3, 4), (4, 3), (2, 5))


def difference(own: Tiler, theirs: Tiler) -> str:
  """How mtmd cuts a picture otherwise than `own` does, by an example; empty where it does the same."""
  for rows, cols in _SIZES:
    height, width = int(rows * own.tile_size), int(cols * own.tile_size)
    mine, other = own.grid(height, width), theirs.grid(height, width)
    if mine != other:
      return f"a picture of {width} x {height} pixels is {_said(*mine)} here and {_said(*other)} there"
  if isinstance(theirs, MtmdCrops) and not isinstance(own, MtmdCrops):
    return "pictures are laid into black borders there, and stretched here"
  if getattr(own, "direct", False):
    return "a picture's global view is made of the enlarged picture there, and of the picture itself here"
  return ""


def _said(rows: int, cols: int) -> str:
  return f"{rows} x {cols} tiles and the whole" if rows else "the whole alone"
