"""CV-Bench's four kinds of question about a few pictures, again and again.

`questions` looks for a scene that fits a question, paints it and draws the question's boxes, so that every
question has a picture of its own. Here the pictures come first: scene n of the world with up to three boxes,
drawn around objects that can be asked about together. Questions are then spread over all that a block of
pictures can answer, one or several to a picture, in a conversation (`plans`). So each picture has many
questions; what a model makes of it can be kept, and where it is kept nothing is rendered (`types.Deferred`).

Balance is as in `questions`: the index fixes the kind, the answer, and whether it agrees with each simple
rule of two dimensions. Texts are what the pictures give. A picture may show boxes that its question does not
name, and a question may name the blue and the green box where CV-Bench has the red and the blue one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from spatialvlm.mixture import ENDLESS, Mixture
from spatialvlm.once import OnceCache
from spatialvlm.types import Deferred, Question, UserError, choice_prompt
from spatialvlm.worlds import candidates, facts, pools, questions, render, world
from spatialvlm.worlds.asked import asked
from spatialvlm.worlds.plans import Found, Placed, Wish, plan

# Pictures among which questions are spread; the last block has the rest too.
BLOCK = 4 * pools.SCENES
# Blocks whose questions stay in memory, some 100 kB each, and plans of conversations.
_KEPT, _PLANS = 1024, 8
# Share of pictures with so many boxes, where no kind that is asked for needs more.
_BOX_SHARES = (0.1, 0.1, 0.3, 0.5)
_COLORS = ("red", "blue", "green")
_LEAST_BOXES = {"Count": 0, "Relation": 0, "Depth": 2, "Distance": 3}
# Names among the digits of a kind's candidates (`candidates`): pictures, not the index, give them.
_NAMES = {"Count": (2,), "Relation": (2, 3, 4), "Depth": (1, 2, 3), "Distance": (1, 2, 3)}
# Random streams of a seed that `questions` leaves free.
_PICTURE, _QUESTION, _CYCLE, _PLAN = 15, 11, 7, 3


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
  """A block of pictures.

  Attributes:
    names, boxes, bounds, visible: by picture, of its objects: names, colours of the boxes drawn around them,
      (x0, y0, x1, y1) pixels and visible pixels.
    camera: by picture.
    found: by kind, what can be asked.
  """

  names: tuple[tuple[str, ...], ...]
  boxes: tuple[Mapping[int, str], ...]
  bounds: np.ndarray
  visible: np.ndarray
  camera: render.Camera
  found: Mapping[str, Found]


class PictureQuestions:
  """Conversation number i of a seed is always the same, whatever was read before. Thread-safe.

  Each round of as many conversations as there are pictures goes through all blocks of them; within a block,
  pictures that answer much are shown more often than others.

  Args:
    seed: of the world; held-out worlds have another one.
    kinds: names of kinds with their weights, all four alike where empty.
    image_size: pixels of the square images, 16 .. 4096.
    size: number of conversations, 0 for no end.
    pictures: how many pictures they are about, 1 or more: scenes 0, 1, ... of the world.
    turns: most questions of one conversation. A few have less.

  Raises:
    UserError: as `questions.SceneQuestions`, or a number of pictures or turns that is none. While reading: no
      picture of a block can be asked a kind.
  """

  def __init__(
    self,
    seed: int,
    kinds: Mapping[str, float],
    image_size: int = 96,
    size: int = 0,
    pictures: int = 1,
    turns: int = 1,
  ):
    weights = questions.checked_kinds(kinds)
    if not 1 <= pictures <= 2**32:
      raise UserError(f"scenes: {pictures} pictures; name 1 to 2^32, or 0 for one to each question")
    if turns < 1:
      raise UserError(f"scenes: a conversation of {turns} turns; ask for one at least")
    if size < 0:
      raise UserError(f"scenes: a size of {size} questions; 0 means endless")
    world.check(seed, image_size)
    self.seed, self.image_size, self.size = seed, image_size, size
    self.pictures, self.turns = pictures, turns
    self._pool_size = questions.pool_size(image_size)
    self._mixture = Mixture(dict.fromkeys(weights, ENDLESS), weights, shuffle=False, seed=0)
    least = min(_LEAST_BOXES[kind] for kind in weights)
    self._shares = np.array([share * (count >= least) for count, share in enumerate(_BOX_SHARES)])
    self._shares /= self._shares.sum()
    self._count = max(pictures // BLOCK, 1)
    self._blocks: OnceCache[_Block] = OnceCache()
    self._plans: OnceCache[list[list[Placed]]] = OnceCache()

  def __len__(self) -> int:
    return self.size or ENDLESS

  def __getitem__(self, index: int) -> list[Question]:
    """The questions of a conversation, in their order, all about one picture, which is a `Picture`."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    turn, rest = divmod(index, self.pictures)
    number = min(rest // BLOCK, self._count - 1)
    first = number * BLOCK
    block = self._blocks.get(number, lambda: self._make(number), _KEPT)
    start = (turn * self.pictures + first) * self.turns
    wish = lambda n: self._wish(start + n)
    wishes = lambda: [wish(n) for n in range(len(block.names) * self.turns)]
    rng = self._rng(_PLAN, start)
    make = lambda: plan(wishes(), block.found, len(block.names), self.turns, rng)
    talk = self._plans.get(start, make, _PLANS)[rest - first]
    return [self._compose(start, placed, wish(placed.number).numbers, number, block) for placed in talk]

  def _rng(self, stream: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[self.seed * 16 + stream, number]))

  def _wish(self, number: int) -> Wish:
    """What question `number` shall be."""
    place = self._mixture[number]
    kind, number = self._mixture.names[place.source], place.index
    if kind == "Count":
      wish = questions.count_wish(self.seed, number)
      return Wish(kind, wish.digits[0] * 2 + wish.digits[1], wish.numbers)
    axis, turn = (number % 2, number // 2) if kind == "Relation" else (0, number)
    cells = _cells_of(kind, axis)
    cycle, turn = divmod(turn, len(cells))
    tag = questions.KINDS.index(kind) * 2 + axis
    return Wish(kind, int(cells[self._rng(_CYCLE, cycle * 8 + tag).permutation(len(cells))[turn]]))

  def _make(self, number: int) -> _Block:
    """Draws the boxes of a block's pictures, and lists what can then be asked."""
    first = number * BLOCK // pools.SCENES
    count = self.pictures - number * BLOCK if number == self._count - 1 else BLOCK
    parts = range(first, first + -(-count // pools.SCENES))
    asked = [pools.get(self.seed, part, self._pool_size) for part in parts]
    tables = {kind: _listed(kind, [a.tables[kind] for a in asked], count) for kind in questions.KINDS}
    joined = lambda get: np.concatenate([get(a.pool) for a in asked])[:count]
    color, shape = joined(lambda p: p.layout.color), joined(lambda p: p.layout.shape)
    names = tuple(
      tuple(f"{world.COLORS[c]} {world.SHAPES[s]}" for c, s in zip(*both, strict=False))
      for both in zip(color, shape, strict=True)
    )
    boxes = [self._boxed(tables, b, number * BLOCK + b) for b in range(count)]
    place = np.full((count, candidates.N), -1)
    for b, objects in enumerate(boxes):
      place[b, objects] = np.arange(len(objects))
    found = {kind: _left(kind, listed, place) for kind, listed in tables.items()}
    for kind in self._mixture.names:
      if not len(found[kind].rows):
        raise UserError(
          f"scenes: none of {count} pictures of {self.image_size} pixels can be asked a question of kind"
          f" {kind}; take more pictures, or larger ones"
        )
    return _Block(
      names,
      tuple(dict(zip(objects, _COLORS, strict=False)) for objects in boxes),
      joined(lambda p: p.rendering.box),
      joined(lambda p: p.rendering.visible),
      jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *(a.pool.layout.camera for a in asked)),
      found,
    )

  def _boxed(self, tables: Mapping[str, Found], b: int, picture: int) -> list[int]:
    """The objects of a picture that boxes are drawn around: of what can be asked about so many, if there is.

    Rare cells are preferred, so that as many as can be are to be found.
    """
    rng = self._rng(_PICTURE, picture)
    count = int(rng.choice(len(self._shares), p=self._shares))
    for kind in ("Distance", "Depth", "Relation"):
      needs = max(_LEAST_BOXES[kind], 1)
      found = tables[kind]
      mine = np.flatnonzero(found.rows[:, 0] == b)
      if needs <= count and len(mine):
        rarity = 1 / np.bincount(found.cells)[found.cells[mine]]
        row = found.rows[mine[int(rng.choice(len(mine), p=rarity / rarity.sum()))]]
        return [int(o) for o in row[1 : 1 + needs]]
    return []

  def _compose(
    self, start: int, placed: Placed, numbers: tuple[int, ...], number: int, block: _Block
  ) -> Question:
    index, kind = start + placed.number, placed.kind
    rng = self._rng(_QUESTION, index)
    b, *roles, cell = (int(x) for x in block.found[kind].rows[placed.row])
    picture, boxes = number * BLOCK + b, block.boxes[b]
    shared = dict(
      idx=index,
      task=kind,
      images=(self._picture(picture, boxes, float(block.camera.focal[b]) * self.image_size),),
      shots=(world.shot(block.camera, b, lambda: self._depth(picture)),),
      source="Scenes",
      source_dataset="Scenes",
      source_filename=f"scene_{self.seed}_{picture:08d}",
      filename=f"img/scenes_{self.seed}_{picture:08d}.png",
    )
    if kind == "Count":
      text = questions.count_text(roles[0], roles[1] if cell % 2 else None)
      if cell // 2 not in numbers:  # no picture shows any of these numbers
        numbers = tuple(int(n) for n in cell // 2 + rng.permutation(len(numbers)))
      choices, answer = [str(n) for n in numbers], numbers.index(cell // 2)
      objects, axis = _counted(block, b, roles, bool(cell % 2)), 0
    else:
      names, colors = [block.names[b][o] for o in roles], [boxes.get(o, "") for o in roles]
      axis, answer = _axis_and_answer(kind, cell)
      marked = bool(colors[0]) and bool(rng.integers(2))
      text, choices = questions.object_text(kind, names, colors, axis, marked)
      objects = roles
      shared |= dict(
        target_class=names[0],
        target_size=int(block.visible[b, roles[0]]),
        bbox=tuple(tuple(float(v) for v in block.bounds[b, o]) for o in roles),
      )
    across = questions.AXIS_NAMES[axis] if kind == "Relation" else ""
    sizes = {"size": self.image_size, "seen_at": self._pool_size, "axis": across, "boxed": kind != "Count"}
    return Question(
      **shared,
      asked=asked(kind, block.bounds[b, objects], block.visible[b, objects], **sizes),
      type="2D" if kind in ("Count", "Relation") else "3D",
      question=text,
      choices=tuple(choices),
      answer=answer,
      prompt=choice_prompt(text, choices),
    )

  def _picture(self, picture: int, boxes: Mapping[int, str], focal: float) -> Picture:
    drawn = ",".join(f"{o}{color}" for o, color in boxes.items())
    return Picture(
      shape=(self.image_size, self.image_size, 3),
      key=f"scenes/{self.seed}/{picture}/{self.image_size}/{drawn}",
      make=lambda: self._drawn(picture, boxes),
      depth=lambda: self._depth(picture),
      facts=lambda: self._told(picture, boxes),
      focal=focal,
    )

  def _rendered(self, picture: int) -> tuple[world.Pool, int]:
    number, b = divmod(picture, pools.SCENES)
    pool = pools.get(self.seed, number, self._pool_size).pool
    return (pool, b) if pool.size == self.image_size else (world.zoom(pool, b, self.image_size), 0)

  def _depth(self, picture: int) -> np.ndarray:
    pool, b = self._rendered(picture)
    return pool.rendering.depth[b]

  def _told(self, picture: int, boxes: Mapping[int, str]) -> str:
    pool, b = self._rendered(picture)
    return facts.of_pool(pool, b, pool.layout.color[b], boxes)

  def _drawn(self, picture: int, boxes: Mapping[int, str]) -> np.ndarray:
    pool, b = self._rendered(picture)
    image = world.paint(pool, b)
    for o, color in boxes.items():
      world.draw_box(image, pool.rendering.box[b, o], color)
    return image


@dataclasses.dataclass(frozen=True, eq=False)
class Picture(Deferred):
  """A picture with its depth in metres, (H, W) float32, 0 for sky, the scene in words (`facts.said`), and the
  focal length in pixels.
  """

  depth: Callable[[], np.ndarray]
  facts: Callable[[], str]
  focal: float


def _counted(block: _Block, b: int, counted: Sequence[int], colored: bool) -> list[int]:
  """The objects of a picture that a question of Count counts."""
  shape, color = (world.SHAPES[counted[0]], world.COLORS[counted[1]] if colored else "")
  names = enumerate(block.names[b])
  alike = [o for o, name in names if name == f"{color} {shape}" or (not color and name.endswith(f" {shape}"))]
  return [o for o in alike if block.visible[b, o]]


def _listed(kind: str, tables: Sequence[candidates.Table], count: int) -> Found:
  """All candidates of the first `count` pictures of some pools."""
  radices = tables[0].radices
  kept = [k for k in range(len(radices)) if k not in _NAMES[kind]]
  rows, cells = [], []
  for number, table in enumerate(tables):
    digits = np.unravel_index(table.codes, radices)
    rows.append(table.rows + [number * pools.SCENES, *[0] * (table.rows.shape[1] - 1)])
    cells.append(np.ravel_multi_index([digits[k] for k in kept], [radices[k] for k in kept]))
  rows, cells = np.concatenate(rows), np.concatenate(cells)
  rows = np.concatenate([rows, cells[:, None]], 1)[rows[:, 0] < count].astype(np.int32)
  rows = rows[np.argsort(rows[:, -1], kind="stable")]
  return Found(rows[:, -1], rows)


def _left(kind: str, found: Found, place: np.ndarray) -> Found:
  """What boxes leave.

  Depth and Distance name boxed objects alone, in the order of the colours. `place` (pictures, N) is an
  object's place among them, -1 for none.
  """
  if not _LEAST_BOXES[kind]:
    return found
  boxed = place[found.rows[:, :1], found.rows[:, 1:-1]]
  good = (boxed >= 0).all(1) & (boxed[:, -2] < boxed[:, -1])
  return Found(found.cells[good], found.rows[good])


def _cells_of(kind: str, axis: int) -> np.ndarray:
  """Cells that questions of a kind (and axis) go through: answers and agreements, in every combination."""
  if kind != "Relation":
    return np.arange({"Depth": 16, "Distance": 32}[kind])
  cells = np.arange(16) + 16 * axis
  return cells[cells % 8 < 4] if axis else cells  # the lower edge is no rule for above and below


def _axis_and_answer(kind: str, cell: int) -> tuple[int, int]:
  if kind == "Relation":
    return cell // 16, cell // 8 % 2
  return 0, cell // {"Depth": 8, "Distance": 16}[kind]
