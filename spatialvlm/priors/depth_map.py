"""Kind "depth_map": a map of depth as a further input, through a connector of its own."""

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
class DepthMap(Prior):
  """Depth at cells x cells places of what each image token shows: logarithms of metres, and where they are
  known.

  SmolRGPT (arXiv 2509.15490) and SpatialRGPT (arXiv 2406.01584), the nearest published, show depth as a
  picture to the same vision tower, bring it through a connector of its own, and pool it over regions. Here
  metres go straight to the second connector, and are added to the picture's tokens: no second pass of the
  tower, no longer prompt.

  Attributes:
    cells: places along a side of a token.
    middle: metres whose feature is 0, those of an ordinary place, so that features lie around it.
  """

  cells: int = 4
  middle: float = 4.0
  needs: ClassVar[tuple[str, ...]] = ("depth",)

  def __post_init__(self):
    super().__post_init__()
    if self.cells < 1 or not self.middle > 0:
      raise UserError("cells must be at least 1, middle above 0 metres")

  @property
  def channels(self) -> int:
    return self.cells**2

  @property
  def features(self) -> int:
    return 2 * self.cells**2

  def read(self, shots: Sequence[Shot], tokens: Sequence[Tokens]) -> list[np.ndarray]:
    found = []
    for shot, place in zip(shots, tokens, strict=True):
      depth = shot_lib.at(shot.depth(), *place.places(self.cells)).astype(np.float32)
      found.append(np.where(depth > 0, depth, np.float32(np.nan)))
    return found

  def embed(self, x_NPC: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, known = masked(jnp.log(jnp.maximum(x_NPC, 1e-3) / self.middle))
    return jnp.concatenate([values, known.astype(values.dtype)], -1), known.any(-1)
