"""What a file says of a picture, before the picture is read."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from spatialvlm.fields.posed.cameras import Camera
from spatialvlm.types import UserError

# How files of pictures end.
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclasses.dataclass(frozen=True, eq=False)
class Posed:
  """A picture with its camera.

  Attributes:
    file: of the picture.
    camera: gives the camera, in the file's own unit, from the picture's size (width, height), which some
      layouts need.
    depth_file: a picture of depths; None for none. depth_unit: what 1 stands for there, in the poses' unit.
    heldout: the file names the view as one of a test.
  """

  file: pathlib.Path
  camera: Callable[[tuple[int, int]], Camera]
  depth_file: pathlib.Path | None = None
  depth_unit: float = 0.001
  heldout: bool = False


def checked(pose: np.ndarray, where: str) -> np.ndarray:
  """A pose (4, 4) whose upper left is a rotation, to 1e-3.

  Raises:
    UserError: it is none: scaled, mirrored or not finite.
  """
  turn = pose[:3, :3]
  if not np.isfinite(pose).all() or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3):
    raise UserError(f"{where}: its pose holds no rotation (scaled, or not finite)")
  if np.linalg.det(turn) < 0:
    raise UserError(f"{where}: its pose is mirrored; write it for axes of one hand")
  return pose
