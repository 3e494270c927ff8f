"""Kind "positions": where in space what an image token shows lies."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from spatialvlm import shots as shot_lib
from spatialvlm.priors.prior import Frame, Prior, Tokens, masked, to_frame
from spatialvlm.types import Shot, UserError


@dataclasses.dataclass(frozen=True)
class Positions(Prior):
  """The middle of a token, back-projected by the median depth of what it shows: x, y, z in metres.

  Their sines and cosines (Mildenhall et al., arXiv 2003.08934) go through a small network and are added to
  the image tokens, as LLaVA-3D's 3D patches have it (arXiv 2409.18125).

  Attributes:
    frame: "first": in the axes of the example's first camera; "world": in the world's, whose z is up.
    extent: metres that half of the lowest wave spans.
    waves: wave lengths, each half of the one before.
    cells: depth is looked up at cells x cells places of a token.
  """

  frame: Frame = "first"
  extent: float = 10.0
  waves: int = 6
  cells: int = 4
  needs: ClassVar[tuple[str, ...]] = ("focal", "depth")

  def __post_init__(self):
    super().__post_init__()
    if not self.extent > 0 or self.waves < 1 or self.cells < 1:
      raise UserError("extent must be above 0 metres, waves and cells at least 1")

  @property
  def channels(self) -> int:
    return 3

  @property
  def features(self) -> int:
    return 3 + 6 * self.waves

  def read(self, shots: Sequence[Shot], tokens: Sequence[Tokens]) -> list[np.ndarray]:
    found = []
    for shot, place, moved in zip(shots, tokens, to_frame(shots, self.frame), strict=True):
      depth = shot_lib.at(shot.depth(), *place.places(self.cells)).astype(np.float64)
      depth[~(depth > 0)] = np.nan
      with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of tokens without any depth
        middle = np.nanmedian(depth, axis=-1)
      x, y = place.places()
      point = shot_lib.rays(shot, x[..., 0], y[..., 0]) * middle[..., None]
      found.append((point @ moved[:3, :3].T + moved[:3, 3]).astype(np.float32))
    return found

  def embed(self, x_NPC: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, known = masked(x_NPC / self.extent)
    phases = values[..., None] * (jnp.pi * 2.0 ** jnp.arange(self.waves))
    waves = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], -1)
    return jnp.concatenate([values, waves.reshape(*values.shape[:-1], -1)], -1), known.all(-1)
