"""Questions about rendered scenes with all that is known of their pictures, in a few kinds (`TASKS`).

Three are CV-Bench's with letters; of the others one can say what a model that answers them must hold: the
colour of a box and what stands in it, a side of the picture, and which letter stands before a text.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from spatialvlm.config import nearest
from spatialvlm.types import LETTERS, UserError
from spatialvlm.worlds import lettered, questions, render, shortcuts, targets, world

_CHUNK = 64
# Pixels between the boxes of two objects that are asked about together, at 96 pixels.
_APART = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """A question whose picture is known.

  Attributes:
    id: number within its task and seed; scene: cases of one scene are resampled together.
    image: uint8 (H, W, 3); None of a question without a picture.
    text: the user's turn.
    choices: what may be answered.
    answer: index of the right one, -1 where nobody knows.
    lettered: whether `text` lists the choices by letters; else they are answered by their own words.
    answer_prefix: what the answer begins with, before the choice.
    instance: int32 (H, W), the object that each pixel shows, -1 for none; None where nobody knows.
    named: numbers in `instance` of the objects that the question names, in that order.
    boxes: (x0, y0, x1, y1) in pixels of these, half-open, without any frame that is drawn around them.
    frames: colours of the boxes that are drawn around the first of them.
    margin: pixels of such a frame.
    opposite: the picture changed in one thing, so that another choice is right: `opposite_answer`.
    depths: metres along the optical axis of each named object, the median of its pixels.
    rules: the choice of each simple rule of two dimensions that says something.
    question: of one that lists its choices by letters, its text without them.
  """

  task: str
  id: str
  scene: str
  image: np.ndarray | None
  text: str
  choices: tuple[str, ...]
  answer: int = -1
  lettered: bool = True
  answer_prefix: str = ""
  instance: np.ndarray | None = None
  named: tuple[int, ...] = ()
  boxes: tuple[tuple[float, ...], ...] = ()
  frames: tuple[str, ...] = ()
  margin: int = 0
  opposite: np.ndarray | None = None
  opposite_answer: int = -1
  depths: tuple[float, ...] = ()
  rules: dict[str, int] = dataclasses.field(default_factory=dict)
  question: str = ""


@functools.lru_cache(maxsize=24)
def make(task: str, seed: int, count: int, size: int) -> tuple[Case, ...]:
  """The first `count` questions of a task, the same ones for all models, who are asked one after the other.

  Args:
    seed: of the rendered world.
    size: edge of the pictures in pixels.

  Raises:
    UserError: no such task.
  """
  if task not in TASKS:
    raise UserError(f"config.tasks: {task!r} is unknown; {nearest(task, TASKS)}")
  found = TASKS[task](seed, size)
  return tuple(itertools.islice(found, count))


def sighted(tasks: Sequence[str]) -> tuple[str, ...]:
  """Those that show a picture."""
  return tuple(task for task in tasks if task != "letters")


def _asked(kind: str, axis: str = "", name: str = "") -> Callable[[int, int], Iterator[Case]]:
  """CV-Bench's questions of a kind; `axis` as of `types.Asked`, empty for both."""

  def made(seed: int, size: int) -> Iterator[Case]:
    source = questions.SceneQuestions(seed, {kind: 1.0}, size)
    number = 0
    while True:
      found = source.described(number)
      number += 1
      q = found.question
      if axis and q.asked.axis != axis:
        continue
      known = found.surface < render.MAX_OBJECTS
      rules = {rule: shortcuts.rule_choice(rule, q) for rule in shortcuts.RULES}
      frames = questions.BOX_ORDER.get(kind, ()) if q.asked.margin else ()  # some of Relation have none
      yield Case(
        task=name or kind,
        id=f"{seed}-{q.idx}",
        scene=q.source_filename,
        image=q.images[0],
        text=q.prompt,
        choices=tuple(q.choices),
        answer=q.answer,
        instance=np.where(known, found.surface, -1).astype(np.int32),
        named=found.objects,
        boxes=tuple(q.asked.named),
        frames=tuple(frames),
        margin=int(q.asked.margin) if frames else 0,
        depths=tuple(float(np.median(found.depth[found.surface == o])) for o in found.objects),
        rules={rule: choice for rule, choice in rules.items() if choice is not None},
        question=q.question,
      )

  return made


def _frames(seed: int, size: int) -> Iterator[tuple[int, world.Frame, np.random.Generator]]:
  number = 0
  while True:
    numbers = range(number, number + _CHUNK)
    for n, frame in zip(numbers, world.frames(seed, numbers, size), strict=True):
      yield n, frame, np.random.default_rng((seed, n))
    number += _CHUNK


def _boxed(frame: world.Frame, objects: Sequence[world.SceneObject], colors: Sequence[str]) -> np.ndarray:
  image = frame.image.copy()
  for o, color in zip(objects, colors, strict=True):
    world.draw_box(image, o.box, color)
  return image


def _known(frame: world.Frame, objects: Sequence[world.SceneObject]) -> dict:
  """What a case says of its named objects."""
  return {
    "instance": frame.instance,
    "named": tuple(o.index for o in objects),
    "boxes": tuple(tuple(map(float, o.box)) for o in objects),
    "margin": world.thickness(frame.image.shape[0]),
    "depths": tuple(float(np.median(frame.depth[frame.instance == o.index])) for o in objects),
  }


def _box(seed: int, size: int) -> Iterator[Case]:
  """What is in a box: two boxes of two colours; in the opposite picture the colours are exchanged."""
  for number, frame, rng in _frames(seed, size):
    pairs = [
      (a, b)
      for a in frame.named()
      for b in frame.named()
      if a.index < b.index and a.color != b.color and _apart(a.box, b.box, _APART * size / 96)
    ]
    if not pairs:
      continue
    pair = pairs[int(rng.integers(len(pairs)))]
    first, second = pair if rng.random() < 0.5 else pair[::-1]
    colors = [targets.BOXES[i] for i in rng.permutation(len(targets.BOXES))[:2]]
    answer = int(rng.integers(2))
    choices = (first.name, second.name) if answer == 0 else (second.name, first.name)
    yield Case(
      task="box",
      id=f"{seed}-{number}",
      scene=f"scene_{seed}_{number:08d}",
      image=_boxed(frame, (first, second), colors),
      text=f"What is in the {colors[0]} box?",
      choices=choices,
      answer=answer,
      lettered=False,
      frames=tuple(colors),
      opposite=_boxed(frame, (first, second), colors[::-1]),
      opposite_answer=1 - answer,
      **_known(frame, (first, second)),
    )


def _apart(a: Sequence[float], b: Sequence[float], margin: float) -> bool:
  """Whether two boxes with a margin around each do not meet."""
  return (
    a[2] + margin < b[0] - margin
    or b[2] + margin < a[0] - margin
    or a[3] + margin < b[1] - margin
    or b[3] + margin < a[1] - margin
  )


def _side(seed: int, size: int) -> Iterator[Case]:
  """On which side a box is: one box, and opposite is the picture mirrored."""
  for number, frame, rng in _frames(seed, size):
    found = [(o, _cell(o, size)) for o in frame.named()]
    found = [(o, cell) for o, cell in found if cell[1] != "center"]
    if not found:
      continue
    o, (row, column) = found[int(rng.integers(len(found)))]
    color = targets.BOXES[int(rng.integers(len(targets.BOXES)))]
    image = _boxed(frame, [o], [color])
    answer = ("left", "right").index(column)
    yield Case(
      task="side",
      id=f"{seed}-{number}",
      scene=f"scene_{seed}_{number:08d}",
      image=image,
      text=f"Where is the {color} box?",
      choices=("left", "right"),
      answer=answer,
      lettered=False,
      answer_prefix=row,
      frames=(color,),
      opposite=np.ascontiguousarray(image[:, ::-1]),
      opposite_answer=1 - answer,
      **_known(frame, [o]),
    )


def _cell(o: world.SceneObject, size: int) -> tuple[str, str]:
  """The third of the picture that an object's box is centred on, as `targets.cell` says it."""
  x0, y0, x1, y1 = o.box
  row, column = (min(int(3 * middle / 2 / size), 2) for middle in (y0 + y1, x0 + x1))
  return targets.ROWS[row], targets.COLUMNS[column]


def _letters(seed: int, size: int) -> Iterator[Case]:
  """Which letter stands before a text, without a picture."""
  del size
  number = 0
  while True:
    turn, _ = lettered.letters(None, np.random.default_rng((seed, number, 1)))
    options = re.findall(r"^\([A-Z]\) (.*)$", turn.prompt, re.M)
    name = f"{seed}-{number}"
    yield Case("letters", name, f"text_{name}", None, turn.prompt, tuple(options), LETTERS.index(turn.answer))
    number += 1


TASKS: dict[str, Callable[[int, int], Iterator[Case]]] = {
  "Count": _asked("Count"),
  "Relation": _asked("Relation"),
  "LeftRight": _asked("Relation", "across", "LeftRight"),
  "Depth": _asked("Depth"),
  "Distance": _asked("Distance"),
  "box": _box,
  "side": _side,
  "letters": _letters,
}
