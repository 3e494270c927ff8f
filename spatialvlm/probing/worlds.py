"""Rendered scenes as what probes are asked: a picture is a grid of cells, numbered row by row.

Suffixes beyond those of `types`: C cells, Z names ("yellow cone"), M objects that can be named, Q pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from spatialvlm.config import ProbeConfig
from spatialvlm.types import UserError
from spatialvlm.worlds import world

NAMES = tuple(f"{color} {shape}" for color in world.COLORS for shape in world.SHAPES)
# Objects are "left of" one another when their centres are this far apart, as a share of the picture, and
# "nearer" when their depths differ by this share of the farther one.
APART, NEARER = 0.1, 0.1
_CHUNK = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Worlds:
  """Scenes in order: those probes are fitted on, those that choose penalties, those of the test.

  Attributes:
    images: uint8 (N, R, R, 3).
    depth_NC: float32 metres along the optical axis, the mean over a cell; NaN where most of the cell is sky,
      or it is farther than the config's `farthest`.
    names_NCZ: float32, the share of a cell that objects of each name cover.
    named_M2: int32 (scene, name) of each object that is alone with its name in its picture and well in sight.
    centres_M2: float32 (x, y) of the middle of its box, as shares of the picture.
    pair_scene_Q: int32, the scene of each pair of objects well in sight at depths that differ. Among pairs
      that lie equally far apart from top to bottom, the lower object is as often the farther as the nearer.
    pair_QC: float32, where the first object lies minus where the second does, each a distribution over cells.
    first_nearer_Q: bool.
    count_N: int32, objects in sight, however little of them shows.
    part_N: int8, 0 for the scenes that probes are fitted on, 1 validation, 2 test.
  """

  images: np.ndarray
  depth_NC: np.ndarray
  names_NCZ: np.ndarray
  named_M2: np.ndarray
  centres_M2: np.ndarray
  pair_scene_Q: np.ndarray
  pair_QC: np.ndarray
  first_nearer_Q: np.ndarray
  count_N: np.ndarray
  part_N: np.ndarray

  @property
  def cells(self) -> int:
    return self.depth_NC.shape[1]


def render(config: ProbeConfig, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Worlds:
  """The scenes 0, 1, ... of world `config.seed`; the same config renders the same ones."""
  parts = (config.scenes, config.validation, config.test)
  total = sum(parts)
  images, depths, names, named, centres, pairs, counts = [], [], [], [], [], [], []
  for start in range(0, total, _CHUNK):
    numbers = range(start, min(start + _CHUNK, total))
    for number, frame in zip(numbers, world.frames(config.seed, numbers, config.render_size), strict=True):
      images.append(frame.image)
      counts.append(len(frame.objects))
      depths.append(_depth(frame, config.grid, config.farthest))
      shares = {o.index: cell_means(frame.instance == o.index, config.grid) for o in frame.objects}
      names.append(_names(frame, shares, config.grid))
      for o in frame.named():
        named.append((number, NAMES.index(o.name)))
        centres.append(_centre(o, config.render_size))
      rng = np.random.default_rng((config.seed, number))
      pairs += [(number, *pair) for pair in _pairs(frame, shares, rng)]
    on_progress(numbers.stop, total)
  part_N = np.repeat(np.arange(3, dtype=np.int8), parts)
  pairs = _balanced(pairs, part_N, config)
  scene, difference, nearer = zip(*pairs, strict=True) if pairs else ((), (), ())
  return _complete(
    Worlds(
      images=np.stack(images),
      depth_NC=np.stack(depths),
      names_NCZ=np.stack(names),
      named_M2=np.array(named, np.int32).reshape(-1, 2),
      centres_M2=np.array(centres, np.float32).reshape(-1, 2),
      pair_scene_Q=np.array(scene, np.int32),
      pair_QC=np.array(difference, np.float32).reshape(-1, config.grid**2),
      first_nearer_Q=np.array(nearer, bool),
      count_N=np.array(counts, np.int32),
      part_N=part_N,
    )
  )


def _complete(worlds: Worlds) -> Worlds:
  """Raises a UserError where a part of the scenes asks nothing."""
  kinds = {
    "cells with a depth": np.nonzero(np.isfinite(worlds.depth_NC))[0],
    "objects that can be named": worlds.named_M2[:, 0],
    "pairs of objects": worlds.pair_scene_Q,
  }
  for part, name in enumerate(("scenes", "validation", "test")):
    for what, scenes in kinds.items():
      if not (worlds.part_N[scenes] == part).any():
        raise UserError(f"config.{name}: too few scenes, there are no {what} in them")
  return worlds


def cell_means(map_HW: np.ndarray, grid: int) -> np.ndarray:
  """(C,) float32: the mean of a square map over each cell."""
  edge = map_HW.shape[0] // grid
  return map_HW.reshape(grid, edge, grid, edge).mean((1, 3), dtype=np.float32).reshape(-1)


def _depth(frame: world.Frame, grid: int, farthest: float) -> np.ndarray:
  surface = cell_means(frame.depth > 0, grid)
  with np.errstate(invalid="ignore", divide="ignore"):
    mean = cell_means(frame.depth, grid) / surface  # sky has depth 0
  return np.where((surface >= 0.5) & (mean <= farthest), mean, np.nan).astype(np.float32)


def _names(frame: world.Frame, shares: dict[int, np.ndarray], grid: int) -> np.ndarray:
  found = np.zeros((grid * grid, len(NAMES)), np.float32)
  for o in frame.objects:
    found[:, NAMES.index(o.name)] += shares[o.index]
  return found


def _centre(o: world.SceneObject, size: int) -> tuple[float, float]:
  x0, y0, x1, y1 = o.box
  return (x0 + x1) / 2 / size, (y0 + y1) / 2 / size


def _balanced(pairs: list[tuple], part_N: np.ndarray, config: ProbeConfig) -> list[tuple]:
  """Leaves out pairs until the lower object of two is as often the farther as the nearer one.

  So it is in each part, and among pairs of each distance between top and bottom, in tenths of the picture:
  where things lie would else nearly say how far they are.
  """
  rows = np.repeat((np.arange(config.grid) + 0.5) / config.grid, config.grid)
  groups: dict[tuple[int, int], tuple[list, list]] = {}
  for place, (scene, difference, nearer) in enumerate(pairs):
    below = float(difference @ rows)
    group = groups.setdefault((int(part_N[scene]), int(10 * abs(below))), ([], []))
    group[int((below > 0) == nearer)].append(place)
  rng = np.random.default_rng(config.seed)
  kept: list[int] = []
  for _, sides in sorted(groups.items()):
    for side in sides:
      kept += rng.permutation(side)[: min(map(len, sides))].astype(int).tolist()
  return [pairs[place] for place in sorted(kept)]


def _pairs(frame: world.Frame, shares: dict[int, np.ndarray], rng: np.random.Generator):
  """Pairs of objects in sight, each pair once and in an order that says nothing."""
  clear = [o for o in frame.objects if o.clear]
  found = []
  for i, first in enumerate(clear):
    for second in clear[i + 1 :]:
      near, far = sorted((first.center_camera[2], second.center_camera[2]))
      if far - near < NEARER * far:
        continue
      a, b = (first, second) if rng.random() < 0.5 else (second, first)
      where_a, where_b = (shares[o.index] / shares[o.index].sum() for o in (a, b))
      found.append((where_a - where_b, bool(a.center_camera[2] < b.center_camera[2])))
  return found
