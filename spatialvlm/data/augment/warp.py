"""Where the pixels of a moved picture go, and what is named in it with them.

Coordinates are (x, y) in pixels, x to the right and y down, with the centre of the first pixel at (0.5, 0.5).
A picture is mirrored, then seen by a camera that is turned about its own place, then enlarged or made
smaller. A turned camera sees K R K^-1 of the picture (Hartley and Zisserman, Multiple View Geometry, 8.4.2),
whatever stands before it, so that no depth is needed for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageFilter

from spatialvlm.types import missing_value

# Where nobody knows the focal length: of a camera that sees about 45 degrees.
_USUAL_FOCAL = 1.2
# An edge of a pixel lies up to half of one beside what it shows.
_ROUNDING = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Warp:
  """A change of place of all pixels of a picture, which keeps its size.

  Attributes:
    size: (H, W) pixels.
    flip: whether the picture is mirrored.
    turn: (3, 3), the rotation of camera coordinates (OpenCV's axes) after the mirror.
    scale, shift: the picture is scaled by the one, then moved by the other, (x, y) pixels.
    focal: in pixels.
  """

  size: tuple[int, int]
  flip: bool = False
  turn: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))
  scale: float = 1.0
  shift: tuple[float, float] = (0.0, 0.0)
  focal: float = 1.0

  @property
  def still(self) -> bool:
    """Whether nothing but the mirror moves the picture."""
    return self.scale == 1 and not any(self.shift) and self.straight

  @property
  def straight(self) -> bool:
    """Whether the camera is not turned."""
    return np.array_equal(self.turn, np.eye(3))

  @property
  def matrix(self) -> np.ndarray:
    """(3, 3) float64: homogeneous coordinates of the picture to those of the moved one."""
    mirror = np.array([[-1.0, 0, self.size[1]], [0, 1, 0], [0, 0, 1]]) if self.flip else np.eye(3)
    window = np.array([[self.scale, 0, self.shift[0]], [0, self.scale, self.shift[1]], [0, 0, 1]])
    if self.straight:  # to the last bit: what stands on a border shall be seen to stand there
      return window @ mirror
    camera = self._camera()
    return window @ camera @ self.turn @ np.linalg.inv(camera) @ mirror

  def points(self, points: np.ndarray) -> np.ndarray:
    """(..., 2) -> where they go, (..., 2)."""
    moved = np.concatenate([points, np.ones_like(points[..., :1])], -1) @ self.matrix.T
    return moved[..., :2] / moved[..., 2:]

  def areas(self, points: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...): how many times larger an area is there in the moved picture."""
    matrix = self.matrix
    third = np.concatenate([points, np.ones_like(points[..., :1])], -1) @ matrix[2]
    return np.abs(np.linalg.det(matrix)) / np.abs(third) ** 3

  def seen_from_before(self, grid: tuple[int, int] | None = None) -> np.ndarray:
    """(h, w, 2): where each pixel of the moved picture comes from, or each cell of another grid over it."""
    middles = self._middles(grid or self.size)
    found = np.concatenate([middles, np.ones_like(middles[..., :1])], -1) @ np.linalg.inv(self.matrix).T
    return found[..., :2] / found[..., 2:]

  def image(self, image: np.ndarray) -> np.ndarray:
    """A picture, uint8 (H, W, 3), moved; its mean colour stands where it did not reach."""
    if self.still:
      return np.ascontiguousarray(image[:, ::-1]) if self.flip else image
    picture = Image.fromarray(image)
    if self.scale < 1:  # what Pillow's transform does not do: no pixel is passed over
      picture = picture.filter(ImageFilter.GaussianBlur(0.5 * (1 / self.scale - 1)))
    back = np.linalg.inv(self.matrix)
    ground = tuple(int(v) for v in np.rint(image.reshape(-1, 3).mean(0)))
    moved = picture.transform(
      picture.size,
      Image.Transform.PERSPECTIVE,
      tuple((back / back[2, 2]).ravel()[:8]),
      Image.Resampling.BICUBIC,
      fillcolor=ground,
    )
    return np.asarray(moved)

  def map(self, values: np.ndarray) -> np.ndarray:
    """Values of each pixel, (H, W), moved: each pixel has one of theirs, or `missing_value`.

    A map over the whole picture may have another number of rows and columns, (h, w).
    """
    if self.still:
      return np.ascontiguousarray(values[:, ::-1]) if self.flip else values
    height, width = values.shape
    cells = self.seen_from_before((height, width)) * [width / self.size[1], height / self.size[0]]
    column, row = np.moveaxis(np.floor(cells).astype(np.int64), -1, 0)
    there = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = values[row.clip(0, height - 1), column.clip(0, width - 1)]
    return np.where(there, found, missing_value(values.dtype)).astype(values.dtype)

  def depth(self, depth: np.ndarray) -> np.ndarray:
    """Metres along the optical axis, 0 for none, moved as a `map`: the axis is turned with the camera."""
    if self.straight:
      return self.map(depth)
    height, width = self.size
    x, y = np.moveaxis(self._middles(depth.shape), -1, 0)
    across = (width - x if self.flip else x) - width / 2
    ray = np.stack([across / self.focal, (y - height / 2) / self.focal, np.ones_like(x)], -1)
    return self.map((depth * (ray @ self.turn[2])).astype(depth.dtype))

  def box(self, box: tuple[float, ...], slack: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Between which values the sides (x0, y0, x1, y1) of what a box is tight around lie when it is moved.

    What lies in a box and touches its four sides moves within the box's moved corners, and touches its moved
    sides somewhere.

    Args:
      slack: pixels by which the box may be off.

    Returns:
      Two arrays (4,).
    """
    x0, y0, x1, y1 = box
    grown = np.array([x0 - slack, y0 - slack, x1 + slack, y1 + slack])
    corners = self.points(_corners(grown))
    low, high = corners.min(0), corners.max(0)
    thin = [
      (grown[0], grown[1], x0 + slack, grown[3]),
      (grown[0], grown[1], grown[2], y0 + slack),
      (x1 - slack, grown[1], grown[2], grown[3]),
      (grown[0], y1 - slack, grown[2], grown[3]),
    ]
    sides = self.points(np.stack([_corners(np.array(side)) for side in thin]))  # (4, 4, 2)
    latest, earliest = sides.max(1).min(0), sides.min(1).max(0)
    rounding = 0.0 if self.still else _ROUNDING
    return (
      np.concatenate([low, earliest]) - rounding,
      np.concatenate([latest, high]) + rounding,
    )

  def _middles(self, grid: tuple[int, ...]) -> np.ndarray:
    """(h, w, 2): the middles of the cells of a grid over the picture."""
    rows, columns = grid
    x = (np.arange(columns) + 0.5) * self.size[1] / columns
    y = (np.arange(rows) + 0.5) * self.size[0] / rows
    return np.stack(np.meshgrid(x, y), -1)

  def _camera(self) -> np.ndarray:
    height, width = self.size
    return np.array([[self.focal, 0, width / 2], [0, self.focal, height / 2], [0, 0, 1]])


def drawn(
  rng: np.random.Generator,
  size: tuple[int, int],
  most: Mapping[str, float],
  *,
  focal: float | None = None,
  flip: bool = False,
  strength: float = 1.0,
  keep: tuple[float, ...] = (),
) -> Warp:
  """A warp drawn evenly.

  Args:
    most: settings of `AugmentConfig` by name, `crop`, `zoom_out`, `roll` and `perspective`; 0 where absent.
    strength: share of these.
    keep: (x0, y0, x1, y1) of the picture that a window holds, as long as no camera is turned.
  """
  height, width = size
  # All are drawn whatever is set, so that one setting does not change what another draws.
  cut, out, *places = rng.uniform(0, 1, 6)
  roll, yaw, pitch = rng.uniform(-1, 1, 3)
  limit = lambda name: strength * most.get(name, 0.0)
  turn = _turn(*np.deg2rad([roll * limit("roll"), yaw * limit("perspective"), pitch * limit("perspective")]))
  side = np.array([width, height], float)
  low, high = np.reshape(keep, (2, 2)) if keep else np.stack([side, side]) / 2
  if flip:
    low, high = np.array([width - high[0], low[1]]), np.array([width - low[0], high[1]])
  window = max(1 - cut * limit("crop"), *((high - low) / side).clip(0, 1))
  first, last = np.maximum(high - window * side, 0), np.minimum((1 - window) * side, low)
  corner = first + np.array(places[:2]) * (np.maximum(last, first) - first)
  far = 1 - out * limit("zoom_out")
  scale = float(far / window)
  x, y = -corner * scale + np.array(places[2:]) * (1 - far) * side
  return Warp(size, flip, turn, scale, (float(x), float(y)), focal or _USUAL_FOCAL * max(size))


def _turn(roll: float, yaw: float, pitch: float) -> np.ndarray:
  """The rotation by angles about the optical axis, the vertical and the horizontal one."""

  def about(axis: int, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.insert(np.insert(np.array([[c, -s], [s, c]]), axis, 0, 0), axis, np.eye(3)[axis], 1)

  return np.eye(3) if not (roll or yaw or pitch) else about(2, roll) @ about(1, yaw) @ about(0, pitch)


def _corners(box: np.ndarray) -> np.ndarray:
  """(4, 2) of (x0, y0, x1, y1)."""
  x0, y0, x1, y1 = box
  return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
