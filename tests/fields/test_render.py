import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import RegularGridInterpolator

from spatialvlm.fields import grid, render
from tests.fields import support

SPACE = grid.Space((0.0, 0.0, 0.0), 2.0, 0.2, 80.0, 8.0)


def test_planes_and_grid_are_interpolated_as_scipy_does():
  n, c = 5, 3
  rng = np.random.default_rng(0)
  nodes = np.linspace(0, 1, n)
  plane, cube, u = rng.normal(size=(n, n, c)), rng.normal(size=(n, n, n)), rng.uniform(size=(40, 3))
  u[0], u[1] = 0.0, 1.0
  found = grid._bilinear(jnp.asarray(plane.reshape(n, n * c), jnp.float32), jnp.asarray(u[:, :2]))
  np.testing.assert_allclose(found, RegularGridInterpolator((nodes, nodes), plane)(u[:, :2]), atol=1e-5)
  found = grid._trilinear(jnp.asarray(cube, jnp.float32), jnp.asarray(u))
  np.testing.assert_allclose(found, RegularGridInterpolator((nodes,) * 3, cube)(u), atol=1e-5)


def test_all_of_space_lies_in_the_unit_cube():
  x = np.random.default_rng(1).normal(size=(500, 3)) * 10.0 ** np.linspace(-2, 4, 500)[:, None]
  u = np.asarray(grid.drawn_together(jnp.asarray(x), SPACE))
  assert u.min() >= 0 and u.max() <= 1
  inner = np.abs(x).max(1) < SPACE.radius
  np.testing.assert_allclose(u[inner], x[inner] / (4 * SPACE.radius) + 0.5, atol=1e-6)
  assert (np.abs(u[~inner] - 0.5).max(1) > 0.2499).all()


def test_light_stops_at_a_wall(monkeypatch):
  """Density that begins at x = 1, seen from x = -4: all is met there, whatever lies behind."""
  config = support.TINY
  wall = lambda u: (u[:, 0] > (1 / 2 + 2) / 4) * 400.0
  monkeypatch.setattr(grid, "proposed", lambda params, u: wall(u))
  red = lambda params, u, h: (wall(u), jnp.broadcast_to(jnp.array([0.8, 0.1, 0.2]), (len(u), 3)))
  monkeypatch.setattr(grid, "density_and_colour", red)
  monkeypatch.setattr(grid, "background", lambda params, h, kind: jnp.ones((len(h), 3)))
  origins = jnp.array([[-4.0, 0.0, 0.0], [-4.0, 0.1, 0.0], [-4.0, 0.0, 0.0]])
  ahead = jnp.array([[1.0, 0.0, 0.0], [1.0, 0.05, 0.0], [-1.0, 0.0, 0.0]])
  seen = jax.jit(lambda o, d: render.rays({}, config, SPACE, o, d))(origins, ahead)
  np.testing.assert_allclose(seen.opacity, [1, 1, 0], atol=1e-3)
  np.testing.assert_allclose(seen.median[:2], 5.0, rtol=0.04)
  np.testing.assert_allclose(seen.expected[:2], 5.0, rtol=0.06)
  assert seen.median[2] == seen.expected[2] == 0
  np.testing.assert_allclose(seen.colour, [[0.8, 0.1, 0.2]] * 2 + [[1, 1, 1]], atol=2e-3)
  # The proposal covers what it proposed, and one that is elsewhere does not.
  assert render.proposal_loss(seen) < 1e-3
  elsewhere = render.Seen(**{**vars(seen), "coarse_weights": jnp.roll(seen.coarse_weights, -9, 1)})
  assert render.proposal_loss(elsewhere) > 0.3


def test_weights_are_those_of_a_loop():
  rng = np.random.default_rng(2)
  density, length = rng.exponential(size=(4, 9)), rng.uniform(0.1, 1, (4, 9))
  through, wanted = np.ones(4), []
  for k in range(9):
    alpha = 1 - np.exp(-density[:, k] * length[:, k])
    wanted.append(through * alpha)
    through = through * (1 - alpha)
  found = render.weights(jnp.asarray(density), jnp.asarray(length))
  np.testing.assert_allclose(found, np.stack(wanted, 1), atol=1e-6)


def test_the_order_of_levels_outlives_a_jit():
  config = dataclasses.replace(support.TINY, planes=(4, 32))
  params = grid.init(jax.random.key(0), config)
  back = jax.jit(lambda p: p)(dict(reversed(params.items())))
  u = jax.random.uniform(jax.random.key(1), (7, 3))
  features = jax.jit(grid.features)
  np.testing.assert_array_equal(features(params, u), features(back, u))
  # Level by level, in the order of their resolutions, whatever their names' order as text.
  alone = features(params | {"planes": {"32": params["planes"]["32"]}}, u)
  np.testing.assert_array_equal(features(params, u)[:, config.features :], alone)


def test_variation_is_that_of_neighbours():
  plane = np.zeros((3, 4, 4, 2), np.float32)
  plane[1, 2, 3, 0] = 2.0
  found = grid.variation({"planes": {"4": jnp.asarray(plane.reshape(3, 4, 8))}})
  # It differs from three neighbours by 2: two along the first axis, one along the second.
  np.testing.assert_allclose(found, (2 * 4 + 4) / (3 * 3 * 4 * 2), rtol=1e-6)
