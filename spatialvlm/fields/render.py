"""Rays through a field: where to look, what is seen, how far it is.

Intervals along a ray are laid in a warped depth s in [0, 1], equal in depth near the scene and in 1 / depth
beyond it. A coarse proposal says where the few fine intervals go, which alone are asked for colours; the two
losses that tie them are those of mip-NeRF 360 (Barron et al. 2022, equations 13 and 15).

Suffixes: R rays, S intervals of a ray, E = S + 1 their edges.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from spatialvlm.config import FieldConfig
from spatialvlm.fields import grid

# Probability that is spread evenly over a ray, so that no place is never looked at.
_EVERYWHERE = 0.01


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
  """What rays see.

  Attributes:
    colour: (R, 3) from 0 to 1.
    opacity: (R,) share of the light that meets something.
    expected, median: (R,) depth in metres: mean over what is met, and where half of the light has met
      something; both 0 where opacity is under one half.
    mean: (R,) the expected depth with a gradient, wherever the opacity.
    edges: (R, E) of the fine intervals, warped; weights: (R, S) of them.
    coarse_edges, coarse_weights: of the proposal.
  """

  colour: jax.Array
  opacity: jax.Array
  expected: jax.Array
  median: jax.Array
  mean: jax.Array
  edges: jax.Array
  weights: jax.Array
  coarse_edges: jax.Array
  coarse_weights: jax.Array


def rays(
  params: grid.Params,
  config: FieldConfig,
  space: grid.Space,
  origins_R3: jax.Array,
  directions_R3: jax.Array,
  key: jax.Array | None = None,
) -> Seen:
  """Follows rays.

  Args:
    origins_R3, directions_R3: in metres; directions of length 1 along the optical axis.
    key: jitters where is looked, for a fit; None looks at the middles.
  """
  first, second = (None, None) if key is None else jax.random.split(key)
  count = len(origins_R3)
  length_R = jnp.linalg.norm(directions_R3, axis=-1) / space.radius

  def points(edges_RE):
    """Middles of intervals in the unit cube, and the intervals' lengths in radii."""
    depth_RE = _depth(edges_RE, space)
    middle_RS = (depth_RE[:, 1:] + depth_RE[:, :-1]) / 2
    x = origins_R3[:, None] + middle_RS[..., None] * directions_R3[:, None]
    return grid.drawn_together(x.reshape(-1, 3), space), (depth_RE[:, 1:] - depth_RE[:, :-1]) * length_R[
      :, None
    ]

  coarse_edges = jnp.broadcast_to(jnp.linspace(0.0, 1.0, config.coarse + 1), (count, config.coarse + 1))
  if first is not None:
    shift = jax.random.uniform(first, coarse_edges.shape, minval=-0.5, maxval=0.5) / config.coarse
    coarse_edges = jnp.clip(coarse_edges + shift, 0.0, 1.0)
  u, length = points(coarse_edges)
  coarse_weights = weights(grid.proposed(params, u).reshape(length.shape), length)
  edges = jax.lax.stop_gradient(_sample(coarse_edges, coarse_weights, config.fine, second))

  u, length = points(edges)
  harmonics = grid.harmonics(directions_R3)
  density, colour = grid.density_and_colour(params, u, jnp.repeat(harmonics, config.fine, 0))
  weight = weights(density.reshape(length.shape), length)
  opacity = weight.sum(1)
  behind = grid.background(params, harmonics, config.background)
  seen = (weight[..., None] * colour.reshape(*weight.shape, 3)).sum(1) + (1 - opacity)[:, None] * behind
  depth_RE = _depth(edges, space)
  mean = (weight * (depth_RE[:, 1:] + depth_RE[:, :-1])).sum(1) / 2 / jnp.maximum(opacity, 1e-6)
  met = opacity >= 0.5
  return Seen(
    colour=seen,
    opacity=opacity,
    expected=jnp.where(met, mean, 0.0),
    median=jnp.where(met, _median(depth_RE, weight), 0.0),
    mean=mean,
    edges=edges,
    weights=weight,
    coarse_edges=coarse_edges,
    coarse_weights=coarse_weights,
  )


def weights(density_RS: jax.Array, length_RS: jax.Array) -> jax.Array:
  """(R, S) share of the light that each interval stops: alpha compositing."""
  optical = density_RS * length_RS
  before = jnp.cumsum(optical, 1) - optical
  return jnp.exp(-before) * -jnp.expm1(-optical)


def proposal_loss(seen: Seen) -> jax.Array:
  """How much of the fine weights the proposal's do not cover; the gradient goes to the proposal alone."""
  fine = jax.lax.stop_gradient(seen.weights)
  below = jnp.pad(jnp.cumsum(seen.coarse_weights, 1), ((0, 0), (1, 0)))
  # Number of coarse edges at or before each fine edge; comparing all is faster here than a search.
  before = (seen.coarse_edges[:, None, :] <= seen.edges[:, :, None]).sum(-1)
  low = jnp.clip(before[:, :-1] - 1, 0, below.shape[1] - 1)
  high = jnp.clip(before[:, 1:], 0, below.shape[1] - 1)
  bound = jnp.take_along_axis(below, high, 1) - jnp.take_along_axis(below, low, 1)
  return (jnp.maximum(fine - bound, 0.0) ** 2 / (fine + 1e-5)).sum(1).mean()


def distortion(seen: Seen) -> jax.Array:
  """How far apart along the ray, and over how long intervals, a ray's weights lie."""
  middle = (seen.edges[:, 1:] + seen.edges[:, :-1]) / 2
  apart = jnp.abs(middle[:, :, None] - middle[:, None, :])
  between = jnp.einsum("rs,rst,rt->r", seen.weights, apart, seen.weights)
  within = (seen.weights**2 * (seen.edges[:, 1:] - seen.edges[:, :-1])).sum(1) / 3
  return (between + within).mean()


def _depth(warped: jax.Array, space: grid.Space) -> jax.Array:
  """Warped depth in [0, 1] to metres; see `Space.middle`."""

  def warp(t):
    return t / (2 * space.middle) if t < space.middle else 1 - space.middle / (2 * t)

  s = warp(space.near) + warped * (warp(space.far) - warp(space.near))
  return jnp.where(s < 0.5, 2 * space.middle * s, space.middle / (2 - 2 * jnp.maximum(s, 0.5)))


def _sample(edges_RE: jax.Array, weights_RS: jax.Array, count: int, key: jax.Array | None) -> jax.Array:
  """(R, count + 1) edges that hold equal shares of the weights each, by the inverse of their sum."""
  spread = weights_RS + _EVERYWHERE / weights_RS.shape[1]
  total = jnp.pad(jnp.cumsum(spread, 1), ((0, 0), (1, 0)))
  total = total / total[:, -1:]
  u = jnp.broadcast_to(jnp.linspace(0.0, 1.0, count + 1), (len(edges_RE), count + 1))
  if key is not None:
    u = jnp.clip(u + jax.random.uniform(key, u.shape, minval=-0.5, maxval=0.5) / count, 0.0, 1.0)
  after = jnp.clip((total[:, None, :] <= u[:, :, None]).sum(-1), 1, total.shape[1] - 1)
  at = lambda array, k: jnp.take_along_axis(array, k, 1)
  low, high = at(total, after - 1), at(total, after)
  share = jnp.clip((u - low) / jnp.maximum(high - low, 1e-9), 0.0, 1.0)
  return at(edges_RE, after - 1) * (1 - share) + at(edges_RE, after) * share


def _median(depth_RE: jax.Array, weights_RS: jax.Array) -> jax.Array:
  """(R,) depth before which half of the light has met something, linear within an interval."""
  total = jnp.cumsum(weights_RS, 1)
  k = jnp.argmax(total >= 0.5, 1)[:, None]
  at = lambda array, k: jnp.take_along_axis(array, k, 1)[:, 0]
  weight = at(weights_RS, k)
  share = jnp.clip((0.5 - (at(total, k) - weight)) / jnp.maximum(weight, 1e-9), 0.0, 1.0)
  return at(depth_RE, k) * (1 - share) + at(depth_RE, k + 1) * share
