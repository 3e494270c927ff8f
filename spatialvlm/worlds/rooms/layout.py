"""Draws scenes: a room or a place outdoors, a camera, lights, and what stands, lies and hangs there.

Plain Python from one stream of random numbers, which a seed and a scene's number begin: the same on any
machine. Things stand on the floor and on one another, hang on walls, from the ceiling and in the air, so
that neither the lower edge nor the size of a box says by itself which of two things is nearer.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import numpy as np

from spatialvlm.worlds.rooms import camera as cameras
from spatialvlm.worlds.rooms.camera import Camera, Rig
from spatialvlm.worlds.rooms.classes import CLASSES, NUMBER, placed
from spatialvlm.worlds.rooms.dial import MAX_THINGS, dial
from spatialvlm.worlds.rooms.parts import COLORS

# What a thing stands on where that is no other thing.
FLOOR, WALL, CEILING, AIR = -1, -2, -3, -4
SUPPORTS = {FLOOR: "floor", WALL: "wall", CEILING: "ceiling", AIR: "air"}
SKY = 400.0
LIGHTS = 3
_TRIES = 14
_REPEATED = (
  "chair",
  "book",
  "bottle",
  "mug",
  "ball",
  "box",
  "stool",
  "apple",
  "painting",
  "balloon",
  "vase",
  "bowl",
)
_REPEATED_OUT = ("car", "tree", "person", "traffic cone", "ball", "box", "bench", "balloon", "bush")


@dataclasses.dataclass(frozen=True)
class Thing:
  """One thing.

  Attributes:
    kind: index into CLASSES. color: index into COLORS, whether it is painted or not.
    size: depth, width, height in metres. foot: x, y, z of the middle of its foot. yaw: radians of its front.
    support: the number of the thing that it stands on, or FLOOR, WALL, CEILING, AIR.
    pattern: 0 plain, 1 stripes, 2 checked.
  """

  kind: int
  color: int
  size: tuple[float, float, float]
  foot: tuple[float, float, float]
  yaw: float
  support: int
  pattern: int = 0

  @property
  def kind_name(self) -> str:
    return CLASSES[self.kind].name

  @property
  def center(self) -> np.ndarray:
    return np.array([self.foot[0], self.foot[1], self.foot[2] + self.size[2] / 2])

  @property
  def girth(self) -> float:
    """Radius of the circle around its foot."""
    return math.hypot(self.size[0], self.size[1]) / 2

  @property
  def reach(self) -> tuple[float, float]:
    """Half of what it takes along x and y of the world."""
    c, s = abs(math.cos(self.yaw)), abs(math.sin(self.yaw))
    return (c * self.size[0] + s * self.size[1]) / 2, (s * self.size[0] + c * self.size[1]) / 2


@dataclasses.dataclass(frozen=True)
class Surface:
  """Attributes: albedo; pattern, index into `render.PATTERNS`; cell: metres; contrast."""

  albedo: tuple[float, float, float]
  pattern: int
  cell: float
  contrast: float


@dataclasses.dataclass(frozen=True)
class Light:
  """Attributes: position and radius in metres; color: strength by colour; reach: metres to a half."""

  position: tuple[float, float, float]
  radius: float
  color: tuple[float, float, float]
  reach: float


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
  """A drawn scene.

  Attributes:
    things: at most MAX_THINGS. camera, rig: who looks.
    bounds: (x0, x1, y0, y1, height) of the room in metres, SKY away outdoors.
    floor, wall, ceiling: surfaces. lights: at most LIGHTS. ambient: light from everywhere, by colour.
  """

  things: tuple[Thing, ...]
  camera: Camera
  rig: Rig
  bounds: tuple[float, float, float, float, float]
  floor: Surface
  wall: Surface
  ceiling: Surface
  lights: tuple[Light, ...]
  ambient: tuple[float, float, float]

  @property
  def outdoors(self) -> bool:
    return self.rig.outdoors

  def painted(self, colors: Sequence[int]) -> Layout:
    """The same scene with other colours of its things."""
    things = (dataclasses.replace(t, color=int(c)) for t, c in zip(self.things, colors, strict=True))
    return dataclasses.replace(self, things=tuple(things))


def sample(seed: int, number: int, difficulty: float) -> Layout:
  """Scene `number` of world `seed`."""
  draw = random.Random(seed << 32 | number)
  rig, settings = cameras.pick(draw), dial(difficulty)
  bounds, spot, heading = _place(draw, rig)
  camera = cameras.sample(draw, rig, spot, heading)
  builder = _Builder(draw, rig, camera, heading, bounds, settings.spread)
  builder.fill(settings.things)
  floor, wall, ceiling = _surfaces(draw, rig.outdoors)
  lights, ambient = _lights(draw, bounds, camera, heading, rig.outdoors)
  return Layout(tuple(builder.things), camera, rig, bounds, floor, wall, ceiling, lights, ambient)


def _pick(draw: random.Random, options: Sequence, weights: Sequence[float] | None = None):
  if weights is None:
    return options[min(int(draw.random() * len(options)), len(options) - 1)]
  at = draw.random() * sum(weights)
  for option, weight in zip(options, weights, strict=True):
    at -= weight
    if at < 0:
      return option
  return options[-1]


def _place(draw: random.Random, rig: Rig):
  """The bounds of the place, where the camera stands in it, and where it looks."""
  if rig.outdoors:
    return (-SKY, SKY, -SKY, SKY, SKY), (0.0, 0.0), draw.uniform(-math.pi, math.pi)
  wide, deep, high = draw.uniform(4.0, 7.0), draw.uniform(4.2, 7.6), draw.uniform(2.4, 3.2)
  gap, along = draw.uniform(0.25, 0.7), draw.uniform(0.25, 0.75)
  side = int(draw.random() * 4)
  turn = math.radians(draw.uniform(-32, 32))
  if side < 2:  # at the walls x = 0 and x = wide
    spot = (gap if side == 0 else wide - gap, along * deep)
    heading = (0.0 if side == 0 else math.pi) + turn
  else:
    spot = (along * wide, gap if side == 2 else deep - gap)
    heading = (math.pi / 2 if side == 2 else -math.pi / 2) + turn
  return (0.0, wide, 0.0, deep, high), spot, heading


class _Builder:
  """Puts things one by one where they fit and can be seen."""

  def __init__(self, draw: random.Random, rig: Rig, camera: Camera, heading: float, bounds, spread: float):
    self.draw, self.rig, self.camera, self.heading = draw, rig, camera, heading
    self.bounds, self.spread = bounds, spread
    self.things: list[Thing] = []
    self._seen: list[tuple[float, float, float]] = []  # place in the picture, radius there
    self._half_view = math.atan(0.5 / camera.focal)

  def fill(self, number: tuple[int, int]) -> None:
    draw = self.draw
    count = min(int(draw.uniform(number[0], number[1] + 1)), MAX_THINGS)
    outdoors = self.rig.outdoors
    repeated, left = -1, 0
    if draw.random() < 0.6:
      repeated = NUMBER[_pick(draw, _REPEATED_OUT if outdoors else _REPEATED)]
      left = 2 + int(draw.random() * 5)
    if not outdoors:
      for name in ("table", "shelf")[: 1 + (draw.random() < 0.5)]:
        if draw.random() < 0.85:
          self._put(NUMBER[name])
    for _ in range(count * 4):
      if len(self.things) >= count:
        return
      if left:
        left -= 1
        self._put(repeated)
      else:
        self._put(self._drawn_kind())

  def _drawn_kind(self) -> int:
    draw = self.draw
    if self.rig.outdoors:
      place = _pick(draw, ("outdoors", "outdoors_air"), (0.88, 0.12))
    else:
      place = _pick(draw, ("floor", "top", "wall", "ceiling", "air"), (0.32, 0.40, 0.14, 0.06, 0.08))
    kinds = placed(place)
    return _pick(draw, kinds, [CLASSES[k].share for k in kinds])

  def _size(self, kind: int) -> tuple[float, float, float]:
    draw, shared = self.draw, {}
    base = draw.random()
    for ends in CLASSES[kind].size:
      if ends not in shared:
        share = min(max(base + draw.uniform(-0.25, 0.25), 0.0), 1.0)
        shared[ends] = ends[0] + (ends[1] - ends[0]) * share
    depth, width, height = (shared[ends] for ends in CLASSES[kind].size)
    return depth, width, height

  def _put(self, kind: int) -> None:
    """Tries to place one of a kind; leaves the scene as it is where nothing fits."""
    places = CLASSES[kind].places
    color = int(self.draw.random() * len(COLORS))
    chance = self.draw.random()
    pattern = 0 if chance < 0.75 else 1 if chance < 0.88 else 2
    for _ in range(_TRIES):
      thing = self._try(kind, places, color, pattern)
      if thing is not None and self._shows(thing):
        self.things.append(thing)
        return

  def _try(self, kind: int, places: frozenset[str], color: int, pattern: int) -> Thing | None:
    if self.rig.outdoors:
      if "outdoors_air" in places:
        return self._hanging(kind, color, pattern)
      return self._standing(kind, color, pattern) if "outdoors" in places else None
    if "wall" in places:
      return self._on_wall(kind, color, pattern)
    if "ceiling" in places or "air" in places:
      return self._hanging(kind, color, pattern)
    tops = [i for i, t in enumerate(self.things) if CLASSES[t.kind].top]
    if "top" in places and tops and ("floor" not in places or self.draw.random() < 0.65):
      return self._on_top(kind, color, pattern, tops)
    return self._standing(kind, color, pattern) if "floor" in places else None

  def _yaw(self) -> float:
    if self.draw.random() < 0.3:
      return math.pi / 2 * int(self.draw.random() * 4)
    return self.draw.uniform(-math.pi, math.pi)

  def _spot(self, radius: float) -> tuple[float, float]:
    """A place on the ground within the view, drawn by distance and direction; NaN outside of the room."""
    draw, rig = self.draw, self.rig
    near = max(rig.near, 0.5 + radius)
    distance = math.exp(draw.uniform(math.log(near), math.log(max(rig.far, near * 1.2))))
    angle = self.heading + draw.uniform(-0.95, 0.95) * self._half_view
    x = float(self.camera.position[0]) + distance * math.cos(angle)
    y = float(self.camera.position[1]) + distance * math.sin(angle)
    x0, x1, y0, y1, _ = self.bounds
    inside = x0 + radius < x < x1 - radius and y0 + radius < y < y1 - radius
    return (x, y) if inside else (math.nan, math.nan)

  def _standing(self, kind: int, color: int, pattern: int) -> Thing | None:
    size = self._size(kind)
    x, y = self._spot(max(size[:2]) / 2)
    thing = Thing(kind, color, size, (x, y, 0.0), self._yaw(), FLOOR, pattern)
    return thing if x == x and self._free(thing) else None

  def _hanging(self, kind: int, color: int, pattern: int) -> Thing | None:
    size = self._size(kind)
    x, y = self._spot(max(size[:2]) / 2)
    ceiling = "ceiling" in CLASSES[kind].places
    if ceiling:
      foot = self.bounds[4] - size[2]
    else:
      foot = min(self.draw.uniform(*CLASSES[kind].hung), self.bounds[4] - size[2] - 0.02)
      foot *= 1.6 if self.rig.outdoors else 1.0
    thing = Thing(kind, color, size, (x, y, foot), self._yaw(), CEILING if ceiling else AIR, pattern)
    return thing if x == x and self._free(thing) else None

  def _on_wall(self, kind: int, color: int, pattern: int) -> Thing | None:
    draw, size, (x0, x1, y0, y1, high) = self.draw, self._size(kind), self.bounds
    low, top = CLASSES[kind].hung
    foot = draw.uniform(low, min(top, high - size[2] - 0.05)) if top else 0.0
    # The wall that a direction of view meets.
    angle = self.heading + draw.uniform(-0.9, 0.9) * self._half_view
    dx, dy = math.cos(angle), math.sin(angle)
    px, py = (float(v) for v in self.camera.position[:2])
    tx = ((x1 if dx > 0 else x0) - px) / dx if abs(dx) > 1e-6 else math.inf
    ty = ((y1 if dy > 0 else y0) - py) / dy if abs(dy) > 1e-6 else math.inf
    deep, half = size[0] / 2, size[1] / 2 + 0.05
    if tx < ty:
      x, y = (x1 - deep if dx > 0 else x0 + deep), py + tx * dy
      yaw, fits = (math.pi if dx > 0 else 0.0), y0 + half < y < y1 - half
    else:
      x, y = px + ty * dx, (y1 - deep if dy > 0 else y0 + deep)
      yaw, fits = (-math.pi / 2 if dy > 0 else math.pi / 2), x0 + half < x < x1 - half
    thing = Thing(kind, color, size, (x, y, foot), yaw, WALL, pattern)
    return thing if fits and self._free(thing) else None

  def _on_top(self, kind: int, color: int, pattern: int, tops: list[int]) -> Thing | None:
    draw, size = self.draw, self._size(kind)
    under = _pick(draw, tops, [1.0 / (0.5 + self._distance(self.things[i])) for i in tops])
    base = self.things[under]
    height, share = CLASSES[base.kind].top
    radius = math.hypot(size[0], size[1]) / 2
    room = [share * base.size[k] / 2 - 0.9 * radius for k in (0, 1)]
    if min(room) < 0:
      if radius > 0.62 * min(base.size[:2]):
        return None
      room = [max(v, 0.0) for v in room]
    a, b = (draw.uniform(-v, v) for v in room)
    c, s = math.cos(base.yaw), math.sin(base.yaw)
    foot = (base.foot[0] + c * a - s * b, base.foot[1] + s * a + c * b, base.foot[2] + height * base.size[2])
    if foot[2] + size[2] > self.bounds[4] - 0.02:
      return None
    thing = Thing(kind, color, size, foot, self._yaw(), under, pattern)
    return thing if self._free(thing) else None

  def _distance(self, thing: Thing) -> float:
    return float(np.linalg.norm(thing.center - self.camera.position))

  def _free(self, thing: Thing) -> bool:
    """Whether it runs into nothing but what carries it. Boxes along the world's axes stand for the things."""
    rx, ry = thing.reach
    low, high = thing.foot[2], thing.foot[2] + thing.size[2]
    for i, other in enumerate(self.things):
      if i == thing.support:
        continue
      ox, oy = other.reach
      top = other.foot[2] + other.size[2]
      if low >= top - 1e-6 or high <= other.foot[2] + 1e-6:
        continue
      slack = 0.01 if thing.support >= 0 and thing.support == other.support else 0.03
      if (
        abs(thing.foot[0] - other.foot[0]) < rx + ox + slack
        and abs(thing.foot[1] - other.foot[1]) < ry + oy + slack
      ):
        return False
    return True

  def _shows(self, thing: Thing) -> bool:
    """Whether it is in the picture, large enough, and not too close to others there."""
    u, v, z = self.camera.seen(thing.center)
    flat = math.hypot(thing.size[0], thing.size[1])
    radius = self.camera.focal * (flat + thing.size[2]) / 4 / max(z, 1e-3)
    close = thing.girth + 0.35
    if z < close or not (0.03 < u < 0.97 and 0.03 < v < 0.97) or not 0.012 < radius < 0.42:
      return False
    for i, (a, b, r) in enumerate(self._seen):
      if i == thing.support:
        continue
      apart, smaller, larger = math.hypot(u - a, v - b), min(radius, r), max(radius, r)
      # A small thing may stand before or behind a large one, but not in its middle.
      if apart < (self.spread * (radius + r) if smaller > 0.45 * larger else 0.3 * larger):
        return False
    self._seen.append((u, v, radius))
    return True


_FLOORS = (
  ((0.46, 0.32, 0.21), 1, 0.14, 0.30),
  ((0.60, 0.45, 0.30), 1, 0.10, 0.22),
  ((0.62, 0.61, 0.58), 2, 0.40, 0.35),
  ((0.70, 0.66, 0.58), 3, 0.45, 0.25),
  ((0.42, 0.40, 0.42), 0, 0.03, 0.25),
  ((0.38, 0.30, 0.26), 0, 0.03, 0.30),
  ((0.34, 0.40, 0.38), 0, 0.04, 0.22),
  ((0.52, 0.34, 0.26), 3, 0.30, 0.30),
)
_WALLS = (
  ((0.78, 0.76, 0.70), 0, 0.02, 0.05),
  ((0.66, 0.70, 0.72), 0, 0.02, 0.06),
  ((0.74, 0.66, 0.54), 1, 0.16, 0.12),
  ((0.56, 0.30, 0.23), 4, 0.21, 0.30),
  ((0.62, 0.70, 0.62), 5, 0.9, 0.35),
  ((0.80, 0.72, 0.66), 5, 1.0, 0.30),
  ((0.70, 0.68, 0.74), 1, 0.30, 0.08),
)
_GROUNDS = (
  ((0.24, 0.36, 0.14), 0, 0.06, 0.35),
  ((0.30, 0.30, 0.31), 0, 0.05, 0.18),
  ((0.52, 0.50, 0.47), 2, 0.8, 0.22),
  ((0.50, 0.42, 0.30), 0, 0.08, 0.25),
)


def _surfaces(draw: random.Random, outdoors: bool) -> tuple[Surface, Surface, Surface]:
  if outdoors:
    ground = Surface(*_pick(draw, _GROUNDS))
    return ground, ground, ground
  tone = draw.uniform(0.85, 1.1)
  made = []
  for table in (_FLOORS, _WALLS):
    albedo, *rest = _pick(draw, table)
    made.append(Surface(tuple(tone * v for v in albedo), *rest))
  return made[0], made[1], Surface((0.84, 0.83, 0.80), 0, 0.02, 0.03)


def _lights(draw: random.Random, bounds, camera: Camera, heading: float, outdoors: bool):
  """Lights and what comes from everywhere. Warm ones inside, and cool light as if from a window."""
  if outdoors:
    turn, tilt = draw.uniform(-math.pi, math.pi), math.radians(draw.uniform(20, 55))
    far = 300.0
    along = (math.sin(tilt) * math.cos(turn), math.sin(tilt) * math.sin(turn), math.cos(tilt))
    position = tuple(float(p + far * v) for p, v in zip(camera.position, along, strict=True))
    strength = draw.uniform(0.85, 1.15)
    warm = draw.uniform(0.82, 1.0)
    sun = Light(position, far * 0.012, (strength, strength * (0.5 + warm / 2), strength * warm), 1e5)
    return (sun,), (0.34, 0.38, 0.44)
  x0, x1, y0, y1, high = bounds
  found = []
  for index in range(2 + (draw.random() < 0.4)):
    warm = draw.uniform(0.78, 1.0) if index != 1 else draw.uniform(0.95, 1.12)
    strength = draw.uniform(0.55, 0.8) if index == 0 else draw.uniform(0.25, 0.45)
    if index == 0:  # below the ceiling
      at = (draw.uniform(0.3, 0.7), draw.uniform(0.3, 0.7))
      position = (x0 + at[0] * (x1 - x0), y0 + at[1] * (y1 - y0), high - 0.12)
    else:  # beside and behind the camera, where no thing is in its way
      side = draw.uniform(0.6, 1.4) * (1 if index == 1 else -1)
      px, py = (float(v) for v in camera.position[:2])
      position = (
        min(max(px + 2.2 * math.cos(heading + side), x0 + 0.1), x1 - 0.1),
        min(max(py + 2.2 * math.sin(heading + side), y0 + 0.1), y1 - 0.1),
        draw.uniform(1.7, min(2.3, high - 0.1)),
      )
    found.append(
      Light(position, draw.uniform(0.10, 0.35), (strength, strength * (1 + warm) / 2, strength * warm), 5.0)
    )
  return tuple(found), (0.36, 0.36, 0.37)
