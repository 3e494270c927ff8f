import dataclasses

import numpy as np
import pytest

from spatialvlm.fields.posed import cameras
from spatialvlm.types import UserError
from tests.fields import support


def test_a_ray_goes_through_its_pixel():
  camera = support.ring(1)[0]
  width, height = camera.size
  points = camera.pose[:3, 3] + 2.5 * cameras.directions(camera)
  local = (points - camera.pose[:3, 3]) @ camera.pose[:3, :3]
  np.testing.assert_allclose(local[:, 2], 2.5, rtol=1e-6)
  x = camera.focal[0] * local[:, 0] / local[:, 2] + camera.middle[0]
  y = camera.focal[1] * local[:, 1] / local[:, 2] + camera.middle[1]
  rows, columns = np.mgrid[:height, :width] + 0.5
  np.testing.assert_allclose(x, columns.ravel(), atol=1e-5)
  np.testing.assert_allclose(y, rows.ravel(), atol=1e-5)


def test_depth_along_rays_of_a_rendered_scene_ends_on_its_floor():
  lowest = []
  for view in support.views():
    depth = view.depth.ravel()[:, None]
    points = view.camera.pose[:3, 3] + depth * cameras.directions(view.camera)
    height = points[depth[:, 0] > 0][:, 2]
    assert height.min() > -0.02
    lowest.append(np.mean(np.abs(height) < 0.02))
  assert np.mean(lowest) > 0.3


def test_cameras_around_look_at_the_place_and_round_it():
  center = np.array([1.0, 2.0, 0.5])
  poses = np.stack(cameras.around(center, 5.0, 30, 1))
  turn = poses[:, :3, :3]
  np.testing.assert_allclose(
    turn @ turn.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (30, 3, 3)), atol=1e-9
  )
  np.testing.assert_allclose(np.linalg.det(turn), 1)
  away = center - poses[:, :3, 3]
  cosine = (away * poses[:, :3, 2]).sum(1) / np.linalg.norm(away, axis=1)
  assert cosine.min() > 0.98
  assert (poses[:, 2, 1] < 0).all()  # y points down
  angles = np.sort(np.arctan2(away[:, 1], away[:, 0]))
  assert np.diff(angles).max() < 1.0
  cams = [cameras.Camera(pose, (9, 9), (4, 4), (8, 8)) for pose in poses]
  np.testing.assert_allclose(cameras.looked_at(cams), center, atol=0.2)


def test_cameras_that_look_one_way_have_no_common_place():
  one = support.ring(1)[0]
  apart = []
  for n in range(4):
    pose = one.pose.copy()
    pose[:3, 3] += 0.3 * n * pose[:3, 0]
    apart.append(dataclasses.replace(one, pose=pose))
  with pytest.raises(UserError, match=r"config\.center"):
    cameras.looked_at(apart)
  outwards = [dataclasses.replace(c, pose=c.pose @ np.diag([-1.0, 1, -1, 1])) for c in support.ring(6)]
  with pytest.raises(UserError, match=r"config\.center"):
    cameras.looked_at(outwards)


def test_new_cameras_lie_between_given_ones():
  given = support.ring(12)
  new = cameras.between(given, 9, 4)
  again, other = cameras.between(given, 9, 4), cameras.between(given, 9, 5)
  assert all((a.pose == b.pose).all() for a, b in zip(new, again, strict=True))
  assert not all((a.pose == b.pose).all() for a, b in zip(new, other, strict=True))
  place = np.stack([c.pose[:3, 3] for c in given])
  for camera in new:
    turn = camera.pose[:3, :3]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    assert (camera.pose[:3, 3] >= place.min(0)).all() and (camera.pose[:3, 3] <= place.max(0)).all()
    assert np.linalg.norm(place - camera.pose[:3, 3], axis=1).min() > 1e-3
  with pytest.raises(UserError, match="new_views=0"):
    cameras.between(given[:1], 1, 0)
