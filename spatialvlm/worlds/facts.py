"""A scene in words, as somebody would be told it who cannot see the picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from spatialvlm.worlds import world

# An object's name, its centre (3,) in metres in the camera's OpenCV axes, the colour of the box around it.
Fact = tuple[str, np.ndarray, str]


def said(objects: Iterable[Fact]) -> str:
  """A sentence for each object, from left to right: what it is, and where from the camera, in metres.

  "ahead" is along the optical axis, what questions of depth compare. Objects that are hidden in part are
  among them, those that cannot be seen are not.
  """
  ordered = sorted(objects, key=lambda fact: float(fact[1][0] / fact[1][2]))
  return " ".join(_sentence(*fact) for fact in ordered)


def of_frame(frame: world.Frame, boxes: Mapping[str, world.SceneObject]) -> str:
  """What `said` says of a frame that is shown with boxes (colour -> object)."""
  colors = {o.index: color for color, o in boxes.items()}
  return said((o.name, o.center_camera, colors.get(o.index, "")) for o in frame.objects)


def of_pool(pool: world.Pool, b: int, colors: np.ndarray, boxes: Mapping[int, str]) -> str:
  """What `said` says of scene `b` of a pool.

  Args:
    colors: (MAX_OBJECTS,), in which it is painted.
    boxes: that are drawn: object -> colour.
  """
  shapes, look = pool.layout.shape[b], pool.look
  name = lambda k: f"{look.color_words[colors[k]]} {look.shape_words[shapes[k]]}"
  seen = np.flatnonzero(pool.rendering.visible[b])
  return said((name(k), pool.center_camera[b, k], boxes.get(int(k), "")) for k in seen)


def _sentence(name: str, center: np.ndarray, box: str) -> str:
  right, down, ahead = (float(v) for v in center)
  side = f"{abs(right):.2f} m {'right' if right >= 0 else 'left'}"
  height = f"{abs(down):.2f} m {'below' if down >= 0 else 'above'}"
  marked = f" in the {box} box" if box else ""
  return f"The {name}{marked} is {ahead:.2f} m ahead, {side}, {height}."
