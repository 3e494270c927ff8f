"""Views of one of our own rendered scenes, from cameras around it; their depth is the analytic one."""

from __future__ import annotations

import numpy as np

from spatialvlm.config import SceneViewsConfig
from spatialvlm.fields.posed.cameras import Camera, View, around
from spatialvlm.types import UserError
from spatialvlm.worlds import render, world


def read(config: SceneViewsConfig) -> list[View]:
  """Renders the scene from `config.views` cameras that look at its objects' middle.

  Raises:
    UserError: a number outside of its range.
  """
  return seen(config, cameras(config))


def cameras(config: SceneViewsConfig) -> list[Camera]:
  """Cameras around the scene, outside of all that stands there; errors as `read`."""
  if config.views < 2:
    raise UserError(f"config.source.views: a field needs at least 2 views, got {config.views}")
  if not 10 <= config.angle <= 120:
    raise UserError(f"config.source.angle: must be between 10 and 120 degrees, got {config.angle}")
  scene = world.drawn(config.seed, config.number, config.size)
  there = scene.present.astype(bool)
  centers = scene.scene.center[: render.MAX_OBJECTS][there].astype(np.float64)
  half = scene.scene.half[: render.MAX_OBJECTS][there]
  middle = (centers.min(0) + centers.max(0)) / 2
  middle[2] /= 2  # what carries the objects is looked at too
  reach = (np.linalg.norm((centers - middle)[:, :2], axis=1) + half.max(1)).max()
  tangent = np.tan(np.deg2rad(config.angle) / 2)
  distance = max(1.2 * reach / tangent, 1.4 * reach + 1.0)
  focal = 0.5 * config.size / tangent
  return [
    Camera(pose, (focal, focal), (config.size / 2, config.size / 2), (config.size, config.size))
    for pose in around(middle, distance, config.views, config.seed + config.number)
  ]


def seen(config: SceneViewsConfig, cameras: list[Camera]) -> list[View]:
  """What cameras of the scene's own size see: any of its `cameras`, or others between them."""
  focal = 0.5 / np.tan(np.deg2rad(config.angle) / 2)
  poses = [camera.pose for camera in cameras]
  frames = world.seen_from(config.seed, config.number, poses, focal, config.size)
  return [
    View(f"{n:04d}", camera, frame.image, frame.depth)
    for n, (camera, frame) in enumerate(zip(cameras, frames, strict=True))
  ]
