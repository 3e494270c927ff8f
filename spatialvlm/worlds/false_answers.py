"""Wrong answers to what is asked of a picture, those that are hardest to tell from the right one first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from spatialvlm.types import LETTERS, Turn
from spatialvlm.worlds import spoken, statements, world
from spatialvlm.worlds.targets import BOXES, COLUMNS, DEPTH_WORDS, ROWS, Picture

Wrong = Callable[[Picture | None, Turn], Sequence[str]]


def with_false(skill: str, picture: Picture | None, turn: Turn, rng: np.random.Generator, count: int) -> Turn:
  """The turn with at most `count` wrong answers; less where there are no more.

  Of those that the skill's table gives the first ones are likelier to be taken: each is as hard as its place.
  """
  if not count:
    return dataclasses.replace(turn, false=()) if turn.false else turn
  found = list(dict.fromkeys(a for a in (*turn.false, *WRONG[skill](picture, turn)) if a != turn.answer))
  shares = 1.0 / np.arange(1, len(found) + 1)
  size = min(count, len(found))
  taken = rng.choice(len(found), size=size, replace=False, p=shares / shares.sum()) if size else []
  return dataclasses.replace(turn, false=tuple(found[i] for i in taken))


def other_letters(prompt: str, answer: str) -> list[str]:
  """Letters of a lettered question's other options."""
  return [a for a in LETTERS if f"\n({a}) " in prompt and a != answer]


def _letters(picture: Picture | None, turn: Turn) -> list[str]:
  del picture
  return other_letters(turn.prompt, turn.answer)


def _name(picture: Picture, turn: Turn) -> list[str]:
  """Other things in the picture, then things that differ in a word."""
  names = {o.name for o in picture.frame.objects}
  return [*sorted(names - {turn.answer}), *statements.absent_names(turn.answer, names)]


def _among(words: Sequence[str]) -> Wrong:
  return lambda picture, turn: words


def _number(picture: Picture, turn: Turn) -> list[str]:
  del picture
  right = int(turn.answer)
  return [str(n) for n in (right + 1, right - 1, right + 2, right - 2) if n >= 0]


def _place(picture: Picture, turn: Turn) -> list[str]:
  """Mirrored, then all other places."""
  del picture
  row, column = turn.answer.split()
  mirrored = f"{row} {COLUMNS[2 - COLUMNS.index(column)]}", f"{ROWS[2 - ROWS.index(row)]} {column}"
  return [*mirrored, *(f"{r} {c}" for r in ROWS for c in COLUMNS)]


def _step(picture: Picture, turn: Turn) -> list[str]:
  """The words of depth by how far they are from the right one."""
  del picture
  right = DEPTH_WORDS.index(turn.answer)
  return sorted(DEPTH_WORDS, key=lambda word: abs(DEPTH_WORDS.index(word) - right))


def _other_word(picture: Picture, turn: Turn) -> list[str]:
  del picture
  return ["no" if turn.answer == "yes" else "yes"]


def _order(separator: str) -> Wrong:
  """Lists in another order: two of them exchanged, or all turned round."""

  def wrong(picture: Picture, turn: Turn) -> list[str]:
    del picture
    said = turn.answer.split(separator)
    return [separator.join(order) for order in _orders(said)]

  return wrong


def _orders(said: list[str]) -> Iterator[list[str]]:
  for i, j in itertools.combinations(range(len(said)), 2):
    order = list(said)
    order[i], order[j] = order[j], order[i]
    yield order
  yield said[::-1]


def _parts(picture: Picture, turn: Turn) -> list[str]:
  """Descriptions, parts by semicolons, of which one names what is not there."""
  names = {o.name for o in picture.frame.objects}
  found = []
  for name in sorted(names):
    if name in turn.answer:
      found += [turn.answer.replace(name, other) for other in statements.absent_names(name, names)[:2]]
  return found


# By skill (`worlds.skills.SKILLS`).
WRONG: dict[str, Wrong] = {
  "name": _name,
  "color": _among(world.COLORS),
  "shape": _among(world.SHAPES),
  "color_of": _among(world.COLORS),
  "shape_of": _among(world.SHAPES),
  "which_box": _among(BOXES),
  "box_where": _place,
  "where": _place,
  "present": _other_word,
  "far": _step,
  "metres": lambda picture, turn: spoken.others(turn.answer),
  "near_to_far": _order(", "),
  "how_many": _number,
  "any": _other_word,
  "describe": _order(", "),
  "boxes": _parts,
  "scene": _parts,
  "choose": _letters,
  "letters": _letters,
  "statement": lambda picture, turn: turn.false,
}
