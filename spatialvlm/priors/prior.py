"""What a prior is: what it takes of a picture's shot, and the features that are made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from spatialvlm.types import Shot, UserError

Frame = Literal["first", "world"]


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
  """Where the image tokens of one picture lie.

  Attributes:
    windows: float64 (I, 4), what each of its tiles shows of the picture: x0, y0, x1, y1 as shares of it.
    side: image tokens along a side of a tile, which stand row by row.
  """

  windows: np.ndarray
  side: int

  def places(self, cells: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of cells x cells even places in each token, (I, P, cells * cells) shares of the picture each."""
    count = self.side * cells
    steps = (np.arange(count) + 0.5) / count
    low, high = self.windows[:, None, :2], self.windows[:, None, 2:]
    x, y = np.moveaxis(low + (high - low) * steps[None, :, None], -1, 0)  # (I, count) each
    x, y = np.broadcast_arrays(x[:, None, :], y[:, :, None])
    cut = lambda v: v.reshape(len(v), self.side, cells, self.side, cells).transpose(0, 1, 3, 2, 4)
    flat = lambda v: cut(v).reshape(len(v), self.side**2, cells**2)
    return flat(x), flat(y)


def windows(rows: int, cols: int) -> np.ndarray:
  """float64 (I, 4): what the tiles of a picture show of it, the grid row by row, then all of it.

  All tilers stretch the picture over the grid first, so that each tile shows an even part.
  """
  grid = [(c / cols, r / rows, (c + 1) / cols, (r + 1) / rows) for r in range(rows) for c in range(cols)]
  return np.array([*grid, (0.0, 0.0, 1.0, 1.0)])


@dataclasses.dataclass(frozen=True)
class Prior:
  """A prior: a frozen dataclass whose fields are what `config.priors.NAME.kwargs` may hold.

  Attributes:
    width: units of the layer between features and the projection that starts at zero.
  """

  width: int = 128

  # What of a `Shot` it cannot do without: "focal", "depth"; "pose" is asked of several pictures, or `frame`.
  needs: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    if self.width < 1:
      raise UserError(f"width: {self.width} units; use at least 1")

  @property
  def channels(self) -> int:
    """C, numbers of a token that travel in the batch."""
    raise NotImplementedError

  @property
  def features(self) -> int:
    """E, numbers that `embed` makes of them."""
    raise NotImplementedError

  def wants(self, pictures: int) -> tuple[str, ...]:
    """What each shot of an example of so many pictures must say."""
    frame = getattr(self, "frame", None)
    return (*self.needs, *(["pose"] if frame == "world" or (frame and pictures > 1) else []))

  def read(self, shots: Sequence[Shot], tokens: Sequence[Tokens]) -> list[np.ndarray]:
    """Physical values of the tokens of each picture, float32 (I, P, C), NaN where nothing is known.

    Args:
      shots: of the pictures, in their order, which say what is in `wants`.
    """
    raise NotImplementedError

  def embed(self, x_NPC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features (N, P, E), finite everywhere, and whether a token knows anything, (N, P); traced."""
    raise NotImplementedError


def to_frame(shots: Sequence[Shot], frame: Frame) -> list[np.ndarray]:
  """(4, 4) float64 of each shot: from its camera to the first one's, or to the world.

  The world is moved so that the first camera stands over its origin: where on the map it is says nothing.
  """
  if frame == "world":
    poses = [np.array(shot.pose, np.float64) for shot in shots]
    foot = poses[0][:2, 3].copy()
    for pose in poses:
      pose[:2, 3] -= foot
    return poses
  if len(shots) == 1:
    return [np.eye(4)]
  back = np.linalg.inv(np.asarray(shots[0].pose, np.float64))
  return [np.eye(4), *(back @ np.asarray(shot.pose, np.float64) for shot in shots[1:])]


def masked(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Values with 0 for NaN, and where they are known."""
  known = jnp.isfinite(x)
  return jnp.where(known, x, 0.0), known
