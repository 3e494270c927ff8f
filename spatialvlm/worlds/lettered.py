"""Skills whose answers are letters of options: what a box holds, and which letter stands before a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spatialvlm.types import LETTERS, Turn, choice_prompt
from spatialvlm.worlds import world
from spatialvlm.worlds.targets import BOXES, Picture

NAMES = tuple(f"{c} {s}" for c in world.COLORS for s in world.SHAPES)
# As `skills.Said`.
Said = tuple[Turn, Sequence[world.SceneObject]]


def _options(rng: np.random.Generator, right: str, others: Sequence[str], most: int = 6) -> tuple[list, int]:
  """Up to `most` options in random order, and the place of the right one."""
  count = int(rng.integers(1, min(most, len(others) + 1)))
  options = [others[i] for i in rng.permutation(len(others))[:count]]
  place = int(rng.integers(count + 1))
  return options[:place] + [right] + options[place:], place


def choose(picture: Picture, rng: np.random.Generator) -> Said | None:
  """Naming with lettered options, most of them other objects of the same picture."""
  colors = tuple(picture.boxes)
  if not colors:
    return None
  color = colors[int(rng.integers(len(colors)))]
  o = picture.boxes[color]
  right = o.name
  near = sorted({other.name for other in picture.frame.objects} - {right})
  others = near if near and rng.random() < 0.7 else [n for n in NAMES if n != right]
  options, place = _options(rng, right, others, most=4)
  return Turn(choice_prompt(f"What is in the {color} box?", options), LETTERS[place]), [o]


_WORDS = (
  NAMES,
  tuple(str(n) for n in range(11)),
  ("left", "right"),
  ("above", "below"),
  world.COLORS,
  world.SHAPES,
  BOXES,
)
_WORD_SHARES = (0.4, 0.2, 0.08, 0.08, 0.08, 0.08, 0.08)


def letters(picture: Picture | None, rng: np.random.Generator) -> Said:
  """No picture needed: the letter that stands before a given text."""
  words = list(_WORDS[int(rng.choice(len(_WORDS), p=_WORD_SHARES))])
  right = words.pop(int(rng.integers(len(words))))
  options, place = _options(rng, right, words)
  return Turn(choice_prompt(f"The answer is {right}.", options), LETTERS[place]), []
