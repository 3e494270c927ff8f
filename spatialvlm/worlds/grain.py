"""Grain and tiles: patterns on surfaces that the renderer has not, laid over its pictures.

They follow from where a pixel's point lies on its object or on the floor, so they stay with the surface from
every side. Depth, boxes and masks know nothing of them.
"""

from __future__ import annotations

import numpy as np

from spatialvlm.worlds import layout, render
from spatialvlm.worlds.shifts import Look

# Grains in half an object's size, and the least brightness of a grain or tile; the greatest is 1.
GRAINS, LEAST = 3.0, 0.55
# Metres along the ray from which tiles fade, and at which they are gone: they are smaller than pixels there.
_FADES, _GONE = 10.0, 25.0


def factor(look: Look, scene: layout.Layout, rendering: render.Rendering, size: int) -> np.ndarray:
  """(H, W) float32 by which the shade of each pixel is multiplied; 1 where the look has no pattern.

  Args:
    scene, rendering: of one scene, without a batch axis.
  """
  surface, depth_HW = rendering.surface, np.asarray(rendering.depth, np.float32)
  shade_HW = np.ones(depth_HW.shape, np.float32)
  points_HW3 = _points(scene.camera, depth_HW, size)
  if look.speckled:
    for k in np.unique(surface[surface < render.MAX_OBJECTS]):
      mask_HW = surface == k
      cells = np.floor(GRAINS * _local(scene.scene, int(k), points_HW3[mask_HW]))
      shade_HW[mask_HW] = _brightness(cells, int(k))
  if look.tiled:
    mask_HW = surface == render.FLOOR
    cells = np.floor(points_HW3[mask_HW][:, :2] / look.tiled)
    kept = np.clip((_GONE - depth_HW[mask_HW]) / (_GONE - _FADES), 0.0, 1.0)
    middle = (1 + LEAST) / 2
    shade_HW[mask_HW] = middle + kept * (_brightness(cells, render.FLOOR) - middle)
  return shade_HW


def _points(camera: render.Camera, depth_HW: np.ndarray, size: int) -> np.ndarray:
  """(H, W, 3): what each pixel shows, metres in the world."""
  steps = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) / np.float32(camera.focal)
  rays = np.stack([*np.meshgrid(steps, steps), np.ones((size, size), np.float32)], -1)
  return np.asarray(camera.position) + depth_HW[..., None] * (rays @ np.asarray(camera.rotation).T)


def _local(scene: render.Scene, k: int, points_N3: np.ndarray) -> np.ndarray:
  """Points in the frame of primitive k, which fills the cube from -1 to 1."""
  cos, sin = np.cos(scene.yaw[k]), np.sin(scene.yaw[k])
  x, y, z = (points_N3 - scene.center[k]).T
  return np.stack([x * cos + y * sin, y * cos - x * sin, z], -1) / scene.half[k]


def _brightness(cells_NK: np.ndarray, seed: int) -> np.ndarray:
  """One number from LEAST to 1 for each cell, by a hash of its whole coordinates."""
  mixed = np.full(len(cells_NK), seed, np.uint32)
  for cell_N in cells_NK.astype(np.int32).astype(np.uint32).T:
    # The finalizer of MurmurHash3 (public domain), after each coordinate; products wrap around.
    mixed = (mixed * np.uint32(31) + cell_N) ^ (mixed >> np.uint32(15))
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
  return (LEAST + (1 - LEAST) * (mixed / np.float32(2**32))).astype(np.float32)
