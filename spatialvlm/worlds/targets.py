"""A scene as a model is shown it, and what each of its pixels is for the dense losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from spatialvlm.worlds import world

BOXES = tuple(world.BOX_COLORS)
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
# Share of pictures with no, one, two and three boxes drawn.
_BOX_SHARES = (0.04, 0.16, 0.3, 0.5)
# The dense targets that are classes; "depth" beside them is in metres.
CLASSES = ("color", "shape", "box", "depth_step", "row", "column")
# How the classes of "depth_step" are said, nearest first.
DEPTH_WORDS = ("nearest", "nearer", "near", "close", "middling", "far", "farther", "farthest")
# The classes of "depth_step": geometric steps from 2.5 to 9 metres.
DEPTH_STEPS, _NEAREST, _FARTHEST = 8, 2.5, 9.0


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """A scene as it is shown: `boxes` maps a box colour to the object that it is drawn around."""

  frame: world.Frame
  image: np.ndarray
  boxes: Mapping[str, world.SceneObject]

  @property
  def size(self) -> int:
    return self.image.shape[0]


def cell(picture: Picture, o: world.SceneObject) -> str:
  """The third of the picture that an object's box is centred on: "top left" .. "bottom right"."""
  row, column = _thirds(o, picture.size)
  return f"{ROWS[row]} {COLUMNS[column]}"


def _thirds(o: world.SceneObject, size: int) -> tuple[int, int]:
  x0, y0, x1, y1 = o.box
  return min(int(3 * (y0 + y1) / 2 / size), 2), min(int(3 * (x0 + x1) / 2 / size), 2)


def without_pixels(frame: world.Frame) -> world.Frame:
  """All that questions read of a frame; its pixels are a stand-in of their shape."""
  shape = frame.image.shape
  blank = lambda dtype, shape: np.broadcast_to(np.zeros((), dtype), shape)
  return dataclasses.replace(
    frame,
    image=blank(np.uint8, shape),
    depth=blank(np.float32, shape[:2]),
    instance=blank(np.int32, shape[:2]),
  )


def show(frame: world.Frame, rng: np.random.Generator) -> Picture:
  """Draws up to three boxes around objects that can be named; the frame's own image stays as it is."""
  named = frame.named()
  count = min(int(rng.choice(len(_BOX_SHARES), p=_BOX_SHARES)), len(named))
  objects = [named[i] for i in rng.permutation(len(named))[:count]]
  colors = [BOXES[i] for i in rng.permutation(len(BOXES))[:count]]
  image = frame.image.copy()
  for o, color in zip(objects, colors, strict=True):
    world.draw_box(image, o.box, color)
  return Picture(frame, image, dict(zip(colors, objects, strict=True)))


def dense_targets(picture: Picture) -> dict[str, np.ndarray]:
  """What each pixel shows, (H, W) each.

  "depth" is float32, metres along the optical axis, 0 for sky. The CLASSES are int8, -1 where there is
  nothing to say: "color" and "shape" of the pixel's object index COLORS and SHAPES; "box" is the box drawn
  around it (index into BOXES, 3 for none); "row" and "column" index ROWS and COLUMNS, the third of the
  picture that its box is centred on; "depth_step" is the distance of its centre along the optical axis in
  DEPTH_STEPS geometric steps, given for floor and furniture too, since what an object stands on tells how far
  it is; but not near objects, so that an image token which shows an object is asked for that object's.
  """
  frame = picture.frame
  highlighted = {o.index: BOXES.index(color) for color, o in picture.boxes.items()}
  table = np.full((len(CLASSES), world.render.MAX_OBJECTS + 1), -1, np.int8)
  for o in frame.objects:
    table[:, o.index] = (
      world.COLORS.index(o.color),
      world.SHAPES.index(o.shape),
      highlighted.get(o.index, len(BOXES)),
      depth_step(o.center_camera[2]),
      *_thirds(o, picture.size),
    )
  maps = dict(zip(CLASSES, table[:, frame.instance], strict=True))  # -1, no object, is the last column
  near = ndimage.maximum_filter(frame.instance >= 0, size=picture.size // 8 + 1)
  around = (frame.depth > 0) & ~near
  maps["depth_step"][around] = depth_step(frame.depth[around])
  return {**maps, "depth": frame.depth}


def depth_step(depth: np.ndarray | float) -> np.ndarray:
  """The class of "depth_step", int8 of the depth's shape, of metres along the optical axis above 0."""
  steps = np.log(depth / _NEAREST) / np.log(_FARTHEST / _NEAREST) * DEPTH_STEPS
  return np.clip(steps, 0, DEPTH_STEPS - 1).astype(np.int8)
