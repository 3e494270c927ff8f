"""The field: three planes at several resolutions, and two tiny networks that read them.

A point's features are bilinear samples of the three planes that it projects to, multiplied (K-Planes,
Fridovich-Keil et al. 2023), the levels side by side. A first network makes of them a density and what the
second one needs for the colour, beside the direction in spherical harmonics (instant-ngp, Müller et al.
2022). All of space lies in the planes: within a cube as it is, outside drawn together (mip-NeRF 360, Barron
et al. 2022, with the largest coordinate as the norm).

Suffixes: P points, R rays, L levels, C channels of a level.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from spatialvlm.config import FieldConfig

Params = dict[str, Any]
# Of the planes' axes: which two coordinates each plane has.
_PAIRS = ((0, 1), (0, 2), (1, 2))
_GEOMETRY, _HARMONICS = 15, 9
# Numbers of a point's descriptor.
DESCRIPTORS = 1 + _GEOMETRY
# Densities above e^_HIGHEST of one radius are all opaque; it keeps the exponential finite.
_HIGHEST = 12.0


@dataclasses.dataclass(frozen=True)
class Space:
  """What a field is of, in metres.

  Attributes:
    center: (x, y, z) of the cube that is not drawn together. radius: half its edge.
    near, far: depths between which rays are looked at.
    middle: depth up to which intervals along a ray are equally long; beyond they are in 1 / depth.
  """

  center: tuple[float, float, float]
  radius: float
  near: float
  far: float
  middle: float


def init(key: jax.Array, config: FieldConfig) -> Params:
  """A field before its fit: planes near one half, a proposal that is thin everywhere."""
  keys = iter(jax.random.split(key, 16))
  wide, levels = config.width, len(config.planes)

  def plane(n: int) -> jax.Array:
    return jax.random.uniform(next(keys), (3, n, n * config.features), minval=0.1, maxval=0.5)

  def matrix(inputs: int, outputs: int) -> jax.Array:
    return jax.random.normal(next(keys), (inputs, outputs)) * (2 / inputs) ** 0.5

  n = config.proposal
  params = {
    "planes": {str(size): plane(size) for size in config.planes},
    "proposal": jnp.full((n, n, n), -1.0, jnp.float32),
    "density": [matrix(levels * config.features, wide), matrix(wide, 1 + _GEOMETRY)],
    "colour": [matrix(_GEOMETRY + _HARMONICS, wide), matrix(wide, wide), 0.1 * matrix(wide, 3)],
  }
  if config.background == "learned":
    params["background"] = [matrix(_HARMONICS, 16), 0.1 * matrix(16, 3)]
  return params


def drawn_together(x_P3: jax.Array, space: Space) -> jax.Array:
  """World to the unit cube: all of space, the inner half along each axis for the cube of `space`."""
  inner = (x_P3 - jnp.asarray(space.center)) / space.radius
  most = jnp.maximum(jnp.abs(inner).max(-1, keepdims=True), 1.0)
  return (inner / most * (2.0 - 1.0 / most) + 2.0) / 4.0


def proposed(params: Params, u_P3: jax.Array) -> jax.Array:
  """(P,) density of the proposal at points of the unit cube."""
  return _density(_trilinear(params["proposal"], u_P3))


def features(params: Params, u_P3: jax.Array) -> jax.Array:
  """(P, L * C) what the planes hold at points of the unit cube."""
  levels = []
  # By their numbers: JAX hands dicts back in the order of their keys as text.
  for name in sorted(params["planes"], key=int):
    plane = params["planes"][name]
    xy, xz, yz = (
      _bilinear(plane[k], jnp.stack([u_P3[:, a], u_P3[:, b]], 1)) for k, (a, b) in enumerate(_PAIRS)
    )
    levels.append(xy * xz * yz)
  return jnp.concatenate(levels, -1)


def descriptors(params: Params, u_P3: jax.Array) -> jax.Array:
  """(P, DESCRIPTORS) what the first network makes of points of the unit cube: the logarithm of their density,
  and what the second one needs for colours, from whatever side they are seen.
  """
  return jax.nn.relu(features(params, u_P3) @ params["density"][0]) @ params["density"][1]


def density_and_colour(params: Params, u_P3: jax.Array, harmonics_P9: jax.Array):
  """(P,) density of a length of one radius, and (P, 3) colour from 0 to 1."""
  hidden = descriptors(params, u_P3)
  x = jnp.concatenate([hidden[:, 1:], harmonics_P9], -1)
  for matrix in params["colour"][:-1]:
    x = jax.nn.relu(x @ matrix)
  return _density(hidden[:, 0] - 1.0), jax.nn.sigmoid(x @ params["colour"][-1])


def background(params: Params, harmonics_R9: jax.Array, kind: str) -> jax.Array:
  """(R, 3) colour of rays that meet nothing."""
  if kind != "learned":
    return jnp.full((len(harmonics_R9), 3), 1.0 if kind == "white" else 0.0)
  first, last = params["background"]
  return jax.nn.sigmoid(jax.nn.relu(harmonics_R9 @ first) @ last)


def harmonics(directions_R3: jax.Array) -> jax.Array:
  """(R, 9) real spherical harmonics up to the second degree, without their constants."""
  x, y, z = jnp.moveaxis(directions_R3 / jnp.linalg.norm(directions_R3, axis=-1, keepdims=True), -1, 0)
  terms = [jnp.ones_like(x), x, y, z, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y]
  return jnp.stack(terms, -1)


def variation(params: Params) -> jax.Array:
  """Mean squared difference of neighbours in the planes, all levels together."""
  total = 0.0
  for name, plane in params["planes"].items():
    n = int(name)
    cells = plane.reshape(3, n, n, -1)
    total += ((cells[:, 1:] - cells[:, :-1]) ** 2).mean() + ((cells[:, :, 1:] - cells[:, :, :-1]) ** 2).mean()
  return total


def _density(raw: jax.Array) -> jax.Array:
  return jnp.exp(jnp.minimum(raw, _HIGHEST))


def _cell(u: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
  """Lower corner and place in the cell of n nodes along each axis, and the two weights (P, axes, 2)."""
  at = u * (n - 1)
  low = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, n - 2)
  share = at - low
  return low, jnp.stack([1 - share, share], -1)


def _bilinear(plane: jax.Array, u_P2: jax.Array) -> jax.Array:
  """(P, C) of a plane (N, N * C). One gather of 2 x 2 cells, whose gradient is one scatter."""
  n = plane.shape[0]
  c = plane.shape[1] // n
  low, weight = _cell(u_P2, n)
  spec = jax.lax.GatherDimensionNumbers(offset_dims=(1, 2), collapsed_slice_dims=(), start_index_map=(0, 1))
  start = low * jnp.array([1, c])
  cells = jax.lax.gather(plane, start, spec, (2, 2 * c), mode="promise_in_bounds").reshape(-1, 2, 2, c)
  return jnp.einsum("pijc,pi,pj->pc", cells, weight[:, 0], weight[:, 1])


def _trilinear(grid: jax.Array, u_P3: jax.Array) -> jax.Array:
  """(P,) of a grid (N, N, N)."""
  low, weight = _cell(u_P3, grid.shape[0])
  spec = jax.lax.GatherDimensionNumbers(
    offset_dims=(1, 2, 3), collapsed_slice_dims=(), start_index_map=(0, 1, 2)
  )
  cells = jax.lax.gather(grid, low, spec, (2, 2, 2), mode="promise_in_bounds")
  return jnp.einsum("pijk,pi,pj,pk->p", cells, weight[:, 0], weight[:, 1], weight[:, 2])
