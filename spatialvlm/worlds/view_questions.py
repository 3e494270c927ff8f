"""Questions across several pictures of one scene, none of which answers them alone.

| kind | what is asked |
|---|---|
| ViewRelation | two objects are in boxes in one image: on which side of the other is the first in another |
| ViewDepth | which of two objects in boxes in one image is closer to the camera of another |
| CameraMoved | to which side the camera has moved from one image to another |
| SameObject | whether boxes in two images hold one object, where both images show a twin of it as well |
| TotalCount | how many different objects two images show together |

Balance is by construction and without state. Questions come in groups of two that share their text, one
picture and the boxes in it, and have opposite answers: the second picture comes from another camera, of
SameObject the second box is around the twin. So the text, the shared picture and both together are right
exactly as often as guessing; the second picture by itself does not say which object was meant, or where the
camera was before. The second pictures of a group are alike in what rules of two dimensions say of them
(bigger box, lower edge, the way in which things have shifted, how many there are), so that these, too, are
right once in each group; of SameObject each combination of what its rules say comes as often as its opposite.

A third and fourth picture is of the same scene and has no part in the question.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from spatialvlm.config import nearest
from spatialvlm.mixture import ENDLESS, Mixture
from spatialvlm.types import Deferred, Question, UserError, choice_prompt
from spatialvlm.worlds import questions, viewpoints, world

KINDS = ("ViewRelation", "ViewDepth", "CameraMoved", "SameObject", "TotalCount")
# Pools that are looked through before the rules' agreement is given up; most pictures of a question.
ATTEMPTS, MOST_SHOWN = 12, 4
_TAG, _GROUP, _CYCLE = 0x71E3, 0, 1

PREFACE = "These images show one scene from different cameras."
RELATION = (
  "In image {a} one object is highlighted by a red box and another by a blue box. Considering their relative "
  "positions in image {b}, where is the object of the red box located with respect to the object of the blue "
  "box?"
)
DEPTH = (
  "Which object is closer to the camera taking image {b}, the one highlighted by a red box in image {a} or "
  "the one highlighted by a blue box in image {a}?"
)
MOVED = (
  "The camera took image {a}, moved, and took image {b}. To which side has it moved, as seen in image {a}?"
)
SAME = (
  "Is the object highlighted by a red box in image {a} the same as the one highlighted by a blue box in "
  "image {b}?"
)
TOTAL = "How many different objects are in image {a} and image {b} together?"


class _Kind(NamedTuple):
  """How questions of a kind are made.

  Attributes:
    text: by `{a}` and `{b}`, the numbers of the two images.
    choices: in their order; () of TotalCount, whose options are numbers.
    each: rules whose agreement with the answer its table's first digits say, for the one question of a group,
      then for the other.
    both: rules whose choice in the shared picture its table's next digits say.
    patterns: of the first digits, which groups go through in turn.
    pace: groups until the next pool is begun with, so that few scenes are asked about twice.
  """

  text: str
  choices: tuple[str, ...]
  each: tuple[str, ...] = ()
  both: tuple[str, ...] = ()
  patterns: str = ""
  pace: int = 24


_SIDES = ("left", "right")
_THERE = ("bigger box, where it is asked", "lower edge, where it is asked")
_FLAT = ("bigger box, where the boxes are", "lower edge, where the boxes are")
_TWIN = ("same side of its twin", "bigger of both", "nearest place")
_MADE: dict[str, _Kind] = {
  "ViewRelation": _Kind(
    RELATION, _SIDES, _THERE, ("the side where the boxes are", *_FLAT), "0011 1100 0110 1001"
  ),
  "ViewDepth": _Kind(
    DEPTH,
    ("the object in the red box", "the object in the blue box"),
    _THERE,
    ("nearer where the boxes are", *_FLAT),
    "0011 1100",
    pace=8,
  ),
  "CameraMoved": _Kind(MOVED, _SIDES, ("things shift the other way",), (), "01 10", pace=12),
  # Of one row both questions are made: what is right for the one answer is for the other.
  "SameObject": _Kind(SAME, ("yes", "no"), _TWIN, (), "000 111 001 110 010 101 011 100"),
  "TotalCount": _Kind(TOTAL, (), pace=4),
}


@dataclasses.dataclass(frozen=True, eq=False)
class ViewPicture(Deferred):
  """A picture with its depth in metres, (H, W) float32, 0 for sky."""

  depth: Callable[[], np.ndarray]


class ViewQuestions(Sequence[Question]):
  """Question number i of a seed is always the same, whatever was read before. Thread-safe.

  Its pictures are `ViewPicture`, which make themselves when they are asked to.

  Args:
    seed: of the world; held-out worlds have another one.
    kinds: names of KINDS with their weights; all alike where empty.
    image_size: pixels of the square images, 16 .. 4096.
    size: number of questions, 0 for no end.
    views: how many pictures a question has, each 2 to 4, in turn.

  Attributes:
    read: questions that were read so far; exhausted: how many of these found no scene within ATTEMPTS pools
      and gave up agreement with some of the rules (their answers are right all the same).

  Raises:
    UserError: an unknown kind, a weight that is not positive, a seed, size or number of pictures out of
      range. While reading: nothing that is seen can be asked a kind.
  """

  def __init__(
    self,
    seed: int,
    kinds: Mapping[str, float] | None = None,
    image_size: int = 96,
    size: int = 0,
    views: Sequence[int] = (2, 3, 4),
  ):
    weights = _checked(kinds or {})
    if size < 0:
      raise UserError(f"views: a size of {size} questions; 0 means endless")
    if not views or not all(2 <= count <= MOST_SHOWN for count in views):
      raise UserError(f"views: {list(views)} pictures a question; name numbers of 2 to {MOST_SHOWN}")
    world.check(seed, image_size)
    self.seed, self.image_size, self.size, self.views = seed, image_size, size, tuple(views)
    self.read = self.exhausted = 0
    self._lock = threading.Lock()
    self._pool_size = questions.pool_size(image_size)
    self._mixture = Mixture(dict.fromkeys(weights, ENDLESS), weights, shuffle=False, seed=0)

  def __len__(self) -> int:
    return self.size or ENDLESS

  def __getitem__(self, index: int) -> Question:
    index = int(index)
    if not 0 <= index < len(self):
      raise IndexError(index)
    place = self._mixture[index]
    kind = self._mixture.names[place.source]
    group, turn = divmod(place.index, 2)
    # All of a group is drawn from this, so that its questions differ in their answers alone.
    rng = self._rng(kind, _GROUP, group)
    side = turn ^ int(rng.integers(2))
    pool, at, given_up = self._find(kind, group, rng)
    with self._lock:
      self.read += 1
      self.exhausted += given_up
    return self._compose(index, kind, group, side, pool, at, rng)

  def _rng(self, kind: str, purpose: int, number: int) -> np.random.Generator:
    return np.random.default_rng((_TAG, self.seed, KINDS.index(kind), purpose, number))

  def _find(self, kind: str, group: int, rng: np.random.Generator) -> tuple[viewpoints.ViewPool, int, bool]:
    """A row of the first pool that holds the group's pattern, or else any row of the first that has one."""
    made = _MADE[kind]
    patterns = made.patterns.split() or [""]
    cycle, turn = divmod(group, len(patterns))
    number = int(self._rng(kind, _CYCLE, cycle).permutation(len(patterns))[turn])
    pattern = tuple(map(int, patterns[number]))
    for digits in (pattern, ()) if pattern else ((),):
      for attempt in range(ATTEMPTS):
        pool = self._pool((group // made.pace + attempt) % (2**32 // viewpoints.SCENES))
        low, high = pool.tables[kind].places(digits)
        if low < high:
          return pool, int(rng.integers(low, high)), digits != pattern
    raise UserError(
      f"views: no scene fits a question of kind {kind} at {self._pool_size} pixels; choose a larger"
      " image_size"
    )

  def _pool(self, number: int) -> viewpoints.ViewPool:
    return viewpoints.get(self.seed, number, self._pool_size)

  def _compose(
    self,
    index: int,
    kind: str,
    group: int,
    side: int,
    pool: viewpoints.ViewPool,
    at: int,
    rng: np.random.Generator,
  ) -> Question:
    table = pool.tables[kind]
    scene, first, *seconds = (int(x) for x in table.rows[at][:4])
    objects = [int(x) for x in table.rows[at][4:]]
    count = self.views[group % len(self.views)]
    a, b = (int(n) for n in rng.choice(count, 2, replace=False))
    rest = [int(c) for c in rng.permutation(viewpoints.CAMERAS)]
    seen = {a: first, b: seconds[side]}
    rest = [c for c in rest if c not in seen.values()]
    cameras = [seen[n] if n in seen else rest.pop() for n in range(count)]
    boxes = _boxes(kind, a, b, side, objects)
    number = pool.first + scene
    row = scene * viewpoints.CAMERAS
    shots = tuple(
      world.shot(pool.layout.camera, row + c, functools.partial(self._depth, number, c)) for c in cameras
    )
    images = tuple(self._picture(number, c, boxes.get(n, {})) for n, c in enumerate(cameras))
    if kind == "TotalCount":
      a, b = sorted((a, b))
    text = f"{PREFACE} {_MADE[kind].text.format(a=a + 1, b=b + 1)}"
    choices, answer, rules = _answered(kind, side, table.digits(at), bool(rng.integers(2)))
    name = f"scene_{self.seed}_{number:08d}"
    return Question(
      idx=index,
      type="3D",
      task=kind,
      images=images,
      question=text,
      choices=choices,
      answer=answer,
      prompt=choice_prompt(text, choices),
      source="Views",
      source_dataset="Views",
      filename=f"img/views/{kind.lower()}/views_{index}.png",
      # One name for all: questions about one scene are resampled together, whichever cameras see it.
      source_filename=",".join([name] * len(images)),
      shots=shots,
      rules=rules,
    )

  def _picture(self, number: int, camera: int, boxes: Mapping[int, str]) -> ViewPicture:
    drawn = ",".join(f"{o}{color}" for o, color in boxes.items())
    return ViewPicture(
      shape=(self.image_size, self.image_size, 3),
      key=f"views/{self.seed}/{number}/{camera}/{self.image_size}/{drawn}",
      make=lambda: self._drawn(number, camera, boxes),
      depth=lambda: self._depth(number, camera),
    )

  def _depth(self, number: int, camera: int) -> np.ndarray:
    return viewpoints.seen(self.seed, number, camera, self.image_size).rendering.depth[0]

  def _drawn(self, number: int, camera: int, boxes: Mapping[int, str]) -> np.ndarray:
    pool = viewpoints.seen(self.seed, number, camera, self.image_size)
    image = world.paint(pool, 0)
    for o, color in boxes.items():
      world.draw_box(image, pool.rendering.box[0, o], color)
    return image


def _checked(kinds: Mapping[str, float]) -> dict[str, float]:
  for kind, weight in kinds.items():
    if kind not in KINDS:
      raise UserError(f"views: kind of question {kind!r} is unknown; {nearest(kind, KINDS)}")
    if not weight > 0:
      raise UserError(f"views: kind {kind!r} has weight {weight}; give it a positive one or leave it out")
  return dict(kinds) or dict.fromkeys(KINDS, 1.0)


def _boxes(
  kind: str, first: int, second: int, side: int, objects: Sequence[int]
) -> dict[int, dict[int, str]]:
  """Objects and the colours of their boxes, by the place of the picture that shows them."""
  if kind == "SameObject":
    return {first: {objects[0]: "red"}, second: {objects[side]: "blue"}}
  return {first: dict(zip(objects, ("red", "blue"), strict=True))} if objects else {}


def _answered(
  kind: str, side: int, digits: Sequence[int], turned: bool
) -> tuple[tuple[str, ...], int, dict[str, int]]:
  """Options, the right one, and what simple rules would take, of the question `side` of a row.

  `turned`: of TotalCount, whether the larger number stands first.
  """
  made = _MADE[kind]
  if kind == "TotalCount":
    most = max(digits)
    choices = (str(most), str(most + 1))
    return choices[::-1] if turned else choices, side ^ turned, {"most in one image": int(turned)}
  count = len(made.each)
  agrees = digits[:count] if kind == "SameObject" else digits[side * count : (side + 1) * count]
  rules = {rule: side ^ 1 ^ agree for rule, agree in zip(made.each, agrees, strict=True)}
  return made.choices, side, rules | dict(zip(made.both, digits[len(digits) - len(made.both) :], strict=True))
