"""Questions about rooms by their number: the same on any machine, in any order, from any thread."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from spatialvlm.config import nearest
from spatialvlm.mixture import ENDLESS, Mixture
from spatialvlm.once import OnceCache
from spatialvlm.types import Asked, Question, UserError, choice_prompt
from spatialvlm.worlds import facts, world
from spatialvlm.worlds.questions import AXIS_NAMES
from spatialvlm.worlds.rooms import frames
from spatialvlm.worlds.rooms.classes import ALIKE, CLASSES
from spatialvlm.worlds.rooms.dial import dial
from spatialvlm.worlds.rooms.frames import RoomFrame
from spatialvlm.worlds.rooms.parts import COLORS, NAMED_COLORS
from spatialvlm.worlds.rooms.questions import choice
from spatialvlm.worlds.rooms.questions.kind import COLORED, Kind, Said, Told
from spatialvlm.worlds.rooms.questions.table import TABLE

_TAGS = {name: tag for tag, name in enumerate(TABLE)}
_GROUP, _ONE = range(2)
# How often a thing is called by its colour where its class would do.
_COLOR_SAID = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class Described:
  """A question and what is known of its picture.

  Attributes:
    question: with its options. reason: why the right one is right, in a sentence; words: the right one as an
      answer without options.
    frame: the picture's scene; its `image` is without the boxes that the question's own has.
    key: what text and 2D rules know of it; the same for all questions of its group.
    facts: gives the scene in words (`worlds.facts.said`).
  """

  question: Question
  reason: str
  words: str
  frame: RoomFrame
  key: tuple
  facts: Callable[[], str]


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
  """A group and what its questions share beside: colours of the things named, a coin, orders."""

  found: choice.Group
  colors: tuple[str, ...]
  said: tuple[bool, ...]
  marked: bool
  turns: tuple[int, ...]
  listed: tuple[int, ...]


class RoomQuestions(Sequence[Question]):
  """Question number i of a seed is always the same, whatever was read before. Thread-safe.

  Args:
    seed: of the world; held-out worlds have another one.
    kinds: names out of `table.TABLE`, or a mapping of names to relative weights; all alike where empty.
    image_size: pixels of the square images, 32 .. 4096.
    size: number of questions, 0 for an endless sequence.
    difficulty: from 0 to 1 (`rooms.dial`).

  Raises:
    UserError: an unknown kind, a weight that is not positive, a seed, size or difficulty out of range; when a
      question is read: a kind that no scene of so many gives all answers to.
  """

  def __init__(
    self,
    seed: int,
    kinds: Mapping[str, float] | Iterable[str] = (),
    image_size: int = 384,
    size: int = 0,
    difficulty: float = 0.5,
  ):
    self.weights = checked_kinds(kinds)
    if size < 0:
      raise UserError(f"rooms: a size of {size} questions; 0 means endless")
    frames.check(seed, image_size, difficulty)
    self.seed, self.image_size, self.size, self.difficulty = seed, image_size, size, difficulty
    self._mixture = Mixture(dict.fromkeys(self.weights, ENDLESS), self.weights, shuffle=False, seed=0)
    self._groups: OnceCache[_Group] = OnceCache()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self.size or ENDLESS

  def __getitem__(self, index: int) -> Question:
    return self.described(index).question

  def kind_of(self, index: int) -> str:
    """The kind of question `index`, without its scene."""
    return self._mixture.names[self._mixture[int(index)].source]

  def described(self, index: int) -> Described:
    """Question number `index` with what is known of its picture."""
    index = int(index)
    if not 0 <= index < len(self):
      raise IndexError(index)
    place = self._mixture[index]
    kind = TABLE[self._mixture.names[place.source]]
    group, member, options = _member(kind.options, place.index)
    shared = self._groups.get(
      (kind.name, group), lambda: self._group(kind, group, place.index - member, options), 256
    )
    rng = self._rng(kind, _ONE, place.index)
    turn = shared.turns[member]
    rows = shared.found.rows[turn]
    row = rows[int(rng.integers(len(rows)))]
    return self._composed(index, kind, shared, turn, row, rng)

  def _rng(self, kind: Kind, purpose: int, number: int) -> np.random.Generator:
    return np.random.Generator(
      np.random.Philox(key=[self.seed * 64 + _TAGS[kind.name] * 2 + purpose, number])
    )

  def _group(self, kind: Kind, number: int, first: int, options: int) -> _Group:
    rng = self._rng(kind, _GROUP, number)
    start = choice.pool_of(first, self.weights, kind.name)
    size = choice.pool_size(self.image_size)
    found = choice.group(self.seed, start, size, self.difficulty, kind, options, rng)
    colors = [NAMED_COLORS[i] for i in rng.permutation(len(NAMED_COLORS))[: max(kind.things, 1)]]
    said = tuple(bool(v) for v in rng.random(max(kind.things, 1)) < _COLOR_SAID)
    listed = rng.permutation(options) if kind.shuffled else np.arange(options)
    turns = rng.permutation(options)
    coin = bool(rng.random() < 0.5)
    return _Group(found, tuple(colors), said, coin, tuple(map(int, turns)), tuple(map(int, listed)))

  def _composed(
    self, index: int, kind: Kind, shared: _Group, turn: int, row: np.ndarray, rng: np.random.Generator
  ) -> Described:
    number, scene, roles = int(row[0]), int(row[1]), tuple(int(v) for v in row[2:])
    pool = choice.pool(self.seed, number, choice.pool_size(self.image_size), self.difficulty)
    measures = pool.measures
    drawn = measures.of.layouts[scene]
    things = tuple(dict.fromkeys(roles[: kind.things]))
    mode = measures.mode[scene]
    colored = {}
    for slot, thing in enumerate(things):
      painted = CLASSES[drawn.things[thing].kind].painted
      if mode[thing] == COLORED or (painted and shared.said[slot]):
        colored[thing] = shared.colors[slot]
    answer = shared.found.window[turn]
    colors = [thing.color for thing in drawn.things]
    if kind.painted is not None:
      for thing, color in kind.painted(measures, scene, roles, answer, shared.colors[0], rng).items():
        colors[thing] = color
    colors = _painted(colors, [t.kind for t in drawn.things], colored, rng)
    frame = frames.paint(drawn.painted(colors), self.image_size, dial(self.difficulty))
    names = tuple(_name(drawn.things[thing].kind, colored.get(thing)) for thing in things)
    boxes = kind.boxes if not kind.coin or shared.marked else ()
    told = Told(
      measures.of, scene, roles, names, boxes, shared.found.window, answer, shared.marked, shared.colors[0]
    )
    said = kind.say(told)
    return self._described(index, kind, shared, turn, frame, things, roles, said, boxes, number, scene)

  def _described(
    self,
    index: int,
    kind: Kind,
    shared: _Group,
    turn: int,
    frame: RoomFrame,
    things: tuple[int, ...],
    roles: tuple[int, ...],
    said: Said,
    boxes: tuple[str, ...],
    number: int,
    scene: int,
  ) -> Described:
    image, size = frame.image.copy(), self.image_size
    seen = frame.seen
    around = [tuple(float(v) for v in seen.box[thing]) for thing in things]
    for box, color in zip(around, boxes, strict=False):
      world.draw_box(image, box, color)
    hangs = things or _counted(frame, roles[0])
    visible = [int(seen.visible[thing]) for thing in hangs]
    least = frames.MIN_SHARE * size * size
    asked = Asked(
      kind.name,
      tuple(tuple(float(v) for v in seen.box[thing]) for thing in hangs),
      AXIS_NAMES[roles[2]] if kind.name == "Relation" else "",
      margin=world.thickness(size) if boxes else 0,
      smallest=least / max(min(visible), 1) if visible else 0.0,
    )
    choices = tuple(said.choices[k] for k in shared.listed)
    name = f"img/{kind.type}/{kind.name.lower()}/rooms_{index}.png"
    question = Question(
      idx=index,
      type=kind.type,
      task=kind.name,
      images=(image,),
      question=said.text,
      choices=choices,
      answer=shared.listed.index(turn),
      prompt=choice_prompt(said.text, choices),
      source="Rooms",
      source_dataset=f"Rooms_{frame.rig}",
      filename=name,
      source_filename=f"room_{self.seed}_{number * choice.SCENES + scene:08d}_{self.difficulty:g}",
      target_class=frame.layout.things[things[0]].kind_name if things else None,
      target_size=visible[0] if things else None,
      bbox=tuple(around) if things else None,
      asked=asked,
    )
    drawn = dict(zip(things, boxes, strict=False))
    key = (kind.name, shared.found.key, shared.found.window, shared.colors, shared.said, shared.marked)
    return Described(question, said.reason, said.words, frame, key, lambda: _facts(frame, drawn))


def checked_kinds(kinds: Mapping[str, float] | Iterable[str]) -> dict[str, float]:
  """Kinds with their weights; all alike where none is named.

  Raises:
    UserError: an unknown kind, or a weight that is not positive.
  """
  weights = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(kinds, 1.0)
  for kind, weight in weights.items():
    if kind not in TABLE:
      raise UserError(f"rooms: kind of question {kind!r} is unknown; {nearest(kind, list(TABLE))}")
    if not weight > 0:
      raise UserError(f"rooms: kind {kind!r} has weight {weight}; give it a positive one or leave it out")
  return weights or dict.fromkeys(TABLE, 1.0)


@functools.lru_cache(maxsize=4096)
def _member(options: tuple[int, ...], number: int) -> tuple[int, int, int]:
  """The group of question `number` of a kind, its place there, and the group's size."""
  unit, rest = divmod(number, sum(options))
  for turn, size in enumerate(options):
    if rest < size:
      return unit * len(options) + turn, rest, size
    rest -= size
  raise AssertionError


def _name(kind: int, color: str | None) -> str:
  return f"{color} {CLASSES[kind].name}" if color else CLASSES[kind].name


def _painted(
  colors: Sequence[int], kinds: Sequence[int], named: Mapping[int, str], rng: np.random.Generator
) -> list[int]:
  """Colours in which the things named by colour have theirs, and nothing alike has one of these."""
  words = list(COLORS)
  taken = {words.index(color) for color in named.values()}
  others = [c for c in range(len(words)) if c not in taken]
  alike = {ALIKE[kinds[thing]] for thing in named}
  found = []
  for thing, color in enumerate(colors):
    if thing in named:
      found.append(words.index(named[thing]))
    elif ALIKE[kinds[thing]] in alike and color in taken:
      found.append(others[int(rng.integers(len(others)))])
    else:
      found.append(int(color))
  return found


def _counted(frame: RoomFrame, kind: int) -> tuple[int, ...]:
  return tuple(o.index for o in frame.objects if frame.layout.things[o.index].kind == kind)


def _facts(frame: RoomFrame, boxes: Mapping[int, str]) -> str:
  """What `worlds.facts.said` says of a room: colour and class of each thing, and where it is."""
  name = lambda o: f"{o.color} {o.shape}" if o.color else o.shape
  return facts.said((name(o), o.center_camera, boxes.get(o.index, "")) for o in frame.objects)
