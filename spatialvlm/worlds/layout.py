"""Draws scenes: camera, light, and three to eight objects on the floor, on pedestals, on a shelf or hanging.

An object that does not stand on the floor is drawn by its place in the picture and by its depth, each
independently of the other, and lifted to where that puts it; sizes know nothing of the class. So neither the
lower edge nor the size of a box says by itself which of two objects is nearer.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from spatialvlm.worlds import render
from spatialvlm.worlds.shifts import PLAIN, Form, Look

FURNITURE_ALBEDO = (0.56, 0.54, 0.52)
SKY_ALBEDO = (0.80, 0.84, 0.88)

TRIES = 64
SHARE_FLOOR, SHARE_HANGING, SHARE_SHELF, SHARE_REPEATS = 0.30, 0.35, 0.30, 0.30
DEPTH = (2.6, 9.5)
SCALE = (0.18, 0.80)  # half size in metres
PIXEL_RADIUS = (0.055, 0.18)  # of the bounding circle, as share of the image
PEDESTAL, HANGING = (0.12, 2.2), (0.5, 4.0)  # height of an object's lower end
STANDS = ("floor", "pedestal", "hanging", "shelf")
_CEILING, _ROD, _BOARD = 7.0, 0.022, 0.05
_ON_FLOOR, _ON_PEDESTAL, _HANGING, _ON_SHELF = range(4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
  """A drawn scene.

  Attributes:
    scene, camera: what `render` takes.
    shape, color: (MAX_OBJECTS,) int32 into the look's forms and colours. floor_albedo: (3,).
    present: (MAX_OBJECTS,) bool. stand: (MAX_OBJECTS,) int32 into STANDS.
  """

  scene: render.Scene
  camera: render.Camera
  shape: jax.Array
  color: jax.Array
  floor_albedo: jax.Array
  present: jax.Array
  stand: jax.Array


class _Draws:
  """Hands out one long draw of uniform numbers piece by piece: each call of threefry is slow to compile."""

  def __init__(self, key: jax.Array, total: int):
    self._numbers, self._used = jax.random.uniform(key, (total,)), 0

  def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> jax.Array:
    start, self._used = self._used, self._used + math.prod(shape)
    if self._used > self._numbers.shape[0]:
      raise ValueError(f"{self._used} numbers needed, {self._numbers.shape[0]} drawn")
    return low + (high - low) * self._numbers[start : self._used].reshape(shape)

  def integer(self, count: int, shape: tuple[int, ...] = ()) -> jax.Array:
    return jnp.minimum((self.uniform(0.0, count, shape)).astype(jnp.int32), count - 1)


@dataclasses.dataclass(frozen=True)
class _Shelf:
  """A board: its middle (2,), top height, direction (2,) along it, length, all in metres; used or not."""

  middle: jax.Array
  height: jax.Array
  along: jax.Array
  length: jax.Array
  used: jax.Array

  def inside(self, xy: jax.Array, radius: jax.Array) -> jax.Array:
    """Whether a round column at `xy` (..., 2) would run into the board."""
    d = xy - self.middle
    along = jnp.abs(d @ self.along)
    across = jnp.abs(d[..., 1] * self.along[0] - d[..., 0] * self.along[1])
    return self.used & (along < self.length / 2 + 0.1 + radius) & (across < 0.5 + radius)


def sample(key: jax.Array, look: Look = PLAIN) -> Layout:
  """One scene from one key. Pure, so it may be vmapped and jitted; `look` is static there."""
  draw = _Draws(key, render.MAX_OBJECTS * TRIES * 8 + 256)
  camera, right, ahead = _camera(draw, look)
  if look.roll != PLAIN.roll:  # from numbers of its own, so that the others stay what they are
    camera = _rolled(_Draws(jax.random.fold_in(key, 1), 2), camera, look)
  shape, color = _names(draw)
  shelf = _draw_shelf(draw, camera, right, ahead)
  center, half, stand, present = _place(draw, camera, _forms(draw, shape, look.forms), shelf)
  shelf = dataclasses.replace(shelf, used=(present & (stand == _ON_SHELF)).any())
  return Layout(
    scene=_build(draw, look, shape, half, center, stand, present, shelf),
    camera=camera,
    shape=shape,
    color=color,
    floor_albedo=jnp.asarray(look.floors)[draw.integer(len(look.floors))],
    present=present,
    stand=stand,
  )


def _camera(draw: _Draws, look: Look):
  """A camera that looks down at a place above the floor, and its horizontal axes."""
  pitch = jnp.deg2rad(draw.uniform(*look.pitch))
  yaw = draw.uniform(0.0, 2 * jnp.pi)
  focal = 0.5 / jnp.tan(jnp.deg2rad(draw.uniform(*look.view)) / 2)
  height = draw.uniform(0.3, 1.0) + draw.uniform(4.2, 6.8) * jnp.sin(pitch)
  zero = jnp.zeros(())
  ahead = jnp.stack([jnp.cos(yaw), jnp.sin(yaw), zero])
  right = jnp.stack([jnp.sin(yaw), -jnp.cos(yaw), zero])
  up = jnp.array([0.0, 0.0, 1.0])
  forward = jnp.cos(pitch) * ahead - jnp.sin(pitch) * up
  down = -jnp.sin(pitch) * ahead - jnp.cos(pitch) * up
  position = jnp.concatenate([draw.uniform(-3.0, 3.0, (2,)), height[None]])
  return render.Camera(jnp.stack([right, down, forward], 1), position, focal), right, ahead


def _rolled(draw: _Draws, camera: render.Camera, look: Look) -> render.Camera:
  """The camera turned about its optical axis, to the left as often as to the right."""
  angle = jnp.deg2rad(draw.uniform(*look.roll)) * jnp.where(draw.uniform() < 0.5, -1.0, 1.0)
  right, down, forward = camera.rotation.T
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turned = jnp.stack([cos * right + sin * down, cos * down - sin * right, forward], 1)
  return dataclasses.replace(camera, rotation=turned)


def _names(draw: _Draws):
  """Shapes and colours: all names distinct, or many repeats out of a few (for counting)."""
  colors, shapes, n = len(PLAIN.colors), len(PLAIN.forms), render.MAX_OBJECTS
  distinct = jnp.argsort(draw.uniform(shape=(colors * shapes,)))[:n]
  share = draw.uniform(0.3, 1.0)
  common_shape, common_color = draw.integer(shapes), draw.integer(colors)
  shape = jnp.where(draw.uniform(shape=(n,)) < share, common_shape, draw.integer(shapes, (n,)))
  color = jnp.where(draw.uniform(shape=(n,)) < share**2, common_color, draw.integer(colors, (n,)))
  repeat = draw.uniform() < SHARE_REPEATS
  return jnp.where(repeat, shape, distinct % shapes), jnp.where(repeat, color, distinct // shapes)


def _forms(draw: _Draws, shape: jax.Array, forms: tuple[Form, ...]) -> jax.Array:
  """Half sizes (N, 3) of objects of scale 1, with proportions that vary where the shape allows it."""
  n = render.MAX_OBJECTS
  a, b, c = draw.uniform(shape=(3, n))
  between = lambda ends, share: ends[0] + round(ends[1] - ends[0], 6) * share
  halves = [(between(f.width, a), between(f.width, a if f.round else b), between(f.height, c)) for f in forms]
  table = jnp.stack([jnp.stack(half, 1) for half in halves])
  return table[shape, jnp.arange(n)]


def _draw_shelf(draw: _Draws, camera: render.Camera, right: jax.Array, ahead: jax.Array) -> _Shelf:
  depth = draw.uniform(3.6, 7.0)
  side = draw.uniform(-0.28, 0.28) * depth / camera.focal
  turn = draw.uniform(-0.9, 0.9)
  return _Shelf(
    middle=camera.position[:2] + (side * right + depth * ahead)[:2],
    height=draw.uniform(0.4, 1.3),
    along=(jnp.cos(turn) * right + jnp.sin(turn) * ahead)[:2],
    length=draw.uniform(1.5, 2.6),
    used=draw.uniform() < SHARE_SHELF,
  )


@dataclasses.dataclass(frozen=True)
class _Places:
  """TRIES places per object. Arrays (N, TRIES, ...): center (3), scale, stand, good (possible by itself)."""

  center: jax.Array
  scale: jax.Array
  stand: jax.Array
  good: jax.Array


def _candidates(draw: _Draws, camera: render.Camera, form: jax.Array, shelf: _Shelf) -> _Places:
  """Draws place in the picture, depth and size in the picture, each independently of the others."""
  n = render.MAX_OBJECTS
  u, v = (draw.uniform(0.06, 0.94, (2, n, TRIES)) - 0.5) / camera.focal
  depth = jnp.exp(draw.uniform(math.log(DEPTH[0]), math.log(DEPTH[1]), (n, TRIES)))
  seen = jnp.exp(draw.uniform(math.log(PIXEL_RADIUS[0]), math.log(PIXEL_RADIUS[1]), (n, TRIES)))
  hangs = draw.uniform(shape=(n, TRIES)) < SHARE_HANGING
  # An object keeps to the floor or leaves it for half of its tries; then either will do: few are lost.
  low = draw.uniform(shape=(n, TRIES)) < SHARE_FLOOR
  low = jnp.where(jnp.arange(TRIES) < TRIES // 2, low[:, :1], low)

  ray = jnp.stack([u, v, jnp.ones_like(u)], -1) @ camera.rotation.T
  depth = jnp.where(low, -camera.position[2] / jnp.minimum(ray[..., 2], -1e-3), depth)
  scale = seen * depth / (camera.focal * form.max(1)[:, None])
  half_z = scale * form[:, None, 2]
  center = camera.position + depth[..., None] * ray
  # On the floor, the place drawn is that of the foot.
  center = center.at[..., 2].add(jnp.where(low, half_z, 0.0))
  bottom = center[..., 2] - half_z
  height = jnp.where(hangs[..., None], jnp.array(HANGING), jnp.array(PEDESTAL))
  lifted = (bottom > height[..., 0]) & (bottom < height[..., 1])
  stand = jnp.where(low, _ON_FLOOR, jnp.where(hangs, _HANGING, _ON_PEDESTAL))
  good = (depth > DEPTH[0]) & (depth < DEPTH[1]) & (low | lifted)

  along = draw.uniform(-0.5, 0.5, (n, TRIES)) * (shelf.length - 0.5)
  xy = shelf.middle + along[..., None] * shelf.along
  on_shelf = (shelf.used & (jnp.arange(n) < 3))[:, None]
  small = draw.uniform(SCALE[0], 0.42, (n, TRIES))
  scale = jnp.where(on_shelf, small, scale)
  shelved = jnp.concatenate([xy, (shelf.height + scale * form[:, None, 2])[..., None]], -1)
  return _Places(
    center=jnp.where(on_shelf[..., None], shelved, center),
    scale=scale,
    stand=jnp.where(on_shelf, _ON_SHELF, stand),
    good=(good | on_shelf) & (scale > SCALE[0]) & (scale < SCALE[1]),
  )


def _place(draw: _Draws, camera: render.Camera, form: jax.Array, shelf: _Shelf):
  """Puts objects one by one into the first of their places that fits.

  Returns centres (N, 3), half sizes (N, 3), stands (N,) and present (N,).
  """
  n = render.MAX_OBJECTS
  number = 3 + draw.integer(n - 2, (2,)).max()
  places = _candidates(draw, camera, form, shelf)
  center, stand = places.center, places.stand
  half = places.scale[..., None] * form[:, None]
  spot, size = _project(camera, center, half)
  edge = (0.9 * size + 0.01)[..., None]
  good = places.good & (size > PIXEL_RADIUS[0]) & (size < PIXEL_RADIUS[1])
  good &= ((spot > edge) & (spot < 1 - edge)).all(-1)
  girth = jnp.linalg.norm(half[..., :2], axis=-1) * 0.85
  # What stands or hangs beside the shelf must not run through its board.
  good &= ~shelf.inside(center[..., :2], girth) | (stand == _ON_SHELF)

  def step(i, state):
    chosen, present = state
    apart = jnp.linalg.norm(center[i][:, None, :2] - chosen["center"][:, :2], axis=-1)
    neighbours = (stand[i][:, None] == _ON_SHELF) & (chosen["stand"] == _ON_SHELF)
    need = jnp.where(neighbours, 0.0, 0.12) + girth[i][:, None] + chosen["girth"]
    between = jnp.linalg.norm(spot[i][:, None] - chosen["spot"], axis=-1)
    shown = between > 0.82 * (size[i][:, None] + chosen["size"])
    fits = good[i] & (((apart > need) & shown) | ~present).all(1)
    best = jnp.argmax(fits)
    chosen = {name: chosen[name].at[i].set(options[name][i, best]) for name in chosen}
    return chosen, present.at[i].set(fits[best] & (present.sum() < number))

  options = dict(center=center, stand=stand, half=half, girth=girth, spot=spot, size=size)
  start = {name: jnp.zeros_like(value[:, 0]) for name, value in options.items()}
  chosen, present = jax.lax.fori_loop(0, n, step, (start, jnp.zeros(n, bool)))
  # What is not there keeps a size, so that nothing is divided by zero.
  return chosen["center"], jnp.maximum(chosen["half"], 1e-2), chosen["stand"], present


def _project(camera: render.Camera, center: jax.Array, half: jax.Array):
  """Place in the picture (x, y from 0 to 1) and radius of the bounding circle, as shares of the image."""
  local = (center - camera.position) @ camera.rotation
  depth = jnp.maximum(local[..., 2], 0.1)
  return 0.5 + camera.focal * local[..., :2] / depth[..., None], camera.focal * half.max(-1) / depth


def carriers(half, center, stand, xp=jnp):
  """Centre (N, 3) and half size (N, 3) of what carries each object: a pedestal below it, or a rod above it.

  `xp`: the module that computes it, jax.numpy or numpy.
  """
  hanging = stand == _HANGING
  bottom, top = center[:, 2] - half[:, 2], center[:, 2] + half[:, 2]
  half_z = xp.where(hanging, _CEILING - top, bottom) / 2
  middle = xp.where(hanging, _CEILING - half_z, half_z)
  half_xy = xp.where(hanging[:, None], _ROD, 0.8 * half[:, :2])
  return (
    xp.concatenate([center[:, :2], middle[:, None]], 1),
    xp.maximum(xp.concatenate([half_xy, half_z[:, None]], 1), 1e-3),
  )


def _columns(draw: _Draws, half, center, stand, present):
  """What carries each object, where something does. Returns center, half, shape, active."""
  n = render.MAX_OBJECTS
  hanging = stand == _HANGING
  round_ = hanging | (draw.uniform(shape=(n,)) < 0.4)
  return (
    *carriers(half, center, stand),
    jnp.where(round_, render.SOLIDS.index("cylinder"), render.SOLIDS.index("block")),
    present & (hanging | (stand == _ON_PEDESTAL)),
  )


def _shelf_blocks(shelf: _Shelf):
  """The board and its two end panels: center (3, 3) and half (3, 3)."""
  ends = jnp.array([0.0, -0.5, 0.5])[:, None] * (shelf.length - 0.16) * shelf.along
  under = shelf.height / 2 - _BOARD
  z = jnp.stack([shelf.height - _BOARD, under, under])
  center = jnp.concatenate([shelf.middle + ends, z[:, None]], 1)
  thick, deep = jnp.full((), 0.05), jnp.full((), 0.36)
  panel = jnp.stack([thick, deep, under])
  return center, jnp.stack([jnp.stack([shelf.length / 2, deep + 0.06, jnp.full((), _BOARD)]), panel, panel])


def _solids(look: Look) -> jax.Array:
  """The solid of each of a look's forms, index into render.SOLIDS."""
  return jnp.array([render.SOLIDS.index(form.solid) for form in look.forms])


def _build(draw: _Draws, look: Look, shape, half, center, stand, present, shelf: _Shelf) -> render.Scene:
  """Objects and the furniture that carries them as one list of primitives, with textures and light."""
  n, m = render.MAX_OBJECTS, render.MAX_FURNITURE
  yaw = draw.uniform(0.0, 2 * jnp.pi, (n,))
  column_center, column_half, column_shape, column_active = _columns(draw, half, center, stand, present)
  shelf_center, shelf_half = _shelf_blocks(shelf)
  block = jnp.full(3, render.SOLIDS.index("block"))
  shelf_yaw = jnp.broadcast_to(jnp.arctan2(shelf.along[1], shelf.along[0]), (3,))
  pattern = draw.uniform(shape=(n,))
  texture = (pattern > 1 - look.patterned).astype(jnp.int32) + (pattern > 1 - look.patterned / 2)
  turn, tilt = draw.uniform(0.0, 2 * jnp.pi), jnp.deg2rad(draw.uniform(*look.tilt))
  # The light is high, so that the shadow of a lifted object lies near its foot and tells its depth.
  light = [jnp.sin(tilt) * jnp.cos(turn), jnp.sin(tilt) * jnp.sin(turn), jnp.cos(tilt)]
  floor_kind = draw.integer(3).astype(jnp.float32)
  floor = [floor_kind, draw.uniform(0.5, 1.0), draw.uniform(0.12, 0.3), draw.uniform(0.85, 1.1)]
  return render.Scene(
    center=jnp.concatenate([center, column_center, shelf_center]),
    half=jnp.concatenate([half, column_half, shelf_half]),
    yaw=jnp.concatenate([yaw, yaw, shelf_yaw]),
    shape=jnp.concatenate([_solids(look)[shape], column_shape, block]).astype(jnp.int32),
    active=jnp.concatenate([present, column_active, jnp.broadcast_to(shelf.used, (3,))]),
    texture=jnp.concatenate([texture, jnp.zeros(m, jnp.int32)]),
    frequency=jnp.concatenate([draw.uniform(1.4, 2.6, (n,)), jnp.ones(m)]),
    tone=jnp.concatenate([jnp.ones(n), jnp.broadcast_to(draw.uniform(0.95, 1.25), (m,))]),
    light=jnp.stack(light),
    ambient=draw.uniform(*look.ambient),
    floor=jnp.stack(floor),
  )
