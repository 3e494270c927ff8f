"""Arithmetic of `types.Shot`s: from pixels to shares, mirrored, values at places, normals; NumPy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spatialvlm.types import Shot


def in_pixels(
  size: tuple[int, int],
  focal: tuple[float, float] | None,
  middle: tuple[float, float] | None = None,
  *,
  pose: np.ndarray | None = None,
  depth: Callable[[], np.ndarray] | None = None,
) -> Shot:
  """The shot of a picture of `size` (H, W) whose focal lengths and principal point are in pixels.

  Args:
    focal: (x, y); None where nobody knows it.
    middle: (x, y), with the centre of the first pixel at (0.5, 0.5); None for the picture's.
  """
  height, width = size
  return Shot(
    focal=None if focal is None else (focal[0] / width, focal[1] / height),
    middle=(0.5, 0.5) if middle is None else (middle[0] / width, middle[1] / height),
    pose=pose,
    depth=depth,
  )


def mirrored(shot: Shot) -> Shot:
  """The shot of the picture with left and right swapped: of the mirrored world, whose z is still up."""
  flip = lambda values: np.ascontiguousarray(values[:, ::-1])
  sign = np.array([-1.0, 1, 1, 1])
  return Shot(
    focal=shot.focal,
    middle=(1 - shot.middle[0], shot.middle[1]),
    pose=None if shot.pose is None else sign[:, None] * shot.pose * sign,
    depth=shot.depth and (lambda: flip(shot.depth())),
    normals=shot.normals and (lambda: flip(shot.normals()) * np.float32([-1, 1, 1])),
  )


def rays(shot: Shot, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """(..., 3) float64: directions through places (x, y) in shares of the picture, 1 long along the axis."""
  (fx, fy), (cx, cy) = shot.focal, shot.middle
  x, y = np.broadcast_arrays((x - cx) / fx, (y - cy) / fy)
  return np.stack([x, y, np.ones_like(x)], -1)


def at(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """What a map (h, w, ...) over the picture holds at places (x, y) in shares of it: of the pixel there."""
  rows, columns = values.shape[:2]
  row = np.clip(np.floor(np.asarray(y) * rows).astype(np.int64), 0, rows - 1)
  column = np.clip(np.floor(np.asarray(x) * columns).astype(np.int64), 0, columns - 1)
  return values[row, column]


def normals_of(shot: Shot) -> np.ndarray:
  """float32 (h, w, 3): the shot's own normals, else those of its depth, which need its focal length.

  Of depth: the cross product of the differences between neighbouring points, on each axis to the neighbour
  that is nearer in depth, so that edges do not bend; NaN where no neighbour has depth.
  """
  if shot.normals is not None:
    return shot.normals()
  depth = shot.depth().astype(np.float64)
  depth[~(depth > 0)] = np.nan
  height, width = depth.shape
  x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5)[:, None] / height
  points = rays(shot, x, y) * depth[..., None]
  normal = np.cross(_steps(points, 0), _steps(points, 1))
  with np.errstate(invalid="ignore", divide="ignore"):
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    away = (normal * points).sum(-1, keepdims=True) > 0
  return np.where(away, -normal, normal).astype(np.float32)


def _steps(points: np.ndarray, axis: int) -> np.ndarray:
  """(h, w, 3): from each point to the next along an axis, or from the one before, the nearer in z."""
  step = np.diff(points, axis=axis)
  none = np.full_like(np.take(points, [0], axis), np.nan)
  ahead, behind = np.concatenate([step, none], axis), np.concatenate([none, step], axis)
  with np.errstate(invalid="ignore"):
    nearer = np.abs(behind[..., 2:]) < np.abs(ahead[..., 2:])
  return np.where(nearer | np.isnan(ahead[..., 2:]), behind, ahead)
