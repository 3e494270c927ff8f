"""The solids that things are composed of, and how a thing's parts are written down.

A part is a solid within a box, in the thing's own frame: x runs from its back (-0.5) to its front (0.5), y
from its right to its left (0.5), z from its foot (0) to its top (1), all as shares of the thing's size in
metres.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Box = tuple[float, float, float, float, float, float]

# Colours that things are painted in, linear RGB from 0 to 1.
COLORS = {
  "yellow": (0.88, 0.72, 0.12),
  "orange": (0.88, 0.42, 0.08),
  "purple": (0.42, 0.16, 0.56),
  "pink": (0.90, 0.48, 0.62),
  "cyan": (0.16, 0.66, 0.72),
  "white": (0.88, 0.88, 0.86),
  "black": (0.06, 0.06, 0.07),
  "red": (0.66, 0.07, 0.07),
  "green": (0.10, 0.42, 0.14),
  "blue": (0.10, 0.20, 0.62),
}
# Those that a name may say: no drawn box has them.
NAMED_COLORS = ("yellow", "orange", "purple", "pink", "cyan", "white", "black")

# What is not painted. "paint" is the thing's own colour, "shade" a darker tone of it.
MATERIALS = {
  "wood": (0.50, 0.33, 0.19),
  "oak": (0.66, 0.49, 0.31),
  "card": (0.62, 0.46, 0.29),
  "metal": (0.58, 0.59, 0.61),
  "dark": (0.07, 0.07, 0.08),
  "white": (0.86, 0.85, 0.82),
  "cream": (0.82, 0.76, 0.62),
  "lit": (1.25, 1.18, 0.95),
  "glass": (0.55, 0.72, 0.86),
  "screen": (0.10, 0.16, 0.26),
  "leaf": (0.13, 0.36, 0.10),
  "grass": (0.22, 0.48, 0.14),
  "bark": (0.30, 0.20, 0.12),
  "clay": (0.62, 0.30, 0.18),
  "skin": (0.80, 0.58, 0.45),
  "hair": (0.16, 0.10, 0.06),
  "cloth": (0.20, 0.24, 0.34),
  "fur": (0.46, 0.30, 0.16),
  "rubber": (0.05, 0.05, 0.05),
  "red": (0.66, 0.07, 0.07),
  "stone": (0.45, 0.44, 0.42),
  "brick": (0.52, 0.25, 0.18),
}


class Part(NamedTuple):
  """One solid of a thing.

  Attributes:
    quadric: (k_xy, k_zz, k_z, k_0) of what within the cube [-1, 1]^3 is solid: where
      k_xy (x^2 + y^2) + k_zz z^2 + k_z z + k_0 <= 0.
    box: (x0, x1, y0, y1, z0, z1), its place.
    material: a key of MATERIALS, "paint" or "shade".
    axis: the thing's axis that the solid's own z points along: "x", "y", "z", or "-z" for upside down.
    tilt: radians by which it leans back about the thing's y axis, after all else.
  """

  quadric: tuple[float, float, float, float]
  box: Box
  material: str
  axis: str = "z"
  tilt: float = 0.0


_BLOCK = (0.0, 0.0, 0.0, -1.0)
_BALL = (1.0, 1.0, 0.0, -1.0)
_TUBE = (1.0, 0.0, 0.0, -1.0)
_DOME = (1.0, 0.25, 0.5, -0.75)
_BELLY = (1.0, 0.5, 0.0, -1.0)


def block(*box: float, m: str = "paint", tilt: float = 0.0) -> Part:
  return Part(_BLOCK, box, m, tilt=np.deg2rad(tilt))


def ball(*box: float, m: str = "paint") -> Part:
  return Part(_BALL, box, m)


def tube(*box: float, m: str = "paint", axis: str = "z") -> Part:
  return Part(_TUBE, box, m, axis)


def dome(*box: float, m: str = "paint", axis: str = "z") -> Part:
  return Part(_DOME, box, m, axis)


def belly(*box: float, m: str = "paint") -> Part:
  """A barrel."""
  return Part(_BELLY, box, m)


def cone(*box: float, m: str = "paint", top: float = 0.0, axis: str = "z") -> Part:
  """A cone, cut where its radius is `top` of that of its base."""
  a, b = (1 + top) / 2, (1 - top) / 2
  return Part((1.0, -b * b, 2 * a * b, -a * a), box, m, axis)


def legs(thick: float, high: float, m: str = "wood", inset: float = 0.0) -> list[Part]:
  """Four, `thick` a pair of shares along x and y alike."""
  e, i = 0.5 - inset - thick, 0.5 - inset
  ends = ((-i, -e), (e, i))
  return [block(*x, *y, 0.0, high, m=m) for x in ends for y in ends]


# Columns of the map from a solid's own axes to the thing's, by the axis that its z points along.
_AXES = {
  "z": np.eye(3),
  "-z": np.diag([1.0, -1.0, -1.0]),
  "x": np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]),
  "y": np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
}


class Solids(NamedTuple):
  """The parts of one class, as arrays with K parts first.

  Attributes:
    middle, half: (K, 3) shares of the thing's size, `half` along the thing's axes.
    axes: (K, 3, 3), columns are the solid's axes in the thing's frame. order: (K, 3) which of the thing's
      axes each of the solid's lies along. tilt: (K,) radians.
    quadric: (K, 4). material: names.
  """

  middle: np.ndarray
  half: np.ndarray
  axes: np.ndarray
  order: np.ndarray
  tilt: np.ndarray
  quadric: np.ndarray
  material: tuple[str, ...]


def solids(parts: list[Part]) -> Solids:
  box = np.array([part.box for part in parts]).reshape(-1, 3, 2)
  middle = box.mean(2)
  middle[:, 2] -= 0.5  # from the foot to the middle of the thing
  axes = np.stack([_AXES[part.axis] for part in parts])
  return Solids(
    middle=middle,
    half=np.maximum((box[..., 1] - box[..., 0]) / 2, 1e-3),
    axes=axes,
    order=np.abs(axes).argmax(1),
    tilt=np.array([part.tilt for part in parts]),
    quadric=np.array([part.quadric for part in parts]),
    material=tuple(part.material for part in parts),
  )
