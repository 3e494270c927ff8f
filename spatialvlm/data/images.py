"""Images: any file into RGB pixels, and RGB pixels into the square tiles that a vision tower reads."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from spatialvlm.data.resize import normalise
from spatialvlm.types import UserError

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray

# transformers' absolute maximum of the first resize, in pixels.
_MAX_EDGE = 4096


def open_image(source: ImageSource, name: str = "") -> np.ndarray:
  """Reads an image rightly, whatever its mode.

  The orientation that EXIF names is applied. CMYK, palette, grey, YCbCr and the like become RGB as Pillow
  converts them; transparency is laid on white, as transformers 5 does; 16-bit samples are scaled to 8 bits
  (65535 -> 255), not clipped. Of an animation the first frame is taken.

  Args:
    source: a file path, the bytes of a file, a PIL image, or an array: (H, W), (H, W, 1), (H, W, 3) or
      (H, W, 4), of uint8, uint16, bool, or floats in [0, 1].
    name: what errors call the image; by default the path.

  Returns:
    uint8 (H, W, 3), RGB.

  Raises:
    UserError: no such file; an empty, corrupt or truncated one; a decompression bomb (beyond Pillow's
      limit of about 179 million pixels); an array that is no image.
  """
  if isinstance(source, np.ndarray):
    return _from_array(source, name or "image array")
  if isinstance(source, (str, os.PathLike)):
    name = name or str(source)
  name = name or "image"
  if isinstance(source, (str, os.PathLike)):
    source = _read(Path(source).expanduser(), name)
  if isinstance(source, bytes) and not source:
    raise UserError(f"{name}: the image file is empty")
  return _to_rgb(_decode(source, name), name)


def _read(path: Path, name: str) -> bytes:
  try:
    return path.read_bytes()
  except FileNotFoundError:
    raise UserError(f"{name}: no such image file{'' if path.name in name else f' as {path}'}") from None
  except OSError as error:
    raise UserError(f"{name}: the image file cannot be read ({error.strerror})") from None


def _decode(source: bytes | Image.Image, name: str) -> Image.Image:
  try:
    if isinstance(source, Image.Image):
      return ImageOps.exif_transpose(source)
    with Image.open(io.BytesIO(source)) as image:
      return ImageOps.exif_transpose(image)
  except UnidentifiedImageError:
    raise UserError(f"{name}: cannot be read as an image (its format is not known)") from None
  except Image.DecompressionBombError as error:
    raise UserError(
      f"{name}: the image is too large to open safely ({error}); scale it down first"
    ) from error
  except Exception as error:  # Pillow's readers raise nearly any exception on malformed bytes.
    raise UserError(f"{name}: cannot be read as an image ({error}); is it corrupt or truncated?") from error


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
  if image.mode.startswith("I") or image.mode == "F":
    return _from_array(_deep_grey(image, name), name)
  try:
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
      image = image.convert("RGBA")
      white = Image.new("RGBA", image.size, (255, 255, 255, 255))
      image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))
  except ValueError as error:
    raise UserError(f"{name}: {error}; save the image as RGB") from error


def _deep_grey(image: Image.Image, name: str) -> np.ndarray:
  """Grey of more than 8 bits, which Pillow's own conversion would clip at 255."""
  pixels = np.asarray(image)
  if image.mode == "F":
    return pixels
  if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
    raise UserError(f"{name}: samples of 32 bits have no known range; save the image with 8 or 16 bits")
  return pixels.astype(np.uint16)


def _from_array(pixels: np.ndarray, name: str) -> np.ndarray:
  if pixels.ndim == 2:
    pixels = pixels[..., None]
  if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or 0 in pixels.shape:
    raise UserError(
      f"{name}: expected an image of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {pixels.shape}"
    )
  if pixels.dtype == np.uint16:
    pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
  elif pixels.dtype == bool:
    pixels = pixels.astype(np.uint8) * 255
  elif np.issubdtype(pixels.dtype, np.floating):
    if not (pixels.min() >= 0 and pixels.max() <= 1):
      raise UserError(f"{name}: floating-point pixels must lie in [0, 1]; pass uint8 instead")
    pixels = np.round(pixels * 255).astype(np.uint8)
  elif pixels.dtype != np.uint8:
    raise UserError(f"{name}: pixels of dtype {pixels.dtype} have no known range; pass uint8")
  if pixels.shape[-1] == 4:
    return _to_rgb(Image.fromarray(pixels), name)
  return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


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


@dataclasses.dataclass(frozen=True)
class Tiler:
  """Idefics3's and SmolVLM's image processing, with a tile budget.

  Without options it gives transformers' pixels bit for bit, and works through transformers' own PIL image
  processor (`image_processing_pil_idefics3.py`, which needs no torch): the longest edge is resized to
  `longest_edge`, each side stretched up to a multiple of the tile, cut into tiles row by row, and the whole
  squeezed into one more tile, the global view, which comes last. Every resize rounds to uint8.

  Attributes:
    tile_size: side S of a tile in pixels.
    longest_edge: of the first resize, which enlarges small images as well.
    split: false: the global view alone.
    max_tiles: the tile budget, the global view counted; None for no limit. Where an image would become
      more tiles, the longest edge is lowered to the greatest multiple k * S whose grid (k tiles along the
      longer side, as many along the shorter as the aspect asks) fits. 1 means a single global view; so does
      2, since no grid has one tile. An image that fits anyway is untouched.
    enlarge: false: an image is enlarged no further than to the next multiple of the tile, so that a small
      photo costs few tiles. True is what the models were trained with.
  """

  tile_size: int
  longest_edge: int
  split: bool = True
  max_tiles: int | None = None
  enlarge: bool = True
  family: str = "smolvlm"
  resample: int = int(Image.Resampling.LANCZOS)
  rescale: float | None = 1 / 255
  mean: tuple[float, ...] | None = (0.5, 0.5, 0.5)
  std: tuple[float, ...] | None = (0.5, 0.5, 0.5)

  def __post_init__(self):
    for field in ("tile_size", "longest_edge", "max_tiles"):
      value = getattr(self, field)
      if value is not None and value < 1:
        raise UserError(f"{field} must be at least 1, got {value}")

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
    processor = _hugging_face(self.family, self.resample)
    image = processor.resize(np.moveaxis(image, -1, 0), _size(longest_edge=edge), resample=self.resample)
    if self.split:
      image = processor.resize_for_vision_encoder(image, size, resample=self.resample)
      tiles, rows, cols = processor.split_images(image, {"longest_edge": size}, resample=self.resample)
    else:
      tiles, rows, cols = (
        [processor.resize(image, _size(height=size, width=size), resample=self.resample)],
        0,
        0,
      )
    return Tiles(np.stack([np.moveaxis(tile, 0, -1) for tile in tiles]), rows, cols)

  def normalise(self, tiles: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) -> float32 of the same shape, as transformers rescales and normalises."""
    return normalise(tiles, self.rescale, self.mean, self.std)


def tiler_from_config(
  config: Mapping[str, Any],
  where: str,
  *,
  max_tiles: int | None = None,
  longest_edge: int | None = None,
  split_images: bool | None = None,
  enlarge: bool = True,
) -> Tiler:
  """A Tiler from a `preprocessor_config.json`, with options over it.

  Raises:
    UserError: an image processor of another family, or settings that it cannot honour.
  """
  kind = str(config.get("image_processor_type", "SmolVLMImageProcessor"))
  family = kind.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor").lower()
  if family not in ("idefics3", "smolvlm"):
    raise UserError(
      f"{where}: image processor {kind!r} is not one of Idefics3ImageProcessor, SmolVLMImageProcessor"
    )
  if not config.get("do_resize", True):
    raise UserError(f"{where}: do_resize=false is not supported: tiles would have no fixed size")
  edge = longest_edge if longest_edge is not None else _longest_edge(config.get("size", 4 * 364))
  tile = _longest_edge(config.get("max_image_size", 364))
  if not edge or not tile:
    raise UserError(f"{where}: size and max_image_size must each name a longest_edge in pixels")
  normalise = config.get("do_normalize", True)
  split = config.get("do_image_splitting", True) if split_images is None else split_images
  return Tiler(
    tile_size=tile,
    longest_edge=edge,
    split=split,
    max_tiles=max_tiles,
    enlarge=enlarge,
    family=family,
    resample=int(config.get("resample", Image.Resampling.LANCZOS)),
    rescale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else None,
    mean=_triple(config.get("image_mean", 0.5)) if normalise else None,
    std=_triple(config.get("image_std", 0.5)) if normalise else None,
  )


def _longest_edge(size: Any) -> int | None:
  edge = size.get("longest_edge") if isinstance(size, Mapping) else size
  return edge if isinstance(edge, int) and edge > 0 else None


def _triple(value: Any) -> tuple[float, ...]:
  return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3


# A tall, a flat and a square image, and what lies between: the grids that sizes can lead to.
_ASPECTS = tuple((1000, w) for w in range(25, 1001, 25)) + tuple((h, 1000) for h in range(25, 1000, 25))


def _grid(height: int, width: int, edge: int, tile: int) -> tuple[int, int]:
  """Rows and columns of transformers' grid after both resizes (its integer arithmetic, step by step)."""
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


@functools.lru_cache
def _hugging_face(family: str, resample: int) -> Any:
  # Imported when an image is first resized: transformers takes more than a second to import.
  with _without_advice():
    if family == "idefics3":
      from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil as cls
    else:
      from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil as cls
  return cls(resample=resample)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
  """transformers says on import that PyTorch is missing; nothing here misses it."""
  name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
  if name in os.environ:
    yield
    return
  os.environ[name] = "1"
  try:
    yield
  finally:
    del os.environ[name]


def _size(**edges: int) -> Any:
  from transformers.image_utils import SizeDict

  return SizeDict(**edges)
