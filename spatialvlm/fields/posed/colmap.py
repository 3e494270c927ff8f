"""COLMAP's sparse model as text: cameras.txt and images.txt (https://colmap.github.io/format.html).

Poses are world to camera, as quaternion (w, x, y, z) and translation, with OpenCV's axes.
"""

from __future__ import annotations

import pathlib
import warnings

import numpy as np
from scipy.spatial.transform import Rotation

from spatialvlm.fields.posed.cameras import Camera
from spatialvlm.fields.posed.layout import PICTURES, Posed, checked
from spatialvlm.types import Note, UserError

# Models without distortion, and where in their parameters stand fl_x, fl_y, cx, cy.
MODELS = {"SIMPLE_PINHOLE": (0, 0, 1, 2), "PINHOLE": (0, 1, 2, 3)}


def read(file: pathlib.Path, images: str = "") -> list[Posed]:
  """The pictures of a model.

  Args:
    file: images.txt; cameras.txt lies beside it.
    images: the folder of pictures; empty for `images` in the nearest folder above that has one, else the
      model's own.

  Raises:
    UserError: a file is missing, a line is not as it should be, or a camera model has distortion.
  """
  cameras = _cameras(file.with_name("cameras.txt"))
  root = pathlib.Path(images).expanduser() if images else _pictures(file)
  if not root.is_dir():
    raise UserError(f"{root}: no such folder; name that of the pictures as config.source.images")
  found = [_posed(file, number, line, cameras, root) for number, line in _image_lines(file)]
  _say_unposed(file, root, {posed.file for posed in found})
  return found


def _say_unposed(file: pathlib.Path, root: pathlib.Path, posed: set[pathlib.Path]) -> None:
  """COLMAP leaves out of its model what it finds no pose of: such pictures are named, and not read."""
  others = sorted(p for p in root.rglob("*") if p.suffix.lower() in PICTURES and p not in posed)
  if others:
    names = ", ".join(p.name for p in others[:3]) + (", ..." if others[3:] else "")
    said = f"{file}: {len(others)} of {len(others) + len(posed)} pictures are views without a pose ({names})"
    warnings.warn(f"{said}; they are left out", Note, stacklevel=4)


def _pictures(file: pathlib.Path) -> pathlib.Path:
  above = list(file.parents)[:4]
  return next((folder / "images" for folder in above if (folder / "images").is_dir()), file.parent)


def _lines(file: pathlib.Path) -> list[tuple[int, str]]:
  """(number, text) of the lines that are no comments."""
  try:
    text = file.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{file}: cannot be read as text ({error}); COLMAP's form is wanted") from None
  lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
  return [(n, line) for n, line in lines if not line.startswith("#")]


def _image_lines(file: pathlib.Path) -> list[tuple[int, str]]:
  """Every picture has two lines, the second, which may be empty, of points."""
  lines = _lines(file)
  while lines and not lines[0][1]:
    lines = lines[1:]
  found = [entry for entry in lines[::2] if entry[1]]
  if not found:
    raise UserError(f"{file}: holds no pictures")
  return found


def _cameras(file: pathlib.Path) -> dict[str, tuple]:
  found = {}
  for number, line in _lines(file):
    if not line:
      continue
    name, model, *rest = line.split()
    where = f"{file}, line {number}"
    if model not in MODELS:
      raise UserError(
        f"{where}: camera model {model} is not understood (known: {', '.join(MODELS)}); undistort the "
        "pictures with 'colmap image_undistorter'"
      )
    try:
      width, height, *parameters = int(rest[0]), int(rest[1]), *map(float, rest[2:])
    except (ValueError, IndexError):
      raise UserError(f"{where}: CAMERA_ID MODEL WIDTH HEIGHT PARAMS are wanted, got {line!r}") from None
    if len(parameters) != max(MODELS[model]) + 1:
      raise UserError(f"{where}: {model} has {max(MODELS[model]) + 1} parameters, got {len(parameters)}")
    fx, fy, cx, cy = (parameters[k] for k in MODELS[model])
    if min(fx, fy) <= 0:
      raise UserError(f"{where}: a focal length of {min(fx, fy):g} pixels; it must be above 0")
    found[name] = ((fx, fy), (cx, cy), (width, height))
  return found


def _posed(file, number: int, line: str, cameras, root: pathlib.Path) -> Posed:
  where = f"{file}, line {number}"
  words = line.split(maxsplit=9)
  try:
    w, x, y, z, *shift = map(float, words[1:8])
    camera, name = words[8], words[9]
    turn = Rotation.from_quat([x, y, z, w]).as_matrix()
  except (ValueError, IndexError):
    raise UserError(
      f"{where}: IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME are wanted, got {line[:60]!r} (every picture "
      "has two lines)"
    ) from None
  if camera not in cameras:
    raise UserError(f"{where}: camera {camera} is not in {file.with_name('cameras.txt')}")
  pose = np.eye(4)
  pose[:3, :3], pose[:3, 3] = turn.T, -turn.T @ np.array(shift)
  seen = Camera(checked(pose, where), *cameras[camera])
  return Posed(root / name, lambda size: seen)
