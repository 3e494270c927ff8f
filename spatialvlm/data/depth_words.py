"""A depth map in words, for teachers that are told it: how far each part of the picture is."""

from __future__ import annotations

import numpy as np

from spatialvlm.types import UserError

# Parts along a side where a prompt says no number, and the most that it may ask for.
USUAL, MOST = 4, 16


def depth_words(depth_HW: np.ndarray, size: int = USUAL) -> str:
  """The median depth of each of size x size parts, in metres, row by row from the top.

  "Depth in metres, 2 by 2 parts of the picture, from the top left: 3.1 far; 1.9 2.0." A part is "far" where
  less than half of it has a depth, as sky has none.

  Args:
    depth_HW: in metres along the optical axis; 0, or what is not finite, where there is none.

  Raises:
    UserError: the map has fewer pixels along a side than parts.
  """
  if min(depth_HW.shape) < size:
    raise UserError(f"a depth map of {depth_HW.shape[0]} x {depth_HW.shape[1]} has no {size} x {size} parts")
  rows = [np.array_split(band, size, axis=1) for band in np.array_split(depth_HW, size, axis=0)]
  said = "; ".join(" ".join(map(_part, row)) for row in rows)
  return f"Depth in metres, {size} by {size} parts of the picture, from the top left: {said}."


def _part(depth: np.ndarray) -> str:
  there = depth[np.isfinite(depth) & (depth > 0)]
  return f"{np.median(there):.1f}" if 2 * there.size >= depth.size else "far"
