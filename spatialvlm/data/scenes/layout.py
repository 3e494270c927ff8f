"""Draws scenes: a camera, three to eight objects on the floor, on pedestals, on a shelf or hanging, and light.

An object that does not stand on the floor is drawn by its place in the picture and its depth, independently,
and lifted to where that puts it; sizes know nothing of the class. So neither the lower edge nor the size of
a box says by itself which of two objects is nearer.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from spatialvlm.data.scenes import render

COLORS = ("yellow", "purple", "orange", "cyan", "white", "black")
ALBEDO = (
  (0.98, 0.86, 0.08),
  (0.56, 0.16, 0.74),
  (0.97, 0.47, 0.04),
  (0.10, 0.86, 0.88),
  (0.99, 0.99, 0.99),
  (0.05, 0.05, 0.05),
)
FURNITURE_ALBEDO = (0.50, 0.48, 0.46)
SKY_ALBEDO = (0.80, 0.84, 0.88)
FLOOR_ALBEDOS = (
  (0.62, 0.56, 0.50),
  (0.66, 0.66, 0.64),
  (0.44, 0.42, 0.40),
  (0.58, 0.62, 0.56),
  (0.72, 0.68, 0.60),
)

TRIES = 64
SHARE_FLOOR, SHARE_SHELF, SHARE_REPEATS = 0.40, 0.35, 0.45
DEPTH = (2.8, 8.5)
HALF = (0.22, 0.62)
PIXEL_RADIUS = (0.058, 0.20)  # of the bounding circle, as share of the image
_ROD, _BOARD = 0.022, 0.05


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
  """A drawn scene. Attributes: scene, camera, color (MAX_OBJECTS,) int32, floor_albedo (3,), present (MAX_OBJECTS,)."""

  scene: render.Scene
  camera: render.Camera
  color: jax.Array
  floor_albedo: jax.Array
  present: jax.Array


def sample(key: jax.Array) -> Layout:
  """One scene from one key. Pure, so it may be vmapped and jitted."""
  k_camera, k_place, k_names, k_shelf, k_light, k_look = jax.random.split(key, 6)
  camera, axes = _camera(k_camera)
  shape, color = _names(k_names)
  half = _sizes(jax.random.fold_in(k_names, 1), shape)
  number = jax.random.randint(jax.random.fold_in(k_names, 2), (), 3, render.MAX_OBJECTS + 1)
  center, stand, present, shelf = _place(k_place, k_shelf, camera, axes, half, number)
  return Layout(
    scene=_build(k_look, k_light, shape, half, center, stand, present, shelf),
    camera=camera,
    color=color,
    floor_albedo=jnp.asarray(FLOOR_ALBEDOS)[jax.random.randint(k_light, (), 0, len(FLOOR_ALBEDOS))],
    present=present,
  )


def _uniform(key, low, high, shape=()):
  return jax.random.uniform(key, shape, minval=low, maxval=high)


def _camera(key):
  """A camera that looks down at a place above the floor, and its horizontal axes (right, ahead)."""
  k = jax.random.split(key, 6)
  pitch = jnp.deg2rad(_uniform(k[0], 10.0, 44.0))
  yaw = _uniform(k[1], 0.0, 2 * jnp.pi)
  focal = 0.5 / jnp.tan(jnp.deg2rad(_uniform(k[2], 44.0, 62.0)) / 2)
  height = _uniform(k[3], 0.3, 1.0) + _uniform(k[4], 4.2, 6.8) * jnp.sin(pitch)
  ahead = jnp.array([jnp.cos(yaw), jnp.sin(yaw), 0.0])
  right = jnp.array([jnp.sin(yaw), -jnp.cos(yaw), 0.0])
  up = jnp.array([0.0, 0.0, 1.0])
  forward = jnp.cos(pitch) * ahead - jnp.sin(pitch) * up
  down = -jnp.sin(pitch) * ahead - jnp.cos(pitch) * up
  place = _uniform(k[5], -3.0, 3.0, (2,))
  position = jnp.concatenate([place, height[None]])
  return render.Camera(jnp.stack([right, down, forward], 1), position, focal), (right, ahead)


def _names(key):
  """Shapes and colours: all names distinct, or many repeats out of a few (for counting)."""
  k = jax.random.split(key, 6)
  colors, shapes, n = len(COLORS), len(render.SHAPES), render.MAX_OBJECTS
  distinct = jax.random.permutation(k[0], colors * shapes)[:n]
  share = _uniform(k[1], 0.3, 1.0)
  common = jax.random.randint(k[2], (2,), 0, jnp.array([shapes, colors]))
  other = jax.random.randint(k[3], (2, n), 0, jnp.array([[shapes], [colors]]))
  keep = jax.random.uniform(k[4], (2, n)) < jnp.stack([share, share * share])[:, None]
  repeated = jnp.where(keep, common[:, None], other)
  repeat = jax.random.uniform(k[5]) < SHARE_REPEATS
  return (
    jnp.where(repeat, repeated[0], distinct % shapes).astype(jnp.int32),
    jnp.where(repeat, repeated[1], distinct // shapes).astype(jnp.int32),
  )


def _sizes(key, shape):
  """Half sizes (N, 3): one scale for all classes, with proportions that vary where the shape allows it."""
  k = jax.random.split(key, 2)
  n = shape.shape[0]
  scale = jnp.exp(_uniform(k[0], jnp.log(HALF[0]), jnp.log(HALF[1]), (n,)))
  a, b, c = _uniform(k[1], 0.0, 1.0, (3, n))
  tall = 0.8 + 0.5 * c
  forms = jnp.stack(
    [
      jnp.ones((n, 3)),
      jnp.stack([0.72 + 0.28 * a, 0.72 + 0.28 * b, 0.75 + 0.3 * c], 1),
      jnp.stack([0.72 + 0.18 * a, 0.72 + 0.18 * a, tall], 1),
      jnp.stack([0.82 + 0.2 * a, 0.82 + 0.2 * a, 0.9 + 0.4 * c], 1),
    ]
  )
  return scale[:, None] * forms[shape, jnp.arange(n)]


def _place(key, k_shelf, camera, axes, half, number):
  """Puts objects one by one into the first of their drawn places that fits.

  Returns centres (N, 3), stand (N,) (0 floor, 1 pedestal, 2 hanging, 3 on the shelf), present (N,), and the
  shelf (x, y, height, yaw, length, used).
  """
  n = render.MAX_OBJECTS
  k = jax.random.split(key, 5)
  spot = _uniform(k[0], 0.08, 0.92, (2, n, TRIES))
  depth = jnp.exp(_uniform(k[1], jnp.log(DEPTH[0]), jnp.log(DEPTH[1]), (n, TRIES)))
  hangs = jax.random.uniform(k[2], (n, TRIES)) < 0.35
  # An object keeps to the floor or leaves it for half of its tries; then either will do, so that few are lost.
  low = jax.random.uniform(k[3], (n, TRIES)) < SHARE_FLOOR
  low = jnp.where(jnp.arange(TRIES) < TRIES // 2, low[:, :1], low)
  u, v = (spot - 0.5) / camera.focal
  ray = jnp.einsum("ij,jnt->nti", camera.rotation, jnp.stack([u, v, jnp.ones_like(u)]))
  hz = half[:, None, 2]
  drop = (hz - camera.position[2]) / jnp.minimum(ray[..., 2], -1e-3)
  depth = jnp.where(low, drop, depth)
  center = camera.position + depth[..., None] * ray
  bottom = center[..., 2] - hz
  lifted = jnp.where(hangs, (bottom > 0.5) & (bottom < 2.6), (bottom > 0.12) & (bottom < 1.5))
  stand = jnp.where(low, 0, jnp.where(hangs, 2, 1))
  good = (depth > DEPTH[0]) & (depth < DEPTH[1]) & (low | lifted)

  shelf, on_shelf, shelf_center = _shelf(k_shelf, camera, axes, half)
  center = jnp.where(on_shelf[..., None], shelf_center, center)
  stand = jnp.where(on_shelf, 3, stand)
  good = jnp.where(on_shelf, True, good)

  place, size = _project(camera, center, half)
  edge = 0.9 * size + 0.01
  good &= (size > PIXEL_RADIUS[0]) & (size < PIXEL_RADIUS[1])
  good &= ((place > edge[..., None]) & (place < 1 - edge[..., None])).all(-1)
  girth = jnp.linalg.norm(half[:, :2], axis=1) * 0.85

  def step(i, state):
    position, kind, flat, wide, present = state
    apart = jnp.linalg.norm(center[i][:, None, :2] - position[None, :, :2], axis=-1)
    both_shelved = (stand[i][:, None] == 3) & (kind[None] == 3)
    need = jnp.where(both_shelved, 0.0, 0.12) + girth[i] + girth[None]
    shown = jnp.linalg.norm(place[i][:, None] - flat[None], axis=-1) > 0.82 * (size[i][:, None] + wide[None])
    # What stands or hangs beside the shelf must not run through its board.
    board = _inside_board(shelf, center[i][:, :2], girth[i]) & (stand[i] != 3)
    fits = good[i] & ~board & (((apart > need) & shown) | ~present[None]).all(1)
    best = jnp.argmax(fits)
    ok = fits[best] & (present.sum() < number)
    return (
      position.at[i].set(center[i, best]),
      kind.at[i].set(stand[i, best]),
      flat.at[i].set(place[i, best]),
      wide.at[i].set(size[i, best]),
      present.at[i].set(ok),
    )

  start = (jnp.zeros((n, 3)), jnp.zeros(n, stand.dtype), jnp.zeros((n, 2)), jnp.zeros(n), jnp.zeros(n, bool))
  position, kind, _, _, present = jax.lax.fori_loop(0, n, step, start)
  shelf = shelf.at[5].set(shelf[5] * (present & (kind == 3)).any())
  return position, kind, present, shelf


def _shelf(key, camera, axes, half):
  """A board of 1.5 to 2.6 m at 0.4 to 1.3 m, and for the first three objects places on it."""
  n = render.MAX_OBJECTS
  k = jax.random.split(key, 6)
  right, ahead = axes
  depth = _uniform(k[0], 3.6, 7.0)
  side = _uniform(k[1], -0.28, 0.28) * depth / camera.focal
  middle = camera.position[:2] + (side * right + depth * ahead)[:2]
  height, length = _uniform(k[2], 0.4, 1.3), _uniform(k[3], 1.5, 2.6)
  turn = jnp.arctan2(right[1], right[0]) + _uniform(k[4], -0.9, 0.9)
  used = jax.random.uniform(k[5]) < SHARE_SHELF
  shelf = jnp.stack([*middle, height, turn, length, used.astype(jnp.float32)])
  along = (_uniform(jax.random.fold_in(key, 1), -0.5, 0.5, (n, TRIES))) * (length - 0.5)
  x, y = middle[0] + along * jnp.cos(turn), middle[1] + along * jnp.sin(turn)
  center = jnp.stack([x, y, jnp.broadcast_to(height + _BOARD + half[:, None, 2], x.shape)], -1)
  small = half[:, :2].max(1) < 0.42
  on_shelf = (used & (jnp.arange(n) < 3) & small)[:, None] & jnp.ones((n, TRIES), bool)
  return shelf, on_shelf, center


def _inside_board(shelf, xy, radius):
  cos, sin = jnp.cos(shelf[3]), jnp.sin(shelf[3])
  dx, dy = xy[..., 0] - shelf[0], xy[..., 1] - shelf[1]
  along, across = jnp.abs(dx * cos + dy * sin), jnp.abs(dy * cos - dx * sin)
  return (shelf[5] > 0) & (along < shelf[4] / 2 + 0.1 + radius) & (across < 0.5 + radius)


def _project(camera, center, half):
  """Place in the picture (0 to 1, x and y) and radius of the bounding circle, as shares of the image."""
  local = (center - camera.position) @ camera.rotation
  depth = jnp.maximum(local[..., 2], 0.1)
  place = 0.5 + camera.focal * local[..., :2] / depth[..., None]
  return place, camera.focal * half.max(1)[:, None] / depth


def _build(k_look, k_light, shape, half, center, stand, present, shelf):
  """Objects and the furniture that carries them as one list of primitives, with textures and light."""
  n = render.MAX_OBJECTS
  k = jax.random.split(k_look, 6)
  block, cylinder = render.SHAPES.index("block"), render.SHAPES.index("cylinder")
  yaw = _uniform(k[0], 0.0, 2 * jnp.pi, (n,))

  top = center[:, 2] - half[:, 2]
  hanging = stand == 2
  ceiling = 7.0
  rod = (ceiling - (center[:, 2] + half[:, 2])) / 2
  column_half = jnp.stack(
    [*(jnp.where(hanging, _ROD, 0.8 * half[:, a]) for a in (0, 1)), jnp.where(hanging, rod, top / 2)], 1
  )
  column_half = jnp.maximum(column_half, 1e-3)
  column_z = jnp.where(hanging, ceiling - rod, top / 2)
  column_center = jnp.stack([center[:, 0], center[:, 1], column_z], 1)
  column_shape = jnp.where(hanging | (jax.random.uniform(k[1], (n,)) < 0.4), cylinder, block)
  column_active = present & ((stand == 1) | hanging)

  cos, sin = jnp.cos(shelf[3]), jnp.sin(shelf[3])
  ends = jnp.array([-0.5, 0.5]) * (shelf[4] - 0.16)
  panel = jnp.stack([shelf[0] + ends * cos, shelf[1] + ends * sin, jnp.full(2, shelf[2] / 2)], 1)
  board = jnp.stack([shelf[0], shelf[1], shelf[2]])[None]
  spare = jnp.zeros((render.MAX_FURNITURE - n - 3, 3))
  shelf_half = jnp.stack(
    [
      jnp.stack([shelf[4] / 2, jnp.array(0.42), jnp.array(_BOARD)]),
      *([jnp.stack([jnp.array(0.05), jnp.array(0.36), shelf[2] / 2])] * 2),
    ]
  )
  count = 3 + spare.shape[0]
  used = jnp.concatenate([jnp.full(3, shelf[5] > 0), jnp.zeros(spare.shape[0], bool)])

  texture = jax.random.categorical(k[2], jnp.log(jnp.array([0.7, 0.15, 0.15])), shape=(n,))
  m = render.MAX_FURNITURE
  return render.Scene(
    center=jnp.concatenate([center, column_center, board, panel, spare]),
    half=jnp.concatenate([half, column_half, shelf_half, spare + 1.0]),
    yaw=jnp.concatenate([yaw, yaw, jnp.full(count, shelf[3])]),
    shape=jnp.concatenate([shape, column_shape, jnp.full(count, block)]).astype(jnp.int32),
    active=jnp.concatenate([present, column_active, used]),
    texture=jnp.concatenate([texture, jnp.zeros(m, texture.dtype)]).astype(jnp.int32),
    frequency=jnp.concatenate([_uniform(k[3], 1.4, 2.6, (n,)), jnp.ones(m)]),
    tone=jnp.concatenate([jnp.ones(n), jnp.broadcast_to(_uniform(k[4], 0.95, 1.25), (m,))]),
    light=_light(k_light),
    ambient=_uniform(k[5], 0.5, 0.62),
    floor=_floor(jax.random.fold_in(k_light, 1)),
  )


def _light(key):
  """High light, so that the shadow of a lifted object lies near its foot and tells its depth."""
  k = jax.random.split(key)
  turn, tilt = _uniform(k[0], 0.0, 2 * jnp.pi), jnp.deg2rad(_uniform(k[1], 5.0, 32.0))
  return jnp.stack([jnp.sin(tilt) * jnp.cos(turn), jnp.sin(tilt) * jnp.sin(turn), jnp.cos(tilt)])


def _floor(key):
  k = jax.random.split(key, 4)
  kind = jax.random.randint(k[0], (), 0, 3).astype(jnp.float32)
  return jnp.stack([kind, _uniform(k[1], 0.5, 1.0), _uniform(k[2], 0.12, 0.3), _uniform(k[3], 0.85, 1.1)])
