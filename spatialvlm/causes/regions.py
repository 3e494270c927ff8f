"""Places in a picture that are taken away, and which image tokens show them.

A region is a mask of pixels with a name and a kind. Of kinds, "named" are the objects that a question names;
for each of them there are controls of the same shape: "moved" is its mask at another place, "lower" and
"upper" are parts of it with equally many pixels.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from spatialvlm.causes.cases import Case
from spatialvlm.priors.prior import Tokens

KINDS = {
  "named": "the pixels of an object that the question names",
  "other": "the pixels of an object that it does not name",
  "moved": "a named object's mask at a place where none of them is",
  "box": "the rectangle around a named object, with the frame that is drawn there",
  "frame": "that frame alone",
  "lower": "the lowest quarter of a named object's pixels",
  "upper": "the highest quarter",
  "else": "all but the boxes of the named objects",
  "cell": "a cell of a grid over the picture",
  "all": "the whole picture",
}
# A token shows a region that covers so much of it; else the token that it covers most does.
SHARE = 0.15
# Pixels of the smallest "other" object, at 96 pixels, and tries to find a place for a mask.
_LEAST, _TRIES = 20, 200
_PART = 0.25
_GREY = 128
_PLACES = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
  """Some pixels of a picture.

  Attributes:
    name: for tables, "first object", "cell 3,4".
    kind: a key of `KINDS`.
    mask: bool (H, W).
    place: of "named" and its controls, which of the named objects; of others a running number.
  """

  name: str
  kind: str
  mask: np.ndarray
  place: int = 0


def greyed(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """The picture with middle grey where the mask is true."""
  return np.where(mask[..., None], np.uint8(_GREY), image)


def of_case(case: Case, seed: int) -> list[Region]:
  """All regions of a case whose picture is known; `seed` is that of the places of "moved"."""
  shape = case.instance.shape
  rng = np.random.default_rng((seed, len(case.id), sum(map(ord, case.id))))
  boxes = [rectangle(box, case.margin, shape) for box in case.boxes]
  near = np.any(boxes, axis=0) if boxes else np.zeros(shape, bool)
  found = []
  for place, (number, box) in enumerate(zip(case.named, boxes, strict=True)):
    mask = case.instance == number
    called = _ordinal(place)
    found.append(Region(f"{called} object", "named", mask, place))
    found.append(Region(f"{called} box", "box", box, place))
    if place < len(case.frames):
      inner = rectangle(case.boxes[place], 0, shape)
      found.append(Region(f"{called} frame", "frame", box & ~inner, place))
    moved = elsewhere(mask, near, rng)
    if moved is not None:
      found.append(Region(f"{called} object's mask elsewhere", "moved", moved, place))
    for kind, part in zip(("upper", "lower"), _ends(mask), strict=True):
      found.append(Region(f"{called} object, {kind} part", kind, part, place))
  least = _LEAST * (shape[0] / 96) ** 2
  others = [n for n in np.unique(case.instance) if n >= 0 and n not in case.named]
  for place, number in enumerate(others):
    mask = case.instance == number
    if mask.sum() >= least:
      found.append(Region(f"other object {place + 1}", "other", mask, place))
  found.append(Region("all else", "else", ~near))
  found.append(Region("all", "all", np.ones(shape, bool)))
  return found


def cells(shape: tuple[int, int], grid: int) -> list[Region]:
  """The cells of a grid over a picture, row by row."""
  rows, columns = (np.arange(size) * grid // size for size in shape)
  number = rows[:, None] * grid + columns
  return [Region(f"cell {n // grid},{n % grid}", "cell", number == n, n) for n in range(grid * grid)]


def rectangle(box: tuple[float, ...], margin: int, shape: tuple[int, int]) -> np.ndarray:
  """bool (H, W): the pixels of a box with so many around it."""
  x0, y0, x1, y1 = (round(v) for v in box)
  found = np.zeros(shape, bool)
  found[max(y0 - margin, 0) : y1 + margin, max(x0 - margin, 0) : x1 + margin] = True
  return found


def elsewhere(mask: np.ndarray, near: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
  """The mask at a drawn place of the picture where `near` is false throughout; None where none was found."""
  rows, columns = np.nonzero(mask)
  if not len(rows):
    return None
  height, width = mask.shape
  for _ in range(_TRIES):
    down = int(rng.integers(-rows.min(), height - rows.max()))
    right = int(rng.integers(-columns.min(), width - columns.max()))
    if not near[rows + down, columns + right].any():
      found = np.zeros_like(mask)
      found[rows + down, columns + right] = True
      return found
  return None


def _ends(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The highest and the lowest quarter of a mask's pixels, equally many."""
  rows, columns = np.nonzero(mask)  # sorted by row
  count = max(round(_PART * len(rows)), 1)
  ends = []
  for part in (slice(None, count), slice(len(rows) - count, None)):
    found = np.zeros_like(mask)
    found[rows[part], columns[part]] = True
    ends.append(found)
  return ends[0], ends[1]


def _ordinal(place: int) -> str:
  return ("first", "second", "third")[place] if place < 3 else f"{place + 1}th"


def shares(mask: np.ndarray, tokens: Tokens) -> np.ndarray:
  """float (I * P,): how much of what each image token shows a mask covers."""
  x, y = tokens.places(_PLACES)
  height, width = mask.shape
  return mask[(y * height).astype(int), (x * width).astype(int)].mean(-1).reshape(-1)


def showing(mask: np.ndarray, tokens: Tokens) -> np.ndarray:
  """bool (I * P,): the image tokens that show a region; at least one, where the mask has a pixel."""
  covered = shares(mask, tokens)
  found = covered >= SHARE
  return found if found.any() or not covered.any() else covered == covered.max()


def exchanged(
  first: tuple[float, ...], second: tuple[float, ...], margin: int, shape: tuple[int, int], tokens: Tokens
) -> np.ndarray:
  """int (I * P,): which image token stands where, when what two boxes show is exchanged.

  Each token of a box gets the one of the other's that lies most alike in its own box, in a tile of the same
  kind: the whole picture, or a part of it.
  """
  boxes = [np.asarray(box, float) + margin * np.array([-1, -1, 1, 1]) for box in (first, second)]
  masks = [showing(rectangle(box, 0, shape), tokens) for box in boxes]
  x, y = (place[..., 0].reshape(-1) for place in tokens.places())
  whole = np.repeat((tokens.windows == (0, 0, 1, 1)).all(1), tokens.side**2)
  order = np.arange(len(x))
  height, width = shape
  both = masks[0] & masks[1]
  for own, other in ((0, 1), (1, 0)):
    at = lambda box: np.stack(
      [(x * width - box[0]) / (box[2] - box[0]), (y * height - box[1]) / (box[3] - box[1])], -1
    )
    here, there = at(boxes[own]), at(boxes[other])
    for token in np.flatnonzero(masks[own] & ~both):
      mates = np.flatnonzero(masks[other] & ~both & (whole == whole[token]))
      if len(mates):
        order[token] = mates[np.argmin(((there[mates] - here[token]) ** 2).sum(-1))]
  return order
