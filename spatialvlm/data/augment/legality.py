"""Which changes of place leave which answers true: the table, by task, and how an example is judged by it.

A question that names left and right is mirrored with its picture (`words`). A window on the scene, or a
turned camera, keeps an answer where all that it hangs on stays in the picture and stands to each other as
before, which only an example that says its `types.Geometry` can be asked. What is not in the table, or not
said, is not moved.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Sequence

import numpy as np

from spatialvlm.data.augment import words
from spatialvlm.data.augment.warp import Warp
from spatialvlm.types import Asked, Example, UserError


class Verdict(enum.StrEnum):
  """What a change asks for, so that the answer to a question is true of the changed picture."""

  KEEP = "nothing: it stays true"
  WORDS = "left and right swapped where they are said"
  REVERSED = "the list turned round, left and right swapped in it"
  NAMED = "that what it names stays in the picture, and its margins"
  NEVER = "it cannot be known"


KEEP, WORDS, REVERSED, NAMED, NEVER = Verdict


@dataclasses.dataclass(frozen=True)
class Task:
  """A row of the table.

  Attributes:
    flip, crop, zoom_out, roll, perspective: verdicts on the settings of `AugmentConfig` of these names.
    open: the name alone says what is asked, whoever's data it is; else an example must say its geometry.
    blind: the picture has nothing to do with question and answer, which stay as they are.
    ordered: the answer is how what is named stands along an axis (`Asked.axis`; both where it is empty).
    gap: ordered things must stay so far apart along the axis, as share of the picture's side, or be as near
      as they were.
    overlap: they may share so much of the smaller extent along it, or as much as they did.
    cells: the answer says in which third of the picture, across and down, the middle of a box lies.
  """

  flip: Verdict
  crop: Verdict
  zoom_out: Verdict
  roll: Verdict
  perspective: Verdict
  open: bool = False
  blind: bool = False
  ordered: bool = False
  gap: float = 0.0
  overlap: float = 1.0
  cells: bool = False


_SEEN = Task(WORDS, NAMED, NAMED, NAMED, NAMED)
_METRES = dataclasses.replace(_SEEN, perspective=NEVER)
_LISTED = dataclasses.replace(_SEEN, flip=REVERSED, ordered=True)
# CV-Bench's kinds, then the skills of the embedded world. Depths and distances are those of the scene: no
# window changes them. Turning the camera changes a depth along its axis, not which of two things is nearer.
TASKS: dict[str, Task] = {
  "Count": Task(WORDS, NAMED, KEEP, NAMED, NAMED, open=True),
  "Relation": Task(WORDS, NAMED, KEEP, NAMED, NAMED, open=True, ordered=True, gap=0.08, overlap=0.25),
  "Depth": Task(WORDS, NAMED, KEEP, NAMED, NAMED, open=True),
  "Distance": Task(WORDS, NAMED, KEEP, NAMED, NAMED, open=True),
  "name": _SEEN,
  "color": _SEEN,
  "shape": _SEEN,
  "color_of": _SEEN,
  "shape_of": _SEEN,
  "which_box": _SEEN,
  "choose": _SEEN,
  "present": _SEEN,
  "how_many": _SEEN,
  "any": _SEEN,
  "far": _METRES,
  "metres": _METRES,
  "near_to_far": _METRES,
  "where": dataclasses.replace(_SEEN, cells=True),
  "box_where": dataclasses.replace(_SEEN, cells=True),
  "boxes": dataclasses.replace(_METRES, cells=True),
  "describe": _LISTED,
  "scene": dataclasses.replace(_LISTED, cells=True),
  "statement": dataclasses.replace(_METRES, ordered=True, gap=0.08),
  "statement_aside": _METRES,
  # Of rooms (`worlds.rooms.questions`).
  "Facing": _SEEN,
  "Size": _SEEN,
  "Height": _SEEN,
  "Occlusion": _SEEN,
  "Reach": _METRES,
  "Metric": _METRES,
  "Attribute": _SEEN,
  "letters": Task(KEEP, KEEP, KEEP, KEEP, KEEP, blind=True),
}
CHANGES = ("flip", "crop", "zoom_out", "roll", "perspective")
TURNS = ("roll", "perspective")

_MOVES = Task(KEEP, KEEP, KEEP, KEEP, KEEP)
# Maps of `Example.dense`: classes of a pixel's object go with the pixel; the third of the picture that an
# object lies in is counted anew; a depth is, where the focal length says how the axis turns.
DENSE: dict[str, Task] = {
  "color": _MOVES,
  "shape": _MOVES,
  "box": _MOVES,
  "depth_step": dataclasses.replace(_MOVES, perspective=NEVER),
  "depth": dataclasses.replace(_MOVES, perspective=NAMED),
  "row": Task(KEEP, NAMED, NAMED, NAMED, NAMED),
  "column": Task(NAMED, NAMED, NAMED, NAMED, NAMED),
}
# Maps whose classes are thirds of the picture, and along which axis of a map.
THIRDS = {"row": 0, "column": 1}


def asked_of(example: Example) -> tuple[Asked, ...]:
  """What each turn hangs on, with no box where the example does not say.

  Raises:
    UserError: an example that says it of another number of turns than it has.
  """
  if example.geometry is not None:
    asked, turns = len(example.geometry.asked), len(example.turns)
    if asked != turns:
      raise UserError(f"its geometry says what {asked} questions hang on, and it has {turns}")
    return example.geometry.asked
  return tuple(Asked(example.task) for _ in example.turns)


def obstacle(example: Example, change: str) -> str:
  """Why a change cannot be made of an example, however it is drawn; empty where it may be."""
  if len(example.images) != 1:
    return f"{len(example.images) or 'no'} pictures" if example.images else "no picture"
  for turn, asked in zip(example.turns, asked_of(example), strict=True):
    if reason := _of_turn(example, asked, change, (turn.prompt, turn.answer, *turn.false)):
      return reason
  if change == "flip" and example.facts is not None and (said := words.unsure(example.facts())):
    return f"its facts say {said!r}"
  for name in example.dense:
    if reason := _of_map(example, name, change):
      return reason
  return ""


def _of_turn(example: Example, asked: Asked, change: str, texts: tuple[str, ...]) -> str:
  task = TASKS.get(asked.task)
  if task is None or not (task.open or example.geometry):
    return f"nothing says what task {asked.task!r} asks" if asked.task else "no task and no geometry"
  verdict = getattr(task, change)
  if verdict is NEVER:
    return f"a {change} makes the answer to task {asked.task!r} unknown"
  if task.blind:
    return ""
  if said := words.places(texts):
    return f"it says places in numbers: {said!r}"
  if change != "flip":
    if verdict is NAMED and not example.geometry:
      return f"task {asked.task!r} needs the boxes of what it names, and the example says no geometry"
    said = "" if task.cells else words.framed(texts)
    return f"it speaks of the picture's frame: {said!r}" if said else ""
  if verdict is REVERSED:
    prompt, *answers = texts
    good = all(words.reversed_list(prompt, answer, len(asked.named)) for answer in answers)
    return "" if good else "its answer is no plain list from left to right"
  if said := next(filter(None, map(words.unsure, texts)), ""):
    return f"it says {said!r}"
  if task.ordered and not words.direction(texts):
    return f"task {asked.task!r} asks for a direction in no words that are known"
  return ""


def _of_map(example: Example, name: str, change: str) -> str:
  verdict = getattr(DENSE.get(name, Task(NEVER, NEVER, NEVER, NEVER, NEVER)), change)
  geometry = example.geometry
  known = geometry and (geometry.instances if name in THIRDS else geometry.focal)
  if verdict is KEEP or (verdict is NAMED and known):
    return ""
  return f"nobody knows the dense target {name!r} after a {change}"


def hull(asked: Sequence[Asked], size: tuple[int, int]) -> tuple[float, ...]:
  """The smallest box around all that is named, with what is drawn around it; empty for nothing."""
  grown = [np.array(box) + (a.margin + a.slack) * np.array([-1, -1, 1, 1]) for a in asked for box in a.named]
  if not grown:
    return ()
  low, high = np.min(grown, 0)[:2], np.max(grown, 0)[2:]
  return tuple(float(v) for v in (*np.maximum(low, 0), *np.minimum(high, size[::-1])))


def holds(asked: Asked, warp: Warp) -> bool:
  """Whether an answer stays true under a warp that no `obstacle` stands against."""
  task = TASKS[asked.task]
  if not asked.named:
    return _areas_fit(asked, warp)
  middles = [_Moved(box, asked, warp) for box in asked.named]
  if not warp.still and not (all(m.inside for m in middles) and _areas_fit(asked, warp)):
    return False
  if task.cells and not all(m.same_cell for m in middles):
    return False
  if not task.ordered or len(middles) < 2:
    return True
  pairs = itertools.pairwise(middles)
  return all(_in_order(a, b, axis, task, warp) for a, b in pairs for axis in _axes(a, b, asked, warp))


def _areas_fit(asked: Asked, warp: Warp) -> bool:
  """Whether things stay large enough to be told, and what was too small for it stays so."""
  if warp.still or (asked.smallest <= 0 and np.isinf(asked.largest)):
    return True
  height, width = warp.size
  corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
  # Pixels are counted, and a count of few of them is off by some.
  named = np.array(asked.named).reshape(-1, 4)
  least = warp.areas((named[:, :2] + named[:, 2:]) / 2).min(initial=np.inf)
  return least * 0.9 >= min(asked.smallest, 0.9) and warp.areas(corners).max() <= 0.9 * asked.largest


class _Moved:
  """A named box before and after a warp: its sides, and between what its middle lies."""

  def __init__(self, box: tuple[float, ...], asked: Asked, warp: Warp):
    self.warp, self.asked = warp, asked
    self.before = np.array(box, float)
    low, high = warp.box(box, 0.0 if warp.still else asked.slack)
    self.outer = np.concatenate([low[:2], high[2:]])
    self.low, self.high = (low[:2] + low[2:]) / 2, (high[:2] + high[2:]) / 2

  @property
  def inside(self) -> bool:
    """Whether all of it that was in the picture, with what is drawn around it, still is."""
    height, width = self.warp.size
    grown = self.before + self.asked.margin * np.array([-1, -1, 1, 1])
    grown = np.clip(grown, 0, [width, height, width, height])
    x0, y0, x1, y1 = grown
    moved = self.warp.points(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]))
    return bool((moved >= -1e-6).all() and (moved <= np.array([width, height]) + 1e-6).all())

  @property
  def same_cell(self) -> bool:
    """Whether its middle is for certain in the third of the picture where words will say that it is."""
    size = np.array(self.warp.size[::-1], float)
    thirds = lambda middle: np.clip(np.floor(3 * middle / size), 0, 2)
    wanted = thirds((self.before[:2] + self.before[2:]) / 2)
    if self.warp.flip:
      wanted[0] = 2 - wanted[0]
    return bool((thirds(self.low) == wanted).all() and (thirds(self.high) == wanted).all())


def _axes(a: _Moved, b: _Moved, asked: Asked, warp: Warp) -> tuple[int, ...]:
  """The axes along which two things must keep their order.

  Where nobody says which is asked about, both; a window keeps the order of any two things along both, so that
  it is enough to look where they are plainly apart.
  """
  if asked.axis:
    return (("across", "down").index(asked.axis),)
  apart = np.abs(a.before[:2] + a.before[2:] - b.before[:2] - b.before[2:]) / 2
  return tuple(axis for axis in (0, 1) if not warp.straight or apart[axis] > 4 * asked.slack)


def _in_order(a: _Moved, b: _Moved, axis: int, task: Task, warp: Warp) -> bool:
  """Whether two things stand along an axis as before (as in a mirror, where the warp is one), plainly."""
  middle = lambda box: (box[axis] + box[axis + 2]) / 2
  size = warp.size[1 - axis]
  before = middle(b.before) - middle(a.before)
  sign = np.sign(before) * (-1 if warp.flip and axis == 0 else 1)
  first, second = (a, b) if sign > 0 else (b, a)
  if sign == 0 or first.high[axis] >= second.low[axis]:
    return False
  after = middle(second.outer) - middle(first.outer)
  if not warp.still and after < min(task.gap * size, abs(before)):
    return False
  return _overlap(a.outer, b.outer, axis) <= max(task.overlap, _overlap(a.before, b.before, axis) + 1e-9)


def _overlap(a: np.ndarray, b: np.ndarray, axis: int) -> float:
  """What two boxes share along an axis, as share of the smaller extent."""
  shared = min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis])
  return shared / max(min(a[axis + 2] - a[axis], b[axis + 2] - b[axis]), 1e-9)
