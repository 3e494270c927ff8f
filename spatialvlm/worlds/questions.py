"""CV-Bench's four kinds of question about rendered scenes, in its templates and schema.

Balance is by construction, without state. The index of a question fixes its kind, its text, its answer and
whether that answer agrees with each simple rule of two dimensions; then scenes are looked through, in an
order that the index fixes too, until one fits.

- Questions of one kind come in groups with one text and every answer in turn (two of them, or as many as
  Count has options). Whatever reads the text alone is right once per group: exactly at guessing.
- Over the groups, agreement with lower edge, bigger box, centre and nearer in the picture runs through all
  combinations alike, in an order drawn anew each time. Saturation hangs on the colours, so on the text.
- Colours do not touch geometry: scenes are searched by shape, and painted in the colours that the text names.

Questions are as good as drawn at random in the order of their index: read them in order. Neighbours share
rendered scenes, which makes a question cheap, and one far away expensive.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from spatialvlm.config import nearest
from spatialvlm.mixture import ENDLESS, Mixture
from spatialvlm.types import Question, UserError, choice_prompt
from spatialvlm.worlds import facts, pools, shifts, world
from spatialvlm.worlds import wordings as worded
from spatialvlm.worlds.asked import asked
from spatialvlm.worlds.wordings import RELATION_MARK, WORDINGS

KINDS = ("Count", "Relation", "Depth", "Distance")
# Pools that are looked through before the rules' agreement is given up.
ATTEMPTS = 32
# Pools are rendered at the image's size up to the first; above, at the second, and what was chosen anew.
LARGEST_POOL, POOL_SIZE = 128, 96
# Counted classes reach this number, counted classes of one colour that one: beyond, scenes are rare.
MOST, MOST_COLORED = 6, 5
# Numbers of options, in turn: CV-Bench has mostly 4 or 6.
OPTION_COUNTS = (4, 6, 4, 6, 5)
BOX_ORDER = {"Relation": ("red",), "Depth": ("red", "blue"), "Distance": ("red", "blue", "green")}
AXES = (("left", "right"), ("above", "below"))
AXIS_NAMES = ("across", "down")

_SHAPES, _COLORS = len(world.SHAPES), len(world.COLORS)
_TAGS = {kind: tag for tag, kind in enumerate(KINDS)}
_GROUP, _CYCLE, _ONE = range(3)
# Number of rules whose agreement is among a candidate's last digits.
_RULES = {"Relation": 3, "Depth": 3, "Distance": 4}


@dataclasses.dataclass(frozen=True)
class _Wish:
  """What a question shall be.

  Attributes:
    digits: of the candidates' code: axis and answer, names, agreement with the rules.
    relaxed: fewer of its leading digits, tried in turn where no scene has all of them.
    answer: index of the right option.
    names: (shape, colour) of the objects named, or of the class counted (colour None for any).
    numbers: Count's options in order. axis, marked: of Relation.
    group: number of the questions of one text that it is of.
  """

  digits: tuple[int, ...]
  relaxed: tuple[int, ...]
  answer: int
  names: tuple[tuple[int, int | None], ...]
  numbers: tuple[int, ...] = ()
  axis: int = 0
  marked: bool = False
  group: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
  """The scene chosen: its pool, its place there, the objects (or the class counted)."""

  source: pools.AskedPool
  scene: int
  roles: np.ndarray
  exhausted: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Described:
  """A question and what is known of its picture.

  Attributes:
    depth: (H, W) float32, metres along the optical axis, 0 for sky.
    focal: focal length in pixels.
    facts: gives the scene in words (`facts.said`).
    surface: (H, W) int8, the object that each pixel shows; those from `render.MAX_OBJECTS` on are none.
    objects: numbers in `surface` of those that the question names, in that order, or counts.
  """

  question: Question
  depth: np.ndarray
  focal: float
  facts: Callable[[], str]
  surface: np.ndarray
  objects: tuple[int, ...]


class SceneQuestions(Sequence[Question]):
  """Question number i of a seed is always the same, whatever was read before. Thread-safe.

  Args:
    seed: of the world; held-out worlds have another one.
    kinds: names out of KINDS, or a mapping of names to relative weights; all four alike where empty.
    image_size: pixels of the square images, 16 .. 4096 (too small ones have nothing to ask about).
    size: number of questions, 0 for an endless sequence.
    shuffle_options: options in a drawn order; else objects stand in the order of mention, and left before
      right, above before below. Count's numbers are always shuffled.
    shift: name of the look (`shifts.SHIFTS`) that scenes are drawn in; empty for the plain one.
    wordings: how many wordings are asked in turn (`wordings.WORDINGS`); 1 for CV-Bench's own.

  Attributes:
    new_words: the words of the shift that plain questions do not have.
    read: questions that were read so far; exhausted: how many of these found no scene within ATTEMPTS pools
      and gave up agreement with the rules (their answers are right all the same).

  Raises:
    UserError: an unknown kind or shift, a weight that is not positive, a seed or size out of range.
  """

  def __init__(
    self,
    seed: int,
    kinds: Mapping[str, float] | Iterable[str] = (),
    image_size: int = 96,
    size: int = 0,
    shuffle_options: bool = False,
    shift: str = "",
    wordings: int = 1,
  ):
    weights = checked_kinds(kinds)
    if size < 0:
      raise UserError(f"scenes: a size of {size} questions; 0 means endless")
    world.check(seed, image_size)
    worded.check(wordings)
    self._wordings = wordings
    self.seed, self.image_size, self.size, self.shuffle_options = seed, image_size, size, shuffle_options
    self.shift, self._look = shift, shifts.look(shift)
    self.new_words = tuple(word for word in self._look.words if word not in shifts.PLAIN.words)
    self.read = self.exhausted = 0
    self._lock = threading.Lock()
    self._mixture = Mixture(dict.fromkeys(weights, ENDLESS), weights, shuffle=False, seed=0)

  def __len__(self) -> int:
    return self.size or ENDLESS

  def __getitem__(self, index: int) -> Question:
    return self.described(index).question

  def described(self, index: int) -> Described:
    """Question number `index` with what is known of its picture."""
    index = int(index)
    if not 0 <= index < len(self):
      raise IndexError(index)
    place = self._mixture[index]
    kind = self._mixture.names[place.source]
    wish = count_wish(self.seed, place.index) if kind == "Count" else self._objects(kind, place.index)
    rng = self._rng(kind, _ONE, place.index)
    found = self._find(kind, wish, index // pools.SCENES, rng)
    with self._lock:
      self.read += 1
      self.exhausted += found.exhausted
    return self._compose(index, kind, wish, found, rng)

  def _rng(self, kind: str, purpose: int, number: int) -> np.random.Generator:
    return _rng(self.seed, kind, purpose, number)

  def _objects(self, kind: str, number: int) -> _Wish:
    """Groups of two: one text, both answers, one combination of the rules' agreements."""
    group, side = divmod(number, 2)
    rng = self._rng(kind, _GROUP, group)
    names = [divmod(int(n), _COLORS) for n in rng.choice(_SHAPES * _COLORS, 2, replace=False)]
    flip, swap, marked = (int(x) for x in rng.integers(0, 2, 3))
    axis, turn = 0, group
    if kind == "Relation":
      turn, axis = divmod(group, 2)
    cycle, turn = divmod(turn, 2 ** _RULES[kind])
    combination = int(self._rng(kind, _CYCLE, cycle).permutation(2 ** _RULES[kind])[turn])
    agrees = [combination >> k & 1 for k in range(_RULES[kind])]
    if axis == 1:
      agrees[0] = 0
    answer = side ^ flip
    (shape_a, color_a), (shape_b, color_b) = names
    digits = [answer, int(color_a == color_b), shape_a, shape_b, *agrees]
    if kind == "Relation":
      digits.insert(0, axis)
    return _Wish(
      digits=tuple(digits),
      relaxed=(len(digits) - len(agrees), len(digits) - len(agrees) - 3),
      answer=answer ^ (swap if self.shuffle_options else 0),
      names=tuple(names),
      axis=axis,
      marked=bool(marked),
      group=group,
    )

  def _find(self, kind: str, wish: _Wish, first: int, rng: np.random.Generator) -> _Found:
    """A candidate of the first pool that holds what is wished for, or else of the first that holds less."""
    size = pool_size(self.image_size)
    for length in (len(wish.digits), *wish.relaxed):
      for attempt in range(ATTEMPTS):
        source = pools.get(self.seed, (first + attempt) % (2**32 // pools.SCENES), size, self._look)
        rows = source.tables[kind].matching(wish.digits[:length])
        if len(rows):
          row = rows[int(rng.integers(len(rows)))]
          return _Found(source, int(row[0]), row[1:], length < len(wish.digits))
    raise UserError(
      f"scenes: no scene fits a question of kind {kind} at {size} pixels; choose a larger image_size"
    )

  def _compose(
    self, index: int, kind: str, wish: _Wish, found: _Found, rng: np.random.Generator
  ) -> Described:
    pool, scene, picture = found.source.pool, found.scene, found.source.pool
    if self.image_size != pool.size:
      picture, scene = world.zoom(pool, scene, self.image_size), 0
    colors = _paint_order(wish, found, kind, rng)[picture.layout.color[scene]]
    image, depth = world.paint(picture, scene, colors), picture.rendering.depth[scene]
    told = lambda drawn: lambda: facts.of_pool(picture, scene, colors, drawn)
    surface = picture.rendering.surface[scene]
    number = found.source.first + found.scene
    focal = float(picture.layout.camera.focal[scene]) * self.image_size
    shot = world.shot(picture.layout.camera, scene, lambda: depth)
    shown, size = picture.rendering, self.image_size
    shared = dict(
      idx=index,
      task=kind,
      images=(image,),
      shots=(shot,),
      answer=wish.answer,
      source="Scenes",
      source_dataset="Scenes",
      source_filename=f"scene_{self.seed}_{number:08d}" + (f"_{self.shift}" if self.shift else ""),
    )
    turn = worded.turn(wish.group, self._wordings)
    if kind == "Count":
      text = count_text(int(found.roles[0]), wish.names[0][1], self._look, turn)
      counted = counted_objects(picture, scene, found.roles)
      shared["asked"] = asked("Count", shown.box[scene, counted], shown.visible[scene, counted], size)
      question = _question(shared, "2D", text, [str(n) for n in wish.numbers])
      return Described(question, depth, focal, told({}), surface, tuple(map(int, counted)))
    shapes, look = picture.layout.shape[scene], self._look
    names = [f"{look.color_words[colors[o]]} {look.shape_words[shapes[o]]}" for o in found.roles]
    boxes = [tuple(float(v) for v in picture.rendering.box[scene, o]) for o in found.roles]
    drawn = BOX_ORDER[kind] if kind != "Relation" or wish.marked else ()
    for box, color in zip(boxes, drawn, strict=False):
      world.draw_box(image, box, color)
    visible = [int(v) for v in shown.visible[scene, found.roles]]
    axis = AXIS_NAMES[wish.axis] if kind == "Relation" else ""
    shared |= dict(target_class=names[0], target_size=visible[0], bbox=tuple(boxes))
    shared["asked"] = asked(kind, boxes, visible, size, axis=axis, boxed=bool(drawn))
    text, choices = object_text(kind, names, BOX_ORDER[kind], wish.axis, wish.marked, turn)
    swapped = wish.answer != wish.digits[kind == "Relation"]
    question = _question(
      shared, "2D" if kind == "Relation" else "3D", text, choices[::-1] if swapped else choices
    )
    said = told({int(o): c for o, c in zip(found.roles, drawn, strict=False)})
    return Described(question, depth, focal, said, surface, tuple(map(int, found.roles)))


def checked_kinds(kinds: Mapping[str, float] | Iterable[str]) -> dict[str, float]:
  """Kinds with their weights; all four alike where none is named.

  Raises:
    UserError: an unknown kind, or a weight that is not positive.
  """
  weights = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(kinds, 1.0)
  for kind, weight in weights.items():
    if kind not in KINDS:
      raise UserError(f"scenes: kind of question {kind!r} is unknown; {nearest(kind, KINDS)}")
    if not weight > 0:
      raise UserError(f"scenes: kind {kind!r} has weight {weight}; give it a positive one or leave it out")
  return weights or dict.fromkeys(KINDS, 1.0)


def pool_size(image_size: int) -> int:
  """Pixels at which scenes are looked through for a question whose picture has `image_size`."""
  return POOL_SIZE if image_size > LARGEST_POOL else image_size


def _rng(seed: int, kind: str, purpose: int, number: int) -> np.random.Generator:
  return np.random.Generator(np.random.Philox(key=[seed * 16 + _TAGS[kind] * 4 + purpose, number]))


def count_wish(seed: int, number: int) -> _Wish:
  """Count's question `number`: groups of as many as there are options, one text, each option right once."""
  unit, rest = divmod(number, sum(OPTION_COUNTS))
  turn = 0
  while rest >= OPTION_COUNTS[turn]:
    rest -= OPTION_COUNTS[turn]
    turn += 1
  options = OPTION_COUNTS[turn]
  group = unit * len(OPTION_COUNTS) + turn
  rng = _rng(seed, "Count", _GROUP, group)
  shape, color = int(rng.integers(_SHAPES)), int(rng.integers(_COLORS))
  colored = bool(rng.random() < 0.4)
  lowest = int(rng.integers((MOST_COLORED if colored else MOST) + 2 - options))
  numbers = tuple(int(n) for n in lowest + rng.permutation(options))
  answer = int(rng.permutation(options)[rest])
  name = (shape, color if colored else None)
  return _Wish((numbers[answer], int(colored), shape), (2,), answer, (name,), numbers, group=group)


def object_text(
  kind: str, names: Sequence[str], boxes: Sequence[str], axis: int = 0, marked: bool = False, wording: int = 0
) -> tuple[str, list[str]]:
  """Text and choices, in the order of mention, of a question about the objects of these names.

  Args:
    boxes: the colours drawn around them, in the same order; of Relation the first alone is read.
    axis: of Relation, index into AXES; marked: whether it says which box is around the first.
    wording: which of the kind's (`wordings.WORDINGS`), CV-Bench's own by default.
  """
  template = WORDINGS[kind][wording]
  if kind == "Relation":
    mark = RELATION_MARK.format(A=boxes[0]) if marked else ""
    return template.format(a=names[0], b=names[1], mark=mark), list(AXES[axis])
  if kind == "Depth":
    return template.format(a=names[0], b=names[1], A=boxes[0], B=boxes[1]), list(names)
  (r, a, b), (R, A, B) = names, boxes
  return template.format(r=r, a=a, b=b, R=R, A=A, B=B), list(names[1:])


def count_text(shape: int, color: int | None, look: shifts.Look = shifts.PLAIN, wording: int = 0) -> str:
  """The question of how many things of a shape (index into the look's forms), and of a colour, are there."""
  x = look.forms[shape].plural
  return WORDINGS["Count"][wording].format(x=x if color is None else f"{look.color_words[color]} {x}")


def _question(shared: dict, type_: str, text: str, choices: Sequence[str]) -> Question:
  name = f"img/{type_}/{shared['task'].lower()}/scenes_{shared['idx']}.png"
  return Question(
    **shared,
    type=type_,
    question=text,
    choices=tuple(choices),
    prompt=choice_prompt(text, choices),
    filename=name,
  )


def counted_objects(pool: world.Pool, scene: int, counted: Sequence[int]) -> np.ndarray:
  """The objects of a scene of a shape and a colour, as it was drawn; of any colour beyond the last."""
  shape, color = counted[:2]
  same = (pool.rendering.visible[scene] > 0) & (pool.layout.shape[scene] == shape)
  return np.flatnonzero(same & ((pool.layout.color[scene] == color) | (color >= _COLORS)))


def _paint_order(wish: _Wish, found: _Found, kind: str, rng: np.random.Generator) -> np.ndarray:
  """A permutation of the colours, (COLORS,) int: objects asked about get the colours wished for."""
  original = found.source.pool.layout.color[found.scene]
  if kind == "Count":
    old, new = [int(found.roles[1])], [wish.names[0][1]]
  else:
    old, new = [int(original[o]) for o in found.roles[-2:]], [color for _, color in wish.names]
  order = rng.permutation(_COLORS)
  for source, target in zip(old, new, strict=True):
    if target is not None:
      other = int(np.flatnonzero(order == target)[0])
      order[[source, other]] = order[[other, source]]
  return order
