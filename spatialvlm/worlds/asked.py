"""What questions about rendered scenes hang on (`types.Asked`), so that their pictures can be moved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spatialvlm.types import Asked
from spatialvlm.worlds import world


def asked(
  task: str,
  boxes: Sequence[Sequence[float]],
  visible: Sequence[int],
  size: int,
  *,
  axis: str = "",
  boxed: bool = False,
  seen_at: int = 0,
) -> Asked:
  """What a question of a task hangs on.

  Args:
    boxes: of the objects that it names, or counts, in pixels of a picture of `seen_at`.
    visible: how many pixels of each show there.
    size: of the picture, in pixels.
    axis: as of `Asked`.
    boxed: whether boxes may be drawn around them.
    seen_at: pixels of the picture in which they were measured; 0 for `size`.
  """
  scale = size / (seen_at or size)
  least = world.MIN_PIXELS * ((seen_at or size) / 96) ** 2
  return Asked(
    task,
    tuple(tuple(float(v) * scale for v in box) for box in boxes),
    axis,
    margin=world.thickness(size) if boxed else 0,
    slack=1.0 if scale == 1 else 1.0 + scale,
    smallest=least / min(visible) if len(visible) else 0.0,
  )


def of_objects(
  task: str,
  objects: Sequence[world.SceneObject],
  frame: world.Frame,
  *,
  axis: str = "",
  lists_all: bool = False,
) -> Asked:
  """As `asked`, of objects of a frame, around which boxes may be drawn.

  Args:
    lists_all: whether all objects that are clear are named, so that no other may become so.
  """
  size = frame.image.shape[0]
  found = asked(
    task, [o.box for o in objects], [o.visible_pixels for o in objects], size, axis=axis, boxed=True
  )
  if not lists_all:
    return found
  least = world.MIN_PIXELS * (size / 96) ** 2
  # Of what is hidden in part, a window may leave out the hidden part.
  limits = [
    least / o.visible_pixels if o.visible_fraction >= world.MIN_FRACTION else 1.0
    for o in frame.objects
    if not o.clear
  ]
  return Asked(**{**vars(found), "largest": float(np.min(limits, initial=np.inf))})
