"""How pictures are taken: cameras like those behind CV-Bench's sources.

Fields of view and heights are what is published of the sources' cameras (Kinect v1 57 degrees, Hypersim 60,
nuScenes' front camera 70 degrees at 1.5 m), or plain guesses for photographs of people (COCO, ADE20K).
"""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Rig:
  """A way of taking pictures.

  Attributes:
    name: what it is; like: the source that it is taken from, by CV-Bench's name.
    outdoors: whether it is.
    height: metres above the floor. pitch, roll: degrees, looking down and to either side. view: degrees
      across.
    near, far: metres along the ground, between which things stand.
    share: how often.
  """

  name: str
  like: str
  outdoors: bool
  height: Range
  pitch: Range
  roll: float
  view: Range
  near: float
  far: float
  share: float


RIGS = (
  Rig("room", "Hypersim", False, (1.1, 1.8), (6.0, 24.0), 0.0, (57.0, 63.0), 1.5, 6.5, 0.24),
  Rig("kinect", "SUN RGB-D", False, (1.0, 1.7), (12.0, 34.0), 3.0, (55.0, 59.0), 1.1, 5.0, 0.22),
  Rig("interior", "ADE20K", False, (1.2, 1.7), (2.0, 14.0), 1.0, (56.0, 72.0), 1.8, 7.5, 0.16),
  Rig("snapshot", "COCO", False, (0.9, 1.6), (14.0, 38.0), 3.0, (42.0, 58.0), 0.9, 3.2, 0.16),
  Rig("drive", "nuScenes", True, (1.4, 1.65), (-1.0, 5.0), 0.0, (66.0, 72.0), 4.5, 34.0, 0.12),
  Rig("street", "COCO", True, (1.3, 2.4), (2.0, 14.0), 2.0, (45.0, 62.0), 2.5, 18.0, 0.10),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
  """Attributes: rotation (3, 3) camera to world (OpenCV axes), position (3,), focal as share of the width."""

  rotation: np.ndarray
  position: np.ndarray
  focal: float

  def seen(self, point: np.ndarray) -> tuple[float, float, float]:
    """Place in the picture (0 to 1 across and down within it) and depth in metres of a world point."""
    x, y, z = (point - self.position) @ self.rotation
    scale = self.focal / max(z, 1e-3)
    return 0.5 + x * scale, 0.5 + y * scale, float(z)


def pick(draw: random.Random) -> Rig:
  """One of the rigs, as often as it should come."""
  at = draw.random() * sum(rig.share for rig in RIGS)
  for rig in RIGS:
    at -= rig.share
    if at < 0:
      return rig
  return RIGS[-1]


def sample(draw: random.Random, rig: Rig, spot: tuple[float, float], heading: float) -> Camera:
  """A camera of a rig at a spot of the floor, looking along a heading (radians about z)."""
  height, pitch = draw.uniform(*rig.height), math.radians(draw.uniform(*rig.pitch))
  roll = math.radians(draw.uniform(-rig.roll, rig.roll))
  focal = 0.5 / math.tan(math.radians(draw.uniform(*rig.view)) / 2)
  ahead = np.array([math.cos(heading), math.sin(heading), 0.0])
  right, up = np.array([ahead[1], -ahead[0], 0.0]), np.array([0.0, 0.0, 1.0])
  forward = math.cos(pitch) * ahead - math.sin(pitch) * up
  down = -math.sin(pitch) * ahead - math.cos(pitch) * up
  turned = (math.cos(roll) * right + math.sin(roll) * down, math.cos(roll) * down - math.sin(roll) * right)
  return Camera(np.stack([*turned, forward], 1), np.array([*spot, height]), focal)
