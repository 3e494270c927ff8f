"""From the shots of an example's pictures to the arrays that travel with its tiles (NumPy, on the host)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spatialvlm.config import PriorConfig
from spatialvlm.priors.prior import Prior, Tokens, windows
from spatialvlm.priors.table import make_priors
from spatialvlm.types import Shot, UserError

# What a shot may lack, in words.
_LACKS = {
  "focal": "the camera's focal length",
  "pose": "the camera's pose",
  "depth": "a map of depth",
  "normals": "normals, or depth and a focal length",
}


class Reader:
  """Reads all priors of a config. Safe to use from several threads.

  Attributes:
    priors: by name.
  """

  def __init__(self, configs: Mapping[str, PriorConfig], tokens_per_tile: int):
    """Raises a UserError as `make_priors`, or where the image tokens of a tile are no square."""
    self.priors: dict[str, Prior] = make_priors(configs)
    self._missing = {name: config.missing for name, config in configs.items()}
    self._side = math.isqrt(tokens_per_tile)
    if self.priors and self._side**2 != tokens_per_tile:
      raise UserError(
        f"config.priors: {tokens_per_tile} image tokens of a tile are no square, so that nobody knows"
        " where each lies"
      )

  def __call__(
    self, shots: Sequence[Shot], grids: Sequence[tuple[int, int]], blind: bool = False
  ) -> dict[str, np.ndarray]:
    """The array of each prior by name, float32 (I, P, C) over the tiles of all pictures, in their order.

    Args:
      shots: of the pictures, in their order; empty where nobody knows how they were taken.
      grids: rows and columns of each picture's tiles, its global view not counted.
      blind: nothing is looked up; every token knows nothing.

    Raises:
      UserError: a shot lacks what a prior needs, and its `missing` is "refuse".
    """
    if shots and len(shots) != len(grids):
      raise UserError(f"{len(shots)} shots of {len(grids)} pictures; give one for each, or none")
    tokens = [Tokens(windows(*grid), self._side) for grid in grids]
    found = {}
    for name, prior in self.priors.items():
      lacks = "" if blind or not grids else self._lacks(name, prior, shots, len(grids))
      known = grids and not blind and not lacks
      parts = prior.read(shots, tokens) if known else [self._nothing(prior, t) for t in tokens]
      found[name] = np.concatenate([np.zeros((0, self._side**2, prior.channels), np.float32), *parts])
    return found

  def _lacks(self, name: str, prior: Prior, shots: Sequence[Shot], pictures: int) -> str:
    """What is missing, where that is allowed; empty where nothing is."""
    lacks = ""
    for number, shot in enumerate(shots or [Shot()] * pictures, 1):
      lacks = lacks or next(
        (
          f"{_LACKS[want]}" + (f" of picture {number}" if pictures > 1 else "")
          for want in prior.wants(pictures)
          if not _has(shot, want)
        ),
        "",
      )
    if lacks and self._missing[name] == "refuse":
      raise UserError(
        f"prior {name!r} needs {lacks}, which the data do not say; sources of kind scenes, skills, views,"
        f" rgbd and posed can; or leave the prior out, or let such pictures go without"
        f" (config.priors.{name}.missing or score.missing_priors=without)"
      )
    return lacks

  def _nothing(self, prior: Prior, tokens: Tokens) -> np.ndarray:
    return np.full((len(tokens.windows), self._side**2, prior.channels), np.nan, np.float32)


def reader_of(configs: Mapping[str, PriorConfig]) -> Callable[[int], Reader] | None:
  """What `load_processor` takes as `priors`; None where there are none."""
  return functools.partial(Reader, dict(configs)) if configs else None


def with_missing(configs: Mapping[str, PriorConfig], missing: str) -> dict[str, PriorConfig]:
  """The same priors, with another answer to pictures that lack something; "" for their own."""
  return {
    name: dataclasses.replace(config, missing=missing) if missing else config
    for name, config in configs.items()
  }


def _has(shot: Shot, want: str) -> bool:
  if want == "normals":
    return shot.normals is not None or (shot.depth is not None and shot.focal is not None)
  return getattr(shot, want) is not None
