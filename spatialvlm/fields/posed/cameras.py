"""Cameras, the rays through their pixels, and cameras between others.

Axes are OpenCV's: x right, y down, z forward. Pixel (row, column) is seen through its middle, (column + 0.5,
row + 0.5). A ray's direction has length 1 along the optical axis, so that the ray's parameter is depth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
  """A pinhole camera.

  Attributes:
    pose: (4, 4) float64, camera to world, in metres.
    focal: (x, y) pixels. middle: the principal point (x, y), pixels.
    size: (width, height) pixels.
  """

  pose: np.ndarray
  focal: tuple[float, float]
  middle: tuple[float, float]
  size: tuple[int, int]

  @property
  def intrinsics(self) -> np.ndarray:
    """(4,) float32: focal lengths and principal point."""
    return np.array([*self.focal, *self.middle], np.float32)

  def smaller(self, factor: int) -> Camera:
    """The camera of a picture that is made smaller by a whole factor; what does not fill a pixel is cut."""
    width, height = self.size
    return dataclasses.replace(
      self,
      focal=tuple(f / factor for f in self.focal),
      middle=tuple(c / factor for c in self.middle),
      size=(width // factor, height // factor),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """A posed picture.

  Attributes:
    name: of the view; the name of its picture's file without folder and ending, where it has one.
    camera: that saw it.
    image: (H, W, 3) uint8.
    depth: (H, W) float32, metres along the optical axis, 0 where it is not known; None without any.
    heldout: not to be fitted.
    file: the picture's file, "" for none.
  """

  name: str
  camera: Camera
  image: np.ndarray
  depth: np.ndarray | None = None
  heldout: bool = False
  file: str = ""


def directions(camera: Camera) -> np.ndarray:
  """(H * W, 3) float32, the rays' directions in the world, row by row."""
  width, height = camera.size
  x = (np.arange(width) + 0.5 - camera.middle[0]) / camera.focal[0]
  y = (np.arange(height) + 0.5 - camera.middle[1]) / camera.focal[1]
  grid = np.stack([*np.meshgrid(x, y), np.ones((height, width))], -1).reshape(-1, 3)
  return (grid @ camera.pose[:3, :3].T).astype(np.float32)


def looked_at(cameras: Sequence[Camera]) -> np.ndarray:
  """(3,) metres, the point nearest to all optical axes.

  Raises:
    UserError: the axes have none that is in front of the cameras: they look one way, or outwards.
  """
  position = np.stack([c.pose[:3, 3] for c in cameras])
  axis = np.stack([c.pose[:3, 2] for c in cameras])
  across = np.eye(3) - axis[:, :, None] * axis[:, None, :]
  total = across.sum(0)
  values = np.linalg.eigvalsh(total)
  # Parallel axes leave one direction free; a few degrees between them hold the point to some of a per cent.
  if values[0] > 1e-3 * values[-1]:
    found = np.linalg.solve(total, (across @ position[..., None]).sum(0)[:, 0])
    ahead = ((found - position) * axis).sum(1) > 0
    if ahead.mean() > 0.9:
      return found
  raise UserError(
    "the cameras look at no common place (they look one way, or outwards); set config.center and "
    "config.radius to the middle of the scene and half its extent, in metres"
  )


def between(cameras: Sequence[Camera], count: int, seed: int) -> list[Camera]:
  """`count` new cameras, each between one and another of its four nearest, drawn from the seed.

  Raises:
    UserError: fewer than two cameras.
  """
  if count and len(cameras) < 2:
    raise UserError(f"new views lie between given ones, and there is {len(cameras)}; set config.new_views=0")
  rng = np.random.default_rng((seed, 0xCA3))
  place = np.stack([c.pose[:3, 3] for c in cameras]) if cameras else np.zeros((0, 3))
  found = []
  for _ in range(count):
    a = int(rng.integers(len(cameras)))
    near = np.argsort(np.linalg.norm(place - place[a], axis=1), kind="stable")
    b = int(rng.choice([k for k in near[:5] if k != a][:4]))
    share = rng.uniform(0.25, 0.75)
    pose = np.eye(4)
    pose[:3, 3] = (1 - share) * place[a] + share * place[b]
    turns = Slerp([0, 1], Rotation.from_matrix([cameras[a].pose[:3, :3], cameras[b].pose[:3, :3]]))
    pose[:3, :3] = turns(share).as_matrix()
    found.append(dataclasses.replace(cameras[a], pose=pose))
  return found


def around(center: np.ndarray, distance: float, count: int, seed: int) -> list[np.ndarray]:
  """`count` poses (4, 4) around and above a place, looking at it; z is up.

  They run round in steps of the golden angle, between 12 and 50 degrees above the horizon, so that every
  n-th of them lies all around as well; distance and what they look at vary by a tenth.
  """
  rng = np.random.default_rng((seed, 0xA20))
  turn = rng.uniform(0, 2 * np.pi) + np.arange(count) * np.pi * (3 - np.sqrt(5))
  height = np.sin(np.deg2rad(12)) + (rng.permutation(count) + 0.5) / max(count, 1) * (
    np.sin(np.deg2rad(50)) - np.sin(np.deg2rad(12))
  )
  poses = []
  for angle, z in zip(turn, height, strict=True):
    flat = np.sqrt(1 - z * z)
    away = np.array([flat * np.cos(angle), flat * np.sin(angle), z])
    position = center + distance * rng.uniform(0.9, 1.1) * away
    forward = center + 0.1 * distance * rng.uniform(-0.5, 0.5, 3) - position
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, position], 1)
    poses.append(pose)
  return poses
