"""transforms.json, as NeRF-synthetic and instant-ngp have it; written as well.

Poses are camera to world with OpenGL's axes (x right, y up, z back). Intrinsics are `fl_x`, `fl_y`, `cx`,
`cy`, `w`, `h`, or `camera_angle_x`; a frame's own win. Depth is `depth_path` in units of
`integer_depth_scale` (instant-ngp), or `depth_file_path` in thousandths (nerfstudio).
"""

from __future__ import annotations

import math
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm import workdir
from spatialvlm.config import read_json
from spatialvlm.fields.posed.cameras import Camera
from spatialvlm.fields.posed.layout import Posed, checked
from spatialvlm.types import Note, UserError

_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_INTRINSICS = ("camera_angle_x", "camera_angle_y", "fl_x", "fl_y", "cx", "cy", "w", "h")
# Told where the scene lies in a unit cube, how sharp a picture is, ...: nothing that rays depend on.
_HARMLESS = {"aabb_scale", "aabb", "scale", "offset", "up", "n_frames", "sharpness", "rotation"}
_HARMLESS |= {
  "applied_transform",
  "applied_scale",
  "orientation_override",
  "ply_file_path",
  "enable_depth_loading",
}
_HARMLESS |= {"colmap_im_id", "colmap_image_id", "kind", "from"}
_READ = {"camera_model", "is_fisheye", "integer_depth_scale", "file_path", "transform_matrix"}
_READ |= {"depth_path", "depth_file_path", *_INTRINSICS}
_REFUSED = {
  "mask_path": "masks are not read",
  "time": "a scene that moves is not one field",
  "rolling_shutter": "rolling shutters are not understood",
  "render_aabb": "crops are not understood",
}
_PINHOLE = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL")
# OpenGL's camera axes as OpenCV's.
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
_ENDINGS = (".png", ".jpg", ".jpeg")


def read(file: pathlib.Path, images: str = "", heldout: bool = False) -> list[Posed]:
  """The pictures of one transforms.json.

  Args:
    images: must be empty; pictures are named from the file's own folder.
    heldout: what is said of all of them.

  Raises:
    UserError: a frame without a pose, without intrinsics, with distortion, or something that is not
      understood and changes what is seen.
  """
  if images:
    raise UserError(f"{file}: names its pictures itself; leave config.source.images out")
  about = read_json(file, missing="name a folder with a transforms.json")
  frames = about.get("frames")
  if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames) or not frames:
    raise UserError(f"{file}: has no list of frames")
  shared = {key: value for key, value in about.items() if key != "frames"}
  _understood(file, [shared, *frames])
  return [_posed(file, n, frame, shared, heldout) for n, frame in enumerate(frames)]


def read_split(file: pathlib.Path, images: str = "") -> list[Posed]:
  """transforms_train.json, and transforms_test.json beside it as what is held out; errors as `read`."""
  test = file.with_name("transforms_test.json")
  return read(file, images) + (read(test, images, heldout=True) if test.is_file() else [])


def write(
  file: pathlib.Path, cameras: Sequence[Camera], frames: Sequence[Mapping[str, Any]], depth_unit: float
) -> None:
  """Writes a transforms.json that `read` gives the same cameras of.

  Args:
    frames: what stands in each frame beside its camera: `file_path`, `depth_path`, ...
    depth_unit: metres that 1 stands for in the pictures of depth.

  Raises:
    UserError: the file cannot be written.
  """
  written = [
    dict(frame)
    | dict(fl_x=c.focal[0], fl_y=c.focal[1], cx=c.middle[0], cy=c.middle[1], w=c.size[0], h=c.size[1])
    | dict(transform_matrix=(c.pose @ _FLIP).tolist())
    for frame, c in zip(frames, cameras, strict=True)
  ]
  about = {"camera_model": "PINHOLE", "enable_depth_loading": True, "integer_depth_scale": depth_unit}
  workdir.write_json(file, {**about, "frames": written})


def _understood(file: pathlib.Path, groups: Sequence[Mapping[str, Any]]) -> None:
  unread = set()
  for number, group in enumerate(groups):
    where = f"{file}, frame {number - 1}" if number else str(file)
    for key, value in group.items():
      if key in _REFUSED:
        raise UserError(f"{where}: {key}: {_REFUSED[key]}; leave it out if it may be passed over")
      if key in _DISTORTION:
        if value:
          raise UserError(
            f"{where}: {key}={value}: lens distortion is not understood; undistort the pictures first, e.g. "
            "with 'colmap image_undistorter'"
          )
      elif (key == "is_fisheye" and value) or (key == "camera_model" and value not in _PINHOLE):
        raise UserError(f"{where}: {key}={value}: cameras are pinholes here; undistort the pictures first")
      elif key not in _HARMLESS | _READ:
        unread.add(key)
  if unread:
    warnings.warn(f"{file}: not read: {', '.join(sorted(unread))}", Note, stacklevel=4)


def _posed(file, number: int, frame, shared, heldout: bool) -> Posed:
  where = f"{file}, frame {number}"
  name = frame.get("file_path")
  if not isinstance(name, str) or not name:
    raise UserError(f"{where}: has no file_path")
  where = f"{where} ({name})"
  if "transform_matrix" not in frame:
    raise UserError(f"{where}: a view without a pose; give its transform_matrix, or leave the frame out")
  try:
    pose = np.array(frame["transform_matrix"], np.float64)
  except (TypeError, ValueError):
    pose = np.zeros(0)
  if pose.shape not in ((4, 4), (3, 4)):
    raise UserError(f"{where}: its transform_matrix has no 4 x 4 numbers")
  pose = checked(np.concatenate([pose[:3], [[0, 0, 0, 1]]]) @ _FLIP, where)
  said = {
    key: _number(value, f"{where}: {key}") for key, value in (shared | frame).items() if key in _INTRINSICS
  }
  depth, unit = _depth(file, frame, shared, where)
  return Posed(
    _picture(file.parent / name), lambda size: _camera(pose, said, size, where), depth, unit, heldout
  )


def _picture(path: pathlib.Path) -> pathlib.Path:
  """The file of a name that may lack its ending, as those of NeRF-synthetic do."""
  if path.is_file():
    return path
  return next((p for e in _ENDINGS if (p := path.with_name(path.name + e)).is_file()), path)


def _depth(file, frame, shared, where: str) -> tuple[pathlib.Path | None, float]:
  instant, studio = frame.get("depth_path"), frame.get("depth_file_path")
  if instant and studio and instant != studio:
    raise UserError(f"{where}: depth_path and depth_file_path name two files; leave out one")
  if not instant and not studio:
    return None, 0.0
  unit = shared.get("integer_depth_scale", None if instant else 0.001)
  if unit is None:
    raise UserError(f"{where}: depth_path, but the file has no integer_depth_scale; say what 1 stands for")
  return file.parent / (instant or studio), _number(unit, f"{file}: integer_depth_scale")


def _camera(pose: np.ndarray, said: Mapping[str, float], size: tuple[int, int], where: str) -> Camera:
  width, height = size
  own = (int(said.get("w", width)), int(said.get("h", height)))
  focal = []
  for axis, length in zip("xy", own, strict=True):
    found, angle = said.get(f"fl_{axis}"), said.get(f"camera_angle_{axis}")
    by_angle = None if angle is None else 0.5 * length / math.tan(angle / 2)
    if found is not None and by_angle is not None and not math.isclose(found, by_angle, rel_tol=0.01):
      raise UserError(
        f"{where}: fl_{axis}={found:g}, but camera_angle_{axis} makes it {by_angle:g}; leave one out"
      )
    focal.append(by_angle if found is None else found)
  if focal[0] is None:
    raise UserError(f"{where}: has neither fl_x nor camera_angle_x")
  focal[1] = focal[0] if focal[1] is None else focal[1]
  if min(focal) <= 0:
    raise UserError(f"{where}: a focal length of {min(focal):g} pixels; it must be above 0")
  middle = (said.get("cx", own[0] / 2), said.get("cy", own[1] / 2))
  return Camera(pose, (focal[0], focal[1]), middle, own)


def _number(value: Any, where: str) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
    raise UserError(f"{where}: a number is wanted, got {value!r}")
  return float(value)
