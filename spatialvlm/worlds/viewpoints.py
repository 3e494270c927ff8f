"""One scene from several cameras: where they stand, what each sees, and what can be asked across them.

A scene's cameras stand around the middle of its objects, outside of all that stands there, in a direction
that is drawn evenly from all, so that what one of them sees says nothing on where the others are. They look
roughly at the middle, each a little aside, so that where things lie in a picture does not give away where its
camera stands. None of them is the camera that the scene was drawn for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from spatialvlm.once import OnceCache
from spatialvlm.worlds import candidates, layout, render, world
from spatialvlm.worlds.candidates import N, Table, table

# Cameras of a scene, and scenes of a pool.
CAMERAS, SCENES = 6, 32
# Each camera has a stretch of the circle of its own, so many degrees wide; two of them are as far apart at
# least as what is left free between stretches.
STRETCH, FREE = 26.0, 12.0
# Metres from the outermost thing to a camera, degrees above the horizon of what it looks at, and degrees by
# which it looks aside of that, sideways and up or down.
AWAY, ABOVE, ASIDE, UPWARDS = (1.0, 3.2), (12.0, 34.0), 20.0, 4.0
# Least sideways movement of a camera that is asked about, in metres; least mean shift of what both see, as a
# share of the picture's side; and so many things must be seen by both.
MOVED, SHIFTED, COMMON = 0.8, 0.03, 3
# Of rules alone: ratio of two depths, and offset along the picture, that are an opinion.
_NEAR_RULE, _SIDE_RULE = 1.06, 0.04
MARGINS = candidates.Margins(edge=1.5 / 96, size=1.15)
_CAMERAS = 0xCA4E5
# Pools whose tables stay in memory, some 300 kB each, and pictures that do.
_KEPT, _PICTURES = 256, 64


class ViewPool(NamedTuple):
  """What can be asked of scenes from all their cameras; without pixels.

  Attributes:
    layout: of B = scenes * CAMERAS pictures, a scene's next to each other, with the camera of each.
    tables: what can be asked, by kind. Rows begin with the scene and three cameras: questions are about the
      first and one of the others, and have the one answer or the other.
    first: number of the first scene.
  """

  layout: layout.Layout
  tables: dict[str, Table]
  first: int


def cameras(lay: layout.Layout, seed: int, numbers: Sequence[int]) -> render.Camera:
  """The cameras of scenes, (B, CAMERAS, ...) float32 arrays.

  Args:
    lay: layouts (B, ...) of scenes `numbers` of world `seed`, as `world.layouts` gives them.
  """
  middle, reach = _extent(lay)
  found = [_around(middle[b], reach[b], seed, n) for b, n in enumerate(numbers)]
  rotation, position = (np.stack(part).astype(np.float32) for part in zip(*found, strict=True))
  return render.Camera(rotation, position, np.repeat(np.asarray(lay.camera.focal)[:, None], CAMERAS, 1))


def _extent(lay: layout.Layout) -> tuple[np.ndarray, np.ndarray]:
  """What cameras look at, (B, 3) metres, and how far from it (B,), along the floor, there are objects."""
  there = np.asarray(lay.present, bool)
  center, half = (np.asarray(a[:, :N], np.float64) for a in (lay.scene.center, lay.scene.half))
  least, most = (
    end(np.where(there[..., None], center, other), axis=1)
    for end, other in ((np.min, np.inf), (np.max, -np.inf))
  )
  middle = (least + most) / 2
  middle[:, 2] /= 2  # what carries the objects is looked at too
  far = np.linalg.norm((center - middle[:, None])[..., :2], axis=-1) + half.max(-1)
  return middle, np.where(there, far, 0).max(1)


def _around(middle: np.ndarray, reach: float, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
  """Rotations (CAMERAS, 3, 3), camera to world, and positions (CAMERAS, 3) of one scene's cameras."""
  rng = np.random.default_rng((_CAMERAS, seed, number))
  begin = (np.arange(CAMERAS) - CAMERAS / 2) * STRETCH + FREE / 2
  turn = rng.uniform(0, 360) + rng.permutation(begin + rng.uniform(0, STRETCH - FREE, CAMERAS))
  turn, above = np.deg2rad(turn), np.deg2rad(rng.uniform(*ABOVE, CAMERAS))
  away = reach + rng.uniform(*AWAY, CAMERAS)
  position = middle + np.stack([away * np.cos(turn), away * np.sin(turn), away * np.tan(above)], 1)
  aside = np.deg2rad(rng.uniform(-ASIDE, ASIDE, CAMERAS)) + turn + np.pi
  pitch = above + np.deg2rad(rng.uniform(-UPWARDS, UPWARDS, CAMERAS))
  cos, sin, zero = np.cos(aside), np.sin(aside), np.zeros(CAMERAS)
  right = np.stack([sin, -cos, zero], 1)
  forward = np.stack([np.cos(pitch) * cos, np.cos(pitch) * sin, -np.sin(pitch)], 1)
  down = np.cross(forward, right)
  return np.stack([right, down, forward], 2), position


class Views(candidates.Scenes):
  """The measures of scenes from all their cameras; one picture of a pool after the other."""

  def __init__(self, pool: world.Pool):
    super().__init__(pool, MARGINS)
    lay = pool.layout
    name = np.where(lay.present, self.color * candidates.SHAPES + self.shape, -1 - np.arange(N))
    self.alike = (name[:, :, None] == name[:, None]) & ~np.eye(N, dtype=bool)
    self.whole = pool.clear & _inside(lay)
    self.within = pool.rendering.covered > 0
    # Of what has no twin in the whole scene nobody can doubt that it is the same in two pictures.
    self.usable = self.whole & ~self.alike.any(2)
    self.camera_pose = (
      np.asarray(lay.camera.rotation, np.float64),
      np.asarray(lay.camera.position, np.float64),
    )

  def tables(self) -> dict[str, Table]:
    """What can be asked, by kind of question."""
    return {
      "ViewRelation": self.across("relation"),
      "ViewDepth": self.across("depth"),
      "CameraMoved": self.moved(),
      "SameObject": self.same(),
      "TotalCount": self.total(),
    }

  def across(self, asked: str) -> Table:
    """Objects in boxes in one picture, "relation" or "depth" asked of others.

    Rows: scene, camera with the boxes, a camera where the first object is left (or nearer), one where the
    second is, the two objects. Digits: whether these agree with the answer there: the bigger box and the
    lower edge seen by the one, the same by the other; then which object (0: the first) these take in the
    picture with the boxes: what would be the answer there, the bigger box, the lower edge.
    """
    by_side, by_depth = self.beside(0), self.farther()
    answer, sure = by_side if asked == "relation" else by_depth
    value = self.middle[..., 0] if asked == "relation" else np.log(np.maximum(self.camera[..., 2], 1e-3))
    own = _rule(-value, _SIDE_RULE if asked == "relation" else math.log(_NEAR_RULE))
    (lower, bigger, _), (lower_clear, bigger_clear, _) = self.opinions()
    flat = self.pairs() & lower_clear & bigger_clear
    here, there = _by_scene(flat & own[1]), _by_scene(flat & sure)
    answer, lower, bigger, own = (_by_scene(a) for a in (answer, lower, bigger, own[0]))
    first, second = (there & ~answer)[:, None, :, None], (there & answer)[:, None, None]
    valid = here[:, :, None, None] & first & second & _others()[None, ..., None, None]
    boxed = lambda a: a[:, :, None, None]
    digits = [bigger[:, None, :, None], lower[:, None, :, None]]  # a rule that takes the first is right here
    digits += [~bigger[:, None, None], ~lower[:, None, None]]
    return table((2,) * 7, valid, [*digits, ~boxed(own), ~boxed(bigger), ~boxed(lower)])

  def moved(self) -> Table:
    """Rows: scene, a camera, one to its left, one to its right. Digits: whether the shift of what two cameras
    both see agrees with that (to the right: the camera went left), for the one and for the other.
    """
    rotation, position = (_by_scene(a) for a in self.camera_pose)
    # Position of the second camera along the first one's axis to the right.
    side = np.einsum("bijk,bik->bij", position[:, None] - position[:, :, None], rotation[..., 0])
    sure = (np.abs(side) >= MOVED) & (np.abs(side.transpose(0, 2, 1)) >= MOVED)
    sure &= (side > 0) != (side.transpose(0, 2, 1) > 0)
    whole, middle = _by_scene(self.usable), _by_scene(self.middle[..., 0])
    both = whole[:, :, None] & whole[:, None]
    count = both.sum(-1)
    shift = ((middle[:, None] - middle[:, :, None]) * both).sum(-1) / np.maximum(count, 1)
    sure &= (count >= COMMON) & (np.abs(shift) >= SHIFTED)
    left, right = (sure & (side < 0))[..., None], (sure & (side > 0))[:, :, None]
    return table((2, 2), left & right & _others(), [(shift > 0)[..., None], (shift < 0)[:, :, None]])

  def same(self) -> Table:
    """Rows: scene, camera of the first box, camera of the second (twice), an object and its twin.

    Of the twin, of the same shape and colour, both pictures show all, so that looks do not tell them apart.
    Digits: whether these are right for either answer: that the two boxes hold one object where both are on
    the same side of its twin, where both are the bigger of the two boxes, and where the second is nearer to
    the first one's place in the picture than its twin is.
    """
    twins = self.whole[:, :, None] & self.whole[:, None] & self.alike & self.apart()
    left, (wins, clear) = _rule(-self.middle[..., 0], _SIDE_RULE), self.opinions()
    here, there = (lambda a: _by_scene(a)[:, :, None]), (lambda a: _by_scene(a)[:, None])
    valid = here(twins) & there(twins) & ~np.eye(CAMERAS, dtype=bool)[None, :, :, None, None]
    for sure in (left[1], clear[1]):
      valid &= here(sure) & there(sure)
    middle = _by_scene(self.middle)
    gap = np.linalg.norm(middle[:, :, None, :, None] - middle[:, None, :, None], axis=-1)
    own = np.einsum("bijnn->bijn", gap)[..., None]  # from an object's place to its own in the other picture
    valid &= np.abs(own - gap) >= self.margins.middle
    agrees = [here(rule) == there(rule) for rule in (left[0], wins[1])]
    found = table((2, 2, 2), valid, [*agrees, own < gap])
    return dataclasses.replace(found, rows=found.rows[:, [0, 1, 2, 2, 3, 4]])

  def total(self) -> Table:
    """Rows: scene, a camera, one with which it shows no more than that of the two that shows most, one with
    which it shows one more. Digits: how many the first shows, how many either other does.

    Only where all that lies in either, hidden or not, shows clearly in one of them, and nothing seen has
    a twin there.
    """
    seen, clear = _by_scene(self.seen), _by_scene(self.clear)
    either = seen[:, :, None] | seen[:, None]
    within = _by_scene(self.within)
    within = within[:, :, None] | within[:, None]
    fine = (~within | clear[:, :, None] | clear[:, None]).all(-1)
    alike = _by_scene(self.alike)[:, 0][:, None, None]
    fine &= ~(either[..., None] & either[..., None, :] & alike).any((-1, -2))
    count, union = seen.sum(-1), either.sum(-1)
    more = union - np.maximum(count[:, :, None], count[:, None])
    valid = (fine & (more == 0))[..., None] & (fine & (more == 1))[:, :, None] & _others()
    valid &= (count[:, :, None] == count[:, None])[:, None]
    return table((N + 1, N + 1), valid, [count[:, :, None, None], count[:, None, :, None]])


def _by_scene(array: np.ndarray) -> np.ndarray:
  """(B * CAMERAS, ...) -> (B, CAMERAS, ...)."""
  return array.reshape(-1, CAMERAS, *array.shape[1:])


def _others() -> np.ndarray:
  """(CAMERAS, CAMERAS, CAMERAS) bool: three cameras, no two of which are one."""
  first, second, third = np.indices((CAMERAS,) * 3)
  return (first != second) & (first != third) & (second != third)


def _rule(value: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
  """(B, N, N): whether the first of a pair has the higher of two values (B, N), and whether that is clear."""
  difference = value[:, :, None] - value[:, None]
  return difference > 0, np.abs(difference) >= margin


def _inside(lay: layout.Layout) -> np.ndarray:
  """(B, N) bool: all corners of an object's own box lie within the picture, in front of the camera."""
  scene, camera = lay.scene, lay.camera
  signs = np.stack(np.meshgrid(*[(-1.0, 1.0)] * 3), -1).reshape(8, 3)
  corner = scene.half[:, :N, None] * signs
  cos, sin = np.cos(scene.yaw[:, :N, None]), np.sin(scene.yaw[:, :N, None])
  x, y, z = corner[..., 0], corner[..., 1], corner[..., 2]
  corner = np.stack([cos * x - sin * y, sin * x + cos * y, z], -1) + scene.center[:, :N, None]
  local = np.einsum("bnck,bkj->bncj", corner - camera.position[:, None, None], camera.rotation)
  depth = local[..., 2]
  at = np.abs(local[..., :2]) / np.maximum(depth, 0.1)[..., None] * camera.focal[:, None, None, None]
  return ((depth > 0.1) & (at < 0.5).all(-1)).all(-1)


def _make(seed: int, number: int, size: int) -> ViewPool:
  numbers = range(number * SCENES, (number + 1) * SCENES)
  lay = world.layouts(seed, numbers, size)
  flat = lambda a: np.asarray(a).reshape(-1, *np.shape(a)[2:])
  camera = jax.tree.map(flat, cameras(lay, seed, numbers))
  pool = world.seen_by(jax.tree.map(lambda a: np.repeat(a, CAMERAS, 0), lay), camera, size)
  return ViewPool(pool.layout, Views(pool).tables(), numbers[0])


_POOLS: OnceCache[ViewPool] = OnceCache()
_DRAWN: OnceCache[tuple[layout.Layout, render.Camera]] = OnceCache()
_SEEN: OnceCache[world.Pool] = OnceCache()


def get(seed: int, number: int, size: int) -> ViewPool:
  """Pool `number` of a seed, looked through in pictures of `size` pixels; made once for all threads."""
  return _POOLS.get((seed, number, size), lambda: _make(seed, number, size), _KEPT)


def seen(seed: int, number: int, camera: int, size: int) -> world.Pool:
  """Scene `number` as one of its cameras sees it: a pool of one picture."""

  def drawn() -> tuple[layout.Layout, render.Camera]:
    lay = world.layouts(seed, [number], size)
    return lay, cameras(lay, seed, [number])

  def render_it() -> world.Pool:
    lay, every = _DRAWN.get((seed, number), drawn, _PICTURES)
    return world.seen_by(lay, jax.tree.map(lambda a: a[:, camera], every), size, block=1)

  return _SEEN.get((seed, number, camera, size), render_it, _PICTURES)
