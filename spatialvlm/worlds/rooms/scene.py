"""A layout as the arrays that the ray caster reads: one row a solid, in the camera's axes."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from spatialvlm.worlds.rooms.classes import CLASSES, MAX_PARTS
from spatialvlm.worlds.rooms.dial import MAX_THINGS
from spatialvlm.worlds.rooms.layout import LIGHTS, Layout, Surface, Thing
from spatialvlm.worlds.rooms.parts import COLORS, MATERIALS

SOLIDS = MAX_THINGS * MAX_PARTS
_PAINT = np.array(list(COLORS.values()), np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
  """What a camera of focal length `focal` (share of the width) sees, P solids of N things.

  Attributes:
    turn: (P, 3, 3) from the camera's axes into a solid's, scaled to its cube [-1, 1]^3; origin: (P, 3) the
      camera's place there. quadric: (P, 4). center: (P, 3) in the camera's axes, metres; radius: (P,), 0
      where there is no solid. owner: (P,) int32, the thing that a solid belongs to.
    look: (P, 5) albedo, pattern as of a thing, and its frequency.
    rotation (3, 3) camera to world, position (3,) metres, focal ().
    bounds: (5,) as of a layout. outdoors: () 0 or 1.
    surface: (3, 6) of floor, wall and ceiling: albedo, pattern, cell, contrast.
    light: (LIGHTS, 3) positions in the camera's axes; lamp: (LIGHTS, 5) radius, colour, reach. ambient: (3,).
  """

  turn: np.ndarray
  origin: np.ndarray
  quadric: np.ndarray
  center: np.ndarray
  radius: np.ndarray
  owner: np.ndarray
  look: np.ndarray
  rotation: np.ndarray
  position: np.ndarray
  focal: np.ndarray
  bounds: np.ndarray
  outdoors: np.ndarray
  surface: np.ndarray
  light: np.ndarray
  lamp: np.ndarray
  ambient: np.ndarray


def _axes(thing: Thing) -> np.ndarray:
  """(3, 3): columns are the thing's axes in the world."""
  c, s = math.cos(thing.yaw), math.sin(thing.yaw)
  return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _tilted(angles: np.ndarray) -> np.ndarray:
  """(K, 3, 3): about the y axis, the top towards -x."""
  made = np.tile(np.eye(3), (len(angles), 1, 1))
  made[:, 0, 0] = made[:, 2, 2] = np.cos(angles)
  made[:, 2, 0] = np.sin(angles)
  made[:, 0, 2] = -np.sin(angles)
  return made


def _albedo(thing: Thing, materials: tuple[str, ...]) -> np.ndarray:
  paint = _PAINT[thing.color]
  own = {"paint": paint, "shade": 0.62 * paint + 0.02}
  return np.array([own[m] if m in own else MATERIALS[m] for m in materials], np.float32)


def _surface(surface: Surface) -> list[float]:
  return [*surface.albedo, float(surface.pattern), surface.cell, surface.contrast]


def build(layout: Layout) -> Scene:
  """The arrays of one layout, padded to SOLIDS."""
  rotation, position = layout.camera.rotation, layout.camera.position
  turn, origin, center = np.zeros((SOLIDS, 3, 3)), np.zeros((SOLIDS, 3)), np.zeros((SOLIDS, 3))
  quadric, radius, owner = np.zeros((SOLIDS, 4)), np.zeros(SOLIDS), np.zeros(SOLIDS, np.int32)
  look = np.ones((SOLIDS, 5))
  at = 0
  for number, thing in enumerate(layout.things):
    solids = CLASSES[thing.kind].solids
    rows = slice(at, at := at + len(solids.tilt))
    axes, size = _axes(thing), np.array(thing.size)
    half = solids.half * size
    own = np.take_along_axis(half, solids.order, 1)
    middle = thing.center + (solids.middle * size) @ axes.T
    into = np.einsum("ij,kjl,klm->kim", axes, _tilted(solids.tilt), solids.axes)
    scaled = np.swapaxes(into, 1, 2) / own[..., None]  # from the world's axes into the solid's cube
    turn[rows] = scaled @ rotation
    origin[rows] = np.einsum("kij,kj->ki", scaled, position - middle)
    center[rows] = (middle - position) @ rotation
    quadric[rows], radius[rows], owner[rows] = solids.quadric, np.linalg.norm(own, axis=1), number
    look[rows, :3] = _albedo(thing, solids.material)
    painted = np.array([m == "paint" for m in solids.material])
    look[rows, 3] = np.where(painted, thing.pattern, 0)
    look[rows, 4] = 1.5 + (number % 3)
  light, lamp = np.zeros((LIGHTS, 3)), np.ones((LIGHTS, 5))
  lamp[:, 1:4] = 0
  for k, one in enumerate(layout.lights):
    light[k] = (np.array(one.position) - position) @ rotation
    lamp[k] = one.radius, *one.color, one.reach
  f = lambda a: np.asarray(a, np.float32)
  return Scene(
    f(turn), f(origin), f(quadric), f(center), f(radius), owner, f(look),
    f(rotation), f(position), f(layout.camera.focal), f(layout.bounds), f(float(layout.outdoors)),
    f([_surface(s) for s in (layout.floor, layout.wall, layout.ceiling)]), f(light), f(lamp),
    f(layout.ambient),
  )  # fmt: skip


def stacked(scenes: list[Scene]) -> Scene:
  """Scenes along a new first axis."""
  return jax.tree.map(lambda *arrays: np.stack(arrays), *scenes)
