"""A ray caster for rooms, in plain JAX: what shows, what is hidden, how far it is, and a picture of it.

A solid is, in its own frame, the part of the cube [-1, 1]^3 where a quadric is not positive: the slab
method of Kay and Kajiya (1986) with the quadric as a fourth slab, as in `worlds.render`, but turned in any
way, and many to a thing. Each ray keeps the nearest hit of every thing, so that what is hidden is known,
and by what. Floor, walls and ceiling are the box that the camera stands in.

All is in the camera's axes (OpenCV: x right, y down, z forward), so that the parameter of a ray (x, y, 1)
is the depth along the optical axis. A pixel is sampled at its centre. Each light is a ball; a pixel looks
at one of 16 points of it, and what 4 x 4 pixels of one surface see is averaged: soft shadows for one ray a
light.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from spatialvlm.worlds.rooms.dial import MAX_THINGS
from spatialvlm.worlds.rooms.layout import LIGHTS
from spatialvlm.worlds.rooms.scene import SOLIDS, Scene

TILE = 48
FAR = 65.0
_NEAR = 0.05
_MISS = 0x7F000000
_LOW = 1023  # low bits of a depth carry the solid (8) and the slab that was hit (2)
# Surfaces beyond the things.
FLOOR, WALL, CEILING, SKY = MAX_THINGS, MAX_THINGS + 1, MAX_THINGS + 2, MAX_THINGS + 3
PATTERNS = ("grain", "planks", "tiles", "checks", "bricks", "wainscot")
assert SOLIDS <= 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Buffers:
  """What each pixel of S x S shows.

  Attributes:
    surface: (S, S) int8, a thing's number, or FLOOR, WALL, CEILING, SKY. depth: (S, S) float32, metres
      along the optical axis, 0 for sky. met: (S, S) int32, a bit for each thing that the pixel's ray meets,
      hidden ones too.
  """

  surface: jax.Array
  depth: jax.Array
  met: jax.Array


@functools.partial(jax.jit, static_argnames="size")
def measure(scenes: Scene, size: int) -> Buffers:
  """What cameras see, without light and colour, B scenes first."""
  return jax.lax.map(lambda scene: Buffers(*_whole(_tiles(scene, size, False)[0], size)), scenes)


@functools.partial(jax.jit, static_argnames="size")
def picture(scenes: Scene, size: int) -> tuple[Buffers, jax.Array]:
  """The same, and pictures (B, S, S, 3) uint8."""

  def one(scene):
    base, light = _whole(_tiles(scene, size, True), size)
    return Buffers(*base), _painted(scene, *light)

  return jax.lax.map(one, scenes)


def _tiles(scene: Scene, size: int, lit: bool):
  count = -(-size // TILE)
  steps = jnp.arange(count) * TILE
  corners = jnp.stack(jnp.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
  return jax.lax.map(lambda corner: _tile(scene, size, corner, lit), corners)


def _whole(tiles, size: int):
  """Pictures of their tiles, each (tiles, ..., TILE * TILE) -> (..., size, size)."""
  count = -(-size // TILE)

  def whole(part):
    middle, wide = part.shape[1:-1], part.shape[-1] // TILE
    grid = jnp.moveaxis(part.reshape(count, count, -1, TILE, wide), 2, 0)
    grid = grid.transpose(0, 1, 3, 2, 4).reshape(*middle, count * TILE, count * wide)
    return grid[..., :size, : size if wide == TILE else count * wide]

  return jax.tree.map(whole, tiles)


def _slabs(quadric, ox, oy, oz, dx, dy, dz):
  """Where a line o + t d is inside of a solid: its entries by the four slabs, and its exit."""

  def slab(o, d):
    inverse = 1.0 / jnp.where(jnp.abs(d) < 1e-9, 1e-9, d)
    middle, reach = -o * inverse, jnp.abs(inverse)
    return middle - reach, middle + reach

  (x0, x1), (y0, y1), (z0, z1) = slab(ox, dx), slab(oy, dy), slab(oz, dz)
  kxy, kzz, kz, k0 = quadric
  a = kxy * (dx * dx + dy * dy) + kzz * dz * dz
  b = kxy * (ox * dx + oy * dy) + (kzz * oz + 0.5 * kz) * dz
  c = kxy * (ox * ox + oy * oy) + (kzz * oz + kz) * oz + k0
  a = jnp.where(jnp.abs(a) < 1e-9, 1e-9, a)
  disc = b * b - a * c
  root, inverse = jnp.sqrt(jnp.maximum(disc, 0.0)), 1.0 / a
  r0, r1 = (-b - root) * inverse, (-b + root) * inverse
  # A steep ray is in a double cone before its first and after its second root: keep what is below the apex.
  steep, rising = a < 0, dz > 0
  low, high = jnp.minimum(r0, r1), jnp.maximum(r0, r1)
  q0 = jnp.where(steep, jnp.where(rising, -1e9, high), low)
  q1 = jnp.where(steep, jnp.where(rising, low, 1e9), high)
  q1 = jnp.where(disc < 0, jnp.where(steep, 1e9, -1e9), q1)
  q0 = jnp.where((disc < 0) & steep, -1e9, q0)
  return (x0, y0, z0, q0), jnp.minimum(jnp.minimum(x1, y1), jnp.minimum(z1, q1))


# Without it XLA computes again, within each kernel that reads them, all that values hang on.
_kept = jax.lax.optimization_barrier


def _turned(turn, x, y, z):
  return tuple(turn[k, 0] * x + turn[k, 1] * y + turn[k, 2] * z for k in range(3))


def _chosen(keep: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Indices of the true entries first, and how many they are."""
  return jnp.argsort(~keep, stable=True), keep.sum()


def _tile(scene: Scene, size: int, corner: jax.Array, lit: bool):
  """Casts the rays of one square. `corner` is its first (row, column)."""
  steps = jnp.arange(TILE, dtype=jnp.float32) + 0.5
  v = jnp.broadcast_to(((corner[0] + steps) / size - 0.5)[:, None] / scene.focal, (TILE, TILE)).ravel()
  u = jnp.broadcast_to(((corner[1] + steps) / size - 0.5)[None, :] / scene.focal, (TILE, TILE)).ravel()
  nearest, met = _cast(scene, size, corner, u, v)
  solid, slab = (nearest >> 2) & 255, nearest & 3
  quadric = scene.quadric[solid].T
  turn, origin = jnp.moveaxis(scene.turn[solid], 0, 2), scene.origin[solid].T
  entries, _ = _slabs(quadric, *origin, *_turned(turn, u, v, jnp.ones_like(u)))
  entry = jnp.where(
    slab == 3, entries[3], jnp.where(slab == 0, entries[0], jnp.where(slab == 1, entries[1], entries[2]))
  )
  ray = _turned(scene.rotation, u, v, jnp.ones_like(u))
  wall_t, wall = _walls(scene, ray)
  hit = (nearest < _MISS) & (entry < wall_t)
  thing = scene.owner[solid]
  t = jnp.where(hit, entry, wall_t)
  sky = ~hit & ((wall_t > FAR) | ((scene.outdoors > 0) & (wall != 0)))
  surface = jnp.where(
    hit, thing, jnp.where(sky, SKY, jnp.where(wall == 0, FLOOR, jnp.where(wall == 5, CEILING, WALL)))
  )

  base = surface.astype(jnp.int8), jnp.where(sky, 0.0, t), met
  if not lit:
    return base, ()
  t, surface, hit, sky, solid, slab, wall = jax.lax.optimization_barrier(
    (t, surface, hit, sky, solid, slab, wall)
  )
  point = (u * t, v * t, t)
  normal, color, key = _kept(
    _material(scene, point, ray, t, hit, sky, solid, slab, wall, turn, origin, quadric)
  )
  return base, (*_lit(scene, corner, point, normal, color, sky), color, key)


def _cast(scene: Scene, size: int, corner: jax.Array, u, v):
  """The nearest solid, (rays,): the bits of its depth, its number and slab in the low ones; and which
  things, a bit each, a ray meets at all.

  One array of integers whose order is that of depth is one fused kernel a solid.
  """
  ends = (jnp.stack([corner, corner + TILE]).astype(jnp.float32) / size - 0.5) / scene.focal
  x, y, z = scene.center.T
  radius = scene.radius

  def within(a, low, high):  # of the two planes of the tile's frustum along one axis
    return ((a - low * z) > -radius * jnp.sqrt(1 + low**2)) & (
      (high * z - a) > -radius * jnp.sqrt(1 + high**2)
    )

  keep = (radius > 0) & within(y, ends[0, 0], ends[1, 0]) & within(x, ends[0, 1], ends[1, 1]) & (z > -radius)
  order, count = _chosen(keep)

  def body(i, state):
    best, met = state
    k = order[i]
    turn, origin, quadric = _kept((scene.turn[k], scene.origin[k], scene.quadric[k]))
    direction = (turn[j, 0] * u + turn[j, 1] * v + turn[j, 2] for j in range(3))
    (x0, y0, z0, q0), leave = _slabs(quadric, *origin, *direction)
    xy, zq = jnp.maximum(x0, y0), jnp.maximum(z0, q0)
    enter = jnp.maximum(xy, zq)
    slab = jnp.where(xy >= zq, jnp.where(x0 >= y0, 0, 1), jnp.where(z0 >= q0, 2, 3))
    bits = (jax.lax.bitcast_convert_type(enter, jnp.int32) & ~_LOW) | (k << 2) | slab
    found = jnp.where((enter < leave) & (enter > _NEAR), bits, _MISS)
    found = jax.lax.optimization_barrier(found)
    return jnp.minimum(best, found), met | jnp.where(found < _MISS, jnp.left_shift(1, scene.owner[k]), 0)

  rays = TILE * TILE
  return jax.lax.fori_loop(0, count, body, (jnp.full(rays, _MISS, jnp.int32), jnp.zeros(rays, jnp.int32)))


def _walls(scene: Scene, ray):
  """Depth at which a ray leaves the room, and through what: 0 floor, 1 to 4 walls, 5 ceiling."""
  x0, x1, y0, y1, high = scene.bounds
  px, py, pz = scene.position

  def leave(p, d, low, top):
    d = jnp.where(jnp.abs(d) < 1e-7, 1e-7, d)
    return jnp.where(d > 0, top - p, low - p) / d, d > 0

  (tx, ux), (ty, uy), (tz, uz) = (
    leave(px, ray[0], x0, x1),
    leave(py, ray[1], y0, y1),
    leave(pz, ray[2], 0.0, high),
  )
  t = jnp.minimum(tx, jnp.minimum(ty, tz))
  which = jnp.where(
    t == tz, jnp.where(uz, 5, 0), jnp.where(t == tx, jnp.where(ux, 2, 1), jnp.where(uy, 4, 3))
  )
  return t, which


def _noise(a, b):
  """A number from 0 to 1 for each pair of whole numbers (Wang's hash of both)."""
  n = a.astype(jnp.int32) * 374761393 + b.astype(jnp.int32) * 668265263
  n = (n ^ ((n >> 13) & 0x7FFFF)) * 1274126177
  return ((n ^ (n >> 16)) & 0xFFFF).astype(jnp.float32) / 65535.0


def _odd(value):
  """0 or 1: the rest of whole numbers by two (a remainder of floats is a call for each)."""
  return value - 2.0 * jnp.floor(0.5 * value)


def _tone(surface, a, b, t):
  """Factor of a room's surface at (a, b) metres along it."""
  kind, cell, contrast = surface[3], surface[4], surface[5]
  i, j = jnp.floor(a / cell), jnp.floor(b / cell)
  fa, fb = a / cell - i, b / cell - j
  grain = _noise(i, j) - 0.5
  plank = _noise(i, jnp.floor(b / (7.0 * cell) + 0.37 * i)) - 0.5
  line = jnp.where((fa < 0.06) | (fb < 0.06), -0.9, 0.3 * grain)
  checks = _odd(i + j) - 0.5
  row = jnp.floor(b / (0.4 * cell))
  fr, fc = b / (0.4 * cell) - row, a / cell + 0.5 * _odd(row)
  brick = jnp.where((fr < 0.14) | (fc - jnp.floor(fc) < 0.06), 0.9, 0.6 * (_noise(jnp.floor(fc), row) - 0.5))
  low = jnp.where(b < cell, -0.6, jnp.where(b < cell + 0.05, 0.8, 0.1))
  table = (grain, jnp.where(fa < 0.05, -0.9, plank), line, checks, brick, low)
  value = table[0]
  for k, one in enumerate(table[1:], 1):
    value = jnp.where(kind == k, one, value)
  return 1.0 + contrast * value * jnp.clip(1.5 - t / 14.0, 0.0, 1.0)


def _material(scene, point, ray, t, hit, sky, solid, slab, wall, turn, origin, quadric):
  """Unit normals in the camera's axes, colours, and a number that pixels of one face share."""
  x, y, z = _kept(tuple(value + o for value, o in zip(_turned(turn, *point), origin, strict=True)))
  kxy, kzz, kz, _ = quadric
  gx = jnp.where(slab == 3, kxy * x, jnp.where(slab == 0, x, 0.0))
  gy = jnp.where(slab == 3, kxy * y, jnp.where(slab == 1, y, 0.0))
  gz = jnp.where(slab == 3, kzz * z + 0.5 * kz, jnp.where(slab == 2, z, 0.0))
  own = _kept([turn[0, k] * gx + turn[1, k] * gy + turn[2, k] * gz for k in range(3)])
  scale = _kept(jax.lax.rsqrt(jnp.maximum(own[0] ** 2 + own[1] ** 2 + own[2] ** 2, 1e-12)))
  # Of the room: inwards.
  axis = jnp.where((wall == 0) | (wall == 5), 2, jnp.where(wall <= 2, 0, 1))
  sign = jnp.where((wall == 0) | (wall == 1) | (wall == 3), 1.0, -1.0)
  world = scene.rotation
  inward = [
    sign * jnp.where(axis == 2, world[2, k], jnp.where(axis == 0, world[0, k], world[1, k])) for k in range(3)
  ]
  normal = tuple(jnp.where(hit, o * scale, i) for o, i in zip(own, inward, strict=True))

  wx, wy, wz = (scene.position[k] + t * ray[k] for k in range(3))
  flat = (wall == 0) | (wall == 5)
  a = jnp.where(flat | (wall > 2), wx, wy)
  b = jnp.where(flat, wy, wz)
  # Selects, as looking up is slow.
  surface = [
    jnp.where(wall == 0, scene.surface[0, j], jnp.where(wall == 5, scene.surface[2, j], scene.surface[1, j]))
    for j in range(6)
  ]
  tone = _kept(_tone(surface, a, b, t))
  room = [surface[k] * tone for k in range(3)]
  *albedo, pattern, frequency = _kept(scene.look[solid]).T
  cell = lambda value: jnp.floor(value * frequency + 0.01)
  bands = cell(z)
  odd = _kept(_odd(jnp.where(pattern == 1, bands, jnp.where(pattern == 2, bands + cell(x) + cell(y), 0.0))))
  up = jnp.clip(ray[2] * jax.lax.rsqrt(ray[0] ** 2 + ray[1] ** 2 + ray[2] ** 2), 0.0, 1.0)
  above = [base - fall * jnp.sqrt(up) for base, fall in ((0.80, 0.50), (0.87, 0.36), (0.94, 0.14))]
  color = [
    jnp.where(hit, albedo[k] * (1.0 - 0.32 * odd), jnp.where(sky, above[k], room[k])) for k in range(3)
  ]
  # What is far is hazy outdoors.
  share = jnp.clip(t / FAR, 0.0, 1.0)
  haze = scene.outdoors * share * jnp.sqrt(share) * jnp.where(sky, 0.0, 0.8)
  color = [c + haze * (h - c) for c, h in zip(color, (0.80, 0.87, 0.94), strict=True)]
  key = jnp.where(hit, (solid << 2) | slab, -1 - wall).astype(jnp.int32)
  return normal, jnp.stack(color), key


# 16 points of a disc, two of them never far apart in a square of 4 x 4 pixels: (16, 2).
_RING = np.sqrt((np.arange(16) * 7 % 16 + 0.5) / 16)
_TURN = 2 * np.pi * (np.arange(16) * 0.618034)
_POINTS = np.stack([_RING * np.cos(_TURN), _RING * np.sin(_TURN)], 1).astype(np.float32)


def _lit(scene, corner, point, normal, color, sky):
  """How strongly a pixel is lit from everywhere (rays,), -1 for the sky, which shines itself; by each light
  (LIGHTS, rays); and each light's share, 0 or 1: whether a pixel's point of the light is seen. Of that
  every second column is asked, the even ones for the first light and the third.
  """
  up = scene.rotation[2]  # the world's z in the camera's axes
  rising = normal[0] * up[0] + normal[1] * up[1] + normal[2] * up[2]
  length = jax.lax.rsqrt(point[0] ** 2 + point[1] ** 2 + point[2] ** 2 + 1e-9)
  seen = -(normal[0] * point[0] + normal[1] * point[1] + normal[2] * point[2]) * length
  even = (0.72 + 0.28 * rising) * (0.8 + 0.3 * jnp.maximum(seen, 0.0))
  even = _kept(jnp.where(sky, -1.0, even))
  rows = (jnp.arange(TILE) + corner[0]) % 4
  columns = (jnp.arange(TILE) + corner[1]) % 4
  sample = jnp.asarray(_POINTS)[(rows[:, None] * 4 + columns[None]).ravel()]
  start = tuple(p + (2e-3 + 5e-4 * point[2]) * n for p, n in zip(point, normal, strict=True))
  around = _around(start, point[2], sky)
  strengths, shares = [], []
  for k in range(LIGHTS):
    lamp, place = scene.lamp[k], scene.light[k]
    toward = [place[j] - start[j] for j in range(3)]
    square = toward[0] ** 2 + toward[1] ** 2 + toward[2] ** 2
    inverse = jax.lax.rsqrt(square)
    facing = sum(n * d for n, d in zip(normal, toward, strict=True)) * inverse
    fall = 1.0 / (1.0 + square / lamp[4] ** 2)
    strength, toward, inverse = _kept(
      (jnp.where(sky, 0.0, jnp.maximum(facing, 0.0) * fall * 1.6), toward, inverse)
    )
    strengths.append(strength)
    half = lambda a, k=k: a.reshape(TILE, TILE // 2, 2)[..., k % 2].ravel()
    aimed = _aimed([half(d) for d in toward], half(inverse), lamp[0], half(sample[:, 0]), half(sample[:, 1]))
    shares.append(_free(scene, _kept([half(s) for s in start]), _kept(aimed), place, lamp, around))
  return even, jnp.stack(strengths), jnp.stack(shares)


def _around(start, depth, sky):
  """A ball around all that a square's pixels show: its middle (3,) and radius."""
  low, high = jnp.where(sky, 1e9, depth).min(), jnp.where(sky, 0.0, depth).max()
  corner = lambda a: jnp.stack([a[0], a[TILE - 1], a[-TILE], a[-1]])
  x, y, z = (corner(a) for a in start)
  ends = jnp.concatenate([jnp.stack([x, y, z], 1) / z[:, None] * value for value in (low, high)])
  middle = (ends.min(0) + ends.max(0)) / 2
  return middle, jnp.linalg.norm(ends - middle, axis=1).max() + 0.02


def _aimed(toward, inverse, radius, across, down):
  """Towards a point of the light's disc, which faces the pixel."""
  dx, dy, dz = (d * inverse for d in toward)
  # Two directions across; the camera's forward axis is never along the way to a light that matters here.
  sx, sy = dy, -dx
  scale = jax.lax.rsqrt(sx * sx + sy * sy + 1e-9)
  sx, sy = sx * scale, sy * scale
  tx, ty, tz = -dz * sy, dz * sx, dx * sy - dy * sx
  a, b = radius * across, radius * down
  return toward[0] + a * sx + b * tx, toward[1] + a * sy + b * ty, toward[2] + b * tz


def _free(scene, start, aimed, place, lamp, around):
  """1 where nothing stands between a pixel and its point of the light."""
  middle, spread = around
  # What touches the rounded cone from the pixels to the light.
  along = place - middle
  share = jnp.clip((scene.center - middle) @ along / jnp.maximum(along @ along, 1e-9), 0.0, 1.0)
  off = jnp.linalg.norm(scene.center - middle - share[:, None] * along, axis=1)
  keep = (scene.radius > 0) & (off < scene.radius + spread * (1 - share) + lamp[0] * share)
  keep &= lamp[1:4].max() > 0
  order, count = _chosen(keep)

  def body(i, dark):
    k = order[i]
    turn, origin, quadric = _kept((scene.turn[k], scene.origin[k], scene.quadric[k]))
    o = [value + c for value, c in zip(_turned(turn, *start), origin, strict=True)]
    (x0, y0, z0, q0), leave = _slabs(quadric, *o, *_turned(turn, *aimed))
    enter = jnp.maximum(jnp.maximum(x0, y0), jnp.maximum(z0, q0))
    return jnp.maximum(dark, jnp.where(jnp.maximum(enter, 1e-4) < jnp.minimum(leave, 0.97), 1.0, 0.0))

  return 1.0 - jax.lax.fori_loop(0, count, body, jnp.zeros_like(start[0]))


def _painted(scene: Scene, even, strength, share, color, key) -> jax.Array:
  """Averages what neighbours of one face see of each light, and adds all up; stored as square roots.

  Of 4 x 4 pixels, 4 across and then 4 down. How many there are of even and odd columns, and how many of
  them see each light, are counted in one whole number, five bits each.
  """
  size = key.shape[0]
  odd = jnp.arange(size) % 2
  counts = jnp.broadcast_to(jnp.left_shift(1, 5 * odd), key.shape)
  for k in range(LIGHTS):
    sees = jnp.repeat(share[k].astype(jnp.int32), 2, axis=1)[:size, :size]
    counts += jnp.where(odd == k % 2, jnp.left_shift(sees, 5 * (k + 2)), 0)
  for axis in (1, 0):
    widths = [(2, 1) if a == axis else (0, 0) for a in (0, 1)]
    wide, keys = _kept((jnp.pad(counts, widths), jnp.pad(key, widths, constant_values=-99)))
    at = lambda a, k, axis=axis: jax.lax.slice_in_dim(a, k, k + size, axis=axis)
    counts = _kept(sum(jnp.where(at(keys, k) == key, at(wide, k), 0) for k in range(4)))
  field = lambda k: (jnp.right_shift(counts, 5 * k) & 31).astype(jnp.float32)
  # A face of one column may have no pixel that was asked: it counts as lit.
  soft = _kept(
    [
      strength[k] * jnp.where(field(k % 2) > 0, field(k + 2) / jnp.maximum(field(k % 2), 1.0), 1.0)
      for k in range(LIGHTS)
    ]
  )
  channels = []
  for c in range(3):
    light = sum(scene.lamp[k, 1 + c] * soft[k] for k in range(LIGHTS)) + scene.ambient[c] * even
    value = jnp.clip(1.08 * color[c] * jnp.where(even < 0, 1.0, light), 0.0, 1.0)
    channels.append((255.0 * jnp.sqrt(value) + 0.5).astype(jnp.uint8))
  return jnp.stack(channels, -1)
