"""Rooms on the host: scene i of seed s at a difficulty is always the same, and what is known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from spatialvlm.types import UserError
from spatialvlm.worlds.rooms import counting, render, scene
from spatialvlm.worlds.rooms import layout as layouts
from spatialvlm.worlds.rooms.classes import ALIKE, CLASSES
from spatialvlm.worlds.rooms.dial import MAX_THINGS, Dial, dial
from spatialvlm.worlds.rooms.layout import Layout
from spatialvlm.worlds.rooms.parts import COLORS

# Scenes that one program measures in one go.
BLOCK = 16
# A thing may be asked about when it covers this share of the picture, and touches no side of it.
MIN_SHARE = 0.0015


@dataclasses.dataclass(frozen=True, eq=False)
class RoomObject:
  """One thing as it is seen.

  Attributes:
    index: its number in `RoomFrame.instance`.
    shape: its class; color: the word of its paint, "" where it is not painted.
    center: (3,) metres, world, of the box around it. size: (3,) depth, width, height in metres.
    yaw: radians about z, of its front; front: whether it has one.
    support: what it stands on: another thing's class, "floor", "wall", "ceiling" or "air"; carrier: that
      thing's number, -1 for none.
    center_camera: (3,) metres, OpenCV axes; the third is its depth.
    box: (x0, y0, x1, y1) pixels, half-open, around the visible mask.
    visible_pixels: of its mask; visible_fraction: of what it would cover if nothing stood before it.
    clear: large and free enough to be asked about.
    name: as questions say it where it is alone with it: its class.
  """

  index: int
  shape: str
  color: str
  center: np.ndarray
  size: np.ndarray
  yaw: float
  front: bool
  support: str
  carrier: int
  center_camera: np.ndarray
  box: tuple[int, int, int, int]
  visible_pixels: int
  visible_fraction: float
  clear: bool

  @property
  def name(self) -> str:
    return self.shape


@dataclasses.dataclass(frozen=True, eq=False)
class RoomFrame:
  """One picture.

  Attributes:
    image: (H, W, 3) uint8 RGB. depth: (H, W) float32, metres along the optical axis, 0 for sky.
    instance: (H, W) int32 numbers of things, -1 for floor, walls and sky.
    objects: those with at least one visible pixel.
    intrinsics: (3, 3) pixels. pose: (4, 4) camera to world.
    layout: the scene. rig: the camera's name (`camera.RIGS`).
    seen: what was counted (`counting.Seen`), as numpy.
  """

  image: np.ndarray
  depth: np.ndarray
  instance: np.ndarray
  objects: tuple[RoomObject, ...]
  intrinsics: np.ndarray
  pose: np.ndarray
  layout: Layout
  rig: str
  seen: counting.Seen

  def named(self) -> tuple[RoomObject, ...]:
    """Those that can be asked about by their class: clear, and no other is called alike."""
    groups = [ALIKE[self.layout.things[o.index].kind] for o in self.objects]
    return tuple(o for o, g in zip(self.objects, groups, strict=True) if o.clear and groups.count(g) == 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """Many scenes as arrays, B first, N things in each; what is not there has `kind` -1.

  Attributes:
    layouts: the scenes. dial: what their difficulty means. size: pixels at which they were measured.
    seen: `counting.Seen` as numpy.
    kind, color, carrier: (B, N) int; extent: (B, N, 3) metres; yaw: (B, N) radians; foot: (B, N) metres.
    center: (B, N, 3) metres, world; camera: (B, N, 3) the same in the camera's axes. position: (B, 3).
    clear: (B, N) bool.
  """

  layouts: tuple[Layout, ...]
  dial: Dial
  size: int
  seen: counting.Seen
  kind: np.ndarray
  color: np.ndarray
  carrier: np.ndarray
  extent: np.ndarray
  yaw: np.ndarray
  foot: np.ndarray
  center: np.ndarray
  camera: np.ndarray
  position: np.ndarray
  clear: np.ndarray


def check(seed: int, size: int, difficulty: float = 0.0) -> None:
  """Raises UserError: a seed outside 32 bits, a size outside 32 .. 4096, a difficulty outside 0 .. 1."""
  if not 0 <= int(seed) < 2**32:
    raise UserError(f"rooms: seed {seed} is outside 0 .. 2^32 - 1; choose another")
  if not 32 <= size <= 4096:
    raise UserError(f"rooms: image size {size} is outside 32 .. 4096 pixels; choose another")
  dial(difficulty)


def draw(seed: int, numbers: Iterable[int], difficulty: float) -> list[Layout]:
  """Layouts of scenes by number; errors as `check`, and for a number outside 32 bits."""
  numbers = [int(n) for n in numbers]
  for number in numbers:
    if not 0 <= number < 2**32:
      raise UserError(f"rooms: scene number {number} is outside 0 .. 2^32 - 1; choose another")
  return [layouts.sample(int(seed), number, difficulty) for number in numbers]


def measure(drawn: Sequence[Layout], size: int, difficulty: float) -> Measured:
  """What can be known of scenes without painting them."""
  parts = []
  for start in range(0, len(drawn), BLOCK):
    some = list(drawn[start : start + BLOCK])
    block = some + [some[-1]] * (BLOCK - len(some))
    parts.append(render.measure(scene.stacked([scene.build(one) for one in block]), size))
  buffers = jax.tree.map(lambda *a: np.concatenate([np.asarray(x) for x in a]), *parts)
  seen = counting.count_all(buffers, np.array([one.camera.focal for one in drawn]))
  return measured(drawn, seen, size, dial(difficulty))


def measured(drawn: Sequence[Layout], seen: counting.Seen, size: int, settings: Dial) -> Measured:
  """Scenes and what a camera saw of them, put together."""
  B, N = len(drawn), MAX_THINGS
  kind, color = np.full((B, N), -1), np.zeros((B, N), int)
  carrier, yaw, foot = np.full((B, N), layouts.FLOOR), np.zeros((B, N)), np.zeros((B, N))
  extent, center, camera = np.ones((B, N, 3)), np.zeros((B, N, 3)), np.zeros((B, N, 3))
  for b, one in enumerate(drawn):
    n = len(one.things)
    if not n:
      continue
    kind[b, :n] = [t.kind for t in one.things]
    color[b, :n] = [t.color for t in one.things]
    carrier[b, :n] = [t.support for t in one.things]
    yaw[b, :n] = [t.yaw for t in one.things]
    foot[b, :n] = [t.foot[2] for t in one.things]
    extent[b, :n] = [t.size for t in one.things]
    center[b, :n] = [t.center for t in one.things]
    camera[b, :n] = (center[b, :n] - one.camera.position) @ one.camera.rotation
  box = seen.box
  inside = (box[..., :2] > 0).all(-1) & (box[..., 2:] < size).all(-1)
  large = seen.visible >= max(MIN_SHARE * size * size, 6)
  clear = (kind >= 0) & inside & large & (seen.visible >= settings.shown * seen.covered)
  position = np.array([one.camera.position for one in drawn])
  return Measured(
    tuple(drawn),
    settings,
    size,
    seen,
    kind,
    color,
    carrier,
    extent,
    yaw,
    foot,
    center,
    camera,
    position,
    clear,
  )


def paint(one: Layout, size: int, settings: Dial) -> RoomFrame:
  """One scene with its picture and all that is known of it."""
  out = render.picture(scene.stacked([scene.build(one)]), size)
  buffers, image = jax.tree.map(lambda a: np.asarray(a), out)
  several = counting.count_all(buffers, np.array([one.camera.focal]))
  of = measured([one], several, size, settings)
  seen = counting.Seen(**{name: value[0] for name, value in vars(several).items()})
  objects = []
  for k in np.flatnonzero(seen.visible[: len(one.things)]):
    thing = one.things[k]
    kind, carrier = CLASSES[thing.kind], thing.support
    objects.append(
      RoomObject(
        index=int(k),
        shape=kind.name,
        color=list(COLORS)[thing.color] if kind.painted else "",
        center=thing.center,
        size=np.array(thing.size),
        yaw=thing.yaw,
        front=kind.front,
        support=layouts.SUPPORTS[carrier] if carrier < 0 else CLASSES[one.things[carrier].kind].name,
        carrier=max(carrier, -1),
        center_camera=of.camera[0, k],
        box=tuple(map(int, seen.box[k])),
        visible_pixels=int(seen.visible[k]),
        visible_fraction=float(seen.visible[k] / seen.covered[k]),
        clear=bool(of.clear[0, k]),
      )
    )
  focal = one.camera.focal * size
  intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], np.float32)
  pose = np.eye(4, dtype=np.float32)
  pose[:3, :3], pose[:3, 3] = one.camera.rotation, one.camera.position
  surface = buffers.surface[0].astype(np.int32)
  instance = np.where(surface < MAX_THINGS, surface, -1)
  return RoomFrame(
    image[0], buffers.depth[0], instance, tuple(objects), intrinsics, pose, one, one.rig.name, seen
  )


def frames(seed: int, indices: Iterable[int], size: int = 384, difficulty: float = 0.5) -> list[RoomFrame]:
  """Scenes number `indices` of world `seed` at size x size pixels.

  Raises:
    UserError: a seed, number, size or difficulty out of range (`check`).
  """
  check(seed, size, difficulty)
  return [paint(one, size, dial(difficulty)) for one in draw(seed, indices, difficulty)]


def facing(yaw: np.ndarray, center: np.ndarray, position: np.ndarray) -> np.ndarray:
  """Degrees (-180 .. 180) by which a thing is turned from looking at the camera, seen from above.

  0: its front is towards the camera; 90: towards the picture's right; -90: its left; 180: away.
  """
  to_camera = np.arctan2(position[..., 1] - center[..., 1], position[..., 0] - center[..., 0])
  turn = np.rad2deg(yaw - to_camera)
  return (turn + 180.0) % 360.0 - 180.0
