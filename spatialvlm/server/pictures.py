"""Pictures that clients show: `data:` URLs and files below one folder, measured before they are decoded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import urllib.parse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from spatialvlm.once import OnceCache
from spatialvlm.processing.images import open_image
from spatialvlm.processing.tiling import Tiles
from spatialvlm.server.chat import Picture
from spatialvlm.server.errors import Refused
from spatialvlm.types import UserError

# What Pillow may take a client's bytes for. Some of its other readers start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Pictures whose tiles stay on the host, since the next requests may show them too.
KEPT = 16


class Cut(NamedTuple):
  """A picture in tiles, and a key that is equal where its bytes and the way of cutting are."""

  tiles: Tiles
  key: str


class Album:
  """Opens pictures. Safe to use from several threads."""

  def __init__(self, folder: Path | None, most_bytes: int, most_pixels: int):
    """`folder`: below which files may be shown, None for none."""
    self._folder = None if folder is None else folder.expanduser().resolve()
    self._most_bytes, self._most_pixels = most_bytes, most_pixels
    self._kept: OnceCache[Tiles] = OnceCache()

  def cut(self, picture: Picture, tiler: Callable[..., Tiles], way: str) -> Cut:
    """A picture in tiles.

    Args:
      way: a name for what `tiler` does.

    Raises:
      Refused: an address that would have to be fetched, a file elsewhere, no picture, or one too large.
    """
    data = self._bytes(picture)
    key = f"{way} {hashlib.blake2b(data, digest_size=16).hexdigest()}"
    return Cut(self._kept.get(key, lambda: self._opened(data, picture.param, tiler), KEPT), key)

  def _opened(self, data: bytes, param: str, tiler: Callable[..., Tiles]) -> Tiles:
    self._measure(data, param)
    try:
      pixels = open_image(data, param)
    except UserError as error:
      raise _wrong(param, str(error).removeprefix(f"{param}: ")) from None
    return tiler(pixels)

  def _measure(self, data: bytes, param: str) -> None:
    """Reads the header alone: a few bytes may stand for any number of pixels."""
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
          width, height = image.size
    except Image.DecompressionBombError:
      raise _wrong(param, "the picture is too large to be opened; scale it down", "image_too_large") from None
    except Exception:  # Pillow's readers raise nearly any exception on malformed bytes
      raise _wrong(param, f"cannot be read as a picture ({', '.join(FORMATS)})") from None
    if width * height > self._most_pixels:
      raise _wrong(
        param,
        f"a picture of {width} x {height} has more than {self._most_pixels} pixels; scale it down",
        "image_too_large",
      )

  def _bytes(self, picture: Picture) -> bytes:
    scheme = picture.url.partition(":")[0].lower() if ":" in picture.url else ""
    if scheme == "data":
      return self._from_data(picture)
    if scheme and scheme != "file":
      raise _wrong(
        picture.param, f"{scheme}: addresses are not fetched; send the picture itself, as a data: URL"
      )
    return self._from_folder(picture)

  def _from_data(self, picture: Picture) -> bytes:
    head, comma, written = picture.url.partition(",")
    if not comma or not head.lower().startswith("data:image/") or not head.lower().endswith(";base64"):
      raise _wrong(picture.param, "must begin with data:image/...;base64,")
    try:
      data = base64.b64decode(written, validate=True)
    except (binascii.Error, ValueError) as error:
      raise _wrong(picture.param, f"is no base64 ({error})") from None
    if not data:
      raise _wrong(picture.param, "holds no picture")
    return data

  def _from_folder(self, picture: Picture) -> bytes:
    if self._folder is None:
      raise _wrong(
        picture.param, "no folder of pictures is open to clients; send the picture itself, as a data: URL"
      )
    name = picture.url
    if name.lower().startswith("file:"):
      address = urllib.parse.urlsplit(name)
      if address.netloc not in ("", "localhost"):
        raise _wrong(picture.param, "a file of another machine")
      name = urllib.parse.unquote(address.path)
    outside = _wrong(picture.param, "no such picture in the folder that is open to clients", "not_found")
    try:
      path = (self._folder / name).resolve()  # an absolute path stays what it is
      if not path.is_relative_to(self._folder) or not path.is_file():
        raise outside
      if path.stat().st_size > self._most_bytes:
        raise _wrong(picture.param, f"the file is larger than {self._most_bytes} bytes", "image_too_large")
      return path.read_bytes()
    except (OSError, ValueError, RuntimeError):
      raise outside from None


def _wrong(param: str, what: str, code: str = "invalid_image") -> Refused:
  return Refused(400, f"{param}: {what}", param=param, code=code)
