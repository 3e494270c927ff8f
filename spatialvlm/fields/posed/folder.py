"""Pictures in a folder with their cameras: which layout is there, and the pictures themselves.

A layout is a file here with `read(file) -> list[Posed]` and lines in `LAYOUTS`: how its file is called, and
where below a folder it is looked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from spatialvlm.config import FolderViewsConfig
from spatialvlm.fields.posed import colmap, transforms
from spatialvlm.fields.posed.cameras import View
from spatialvlm.fields.posed.layout import PICTURES, Posed
from spatialvlm.types import Note, UserError

# Files by their place below a folder, each with its reader; the first that is there counts.
LAYOUTS: dict[str, Callable[[pathlib.Path, str], list[Posed]]] = {
  "transforms.json": transforms.read,
  "transforms_train.json": transforms.read_split,
  "images.txt": colmap.read,
  "sparse/0/images.txt": colmap.read,
  "sparse/images.txt": colmap.read,
  "colmap/sparse/0/images.txt": colmap.read,
}


def read(config: FolderViewsConfig, black: bool = False) -> list[View]:
  """The views of a folder, in the order of their files' names, lengths in metres.

  Args:
    black: what is transparent lies on black, else on white.

  Raises:
    UserError: there are no poses, pictures are missing or not as large as their camera says, or a file is not
      understood.
  """
  if config.scale < 1:
    raise UserError(f"config.source.scale: a whole number from 1 on, got {config.scale}")
  if not config.metres > 0:
    raise UserError(f"config.source.metres: must be above 0, got {config.metres}")
  file, layout = _find(config.path)
  found = layout(file, config.images)
  _refuse_missing(file, found)
  if layout is colmap.read and config.metres == 1:
    warnings.warn(
      f"{file}: COLMAP's unit of length means nothing; depth is in that unit unless config.source.metres "
      "says how many metres it is",
      Note,
      stacklevel=2,
    )
  views = [_view(posed, config, black) for posed in sorted(found, key=lambda p: (p.heldout, str(p.file)))]
  if sum(not v.heldout for v in views) < 2:
    raise UserError(f"{file}: a field needs at least 2 views to be fitted, found {len(views)}")
  return views


def split(config: FolderViewsConfig) -> bool:
  """Whether the files themselves say which views are held out."""
  return _find(config.path)[1] is transforms.read_split


def _find(path: str) -> tuple[pathlib.Path, Callable]:
  if not path:
    raise UserError("config.source.path: is missing; name a folder of posed pictures, or its transforms.json")
  root = pathlib.Path(path).expanduser()
  if root.is_file():
    if root.suffix == ".json":
      return root, transforms.read
    if root.name in ("images.txt", "cameras.txt"):
      return root.with_name("images.txt"), colmap.read
    raise UserError(f"{root}: neither a transforms.json nor COLMAP's images.txt")
  if not root.is_dir():
    raise UserError(f"{root}: no such folder or file")
  there = [(root / name, layout) for name, layout in LAYOUTS.items() if (root / name).is_file()]
  if there:
    kinds = {layout for _, layout in there}
    if len(kinds) > 1:
      names = " and ".join(str(file.relative_to(root)) for file, _ in there)
      raise UserError(f"{root}: holds {names}; name the file that is meant as config.source.path")
    return there[0]
  for name in LAYOUTS:
    if name.endswith("images.txt") and (root / name).with_suffix(".bin").is_file():
      raise UserError(
        f"{(root / name).with_suffix('.bin')}: COLMAP's binary form is not read; write it as text with "
        "'colmap model_converter --output_type TXT'"
      )
  pictures = sum(1 for p in root.rglob("*") if p.suffix.lower() in PICTURES)
  what = f"{pictures} pictures without poses" if pictures else "no posed pictures there"
  raise UserError(
    f"{root}: {what}; a transforms.json, or COLMAP's cameras.txt and images.txt, is needed (COLMAP makes "
    "them of pictures)"
  )


def _refuse_missing(file: pathlib.Path, found: list[Posed]) -> None:
  wanted = [p for posed in found for p in (posed.file, posed.depth_file) if p is not None]
  missing = [path for path in wanted if not path.is_file()]
  if missing:
    names = ", ".join(str(path) for path in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise UserError(f"{file}: {len(missing)} of {len(wanted)} pictures are missing: {names}{more}")


def _view(posed: Posed, config: FolderViewsConfig, black: bool) -> View:
  image = _picture(posed.file, black)
  camera = posed.camera((image.shape[1], image.shape[0]))
  if (image.shape[1], image.shape[0]) != camera.size:
    raise UserError(
      f"{posed.file}: {image.shape[1]} x {image.shape[0]} pixels, but its camera has {camera.size[0]} x "
      f"{camera.size[1]}; give the pictures that the poses were made of"
    )
  depth = None if posed.depth_file is None else _depth(posed, config.metres)
  if depth is not None and depth.shape != image.shape[:2]:
    raise UserError(f"{posed.depth_file}: {depth.shape[1]} x {depth.shape[0]} pixels, its picture has other")
  scale = config.scale
  if scale > 1:
    camera = camera.smaller(scale)
    width, height = camera.size
    if not width or not height:
      raise UserError(f"config.source.scale: {scale} leaves nothing of {posed.file}")
    cut = image[: height * scale, : width * scale].reshape(height, scale, width, scale, 3)
    image = np.rint(cut.mean((1, 3))).astype(np.uint8)
    if depth is not None:  # of the pixel in the middle: a mean over an edge is no depth of anything
      depth = depth[scale // 2 :: scale, scale // 2 :: scale][:height, :width]
  pose = camera.pose.copy()
  pose[:3, 3] *= config.metres
  camera = dataclasses.replace(camera, pose=pose)
  return View(posed.file.stem, camera, image, depth, posed.heldout, str(posed.file))


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Image.Image]:
  try:
    with Image.open(file) as image:
      yield image
  except (OSError, Image.DecompressionBombError) as error:
    raise UserError(f"{file}: no picture that can be read ({error})") from None


def _picture(file: pathlib.Path, black: bool) -> np.ndarray:
  """(H, W, 3) uint8; what is transparent lies on white, or black."""
  with _opened(file) as image:
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
      return np.asarray(image.convert("RGB"))
    pixels = np.asarray(image.convert("RGBA")).astype(np.float32)
  share = pixels[..., 3:] / 255
  return np.rint(pixels[..., :3] * share + (0 if black else 255) * (1 - share)).astype(np.uint8)


def _depth(posed: Posed, metres: float) -> np.ndarray:
  """(H, W) float32 metres of a depth picture of whole numbers."""
  with _opened(posed.depth_file) as image:
    raw = np.asarray(image)
  if raw.ndim != 2 or not np.issubdtype(raw.dtype, np.integer) or raw.dtype == np.uint8:
    raise UserError(f"{posed.depth_file}: depth is read from grey PNGs of 16 bits, this one has {raw.dtype}")
  return (raw * np.float64(posed.depth_unit * metres)).astype(np.float32)
