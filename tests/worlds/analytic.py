"""The scenes again, ray by ray in float64 numpy, each shape by its own textbook intersection."""

import numpy as np

from spatialvlm.worlds import render

MISS = np.inf


def rays(layout, size):
  """Directions (H, W, 3) in world axes whose parameter is the depth along the optical axis."""
  steps = (np.arange(size) + 0.5) / size - 0.5
  u, v = np.meshgrid(steps, steps)
  local = np.stack([u, v, np.full_like(u, layout.camera.focal)], -1) / float(layout.camera.focal)
  return local @ np.asarray(layout.camera.rotation, np.float64).T


def _no_nan(t):
  return np.where(np.isnan(t), MISS, t)


def _sphere(o, d):
  a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
  root = np.sqrt(np.maximum(b * b - a * c, 0))
  return np.where(b * b >= a * c, np.stack([(-b - root) / a, (-b + root) / a]), MISS)


def _faces(o, d, axis, inside):
  """Crossings of the planes where a coordinate is -1 and 1, kept where `inside(point)`."""
  found = []
  for side in (-1.0, 1.0):
    with np.errstate(divide="ignore", invalid="ignore"):
      t = (side - o[..., axis]) / d[..., axis]
      found.append(np.where(inside(o + t[..., None] * d), t, MISS))
  return _no_nan(np.stack(found))


def _block(o, d):
  def within(axis):
    return lambda p: (np.abs(np.delete(p, axis, axis=-1)) <= 1).all(-1)

  return np.concatenate([_faces(o, d, axis, within(axis)) for axis in range(3)])


def _side(a, b, c, o, d, inside):
  with np.errstate(divide="ignore", invalid="ignore"):
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    both = np.stack([(-b - root) / a, (-b + root) / a])
    keep = (b * b >= a * c) & inside(o + both[..., None] * d)
  return _no_nan(np.where(keep, both, MISS))


def _cylinder(o, d):
  xy, dxy = o[..., :2], d[..., :2]
  side = _side(
    (dxy**2).sum(-1), (xy * dxy).sum(-1), (xy**2).sum(-1) - 1, o, d, lambda p: np.abs(p[..., 2]) <= 1
  )
  return np.concatenate([side, _faces(o, d, 2, lambda p: (p[..., :2] ** 2).sum(-1) <= 1)])


def _cone(o, d):
  """Apex at z = 1, base of radius 1 at z = -1: x^2 + y^2 = ((1 - z) / 2)^2."""
  xy, dxy, k, dk = o[..., :2], d[..., :2], (1 - o[..., 2]) / 2, -d[..., 2] / 2
  side = _side(
    (dxy**2).sum(-1) - dk * dk,
    (xy * dxy).sum(-1) - k * dk,
    (xy**2).sum(-1) - k * k,
    o,
    d,
    lambda p: np.abs(p[..., 2]) <= 1,
  )
  base = _faces(o, d, 2, lambda p: ((p[..., :2] ** 2).sum(-1) <= 1) & (p[..., 2] < 0))
  return np.concatenate([side, base])


def _dome(o, d):
  """The upper half of an ellipsoid of half sizes (1, 1, 2) about (0, 0, -1): apex at z = 1, base at -1."""
  shrunk = np.array([1.0, 1.0, 0.5])
  p, q = (o + np.array([0.0, 0.0, 1.0])) * shrunk, d * shrunk
  side = _side((q * q).sum(-1), (p * q).sum(-1), (p * p).sum(-1) - 1, o, d, lambda x: np.abs(x[..., 2]) <= 1)
  base = _faces(o, d, 2, lambda x: ((x[..., :2] ** 2).sum(-1) <= 1) & (x[..., 2] < 0))
  return np.concatenate([side, base])


def _barrel(o, d):
  """x^2 + y^2 + z^2 / 2 = 1 between its two lids."""
  shrunk = np.array([1.0, 1.0, np.sqrt(0.5)])
  p, q = o * shrunk, d * shrunk
  side = _side((q * q).sum(-1), (p * q).sum(-1), (p * p).sum(-1) - 1, o, d, lambda x: np.abs(x[..., 2]) <= 1)
  return np.concatenate([side, _faces(o, d, 2, lambda x: (x[..., :2] ** 2).sum(-1) <= 0.5)])


SHAPES = {"sphere": _sphere, "block": _block, "cylinder": _cylinder, "cone": _cone}
SHAPES |= {"dome": _dome, "barrel": _barrel}


def first_hit(scene, k, origin, direction, least):
  """Smallest parameter beyond `least` at which rays meet primitive k, inf for none."""
  cos, sin = np.cos(np.float64(scene.yaw[k])), np.sin(np.float64(scene.yaw[k]))
  turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
  half = np.asarray(scene.half[k], np.float64)
  o = np.broadcast_to((origin - scene.center[k]) @ turn.T / half, direction.shape)
  t = SHAPES[render.SOLIDS[scene.shape[k]]](o, direction @ turn.T / half)
  return np.where(t > least, t, MISS).min(0)


def cast(layout, size):
  """Depth (H, W), inf for sky, and surface (H, W) as `render` numbers them."""
  scene, direction = layout.scene, rays(layout, size)
  origin = np.asarray(layout.camera.position, np.float64)
  with np.errstate(divide="ignore"):
    depth = np.where(direction[..., 2] < 0, -origin[2] / direction[..., 2], MISS)
  depth[depth >= render.FAR] = MISS
  surface = np.where(np.isfinite(depth), render.FLOOR, render.SKY)
  for k in np.flatnonzero(scene.active):
    t = first_hit(scene, k, origin, direction, 0.05)
    surface = np.where(t < depth, min(k, render.FURNITURE), surface)
    depth = np.minimum(depth, t)
  return depth, surface


def in_shadow(layout, points):
  """Whether something stands between each point (..., 3) and the light."""
  light = np.broadcast_to(np.asarray(layout.scene.light, np.float64), points.shape)
  hits = [first_hit(layout.scene, k, points, light, 1e-3) for k in np.flatnonzero(layout.scene.active)]
  return np.isfinite(np.min(hits, axis=0))
