"""What an image processor without tiles does: one image to one image of the encoder's size.

Held to transformers' PIL processors bit for bit (tests/oracle/test_resize.py); needs neither torch nor
transformers.
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
from spatialvlm.types import UserError

Pair = tuple[int, int]
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SQUARE = {"height": 224, "width": 224}


@dataclasses.dataclass(frozen=True)
class _Kind:
  """Defaults of one class of transformers; `square`: what a size given as one number means."""

  colours: tuple[tuple[float, ...], tuple[float, ...]]
  size: Mapping[str, int]
  resample: Image.Resampling = Image.Resampling.BICUBIC
  crop: bool = False
  square: bool = False


_CROPPING = _Kind(_CLIP, {"shortest_edge": 224}, crop=True)
KINDS: Mapping[str, _Kind] = {
  "Siglip": _Kind(_HALF, _SQUARE),
  "CLIP": _CROPPING,
  "Bit": _CROPPING,
  "ViT": _Kind(_HALF, _SQUARE, Image.Resampling.BILINEAR, square=True),
  "DINOv3ViT": _Kind(_IMAGENET, _SQUARE, Image.Resampling.BILINEAR, square=True),
  "GotOcr2": _Kind(_CLIP, {"height": 384, "width": 384}, square=True),
}
# These cut images into tiles; alone, a tower sees the whole image as one tile.
TILED: Mapping[str, int] = {"SmolVLM": 364, "Idefics3": 364}


@dataclasses.dataclass(frozen=True)
class Resizer:
  """Resize, centre crop, and normalisation of one image.

  Attributes:
    size: (height, width) that an image is stretched to, or its new shortest edge; None keeps its size.
    crop: (height, width) that is then cut out of the middle. A smaller image is padded with black. None cuts
      nothing.
    resample: Pillow's number of the filter.
    rescale: factor of the pixels' values before they are normalised, None for none.
    mean, std: of each channel, None for no normalisation.
  """

  size: Pair | int | None
  crop: Pair | None = None
  resample: int = int(Image.Resampling.BICUBIC)
  rescale: float | None = 1 / 255
  mean: tuple[float, ...] | None = _HALF[0]
  std: tuple[float, ...] | None = _HALF[1]

  @property
  def output(self) -> Pair | None:
    """(height, width) of every image, None where images come out in sizes of their own."""
    return self.crop or (self.size if isinstance(self.size, tuple) else None)

  def at(self, size: Pair | int) -> Resizer:
    """This resizer for another size: a pair is what every image is stretched to, with nothing cut off.

    One number is the edge of a square and keeps what is done by and large: where the shortest edge is resized
    and a square cut out, both grow alike.

    Raises:
      UserError: a size that is not positive, or images that have no common size.
    """
    if min(size if isinstance(size, tuple) else (size,)) < 1:
      raise UserError(f"size {size}: must be at least 1 pixel")
    if isinstance(size, tuple):
      return dataclasses.replace(self, size=size, crop=None)
    if self.crop is None or not isinstance(self.size, int):
      return dataclasses.replace(self, size=(size, size), crop=None)
    edge = max(round(self.size * size / min(self.crop)), size)
    return dataclasses.replace(self, size=edge, crop=(size, size))

  def __call__(self, image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (h, w, 3)."""
    height, width = image.shape[:2]
    target = _by_shortest_edge(height, width, self.size) if isinstance(self.size, int) else self.size
    if target is not None and target != (height, width):
      image = np.asarray(Image.fromarray(image).resize(target[::-1], Image.Resampling(self.resample)))
    return image if self.crop is None else _centre_crop(image, self.crop)

  def normalise(self, images: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) -> float32 of the same shape, as transformers rescales and normalises."""
    return normalise(images, self.rescale, self.mean, self.std)


def resizer_from_config(config: Mapping[str, Any], where: str) -> Resizer:
  """A Resizer from a `preprocessor_config.json`.

  Known are SiglipImageProcessor, CLIPImageProcessor, BitImageProcessor (DINOv2's), ViTImageProcessor,
  DINOv3ViTImageProcessor and GotOcr2ImageProcessor, each with the suffix Fast or Pil too, and the feature
  extractors of old files. What a file leaves out, or has as null, is the class's own default. Of GotOcr2 the
  whole image becomes one, whatever `crop_to_patches` says. DINOv3's class is there for torchvision only and
  rounds after the resize alone: its pixels may differ from these by one of 255 steps. Of SmolVLM and Idefics3
  the whole image is squeezed into one tile by a single resize.

  Raises:
    UserError: an image processor of another class, or settings that cannot be honoured.
  """
  config = {key: value for key, value in config.items() if value is not None}
  name = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
  if _bare(name) in TILED:
    return _of_tiles(config, TILED[_bare(name)], where)
  kind = KINDS.get(_bare(name))
  if kind is None:
    known = ", ".join(f"{known}ImageProcessor" for known in (*KINDS, *TILED))
    raise UserError(f"{where}: image processor {name or 'of no name'!r} is not one of {known}")
  if config.get("do_pad") and _bare(name) != "GotOcr2":
    raise UserError(f"{where}: do_pad is not supported; set it to false if all images become one size")
  size = _size(config.get("size", kind.size), kind.square, f"{where}: size")
  crop = None
  if config.get("do_center_crop", kind.crop) and _bare(name) != "GotOcr2":
    crop = _size(config.get("crop_size", _SQUARE if kind.crop else None), True, f"{where}: crop_size")
    if not isinstance(crop, tuple):
      raise UserError(f"{where}: crop_size must name a height and a width")
  return Resizer(
    size=size if config.get("do_resize", True) else None,
    crop=crop,
    resample=numbers.resample(config.get("resample", kind.resample), where),
    **_colours(config, kind.colours, where),
  )


def _of_tiles(config: Mapping[str, Any], default: int, where: str) -> Resizer:
  tile = config.get("max_image_size", {"longest_edge": default})
  edge = tile.get("longest_edge") if isinstance(tile, Mapping) else tile
  if not _whole(edge):
    raise UserError(f"{where}: max_image_size must name a longest_edge in pixels, got {tile!r}")
  resample = numbers.resample(config.get("resample", Image.Resampling.LANCZOS), where)
  return Resizer((edge, edge), None, resample, **_colours(config, _HALF, where))


def _colours(config: Mapping[str, Any], defaults: tuple, where: str) -> dict[str, Any]:
  """The arguments of the normalisation."""
  found: dict[str, Any] = {"rescale": None, "mean": None, "std": None}
  if config.get("do_rescale", True):
    found["rescale"] = numbers.number(config.get("rescale_factor", 1 / 255), f"{where}: rescale_factor")
  if config.get("do_normalize", True):
    found["mean"] = numbers.channels(config.get("image_mean", defaults[0]), f"{where}: image_mean")
    found["std"] = numbers.channels(
      config.get("image_std", defaults[1]), f"{where}: image_std", above_zero=True
    )
  return found


def normalise(
  pixels: np.ndarray, rescale: float | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> np.ndarray:
  """uint8 (..., 3) -> float32: times `rescale`, minus `mean`, by `std`, where these are not None."""
  table = _normal_table(rescale, mean, std)
  if (table[:, :1] == table).all():
    return np.take(table[:, 0], pixels)
  return np.stack([np.take(table[:, c], pixels[..., c]) for c in range(3)], axis=-1)


@functools.lru_cache
def _normal_table(rescale: float | None, mean: tuple | None, std: tuple | None) -> np.ndarray:
  """(256, 3) float32: a pixel has only 256 values, so they are normalised once."""
  table = np.arange(256).repeat(3).reshape(256, 3)
  table = (table.astype(np.float64) * rescale if rescale is not None else table).astype(np.float32)
  if mean is not None:
    table = (table - np.array(mean, np.float32)) / np.array(std, np.float32)
  return table


def _by_shortest_edge(height: int, width: int, edge: int) -> Pair:
  """transformers' `get_resize_output_image_size`: the longer edge is rounded down."""
  short, long = min(height, width), max(height, width)
  other = int(edge * long / short)
  return (other, edge) if width <= height else (edge, other)


def _centre_crop(image: np.ndarray, crop: Pair) -> np.ndarray:
  """transformers' `center_crop`: what is cut off before is rounded down, what is padded before rounded up."""
  canvas = np.zeros((*crop, image.shape[2]), image.dtype)
  (rows, to_rows), (columns, to_columns) = map(_overlap, image.shape[:2], crop)
  canvas[to_rows, to_columns] = image[rows, columns]
  return canvas


def _overlap(have: int, want: int) -> tuple[slice, slice]:
  """Which part of one side is taken, and where it goes."""
  cut, pad = max(have - want, 0) // 2, math.ceil(max(want - have, 0) / 2)
  both = min(have, want)
  return slice(cut, cut + both), slice(pad, pad + both)


def _bare(name: str) -> str:
  name = name.removesuffix("Fast").removesuffix("Pil")
  return name.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")


def _size(value: Any, square: bool, where: str) -> Pair | int:
  if isinstance(value, (list, tuple)) and len(value) == 2:
    value = dict(zip(("height", "width"), value, strict=True))
  if _whole(value):
    return (value, value) if square else value
  if isinstance(value, Mapping):
    edges = {key: edge for key, edge in value.items() if edge is not None}
    if all(map(_whole, edges.values())):
      if set(edges) == {"height", "width"}:
        return edges["height"], edges["width"]
      if set(edges) == {"shortest_edge"}:
        return edges["shortest_edge"]
  raise UserError(f"{where}: expected height and width, or shortest_edge, in pixels, got {value!r}")


def _whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0
