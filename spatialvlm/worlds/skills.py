"""What the shipped tiny base model learns: short conversations about rendered scenes.

Each skill is one small ability (what does the red box hold, where does the cone stand, which letter stands
before this word). CV-Bench's own four kinds are not among them, so that a fine-tuning run has something to
teach. Example number i of a seed is always the same: its scene is scene i of that world, and every draw
comes from a generator keyed by (seed, i).

Several questions share one picture in one conversation, so that one pass of the vision tower is supervised by
many answers; the first exchange alone is a plain single question.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from spatialvlm.config import nearest
from spatialvlm.mixture import ENDLESS
from spatialvlm.types import Asked, Deferred, Example, Geometry, Turn, UserError
from spatialvlm.worlds import facts, rearranged, spoken, statements, world
from spatialvlm.worlds.asked import of_objects
from spatialvlm.worlds.false_answers import with_false
from spatialvlm.worlds.lettered import NAMES, choose, letters
from spatialvlm.worlds.rounds import Block, Rounds
from spatialvlm.worlds.targets import (
  BOXES,
  DEPTH_WORDS,
  Picture,
  cell,
  dense_targets,
  depth_step,
  show,
  without_pixels,
)

# Sets the draws of wrong answers apart from others of the same seed and number.
_FALSE = 0xFA15E
# Ratio of two depths from which on one is plainly the nearer.
_APART = 1.12
# Depths that "metres" asks about alike, as far as there are such.
METRES = (2.5, 9.0)
# Pictures of which it is remembered what there is to ask, some kB each.
_REMEMBERED = 2**16

# A question with its answer, and the objects in the picture that it names, counts or lists, in that order.
Said = tuple[Turn, Sequence[world.SceneObject]]
Skill = Callable[[Picture, np.random.Generator], Said | None]
# Skills whose answer is a list from left to right of all objects that can be named.
_LISTS = ("describe", "scene")


def _pick(rng: np.random.Generator, items: Sequence):
  return items[int(rng.integers(len(items)))] if items else None


def _of_box(question: str, answer: Callable[[Picture, world.SceneObject], str]) -> Skill:
  """A skill that asks about the object in a box."""

  def ask(picture: Picture, rng: np.random.Generator) -> Said | None:
    color = _pick(rng, tuple(picture.boxes))
    if color is None:
      return None
    o = picture.boxes[color]
    return Turn(question.format(color), answer(picture, o)), [o]

  return ask


def _which_box(picture: Picture, rng: np.random.Generator) -> Said | None:
  color = _pick(rng, tuple(picture.boxes))
  if color is None:
    return None
  o = picture.boxes[color]
  return Turn(f"Which box is around the {o.name}?", color), [o]


def _by_one_word(question: str, key: str, answer: str) -> Skill:
  """A skill that finds an object by its colour or shape alone, where no other object in sight shares it."""

  def ask(picture: Picture, rng: np.random.Generator) -> Said | None:
    words = [getattr(o, key) for o in picture.frame.objects]
    alone = [o for o in picture.frame.objects if o.clear and words.count(getattr(o, key)) == 1]
    o = _pick(rng, alone)
    return (Turn(question.format(getattr(o, key)), getattr(o, answer)), [o]) if o else None

  return ask


def _where(picture: Picture, rng: np.random.Generator) -> Said | None:
  o = _pick(rng, picture.frame.named())
  return (Turn(f"Where is the {o.name}?", cell(picture, o)), [o]) if o else None


def _present(picture: Picture, rng: np.random.Generator) -> Said | None:
  names = {o.name for o in picture.frame.objects}
  if rng.random() < 0.5:
    o = _pick(rng, [o for o in picture.frame.objects if o.clear])
    return (Turn(f"Is there a {o.name}?", "yes"), [o]) if o else None
  return Turn(f"Is there a {_pick(rng, [n for n in NAMES if n not in names])}?", "no"), []


def _far(picture: Picture, rng: np.random.Generator) -> Said | None:
  """How far the object in a box is, in the words of the dense target depth_step."""
  color = _pick(rng, tuple(picture.boxes))
  if color is None:
    return None
  o = picture.boxes[color]
  step = int(depth_step(o.center_camera[2]))
  return Turn(f"How far is the {color} box?", DEPTH_WORDS[step]), [o]


def _metres(picture: Picture, rng: np.random.Generator) -> Said | None:
  """How far ahead the middle of an object is; near and far ones alike, as far as there are."""
  wanted = float(rng.uniform(*np.log(METRES)))
  named = picture.frame.named()
  if not named:
    return None
  o = min(named, key=lambda o: abs(np.log(float(o.center_camera[2])) - wanted))
  return Turn(spoken.PROMPT.format(o.name), spoken.metres(float(o.center_camera[2]))), [o]


def _near_to_far(picture: Picture, rng: np.random.Generator) -> Said | None:
  """The boxes by the depth of what they hold, where no two depths are within _APART of each other."""
  del rng
  far = sorted((float(o.center_camera[2]), color) for color, o in picture.boxes.items())
  if len(far) < 2 or any(b < _APART * a for (a, _), (b, _) in itertools.pairwise(far)):
    return None
  turn = Turn("List the boxes from near to far.", ", ".join(color for _, color in far))
  return turn, [picture.boxes[color] for _, color in far]


def _all_clear(picture: Picture) -> bool:
  """Whether every object in sight can be named, so that nobody could dispute how many there are."""
  return all(o.clear for o in picture.frame.objects)


def _how_many(picture: Picture, rng: np.random.Generator) -> Said | None:
  """How many objects have a colour; every third time, how many there are."""
  if not _all_clear(picture):
    return None
  colors = [o.color for o in picture.frame.objects]
  if rng.random() < 1 / 3:
    return Turn("How many objects are there?", str(len(colors))), picture.frame.objects
  # Mostly a colour that is in sight: most colours are not.
  color = _pick(rng, sorted(set(colors)) if rng.random() < 0.8 else world.COLORS)
  counted = [o for o in picture.frame.objects if o.color == color]
  return Turn(f"How many {color} objects are there?", str(len(counted))), counted


def _any(picture: Picture, rng: np.random.Generator) -> Said | None:
  """Whether anything of a shape, or of a colour and a shape, is in sight: the plural words."""
  if not _all_clear(picture):
    return None
  colored = rng.random() < 0.5
  names = {(o.color if colored else "", o.shape) for o in picture.frame.objects}
  absent = [(c, s) for c in (world.COLORS if colored else ("",)) for s in world.SHAPES if (c, s) not in names]
  present = rng.random() < 0.5
  name = _pick(rng, sorted(names) if present else absent)
  if name is None:
    return None
  words = " ".join(word for word in (name[0], world.PLURALS[name[1]]) if word)
  found = [o for o in picture.frame.objects if o.shape == name[1] and name[0] in ("", o.color)]
  return Turn(f"Are there any {words}?", "yes" if present else "no"), found


def _describe(picture: Picture, rng: np.random.Generator) -> Said | None:
  objects = [o for o in picture.frame.objects if o.clear]
  if not objects:
    return None
  objects.sort(key=lambda o: o.box[0] + o.box[2])
  return Turn("List the objects from left to right.", ", ".join(o.name for o in objects)), objects


def _boxes(picture: Picture, rng: np.random.Generator) -> Said | None:
  """All that can be asked of the boxes in one answer: what each holds, where it is, how far."""
  del rng
  if not picture.boxes:
    return None
  boxed = sorted(picture.boxes.items(), key=lambda item: BOXES.index(item[0]))
  said = [
    f"{color}: {o.name}, {cell(picture, o)}, {DEPTH_WORDS[int(depth_step(o.center_camera[2]))]}"
    for color, o in boxed
  ]
  return Turn("Describe the boxes.", "; ".join(said)), [o for _, o in boxed]


def _scene(picture: Picture, rng: np.random.Generator) -> Said | None:
  """What there is, from left to right, and where."""
  del rng
  objects = sorted((o for o in picture.frame.objects if o.clear), key=lambda o: o.box[0] + o.box[2])
  if not objects:
    return None
  said = "; ".join(f"{o.name}, {cell(picture, o)}" for o in objects)
  return Turn("Describe the objects from left to right.", said), objects


SKILLS: dict[str, Skill] = {
  "name": _of_box("What is in the {} box?", lambda p, o: o.name),
  "color": _of_box("What color is in the {} box?", lambda p, o: o.color),
  "shape": _of_box("What shape is in the {} box?", lambda p, o: o.shape),
  "color_of": _by_one_word("What color is the {}?", "shape", "color"),
  "shape_of": _by_one_word("What shape is the {} object?", "color", "shape"),
  "which_box": _which_box,
  "box_where": _of_box("Where is the {} box?", cell),
  "where": _where,
  "present": _present,
  "far": _far,
  "metres": _metres,
  "near_to_far": _near_to_far,
  "how_many": _how_many,
  "any": _any,
  "describe": _describe,
  "boxes": _boxes,
  "scene": _scene,
  "choose": choose,
  "letters": letters,
  "statement": statements.statement,
}
DEFAULT_TASKS = {
  "name": 3.0,
  "color": 1.0,
  "shape": 1.0,
  "color_of": 1.0,
  "shape_of": 1.0,
  "which_box": 1.5,
  "box_where": 0.5,
  "where": 1.5,
  "present": 1.0,
  "describe": 0.5,
  "choose": 0.7,
  "letters": 0.5,
}


class SceneSkills:
  """A sequence of conversations about scenes. Thread-safe, without state.

  Args:
    seed: of the world; held-out worlds have another one.
    tasks: skills with their weights, `DEFAULT_TASKS` where empty. "letters" needs no picture and has none
      where it is the only skill.
    image_size: pixels of the square images.
    turns: size of a conversation, in questions of ordinary length; long questions count more than once.
    size: number of examples, 0 for as many as there are scenes.
    pictures: how many scenes they are about, all in turn, each time in another order; 0 for one to each.
    false_answers: most wrong answers that stand beside each right one (`worlds.false_answers`).
    false_pictures: most pictures of the scene rearranged that stand beside a picture whose first question is
      of the skill "statement" (`worlds.rearranged`).

  Raises:
    UserError: an unknown skill, a weight that is not positive, a conversation without turns, fewer than no
      pictures or false ones, or false pictures without statements or beside `pictures`.
  """

  def __init__(
    self,
    seed: int,
    tasks: Mapping[str, float] | None = None,
    image_size: int = 96,
    turns: int = 1,
    size: int = 0,
    pictures: int = 0,
    false_answers: int = 0,
    false_pictures: int = 0,
  ):
    tasks = dict(tasks or DEFAULT_TASKS)
    for name, weight in tasks.items():
      if name not in SKILLS:
        raise UserError(f"skill {name!r} is unknown; {nearest(name, SKILLS)}")
      if not weight > 0:
        raise UserError(f"skill {name!r}: weight {weight} is not positive; leave the skill out instead")
    if turns < 1:
      raise UserError(f"skills: a conversation of {turns} turns; ask for one at least")
    if false_answers < 0:
      raise UserError(f"skills: {false_answers} false answers; 0 means none")
    if false_pictures < 0:
      raise UserError(f"skills: {false_pictures} false pictures; 0 means none")
    if false_pictures and "statement" not in tasks:
      raise UserError('skills: false_pictures: statements alone have some; put "statement" into tasks')
    if false_pictures and pictures:
      raise UserError("skills: false_pictures: not of few pictures that come again; set pictures to 0")
    self.seed, self.image_size, self.turns, self.size = seed, image_size, turns, size
    self.false_answers, self.false_pictures = false_answers, false_pictures
    self.pictures, self._rounds = pictures, Rounds(seed, pictures)
    # By number of the picture, what there is to ask about; from several threads, whose answers are equal.
    self._objects: dict[int, world.Frame] = {}
    self.skills = tuple(tasks)
    self._shares = np.array(list(tasks.values())) / sum(tasks.values())

  def __len__(self) -> int:
    return self.size or ENDLESS

  def __getitem__(self, index: int) -> Example:
    return self.__getitems__([index])[0]

  def __getitems__(self, indices: Iterable[int]) -> list[Example]:
    indices = [int(i) for i in indices]
    for i in indices:
      if not 0 <= i < len(self):
        raise IndexError(i)
    if self.skills == ("letters",):
      return [self._example(i, None) for i in indices]
    if not indices:
      return []
    pool = world.pool(self.seed, [self._rounds.number(i) for i in indices], self.image_size)
    frames = [world.frame(pool, b) for b in range(len(indices))]
    examples = [self._example(i, frame) for i, frame in zip(indices, frames, strict=True)]
    return self._against(examples, indices, pool, frames) if self.false_pictures else examples

  def deferred(self, indices: Iterable[int]) -> list[Example]:
    """The examples at `indices` without dense targets; pictures that come again are `types.Deferred`.

    What there is to ask about such a picture is remembered: it is rendered anew only where somebody looks.
    """
    indices = [int(i) for i in indices]
    if not self.pictures or self.skills == ("letters",):
      return [dataclasses.replace(e, dense={}) for e in self.__getitems__(indices)]
    numbers = [self._rounds.number(i) for i in indices]
    known = {n: self._objects.get(n) for n in numbers}
    later = Block(numbers, lambda all_of_them: world.frames(self.seed, all_of_them, self.image_size))
    for n, frame in known.items():
      if frame is None:
        known[n] = without_pixels(later.get(n))
        if len(self._objects) < _REMEMBERED:
          self._objects[n] = known[n]
    return [self._deferred(i, n, known[n], later) for i, n in zip(indices, numbers, strict=True)]

  def _deferred(self, index: int, number: int, frame: world.Frame, later: Block[world.Frame]) -> Example:
    def make() -> np.ndarray:
      rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
      return show(later.get(number), rng).image

    key = f"skills/{self.seed}/{number}/{self.image_size}"
    example = self._example(index, frame, dense=False)
    shot = world.shot_of(frame, lambda: later.get(number).depth)
    image = Deferred(frame.image.shape, key, make)
    return dataclasses.replace(example, images=(image,), shots=(shot,))

  def _example(self, index: int, frame: world.Frame | None, *, dense: bool = True) -> Example:
    number = self._rounds.number(index)
    rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
    picture = None if frame is None else show(frame, rng)
    if number != index:  # a further round about the same picture
      rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
    turns, tasks, asked = self._conversation(picture, rng)
    # Drawn apart, so that the questions are the same with and without.
    apart = np.random.default_rng((_FALSE, self.seed, index))
    both = zip(tasks, turns, strict=True)
    geometry = None
    if picture is not None:
      instances = (lambda: picture.frame.instance) if dense else None
      geometry = Geometry(tuple(asked), float(picture.frame.intrinsics[0, 0]), instances)
    return Example(
      images=() if picture is None else (picture.image,),
      turns=tuple(with_false(task, picture, turn, apart, self.false_answers) for task, turn in both),
      id=f"{self.seed}/{index}",
      task=tasks[0],
      source="skills",
      facts=None if picture is None else lambda: facts.of_frame(picture.frame, picture.boxes),
      dense=dense_targets(picture) if picture is not None and dense else {},
      geometry=geometry,
      shots=() if frame is None else (world.shot_of(frame),),
    )

  def _against(
    self, examples: list[Example], indices: Sequence[int], pool: world.Pool, frames: Sequence[world.Frame]
  ) -> list[Example]:
    """Examples that begin with a statement with rearranged pictures, shown with the boxes of their own."""
    places = [b for b, example in enumerate(examples) if example.task == "statement"]
    asked = []
    for b in places:
      shown = show(frames[b], np.random.Generator(np.random.Philox(key=[self.seed, indices[b]])))
      boxes = {o.index: color for color, o in shown.boxes.items()}
      rng = np.random.default_rng((_FALSE, self.seed, indices[b], 1))
      asked.append(rearranged.Asked(b, frames[b], examples[b].turns[0].answer, boxes, rng))
    for b, pictures in zip(places, rearranged.against(pool, asked, self.false_pictures), strict=True):
      examples[b] = dataclasses.replace(examples[b], rearranged=tuple(pictures))
    return examples

  def _conversation(
    self, picture: Picture | None, rng: np.random.Generator
  ) -> tuple[list[Turn], list[str], list[Asked]]:
    """Draws skills until the conversation is long enough; no question is asked twice."""
    turns: list[Turn] = []
    tasks: list[str] = []
    asked: list[Asked] = []
    room = self.turns * _TURN_WORDS
    for _ in range(100 * self.turns):
      name = self.skills[int(rng.choice(len(self.skills), p=self._shares))]
      turn, objects = SKILLS[name](picture, rng) or (None, ())
      if turn is None or any(t.prompt == turn.prompt for t in turns):
        if turns and rng.random() < 0.1:
          break
        continue
      cost = _words(turn)
      if turns and cost > room:
        break
      turns.append(turn)
      tasks.append(name)
      asked.append(_asked(name, picture, turn, objects))
      room -= cost
      if room < _TURN_WORDS // 2:
        break
    if not turns:  # a picture that answers none of the skills asked for: its letters still can be read
      turns, tasks, asked = [letters(None, rng)[0]], ["letters"], [Asked("letters")]
    return turns, tasks, asked


def _asked(name: str, picture: Picture | None, turn: Turn, objects: Sequence[world.SceneObject]) -> Asked:
  """What a question hangs on; a statement that speaks of no axis of the picture is a task of its own."""
  if picture is None:
    return Asked(name)
  lists = name in _LISTS
  axis = "across" if lists else statements.axis(turn.answer) if name == "statement" else ""
  task = "statement_aside" if name == "statement" and not axis else name
  return of_objects(task, objects, picture.frame, axis=axis, lists_all=lists)


def asked(source: SceneSkills, count: int) -> list[Example]:
  """The first `count` examples that do ask the one skill of `source`: some pictures have no answer to it."""
  (skill,) = source.skills
  found: list[Example] = []
  start = 0
  while len(found) < count:
    found += [e for e in source.__getitems__(range(start, start + 64)) if e.task == skill]
    start += 64
  return found[:count]


# Tokens of an ordinary exchange with its roles, about.
_TURN_WORDS = 18


def _words(turn: Turn) -> int:
  text = turn.prompt + " " + turn.answer
  return 9 + len(text.split()) + sum(text.count(c) for c in "?.,()\n")
