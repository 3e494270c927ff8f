"""Images: any file, or what else holds one, into RGB pixels."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from spatialvlm.config import refuse_pointer
from spatialvlm.types import UserError

ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray


def side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
  """One image of several, from left to right on white, uint8 (H, W, 3)."""
  height = max(image.shape[0] for image in images)
  return np.concatenate(
    [np.pad(i, ((0, height - len(i)), (0, 0), (0, 0)), constant_values=255) for i in images], axis=1
  )


def open_image(source: ImageSource, name: str = "") -> np.ndarray:
  """Reads an image rightly, whatever its mode.

  The orientation that EXIF names is applied. CMYK, palette, grey, YCbCr and the like become RGB as Pillow
  converts them; transparency is laid on white, as transformers 5 does; 16-bit samples are scaled to 8 bits
  (65535 -> 255), not clipped. Integers of 32 bits, whose range no file names, go by their largest: up to
  255 they are 8-bit samples, up to 65535 those of 16 bits. Of an animation the first frame is taken.

  Args:
    source: a file path, the bytes of a file, a PIL image, or an array: (H, W), (H, W, 1), (H, W, 3) or
      (H, W, 4), of uint8, uint16, bool, or floats in [0, 1].
    name: what errors call the image; by default the path.

  Returns:
    uint8 (H, W, 3), RGB.

  Raises:
    UserError: no such file; an empty, corrupt or truncated one, or a pointer of git-lfs; a decompression
      bomb (beyond Pillow's limit of about 179 million pixels); an array that is no image.
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
  if isinstance(source, bytes):
    refuse_pointer(name, source)
  return _to_rgb(_decode(source, name), name)


class Sound(NamedTuple):
  """An image that can be read: the (H, W, 3) that it will have, and hex digits that name its file's bytes."""

  shape: tuple[int, int, int]
  key: str


def check_image(source: ImageSource, name: str = "") -> Sound:
  """Finds out whether `open_image` can read an image, where that is possible in a fraction of its time.

  All of a JPEG is read, but drawn at an eighth of its size; of a PNG the checksums of all its parts. Anything
  else is opened.

  Raises:
    UserError: as `open_image`.
  """
  if isinstance(source, (str, os.PathLike)):
    name = name or str(source)
    source = _read(Path(source).expanduser(), name)
  shape = _sound_shape(source, name or "image") if isinstance(source, bytes) else None
  if shape is None:
    pixels = open_image(source, name)
    shape = pixels.shape
    source = source if isinstance(source, bytes) else pixels.tobytes()
  digest = hashlib.blake2b(repr(shape).encode(), digest_size=8)
  digest.update(source)
  return Sound(shape, digest.hexdigest())


# By these a PNG may say that it lies on its side, also behind its pixels.
_PNG_TURNED = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_ON_ITS_SIDE = (5, 6, 7, 8)


def _sound_shape(data: bytes, name: str) -> tuple[int, int, int] | None:
  """The shape of an encoded image that was found whole; None where only opening it can tell."""
  if data.startswith(b"\xff\xd8\xff"):
    with _named(name), Image.open(io.BytesIO(data)) as image:
      width, height = image.size
      turned = image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
      image.draft(None, (1, 1))
      ImageOps.exif_transpose(image)
      return (width, height, 3) if turned else (height, width, 3)
  if data.startswith(b"\x89PNG") and not any(mark in data for mark in _PNG_TURNED):
    # What is wrong behind its last row stops nobody from reading a picture.
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
      width, height = image.size
      image.verify()
      if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        return height, width, 3
  return None


def _read(path: Path, name: str) -> bytes:
  try:
    return path.read_bytes()
  except FileNotFoundError:
    raise UserError(f"{name}: no such image file{'' if path.name in name else f' as {path}'}") from None
  except OSError as error:
    raise UserError(f"{name}: the image file cannot be read ({error.strerror})") from None


def _decode(source: bytes | Image.Image, name: str) -> Image.Image:
  with _named(name):
    if isinstance(source, Image.Image):
      return ImageOps.exif_transpose(source)
    with Image.open(io.BytesIO(source)) as image:
      ImageOps.exif_transpose(image, in_place=True)
      image.load()
      return image


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
  """What Pillow says of a file becomes one line with the image's name."""
  try:
    yield
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
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
  except ValueError as error:
    raise UserError(f"{name}: {error}; save the image as RGB") from error


def _deep_grey(image: Image.Image, name: str) -> np.ndarray:
  """Grey of more than 8 bits, which Pillow's own conversion would clip at 255."""
  pixels = np.asarray(image)
  if image.mode == "F":
    return pixels
  if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
    raise UserError(f"{name}: samples of 32 bits have no known range; save the image with 8 or 16 bits")
  # Pillow stretches a PGM's samples to 16 bits and calls them 32.
  eight = image.mode == "I" and image.format != "PPM" and pixels.size and pixels.max() <= 255
  return pixels.astype(np.uint8 if eight else np.uint16)


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
