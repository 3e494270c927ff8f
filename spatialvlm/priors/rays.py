"""Kind "rays": the camera's ray through each image token, in Pluecker's coordinates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np

from spatialvlm import shots as shot_lib
from spatialvlm.priors.prior import Frame, Prior, Tokens, masked, to_frame
from spatialvlm.types import Shot


@dataclasses.dataclass(frozen=True)
class Rays(Prior):
  """The direction d of length 1, and the moment o x d with o the camera's place in metres: six numbers.

  Pluecker's coordinates of a ray as light fields take them (Sitzmann et al., arXiv 2106.02634), given to a
  transformer's tokens as Cameras as Rays does (arXiv 2402.14817).

  Attributes:
    frame: "first": seen from the example's first camera, so that of a single picture the moment is zero and
      no pose is needed; "world": from the world, whose z is up, which says how high the camera stands and
      how it is turned.
  """

  frame: Frame = "first"
  needs: ClassVar[tuple[str, ...]] = ("focal",)

  @property
  def channels(self) -> int:
    return 6

  @property
  def features(self) -> int:
    return 6

  def read(self, shots: Sequence[Shot], tokens: Sequence[Tokens]) -> list[np.ndarray]:
    found = []
    for shot, place, moved in zip(shots, tokens, to_frame(shots, self.frame), strict=True):
      x, y = place.places()
      direction = shot_lib.rays(shot, x[..., 0], y[..., 0]) @ moved[:3, :3].T
      found.append(plucker(moved[:3, 3], direction).astype(np.float32))
    return found

  def embed(self, x_NPC: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, known = masked(x_NPC)
    return values, known.all(-1)


def plucker(origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
  """(..., 6) of rays from `origin` (..., 3) along `direction` (..., 3), of any length."""
  direction = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
  return np.concatenate([direction, np.cross(np.broadcast_to(origin, direction.shape), direction)], -1)
