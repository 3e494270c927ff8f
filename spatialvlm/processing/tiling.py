"""What every tiler is: RGB pixels into the square tiles that a vision tower reads, and those into numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from spatialvlm.processing.resize import normalise
from spatialvlm.types import Extra, Shot, UserError, missing_value, prior_array


@dataclasses.dataclass(frozen=True)
class Tiles:
  """An image cut for the vision tower.

  Attributes:
    pixels: uint8 (I, S, S, 3): the grid row by row, then the global view; or the global view alone.
    rows, cols: of the grid; both 0 where the global view stands alone.
  """

  pixels: np.ndarray
  rows: int
  cols: int


def pixels_of(images: Sequence[Tiles], size: int) -> np.ndarray:
  """Tiles of all images, uint8 (N, size, size, 3); a single image's own array, not copied."""
  pixels = [image.pixels for image in images] or [np.zeros((0, size, size, 3), np.uint8)]
  return np.concatenate(pixels) if len(pixels) > 1 else pixels[0]


@dataclasses.dataclass(frozen=True)
class TileOptions:
  """What a user may change in a checkpoint's tiling; None and true leave it as it is.

  Attributes:
    max_tiles: the tile budget of an image, the global view counted.
    longest_edge: in pixels, of the first resize. Idefics3's tiles alone have one.
    split_images: false: the global view alone.
    enlarge: false: a small image is not enlarged to more tiles than it fills. Idefics3's tiles alone.
    pixels: "fast": each resize is of the picture itself. Idefics3's tiles alone; "exact" for transformers'.
    layout: a key of `layouts.LAYOUTS`: whose way of cutting it is.
  """

  max_tiles: int | None = None
  longest_edge: int | None = None
  split_images: bool | None = None
  enlarge: bool = True
  pixels: str = "exact"
  layout: str = "own"


def dense_tiles(maps: Mapping[str, np.ndarray], counts: Sequence[int]) -> dict[str, Extra]:
  """Maps of an example's first image as arrays of axis "tile", (I, H, W, ...), over the tiles of all images.

  A map stands at the image's global view, which is the last of its tiles; all other tiles hold
  `types.missing_value`.

  Args:
    maps: by name, (H, W) or (H, W, C) each.
    counts: how many tiles each image became.

  Raises:
    UserError: maps without an image, or of unsigned integers.
  """
  if maps and not counts:
    raise UserError(f"dense targets {', '.join(maps)} of an example without an image")
  found = {}
  for name, pixels in maps.items():
    tiles = np.full((sum(counts), *pixels.shape), missing_value(pixels.dtype), pixels.dtype)
    tiles[counts[0] - 1] = pixels
    found[name] = Extra(tiles, "tile")
  return found


# Shots and the grids of tiles of an example's pictures -> the array of each prior by name (`priors.Reader`).
Priors = Callable[..., Mapping[str, np.ndarray]]


def prior_reader(make: Callable[[int], Priors] | None, tiler: Any, tokens_per_tile: int) -> Priors | None:
  """What reads priors of pictures that a tiler cuts; None where there are none.

  Raises:
    UserError: as `make`; tiles of which nobody knows what they show.
  """
  if make is None:
    return None
  if not getattr(tiler, "even", True):
    raise UserError(
      "config.priors: pictures are laid into borders before they are cut (model.layout), so that nobody knows"
      " what a tile shows; leave one of the two out"
    )
  return make(tokens_per_tile)


def prior_tiles(
  priors: Priors | None, shots: Sequence[Shot], cut: Sequence[Tiles], name: str
) -> dict[str, Extra]:
  """What priors say of an example's tiles, as arrays of axis "tile"; nothing of a model without any.

  Raises:
    UserError: the shots lack what a prior needs; `name` is what messages call the example.
  """
  if priors is None:
    return {}
  try:
    found = priors(shots, [(tiles.rows, tiles.cols) for tiles in cut])
  except UserError as error:
    raise UserError(f"{name}: {error}") from error
  return {prior_array(prior): Extra(values, "tile") for prior, values in found.items()}


class Tiler(Protocol):
  """One family's image processing; a frozen dataclass, whose fields are all that its tiles depend on.

  Attributes:
    tile_size: side S of a tile in pixels.
    max_tiles: the tile budget of an image, the global view counted; None for no limit.
    even: whether each tile of a grid shows an even part of the picture, which was stretched over it.
  """

  tile_size: int
  max_tiles: int | None
  even: ClassVar[bool] = True

  @property
  def most_tiles(self) -> int:
    """Most tiles that one image can become."""
    ...

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns that an image of this size is cut into; (0, 0) for a single global view."""
    ...

  def __call__(self, image: np.ndarray) -> Tiles:
    """Cuts a uint8 (H, W, 3) image."""
    ...

  def normalise(self, tiles: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) -> float32 of the same shape, as transformers rescales and normalises."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normaliser:
  """The part that all tilers share: how pixels of 8 bits become numbers.

  Attributes:
    resample: Pillow's filter of every resize. Each rounds to uint8.
    rescale: factor, None for none.
    mean, std: of each channel, subtracted and divided by; None for neither.
  """

  even: ClassVar[bool] = True
  tile_size: int
  max_tiles: int | None = None
  resample: int = int(Image.Resampling.BICUBIC)
  rescale: float | None = 1 / 255
  mean: tuple[float, ...] | None = (0.5, 0.5, 0.5)
  std: tuple[float, ...] | None = (0.5, 0.5, 0.5)

  def __post_init__(self):
    for field in ("tile_size", "max_tiles"):
      check_positive(field, getattr(self, field))

  def normalise(self, tiles: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) -> float32 of the same shape, as transformers rescales and normalises."""
    return normalise(tiles, self.rescale, self.mean, self.std)


def check_positive(field: str, value: int | None) -> None:
  if value is not None and value < 1:
    raise UserError(f"{field} must be at least 1, got {value}")
