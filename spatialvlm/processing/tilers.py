"""The tilers: Idefics3's grid (SmolVLM), InternVL's crops, and one square per image (PaliGemma).

Their pixels are those of transformers' own PIL image processors (5.23) bit for bit: Pillow's resizes in the
same order, without the copies between them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from spatialvlm.processing import numbers
from spatialvlm.processing.resizes import resized
from spatialvlm.processing.tiling import (
  Normaliser,
  TileOptions,
  Tiles,
  check_positive,
)
from spatialvlm.types import UserError

# transformers' absolute maximum of Idefics3's first resize, in pixels.
_MAX_EDGE = 4096
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idefics3Tiler(Normaliser):
  """Idefics3's and SmolVLM's image processing (`image_processing_pil_idefics3.py`), with a tile budget.

  The longest edge is resized to `longest_edge`, each side stretched up to a multiple of the tile, cut into
  tiles row by row, and the whole squeezed into one more tile, the global view, which comes last.

  Attributes:
    longest_edge: of the first resize, which enlarges small images as well.
    split: false: the global view alone.
    max_tiles: where an image would become more tiles, the longest edge is lowered to the greatest multiple
      k * S whose grid (k tiles along the longer side, as many along the shorter as the aspect asks) fits. 1
      means a single global view; so does 2, since no grid has one tile. An image that fits anyway is
      untouched.
    enlarge: false: an image is enlarged no further than to the next multiple of the tile, so that a small
      photo costs few tiles. True is what the models were trained with.
    direct: the canvas that is cut and the global view are each resized from the image itself, once, where
      transformers makes the canvas of the image at `longest_edge`, and the view of the canvas.
  """

  longest_edge: int
  split: bool = True
  enlarge: bool = True
  direct: bool = False
  resample: int = int(Image.Resampling.LANCZOS)

  def __post_init__(self):
    check_positive("tile_size", self.tile_size)
    check_positive("longest_edge", self.longest_edge)
    check_positive("max_tiles", self.max_tiles)

  @property
  def most_tiles(self) -> int:
    """Most tiles that one image can become."""
    if not self.split:
      return 1
    most = max(_tiles(*_grid(h, w, self.longest_edge, self.tile_size)) for h, w in _ASPECTS)
    return most if self.max_tiles is None else min(most, self.max_tiles)

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that an image of this size is cut into; (0, 0) for a single global view."""
    if not self.split:
      return 0, 0
    rows, cols = _grid(height, width, self.edge(height, width), self.tile_size)
    return (0, 0) if rows * cols == 1 else (rows, cols)

  def edge(self, height: int, width: int) -> int:
    """The longest edge that an image of this size is first resized to."""
    if self.max_tiles is None and self.enlarge:
      return self.longest_edge
    size = self.tile_size
    own = math.ceil(max(height, width) / size) * size
    edges = [self.longest_edge, *range((math.ceil(self.longest_edge / size) - 1) * size, 0, -size)]
    for edge in edges:
      unlimited = self.max_tiles is None or not self.split
      fits = unlimited or _tiles(*_grid(height, width, edge, size)) <= self.max_tiles
      if fits and (self.enlarge or edge <= own):
        return edge
    return edges[-1]

  def __call__(self, image: np.ndarray) -> Tiles:
    """Cuts a uint8 (H, W, 3) image."""
    height, width = image.shape[:2]
    size = self.tile_size
    edge = self.edge(height, width)
    if height == width == size == edge:
      return Tiles(image[None], 0, 0)  # every resize would be the identity
    first, view = () if self.direct else (_fit(height, width, edge),), (size, size)
    if not self.split:
      return Tiles(resized(image, (*first, view), self.resample)[0][None], 0, 0)
    rows, cols = _grid(height, width, edge, size)
    if rows * cols == 1:
      return Tiles(resized(image, (*first, view), self.resample)[0][None], 0, 0)
    canvas = (rows * size, cols * size)
    if self.direct:
      return Tiles(_both(image, canvas, size, self.resample), rows, cols)
    return Tiles(_cut(*resized(image, (*first, canvas, view), self.resample, keep=2)), rows, cols)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropTiler(Normaliser):
  """InternVL's image processing (`image_processing_pil_got_ocr2.py`).

  Of the grids of `min_patches` to `max_patches` tiles the one of the nearest aspect is chosen, the image
  stretched onto it and cut row by row; the whole, stretched to one tile, comes last. A grid of one tile is
  that view alone.

  Attributes:
    split: false: that view alone.
    max_tiles: the budget, the global view counted: grids have one tile fewer. 1 and 2 mean a single view.
  """

  min_patches: int = 1
  max_patches: int = 12
  split: bool = True
  mean: tuple[float, ...] | None = _CLIP_MEAN
  std: tuple[float, ...] | None = _CLIP_STD

  @property
  def most_tiles(self) -> int:
    """Most tiles that one image can become."""
    return 1 if self._most_patches == 1 else self._most_patches + 1

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that an image of this size is cut into; (0, 0) for a single global view."""
    if self._most_patches == 1:
      return 0, 0
    rows, cols = _canvas(height, width, self.tile_size, self._fewest_patches, self._most_patches)
    return (0, 0) if rows * cols == 1 else (rows, cols)

  def __call__(self, image: np.ndarray) -> Tiles:
    """Cuts a uint8 (H, W, 3) image."""
    rows, cols = self.grid(*image.shape[:2])
    size = self.tile_size
    if not rows:
      return Tiles(resized(image, [(size, size)], self.resample)[0][None], 0, 0)
    return Tiles(_both(image, (rows * size, cols * size), size, self.resample), rows, cols)

  @property
  def _most_patches(self) -> int:
    if not self.split:
      return 1
    return self.max_patches if self.max_tiles is None else max(1, min(self.max_patches, self.max_tiles - 1))

  @property
  def _fewest_patches(self) -> int:
    return min(self.min_patches, self._most_patches)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquareTiler(Normaliser):
  """PaliGemma's image processing (`image_processing_pil_siglip.py`): each image stretched to one square."""

  @property
  def most_tiles(self) -> int:
    """Always one."""
    return 1

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Always (0, 0): the global view alone."""
    return 0, 0

  def __call__(self, image: np.ndarray) -> Tiles:
    """Stretches a uint8 (H, W, 3) image to its tile."""
    return Tiles(resized(image, [(self.tile_size, self.tile_size)], self.resample)[0][None], 0, 0)


# From a preprocessor_config.json, with options over it.


def idefics3_tiler(config: Mapping[str, Any], where: str, options: TileOptions, kind: str) -> Idefics3Tiler:
  """Raises a UserError for settings that it cannot honour."""
  _check_resized(config, where)
  if options.pixels not in ("exact", "fast"):
    raise UserError(f"pixels: there is no {options.pixels!r}; known: exact, fast")
  edge = (
    options.longest_edge if options.longest_edge is not None else _longest_edge(config.get("size", 4 * 364))
  )
  tile = _longest_edge(config.get("max_image_size", 364))
  if not edge or not tile:
    raise UserError(f"{where}: size and max_image_size must each name a longest_edge in pixels")
  split = config.get("do_image_splitting", True) if options.split_images is None else options.split_images
  return Idefics3Tiler(
    tile_size=tile,
    longest_edge=edge,
    split=split,
    max_tiles=options.max_tiles,
    enlarge=options.enlarge,
    direct=options.pixels == "fast",
    **_numbers(config, where, Image.Resampling.LANCZOS, 0.5, 0.5),
  )


def crop_tiler(config: Mapping[str, Any], where: str, options: TileOptions, kind: str) -> CropTiler:
  """Raises a UserError for settings and options that it cannot honour.

  InternVL's processor always crops, whatever `crop_to_patches` says in the file; so does this.
  """
  _check_resized(config, where)
  _refuse(options, _SMOLVLM_S, where, "InternVL's tiles know max_tiles and split_images only")
  least, most = config.get("min_patches", 1), config.get("max_patches", 12)
  if not (isinstance(least, int) and isinstance(most, int) and 1 <= least <= most):
    raise UserError(f"{where}: min_patches {least!r} and max_patches {most!r} must be numbers in this order")
  return CropTiler(
    tile_size=_side(config.get("size", 384), where),
    min_patches=least,
    max_patches=most,
    split=options.split_images is not False,
    max_tiles=options.max_tiles,
    **_numbers(config, where, Image.Resampling.BICUBIC, _CLIP_MEAN, _CLIP_STD),
  )


def square_tiler(config: Mapping[str, Any], where: str, options: TileOptions, kind: str) -> SquareTiler:
  """Raises a UserError for settings and options that it cannot honour."""
  _check_resized(config, where)
  _refuse(options, _SMOLVLM_S, where, "PaliGemma sees each image as one tile")
  if options.split_images:
    raise UserError(f"{where}: split_images=True: PaliGemma sees each image as one tile; leave it out")
  return SquareTiler(
    tile_size=_side(config.get("size", 224), where),
    max_tiles=options.max_tiles,
    **_numbers(config, where, Image.Resampling.BICUBIC, 0.5, 0.5),
  )


# Options that belong to SmolVLM's tiles alone.
_SMOLVLM_S = ("longest_edge", "enlarge", "pixels")


def _check_resized(config: Mapping[str, Any], where: str) -> None:
  if not config.get("do_resize", True):
    raise UserError(f"{where}: do_resize=false is not supported: tiles would have no fixed size")


def _refuse(options: TileOptions, names: tuple[str, ...], where: str, why: str) -> None:
  for name in names:
    if (value := getattr(options, name)) != getattr(TileOptions(), name):
      raise UserError(f"{where}: {name}={value} belongs to SmolVLM's tiles; {why}; leave {name} out")


def _numbers(config: Mapping[str, Any], where: str, resample: int, mean: Any, std: Any) -> dict[str, Any]:
  """The fields of a `Normaliser`; what the file leaves out is the class's own."""
  found: dict[str, Any] = {"rescale": None, "mean": None, "std": None}
  found["resample"] = numbers.resample(config.get("resample", resample), where)
  if config.get("do_rescale", True):
    found["rescale"] = numbers.number(config.get("rescale_factor", 1 / 255), f"{where}: rescale_factor")
  if config.get("do_normalize", True):
    found["mean"] = numbers.channels(config.get("image_mean", mean), f"{where}: image_mean")
    found["std"] = numbers.channels(config.get("image_std", std), f"{where}: image_std", above_zero=True)
  return found


def _longest_edge(size: Any) -> int | None:
  edge = size.get("longest_edge") if isinstance(size, Mapping) else size
  return edge if isinstance(edge, int) and edge > 0 else None


def _side(size: Any, where: str) -> int:
  sides = {size.get("height"), size.get("width")} if isinstance(size, Mapping) else {size}
  side = sides.pop()
  if sides or not isinstance(side, int) or side < 1:
    raise UserError(f"{where}: size must name one height and the same width in pixels, got {size!r}")
  return side


def _both(image: np.ndarray, canvas: tuple[int, int], size: int, resample: int) -> np.ndarray:
  """(I, S, S, 3): the tiles of a canvas and the global view, each resized from the image itself."""
  large = resized(image, [canvas], resample)[0]
  return _cut(large, resized(image, [(size, size)], resample, beside=canvas)[0])


def _cut(canvas: np.ndarray, view: np.ndarray) -> np.ndarray:
  """(I, S, S, 3): the tiles of a canvas row by row, and behind them the global view."""
  size = len(view)
  rows, cols = canvas.shape[0] // size, canvas.shape[1] // size
  tiles = np.empty((rows * cols + 1, size, size, 3), np.uint8)
  grid = tiles[:-1].reshape(rows, cols, size, size, 3)
  grid[:] = canvas.reshape(rows, size, cols, size, 3).swapaxes(1, 2)
  tiles[-1] = view
  return tiles


@functools.lru_cache
def _canvas(height: int, width: int, size: int, fewest: int, most: int) -> tuple[int, int]:
  """Rows and columns of the canvas of the nearest aspect (transformers' `get_optimal_tiled_canvas`).

  Of two that are as near the one of more tiles counts, if it is less than twice as large as the image.
  """
  shapes = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if fewest <= c * r <= most]
  best, nearest = (1, 1), math.inf
  for cols, rows in sorted(shapes, key=math.prod):
    distance = abs(width / height - cols / rows)
    if distance < nearest or (distance == nearest and width * height > 0.5 * size * size * cols * rows):
      best, nearest = (rows, cols), distance
  return best


# A tall, a flat and a square image, and what lies between: the grids that sizes can lead to.
_ASPECTS = tuple((1000, w) for w in range(25, 1001, 25)) + tuple((h, 1000) for h in range(25, 1000, 25))


def _grid(height: int, width: int, edge: int, tile: int) -> tuple[int, int]:
  """Rows and columns of Idefics3's grid after both resizes (its integer arithmetic, step by step)."""
  height, width = _fit(height, width, edge)
  aspect = width / height
  if width >= height:
    width = math.ceil(width / tile) * tile
    height = math.ceil(int(width / aspect) / tile) * tile
  else:
    height = math.ceil(height / tile) * tile
    width = math.ceil(int(height * aspect) / tile) * tile
  return max(height // tile, 1), max(width // tile, 1)


def _fit(height: int, width: int, edge: int) -> tuple[int, int]:
  aspect = width / height
  if width >= height:
    width, height = edge, int(edge / aspect)
    height += height % 2
  else:
    height, width = edge, int(edge * aspect)
    width += width % 2
  height, width = max(height, 1), max(width, 1)
  if edge > _MAX_EDGE:
    aspect = width / height
    height, width = (
      (int(_MAX_EDGE / aspect), _MAX_EDGE) if width >= height else (_MAX_EDGE, int(_MAX_EDGE * aspect))
    )
  return max(height, 1), max(width, 1)


def _tiles(rows: int, cols: int) -> int:
  return 1 if rows * cols == 1 else rows * cols + 1
