"""A ray caster for small scenes in plain JAX: shading, metric depth, surfaces and object boxes in one pass.

Every primitive is, in its own frame scaled to the cube [-1, 1]^3, the part of that cube where a quadric is
not positive: q = k_xy (x^2 + y^2) + k_zz z^2 + k_z z + k_0. Sphere, block, cylinder and cone are four rows
of coefficients, so one branchless kernel serves all (the slab method of Kay and Kajiya 1986, with the
quadric as a fourth slab). Dome and barrel, which no training shows, are two more.

World: metres, z up, the floor is z = 0. Camera: OpenCV's axes (x right, y down, z forward), so that the ray
parameter of a direction (x, y, 1) is the depth along the optical axis. Pixel (row, column) is sampled at its
centre (column + 0.5, row + 0.5).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

SOLIDS = ("sphere", "block", "cylinder", "cone", "dome", "barrel")
# Coefficients (k_xy, k_zz, k_z, k_0) of each solid's quadric.
QUADRICS = (
  (1.0, 1.0, 0.0, -1.0),
  (0.0, 0.0, 0.0, -1.0),
  (1.0, 0.0, 0.0, -1.0),
  (1.0, -0.25, 0.5, -0.25),
  (1.0, 0.25, 0.5, -0.75),  # the upper half of a sphere
  (1.0, 0.5, 0.0, -1.0),  # a sphere, stretched, without its caps
)

MAX_OBJECTS = 8
MAX_FURNITURE = MAX_OBJECTS + 3  # what carries each object; a shelf's board and two panels
MAX_PRIMITIVES = MAX_OBJECTS + MAX_FURNITURE
# Values of the surface map beyond the objects 0 .. MAX_OBJECTS - 1.
FURNITURE, FLOOR, SKY = MAX_OBJECTS, MAX_OBJECTS + 1, MAX_OBJECTS + 2
SURFACES = MAX_OBJECTS + 3

TILE = 48
FAR = 60.0
EXPOSURE = 1.2
_NEAR = 0.05
_MISS = 0x7F000000
_LOW = 127  # seven low bits of a depth carry the primitive (5) and the slab that was hit (2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Camera:
  """Attributes: rotation (3, 3) camera to world, position (3,) metres, focal length as share of the width."""

  rotation: jax.Array
  position: jax.Array
  focal: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
  """Primitives and light. The first MAX_OBJECTS primitives are the objects, the rest is furniture.

  Attributes:
    center: (P, 3) metres. half: (P, 3) half sizes in the primitive's frame. yaw: (P,) radians about z.
    shape: (P,) int32 into SOLIDS. active: (P,) bool.
    texture: (P,) int32, 0 plain, 1 stripes, 2 checker. frequency: (P,) of the texture.
    tone: (P,) brightness factor (objects 1, furniture varies).
    light: (3,) unit vector towards the light. ambient: () share of light that reaches shadows.
    floor: (4,) texture kind, tile size in metres, contrast, tone.
  """

  center: jax.Array
  half: jax.Array
  yaw: jax.Array
  shape: jax.Array
  active: jax.Array
  texture: jax.Array
  frequency: jax.Array
  tone: jax.Array
  light: jax.Array
  ambient: jax.Array
  floor: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rendering:
  """Attributes:
  shade: (H, W) float32; a pixel's colour is the albedo of its surface times this.
  depth: (H, W) float32, metres along the optical axis, 0 for sky.
  surface: (H, W) int8, object index, or FURNITURE, FLOOR, SKY.
  box: (MAX_OBJECTS, 4) int32 (x0, y0, x1, y1), half-open, around the visible pixels; zeros where none.
  visible: (MAX_OBJECTS,) int32 visible pixels. covered: (MAX_OBJECTS,) int32, pixels that the object would
    have if nothing stood before it.
  """

  shade: jax.Array
  depth: jax.Array
  surface: jax.Array
  box: jax.Array
  visible: jax.Array
  covered: jax.Array


def render(scene: Scene, camera: Camera, size: int) -> Rendering:
  """Renders one scene at size x size pixels. Not for vmap: batches go through `render_batch`."""
  count = -(-size // TILE)
  table = _table(scene)
  corners = (
    jnp.stack(jnp.meshgrid(jnp.arange(count), jnp.arange(count), indexing="ij"), -1).reshape(-1, 2) * TILE
  )
  shade, depth, surface, covered = jax.lax.map(lambda at: _tile(scene, camera, table, size, at), corners)

  def whole(tiles):
    grid = tiles.reshape(count, count, TILE, TILE).transpose(0, 2, 1, 3)
    return grid.reshape(count * TILE, count * TILE)[:size, :size]

  surface = whole(surface)
  box, visible = _boxes(surface)
  return Rendering(whole(shade), whole(depth), surface, box, visible, covered.sum(0))


@functools.partial(jax.jit, static_argnames="size")
def render_batch(scenes: Scene, cameras: Camera, size: int) -> Rendering:
  """Renders scenes with a leading batch axis, one after the other, so that each stays in the cache."""
  return jax.lax.map(lambda sc: render(sc[0], sc[1], size), (scenes, cameras))


def _boxes(surface: jax.Array) -> tuple[jax.Array, jax.Array]:
  mask = surface[None] == jnp.arange(MAX_OBJECTS, dtype=surface.dtype)[:, None, None]
  visible = mask.sum((1, 2), dtype=jnp.int32)

  def ends(line):
    length = line.shape[1]
    return jnp.argmax(line, 1), length - jnp.argmax(line[:, ::-1], 1)

  x0, x1 = ends(mask.any(1))
  y0, y1 = ends(mask.any(2))
  box = jnp.stack([x0, y0, x1, y1], 1).astype(jnp.int32)
  return jnp.where(visible[:, None] > 0, box, 0), visible


def _table(scene: Scene) -> jax.Array:
  """One row per primitive: all that a pixel needs to know of the primitive it sees, (P, 16) float32."""
  quadric = jnp.asarray(QUADRICS, jnp.float32)[scene.shape]
  columns = [
    *(scene.center[:, k] for k in range(3)),
    *(1.0 / scene.half[:, k] for k in range(3)),
    jnp.cos(scene.yaw),
    jnp.sin(scene.yaw),
    *(quadric[:, k] for k in range(4)),
    scene.texture.astype(jnp.float32),
    scene.frequency,
    scene.tone,
    jnp.linalg.norm(scene.half, axis=1),
  ]
  return jnp.stack(columns, 1)


def _local(row: jax.Array, x, y, z):
  """A direction in the frame of a primitive, scaled to its unit cube."""
  cos, sin = row[6], row[7]
  return (x * cos + y * sin) * row[3], (y * cos - x * sin) * row[4], z * row[5]


def _interval(row: jax.Array, ox, oy, oz, dx, dy, dz):
  """Where the line o + t d (in the primitive's frame) is inside: entries by the four slabs, and the exit."""

  def slab(o, d):
    d = jnp.where(jnp.abs(d) < 1e-9, 1e-9, d)
    inverse = 1.0 / d
    middle, reach = -o * inverse, jnp.abs(inverse)
    return middle - reach, middle + reach

  (x0, x1), (y0, y1), (z0, z1) = slab(ox, dx), slab(oy, dy), slab(oz, dz)
  kxy, kzz, kz, k0 = row[8], row[9], row[10], row[11]
  a = kxy * (dx * dx + dy * dy) + kzz * dz * dz
  b = kxy * (ox * dx + oy * dy) + (kzz * oz + 0.5 * kz) * dz
  c = kxy * (ox * ox + oy * oy) + (kzz * oz + kz) * oz + k0
  a = jnp.where(jnp.abs(a) < 1e-9, 1e-9, a)
  disc = b * b - a * c
  root = jnp.sqrt(jnp.maximum(disc, 0.0))
  inverse = 1.0 / a
  r0, r1 = (-b - root) * inverse, (-b + root) * inverse
  # A steep ray is in a double cone before its first and after its second root: keep what is below the apex.
  steep, rising = a < 0, dz > 0
  low, high = jnp.minimum(r0, r1), jnp.maximum(r0, r1)
  q0 = jnp.where(steep, jnp.where(rising, -1e9, high), low)
  q1 = jnp.where(steep, jnp.where(rising, low, 1e9), high)
  q1 = jnp.where(disc < 0, -1e9, q1)
  exit_ = jnp.minimum(jnp.minimum(x1, y1), jnp.minimum(z1, q1))
  return (x0, y0, z0, q0), exit_


def _compact(keep: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Indices of the true entries first, and how many they are."""
  place, names = jnp.cumsum(keep) - 1, jnp.arange(keep.shape[0])
  return jnp.where(keep & (place == names[:, None]), names, 0).sum(1), keep.sum()


def _tile(scene: Scene, camera: Camera, table: jax.Array, size: int, corner: jax.Array):
  """Casts the rays of one TILE x TILE square. `corner` is its first (row, column)."""
  steps = jnp.arange(TILE, dtype=jnp.float32) + 0.5
  v = jnp.broadcast_to(((corner[0] + steps) / size - 0.5)[:, None] / camera.focal, (TILE, TILE)).ravel()
  u = jnp.broadcast_to(((corner[1] + steps) / size - 0.5)[None, :] / camera.focal, (TILE, TILE)).ravel()
  r = camera.rotation
  dx, dy, dz = (r[k, 0] * u + r[k, 1] * v + r[k, 2] for k in range(3))
  near, covered = _cast(scene, camera, table, size, corner, (dx, dy, dz))

  hit = near < _MISS
  which = (near >> 2) & 31
  t_hit = jax.lax.bitcast_convert_type(near & ~_LOW, jnp.float32)
  t_floor = jnp.where(dz < -1e-4, -camera.position[2] / jnp.minimum(dz, -1e-4), FAR)
  sky = ~hit & (t_floor >= FAR)
  t = jnp.where(hit, t_hit, t_floor)
  # The low bits are the primitive's name, so floor that touches a primitive must win only when truly nearer.
  hit = hit & (t_hit < t_floor)
  t = jnp.minimum(t, t_floor)
  px, py, pz = (camera.position[k] + t * d for k, d in enumerate((dx, dy, dz)))

  normal, factor = _surface(table, which, near & 3, hit, px, py, pz)
  floor = _floor_texture(scene.floor, px, py, t)
  # Without the barrier XLA computes all of this again inside each of the loop's and the outputs' kernels.
  normal, factor, floor, t, px, py, pz = jax.lax.optimization_barrier((normal, factor, floor, t, px, py, pz))
  dark = _shadow(scene, table, ~sky, (px, py, pz), normal)
  light = scene.light
  facing = jnp.maximum(normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2], 0.0)
  # Light from the camera shows the form of what the sun does not reach.
  seen = -(normal[0] * dx + normal[1] * dy + normal[2] * dz) * jax.lax.rsqrt(dx * dx + dy * dy + dz * dz)
  lit = scene.ambient * (0.6 + 0.4 * jnp.maximum(seen, 0.0)) + (1.0 - scene.ambient) * facing * (1.0 - dark)
  factor = EXPOSURE * jnp.where(hit, factor, floor)
  shade = jnp.where(sky, 1.0 - 0.6 * jnp.clip(dz, 0.0, 0.5), lit * factor)
  surface = jnp.where(hit, jnp.minimum(which, FURNITURE), jnp.where(sky, SKY, FLOOR))
  return shade, jnp.where(sky, 0.0, t), surface.astype(jnp.int8), covered


def _cast(scene, camera, table, size, corner, direction):
  """Nearest primitive per ray: its depth's bits with its index and the slab hit in the low ones.

  One array of integers, whose order is the order of depth, is one fused kernel per primitive.
  """
  ends = (jnp.stack([corner, corner + TILE]).astype(jnp.float32) / size - 0.5) / camera.focal
  relative = (scene.center - camera.position) @ camera.rotation
  x, y, z = relative[:, 0], relative[:, 1], relative[:, 2]
  radius = table[:, 15]

  def inside(a, low, high):  # signed distances to the two planes of the tile's frustum along one axis
    return ((a - low * z) > -radius * jnp.sqrt(1 + low**2)) & (
      (high * z - a) > -radius * jnp.sqrt(1 + high**2)
    )

  keep = scene.active & inside(y, ends[0, 0], ends[1, 0]) & inside(x, ends[0, 1], ends[1, 1]) & (z > -radius)
  order, count = _compact(keep)

  def body(i, state):
    best, covered = state
    k = order[i]
    row = table[k]
    origin = _local(row, *(camera.position[j] - row[j] for j in range(3)))
    entries, leave = _interval(row, *origin, *_local(row, *direction))
    x0, y0, z0, q0 = entries
    xy, zq = jnp.maximum(x0, y0), jnp.maximum(z0, q0)
    enter = jnp.maximum(xy, zq)
    slab = jnp.where(xy >= zq, jnp.where(x0 >= y0, 0, 1), jnp.where(z0 >= q0, 2, 3))
    bits = (jax.lax.bitcast_convert_type(enter, jnp.int32) & ~_LOW) | (k << 2) | slab
    found = jnp.where((enter < leave) & (enter > _NEAR), bits, _MISS)
    return jnp.minimum(best, found), covered.at[k].add((found < _MISS).sum(dtype=jnp.int32))

  start = jnp.full(TILE * TILE, _MISS, jnp.int32), jnp.zeros(MAX_PRIMITIVES, jnp.int32)
  best, covered = jax.lax.fori_loop(0, count, body, start)
  return best, covered[:MAX_OBJECTS]


def _surface(table, which, slab, hit, px, py, pz):
  """Unit normal (three arrays) and texture factor of the primitives seen; the floor's normal elsewhere."""
  row = [table[:, c][which] for c in range(15)]
  x, y, z = _local(row, px - row[0], py - row[1], pz - row[2])
  nx = jnp.where(slab == 3, row[8] * x, jnp.where(slab == 0, x, 0.0)) * row[3]
  ny = jnp.where(slab == 3, row[8] * y, jnp.where(slab == 1, y, 0.0)) * row[4]
  nz = jnp.where(slab == 3, row[9] * z + 0.5 * row[10], jnp.where(slab == 2, z, 0.0)) * row[5]
  nx, ny = nx * row[6] - ny * row[7], nx * row[7] + ny * row[6]
  scale = jax.lax.rsqrt(jnp.maximum(nx * nx + ny * ny + nz * nz, 1e-12))
  normal = tuple(jnp.where(hit, n * scale, up) for n, up in ((nx, 0.0), (ny, 0.0), (nz, 1.0)))
  # The small shift keeps a face of the cube off the border between two bands.
  bands = jnp.floor(z * row[13] + 0.01)
  cells = bands + jnp.floor(x * row[13] + 0.01) + jnp.floor(y * row[13] + 0.01)
  odd = jnp.where(row[12] == 1, bands, jnp.where(row[12] == 2, cells, 0.0)) % 2.0
  return normal, row[14] * (1.0 - 0.3 * odd)


def _floor_texture(floor, px, py, t):
  kind, cell, contrast, tone = floor[0], floor[1], floor[2], floor[3]
  bands = jnp.floor(px / cell)
  cells = bands + jnp.floor(py / cell)
  odd = jnp.where(kind == 0, 0.5, jnp.where(kind == 1, bands, cells) % 2.0)
  # Far cells are smaller than a pixel: they fade instead of flickering.
  return tone * (1.0 - contrast * jnp.clip(1.5 - t / 20.0, 0.0, 1.0) * (odd - 0.5))


def _shadow(scene, table, valid, point, normal):
  """1 where a primitive stands between the point and the light, else 0. All surfaces cast hard shadows."""
  light = scene.light
  side = jnp.array([light[1], -light[0], 0.0]) * jax.lax.rsqrt(light[0] ** 2 + light[1] ** 2 + 1e-9)
  up = jnp.cross(light, side)
  radius = table[:, 15]
  keep = scene.active
  for axis in (side, up):
    along = point[0] * axis[0] + point[1] * axis[1] + point[2] * axis[2]
    low, high = jnp.where(valid, along, 1e9).min(), jnp.where(valid, along, -1e9).max()
    middle = scene.center @ axis
    keep &= (middle + radius > low) & (middle - radius < high)
  order, count = _compact(keep)
  start = tuple(p + 2e-3 * n for p, n in zip(point, normal, strict=True))

  def body(i, dark):
    row = table[order[i]]
    origin = _local(row, *(start[j] - row[j] for j in range(3)))
    (x0, y0, z0, q0), leave = _interval(row, *origin, *_local(row, light[0], light[1], light[2]))
    enter = jnp.maximum(jnp.maximum(x0, y0), jnp.maximum(z0, q0))
    return jnp.maximum(dark, jnp.where(jnp.maximum(enter, 1e-4) < leave, 1.0, 0.0))

  return jax.lax.fori_loop(0, count, body, jnp.zeros_like(point[0]))
