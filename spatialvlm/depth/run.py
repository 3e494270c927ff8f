"""A depth head on held-out scenes, or on somebody's pictures: the table, and what the drawing shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spatialvlm.depth.picture import Shown
from spatialvlm.depth.scores import Errors, errors
from spatialvlm.processing.images import open_image
from spatialvlm.worlds import world

# Says the depth of a picture, (H, W, 3) uint8 to (H, W) metres.
Depth = Callable[[np.ndarray], np.ndarray]


def measure(
  depth: Depth, *, seed: int, count: int, image_size: int, farthest: float, shown: int = 6
) -> tuple[dict[str, Errors], list[Shown]]:
  """Errors on scenes 0 .. count - 1 of a world, beside constants of the scenes behind them; the first scenes.

  Args:
    farthest: metres beyond which nothing is measured.
  """
  frames = world.frames(seed, range(2 * count), image_size)
  asked, others = frames[:count], frames[count:]
  truth = np.stack([frame.depth for frame in asked])
  found = np.stack([depth(frame.image) for frame in asked])
  known = np.where((truth > 0) & (truth <= farthest), truth, np.nan)
  rows = [Shown(f.image, d, t) for f, d, t in zip(asked[:shown], found, known, strict=False)]
  return errors(found, truth, np.stack([frame.depth for frame in others]), farthest), rows


def look(depth: Depth, paths: Sequence[str]) -> list[Shown]:
  """Pictures whose depth nobody knows.

  Raises:
    UserError: one that is no picture.
  """
  pictures = [open_image(path) for path in paths]
  return [Shown(picture, depth(picture)) for picture in pictures]
