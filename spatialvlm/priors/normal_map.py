"""Kind "normal_map": a map of surface normals as a further input, through a connector of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from spatialvlm import shots as shot_lib
from spatialvlm.priors.prior import Prior, Tokens, masked
from spatialvlm.types import Shot, UserError


@dataclasses.dataclass(frozen=True)
class NormalMap(Prior):
  """Normals at cells x cells places of what each image token shows, in the camera's axes, and where they are
  known; as `depth_map`.

  Attributes:
    cells: places along a side of a token.
  """

  cells: int = 4
  needs: ClassVar[tuple[str, ...]] = ("normals",)

  def __post_init__(self):
    super().__post_init__()
    if self.cells < 1:
      raise UserError("cells must be at least 1")

  @property
  def channels(self) -> int:
    return 3 * self.cells**2

  @property
  def features(self) -> int:
    return 4 * self.cells**2

  def read(self, shots: Sequence[Shot], tokens: Sequence[Tokens]) -> list[np.ndarray]:
    found = []
    for shot, place in zip(shots, tokens, strict=True):
      normals = shot_lib.at(shot_lib.normals_of(shot), *place.places(self.cells))  # (I, P, cells^2, 3)
      found.append(normals.astype(np.float32).reshape(*normals.shape[:2], -1))
    return found

  def embed(self, x_NPC: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, known = masked(x_NPC)
    known_NPk = known.reshape(*known.shape[:2], -1, 3).all(-1)
    return jnp.concatenate([values, known_NPk.astype(values.dtype)], -1), known_NPk.any(-1)
