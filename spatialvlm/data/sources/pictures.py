"""Cells that mean pictures: names of files, base64, `data:` URLs, bytes, pixels. One reader for all kinds."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from spatialvlm.data.sources.cells import is_empty
from spatialvlm.processing.images import Sound, check_image, open_image
from spatialvlm.types import UserError

# Longer text is no file's name, but an image in base64.
LONGEST_NAME = 1024
OURS = ("image", "images")
# Under what an object holds a picture; what comes first counts.
_HELD = ("bytes", "path", "url", "base64", "data", "file_name")
_MAGIC = re.compile(
  rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM|II[*+]\0|MM\0[*+]|P[1-7]\s|\0\0\0\x0cjP|\0\0\0.ftyp|\xff\x0a",
  re.DOTALL,
)


def row_cells(row: Mapping[str, Any], where: str) -> tuple[str, list[Any]]:
  """The pictures of a row, and which of `image` and `images` they stand under.

  Raises:
    UserError: both hold pictures.
  """
  found = {name: listed(row.get(name)) for name in OURS}
  if found["image"] and found["images"]:
    raise UserError(
      f"{where}: 'image' and 'images' both hold pictures, and one of them alone can be meant; leave one out"
    )
  name = "images" if found["images"] else "image"
  return name, found[name]


def file_names(cells: Sequence[Any]) -> tuple[str, ...]:
  """The file name that each picture carries, empty where it carries none."""
  paths = [cell.get("path") if isinstance(cell, Mapping) else cell for cell in cells]
  return tuple(
    PurePosixPath(path).name if may_be_name(path) and not begins_as_image(path) else "" for path in paths
  )


def locate(cell: Any, root: Path | None, where: str) -> Path | bytes | np.ndarray:
  """What a cell means: a file that is there, an image file's bytes, or pixels. Nothing is decoded.

  Args:
    root: folder in which files are looked up; a name (or URL) whole, then without its first folder, its
      first two, ...

  Raises:
    UserError: no such file, or nothing that is a picture.
  """
  if isinstance(cell, Mapping):
    cell = next((cell[key] for key in _HELD if not is_empty(cell.get(key))), cell.get("bytes", cell))
  if isinstance(cell, list):
    try:
      return np.asarray(cell, np.uint8)
    except (ValueError, TypeError, OverflowError):
      raise UserError(f"{where}: a list that is no pixels of 0 to 255: {cell!r:.80}") from None
  if isinstance(cell, str):
    return _located(cell, root, where)
  if isinstance(cell, bytes) or cell is True:  # True: bytes that a sketch leaves out
    return cell
  raise UserError(f"{where}: expected an image, its bytes or its path, got {cell!r:.80}")


def load(cell: Any, root: Path | None, where: str) -> np.ndarray:
  """A picture, uint8 (H, W, 3).

  Raises:
    UserError: as `locate`, or a corrupt image.
  """
  found = locate(cell, root, where)
  return open_image(found, named(found, where, cell))


def check_whole(cell: Any, root: Path | None, where: str) -> Sound:
  """Whether `load` can read a picture, in a fraction of its time.

  Raises:
    UserError: as `load`.
  """
  found = locate(cell, root, where)
  return check_image(found, named(found, where, cell))


def named(found: Path | bytes | np.ndarray, where: str, cell: Any = None) -> str:
  """What errors call a picture: where its cell stands, and the file that it lies in or was made of.

  Args:
    found: what `locate` gives of `cell`.
  """
  name = str(found) if isinstance(found, Path) else cell.get("path") if isinstance(cell, Mapping) else None
  known = isinstance(name, str) and name and PurePosixPath(name).name not in where
  return f"{where} ({name})" if known else where


def check(cell: Any, root: Path | None, where: str) -> None:
  """What can be said of a picture without decoding it; of `cell` a sketch is enough.

  Raises:
    UserError: as `locate`.
  """
  if isinstance(cell, str) and len(cell) > LONGEST_NAME and begins_as_image(cell):
    return  # the sketch is cut short, the rest of it is read with the row
  if not isinstance(cell, list):
    locate(cell, root, where)


def is_nothing(cell: Any) -> bool:
  """Whether a cell holds no picture at all."""
  if isinstance(cell, Mapping):
    known = [key for key in _HELD if key in cell] or [
      *cell
    ]  # of another object that is filled, `locate` says so
    return all(cell[key] is None if key == "bytes" else is_empty(cell[key]) for key in known)
  return is_empty(cell)


def listed(cell: Any) -> list[Any]:
  """The pictures of a cell; a list of numbers is one picture's pixels."""
  if isinstance(cell, list) and not (cell and _is_pixels(cell)):
    return [one for one in cell if not is_nothing(one)]
  return [] if is_nothing(cell) else [cell]


def _is_pixels(cell: list) -> bool:
  first = cell[0]
  while isinstance(first, list) and first:
    first = first[0]
  return isinstance(first, (int, float)) and not isinstance(first, bool)


def may_be_name(cell: Any) -> bool:
  """Whether a cell is a text that can be the name of a file."""
  if not isinstance(cell, str) or len(cell) > LONGEST_NAME:
    return False
  return not cell.startswith("data:") and not re.search(r"[\n\0]", cell)


def is_there(name: str, root: Path | None) -> bool:
  """Whether a name is that of a file (`locate`)."""
  return _file(name, root) is not None


def _file(name: str, root: Path | None) -> Path | None:
  for tail in _tails(name) if may_be_name(name) else ():
    try:
      file = Path(tail).expanduser()
      file = file if file.is_absolute() or root is None else root / file
      if file.is_file():
        return file
    except (OSError, RuntimeError, ValueError):  # too long for a name, or a ~ of nobody
      continue
  return None


def _located(text: str, root: Path | None, where: str) -> Path | bytes:
  if (file := _file(text, root)) is not None:
    return file
  if text.startswith("data:") and not begins_as_image(text):
    raise UserError(f"{where}: no image in base64 follows {text[:40]!r}")
  if begins_as_image(text):
    try:
      return base64.b64decode("".join(_body(text).split()), validate=True)
    except (binascii.Error, ValueError) as error:
      raise UserError(f"{where}: an image in base64 that is broken ({error})") from None
  if not may_be_name(text) or len(text) > 255:
    raise UserError(f"{where}: neither the name of an image file nor an image in base64: {text[:40]!r}...")
  below = f" below {root}" if root else ""
  if text.startswith(("http://", "https://")):
    raise UserError(
      f"{where}: no such image file{below}: {text!r}; nothing is downloaded: fetch it and set image_root"
    )
  raise UserError(
    f"{where}: no such image file{below}: {text!r:.120}; set image_root to the folder of the images"
  )


def begins_as_image(text: str) -> bool:
  """Whether base64 that a text is, or that follows `data:...,`, begins as image files do."""
  begin = "".join(_body(text)[:256].split())[:64]
  try:
    return bool(_MAGIC.match(base64.b64decode(begin[: len(begin) // 4 * 4], validate=True)))
  except (binascii.Error, ValueError):
    return False


def _body(text: str) -> str:
  return text.partition(";base64,")[2] if text.startswith("data:") else text


def _tails(path: str) -> list[str]:
  """A path, or that of a URL, and then without its first folder, its first two, ..."""
  try:
    url = urllib.parse.urlparse(path)
  except ValueError:  # no URL
    return [path]
  if url.scheme in ("http", "https"):
    path = urllib.parse.unquote(url.path).lstrip("/")
  elif url.scheme == "file":
    path = urllib.parse.unquote(url.path)
  parts = PurePosixPath(path).parts
  rest = parts[1:] if path.startswith("/") else parts
  return [path, *("/".join(rest[i:]) for i in range(0 if path.startswith("/") else 1, len(rest)))]
