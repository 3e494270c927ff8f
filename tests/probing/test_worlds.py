"""Rendered scenes as what probes are asked, held against the frames that they come from."""

import numpy as np
import pytest

from spatialvlm.config import ProbeConfig
from spatialvlm.probing import worlds
from spatialvlm.types import UserError
from spatialvlm.worlds import world

CONFIG = ProbeConfig(scenes=8, validation=4, test=4, render_size=96, grid=6, seed=5)


@pytest.fixture(scope="module")
def rendered():
  return worlds.render(CONFIG)


@pytest.fixture(scope="module")
def frames():
  return world.frames(5, range(16), 96)


def test_depth_of_cells(rendered, frames):
  assert rendered.part_N.tolist() == [0] * 8 + [1] * 4 + [2] * 4
  for i, frame in enumerate(frames):
    np.testing.assert_array_equal(rendered.images[i], frame.image)
    for cell in range(36):
      part = frame.depth[cell // 6 * 16 :, cell % 6 * 16 :][:16, :16]
      surface = part[part > 0]
      mean = surface.mean() if surface.size >= 128 else np.inf
      if mean <= CONFIG.farthest:
        assert rendered.depth_NC[i, cell] == pytest.approx(mean, rel=1e-4)
      else:
        assert np.isnan(rendered.depth_NC[i, cell])


def test_names_lie_where_the_objects_are(rendered, frames):
  for scene, name in rendered.named_M2:
    mask = np.isin(
      frames[scene].instance, [o.index for o in frames[scene].objects if o.name == worlds.NAMES[name]]
    )
    np.testing.assert_allclose(rendered.names_NCZ[scene, :, name].sum() * 256, mask.sum(), rtol=1e-4)
  x, y = rendered.centres_M2[0]
  box = next(
    o.box for o in frames[rendered.named_M2[0, 0]].named() if o.name == worlds.NAMES[rendered.named_M2[0, 1]]
  )
  assert (x * 96, y * 96) == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))


def test_pairs(rendered, frames):
  assert len(rendered.pair_scene_Q) > 12
  np.testing.assert_allclose(rendered.pair_QC.sum(1), 0, atol=1e-5)
  np.testing.assert_allclose(np.abs(rendered.pair_QC).sum(1).max(), 2, atol=1e-5)
  assert 0.2 < rendered.first_nearer_Q.mean() < 0.8
  rows = np.repeat((np.arange(6) + 0.5) / 6, 6)
  below = rendered.pair_QC @ rows
  lower_is_nearer = (below > 0) == rendered.first_nearer_Q
  for part in range(3):
    inside = rendered.part_N[rendered.pair_scene_Q] == part
    assert inside.any() and lower_is_nearer[inside].mean() == 0.5
  again = worlds.render(CONFIG)
  np.testing.assert_array_equal(again.pair_QC, rendered.pair_QC)


def test_a_pair_says_which_is_nearer(rendered, frames):
  """The features under both objects, with depth itself as the feature."""
  depth = [np.where(frame.depth > 0, frame.depth, np.nan) for frame in frames]
  right = 0
  for scene, where, nearer in zip(
    rendered.pair_scene_Q, rendered.pair_QC, rendered.first_nearer_Q, strict=True
  ):
    objects = np.where(frames[scene].instance >= 0, depth[scene], 0)
    share = worlds.cell_means((frames[scene].instance >= 0).astype(float), 6)
    mean = worlds.cell_means(objects, 6) / np.maximum(share, 1e-6)
    right += (where @ mean < 0) == nearer
  assert right / len(rendered.first_nearer_Q) > 0.9


def test_scenes_that_ask_nothing():
  with pytest.raises(UserError, match=r"config\.\w+: too few scenes, there are no"):
    worlds.render(ProbeConfig(scenes=1, validation=1, test=1, render_size=96, grid=6, farthest=0.5))
