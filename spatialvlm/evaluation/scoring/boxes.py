"""Which box belongs to which object of a question, proved by the pixels.

CV-Bench draws coloured boxes into the pictures of Depth and Distance and names the colours in the question,
but its `bbox` column says neither in which order its boxes stand nor how their numbers are to be read. So a
box counts as an object's only where its outline is found in the picture in that object's colour; else nothing
is said.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

from spatialvlm.types import Question

Box = tuple[float, float, float, float]

_MENTION = re.compile(r"the ([^,?()]+?) \(highlighted by a (red|blue|green) box\)", re.IGNORECASE)
# Share of an outline that must be of the colour: a later box, and JPEG, hide some of it.
_SHARE = 0.6
_CHANNEL = {"red": 0, "green": 1, "blue": 2}


def named_boxes(question: Question) -> dict[str, Box] | None:
  """The boxes (x0, y0, x1, y1) of the objects that a question names with a colour, in the order of mention.

  None where there are no such objects, where not every one of them is found in the picture, or where there
  are several pictures.
  """
  named = {name.lower(): color.lower() for name, color in _MENTION.findall(question.question)}
  if not named or not question.bbox or not len(named) <= len(question.bbox) <= 6 or len(question.images) > 1:
    return None
  (image,) = question.images
  best, found = 0.0, None
  for boxes in (_corners(question.bbox), _sized(question.bbox)):
    share_CB = np.array([[_outline(image, box, c) for box in boxes] for c in named.values()])
    for order in itertools.permutations(range(len(boxes)), len(named)):
      shares = share_CB[range(len(named)), order]
      if shares.min() >= _SHARE and shares.sum() > best:
        best, found = shares.sum(), {name: boxes[i] for name, i in zip(named, order, strict=True)}
  return found


def _corners(boxes: Sequence[Sequence[float]]) -> list[Box]:
  return [(b[0], b[1], b[2], b[3]) for b in boxes]


def _sized(boxes: Sequence[Sequence[float]]) -> list[Box]:
  """Boxes given as corner, width and height."""
  return [(b[0], b[1], b[0] + b[2], b[1] + b[3]) for b in boxes]


def _outline(image: np.ndarray, box: Box, color: str) -> float:
  """The share of a box's outline, its four sides alike, near which there is a pixel of the colour."""
  height, width = image.shape[:2]
  near = max(2, round(min(height, width) / 100))
  x0, x1 = np.clip([round(box[0]), round(box[2])], 0, width - 1)
  y0, y1 = np.clip([round(box[1]), round(box[3])], 0, height - 1)
  if x1 - x0 < 2 or y1 - y0 < 2:
    return 0.0
  rows = [image[max(y - near, 0) : y + near + 1, x0 : x1 + 1] for y in (y0, y1)]
  columns = [image[y0 : y1 + 1, max(x - near, 0) : x + near + 1] for x in (x0, x1)]
  sides = [_is(part, color).any(0).mean() for part in rows]
  return float(np.mean(sides + [_is(part, color).any(1).mean() for part in columns]))


def _is(pixels: np.ndarray, color: str) -> np.ndarray:
  """Pixels in which one channel stands far above both others."""
  values = pixels.astype(int)
  channel = _CHANNEL[color]
  others = np.delete(values, channel, axis=-1).max(-1)
  return (values[..., channel] > 120) & (values[..., channel] - others > 70)
