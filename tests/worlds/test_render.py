import dataclasses

import jax
import numpy as np
import pytest

from spatialvlm.worlds import render, world
from tests.worlds import analytic

SIZE, SCENES = 48, 24


@pytest.fixture(scope="module")
def pool():
  return world.pool(5, range(SCENES), SIZE)


def one(pool, b):
  return jax.tree.map(lambda a: a[b], pool.layout)


def test_depth_and_surfaces_are_those_of_an_analytic_caster(pool):
  wrong = total = 0
  for b in range(SCENES):
    depth, surface = analytic.cast(one(pool, b), SIZE)
    same = surface == pool.rendering.surface[b]
    wrong, total = wrong + (~same).sum(), total + same.size
    seen = same & (surface != render.SKY)
    np.testing.assert_allclose(pool.rendering.depth[b][seen], depth[seen], rtol=1e-4)
    assert (pool.rendering.depth[b][same & (surface == render.SKY)] == 0).all()
  # Rays that graze an edge may fall to either side in float32.
  assert wrong / total < 1e-3


def test_the_scenes_hold_every_shape_and_every_stand(pool):
  present = pool.layout.present
  assert set(pool.layout.scene.shape[:, : render.MAX_OBJECTS][present]) == set(range(4))
  assert set(pool.layout.stand[present]) == set(range(4))


def test_hard_shadows_on_the_floor(pool):
  """A floor without texture has two brightnesses, once the light from the camera is taken away."""
  checked = dark = 0
  for b in np.flatnonzero(pool.layout.scene.floor[:, 0] == 0):
    layout = one(pool, b)
    scene = layout.scene
    floor = (pool.rendering.surface[b] == render.FLOOR) & (pool.rendering.depth[b] < 20)
    direction = analytic.rays(layout, SIZE)
    points = layout.camera.position + pool.rendering.depth[b][..., None] * direction
    shadow = analytic.in_shadow(layout, points + np.array([0, 0, 2e-3]))
    seen = -direction[..., 2] / np.linalg.norm(direction, axis=-1)
    expected = scene.ambient * (0.6 + 0.4 * seen) + (1 - scene.ambient) * scene.light[2] * ~shadow
    expected = expected * scene.floor[3] * render.EXPOSURE
    close = np.abs(pool.rendering.shade[b] - expected)[floor] < 2e-3
    assert close.mean() > 0.995
    checked, dark = checked + floor.sum(), dark + (shadow & floor).sum()
  assert checked > 5000 and 0.02 < dark / checked < 0.6


def test_boxes_and_counts_are_those_of_the_masks(pool):
  for b in range(SCENES):
    for k in range(render.MAX_OBJECTS):
      mask = pool.rendering.surface[b] == k
      assert pool.rendering.visible[b, k] == mask.sum()
      if mask.any():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_array_equal(pool.rendering.box[b, k], box)
      else:
        assert not pool.rendering.box[b, k].any()


def test_covered_is_what_an_object_shows_alone(pool):
  """Every object alone in its scene, without floor furniture: nothing hides it."""
  layouts = jax.tree.map(lambda a: a[:16], pool.layout)
  for k in (0, 1):
    alone = np.zeros_like(layouts.scene.active)
    alone[:, k] = layouts.scene.active[:, k]
    scene = dataclasses.replace(layouts.scene, active=alone)
    out = render.render_batch(scene, layouts.camera, SIZE)
    np.testing.assert_array_equal(out.visible[:, k], out.covered[:, k])
    np.testing.assert_array_equal(out.covered[:, k], pool.rendering.covered[:16, k])


def test_tiles_join_without_a_seam():
  """48 pixels are one tile and 96 are four: two by two, their pixels surround one of the smaller picture."""
  small = world.pool(5, [3], 48)
  large = world.zoom(small, 0, 96)
  surface, depth = large.rendering.surface[0], large.rendering.depth[0]
  quads = np.stack([surface[i::2, j::2] for i in (0, 1) for j in (0, 1)])
  uniform = (quads == quads[0]).all(0)
  assert uniform.mean() > 0.7
  np.testing.assert_array_equal(quads[0][uniform], small.rendering.surface[0][uniform])
  depths = np.stack([depth[i::2, j::2] for i in (0, 1) for j in (0, 1)])
  floor = uniform & (quads[0] == render.FLOOR) & (small.rendering.depth[0] < 10)
  assert (depths.min(0) <= small.rendering.depth[0] * 1.001)[floor].all()
  assert (depths.max(0) >= small.rendering.depth[0] * 0.999)[floor].all()
