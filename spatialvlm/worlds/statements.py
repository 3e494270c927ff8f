"""True sentences about a picture, and what makes them false: one word turned round, two names exchanged.

Hard negatives are made, not mined: from another picture a sentence differs in everything, and whoever reads
bags of words tells it apart (Yuksekgonul et al., arXiv 2210.01936); here sentences differ in what is asked.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from spatialvlm.types import Turn
from spatialvlm.worlds import world
from spatialvlm.worlds.targets import Picture

# What they answer; several, so that a conversation can have as many.
PROMPTS = (
  "What can you see in the picture?",
  "What can you see in this image?",
  "Can you describe the picture?",
  "Describe the image.",
)
# Least distance of two centres along an axis, as a share of the picture; least ratio of two depths.
_APART, _FARTHER = 0.08, 1.12
_OPPOSITE = {"left of": "right of", "above": "below", "nearer than": "farther than"}
_OPPOSITE |= {b: a for a, b in _OPPOSITE.items()}
Names = Sequence[str]
# A true sentence, false ones, and the objects that they hang on.
_Found = tuple[str, list[str], Sequence[world.SceneObject]]


def statement(picture: Picture, rng: np.random.Generator) -> tuple[Turn, Sequence[world.SceneObject]] | None:
  """One true sentence about two objects or a number, all its false twins in `Turn.false`, hardest first.

  Beside it the objects that must be in sight, so that the one stays true and the others false.
  """
  ways = [_of_two, _of_two, _of_two, _of_count]
  for way in rng.permutation(len(ways)):
    found = ways[way](picture, rng)
    if found is not None:
      true, false, objects = found
      return Turn(PROMPTS[int(rng.integers(len(PROMPTS)))], true, tuple(dict.fromkeys(false))), objects
  return None


def counted(sentence: str) -> tuple[int, str]:
  """The number and the colour of a statement that counts."""
  number, color = re.fullmatch(r"There (?:is|are) (\d+) (\w+) objects?\.", sentence).groups()
  return int(number), color


def related(sentence: str) -> tuple[str, str, str]:
  """The two names of a statement about two things, and the relation between them."""
  relations = "|".join(_OPPOSITE)
  return re.fullmatch(rf"The (\w+ \w+) is ({relations}) the (\w+ \w+)\.", sentence).groups()


def surely_false(sentence: str, frame: world.Frame) -> bool:
  """Whether nobody could dispute that a statement is false of a frame: the number is another, a name is that
  of nothing in sight, or two things that can be named stand the other way round.
  """
  if sentence.startswith("There "):
    number, color = counted(sentence)
    return all(o.clear for o in frame.objects) and number != sum(o.color == color for o in frame.objects)
  a, word, b = related(sentence)
  if not {a, b} <= {o.name for o in frame.objects}:
    return True
  named = {o.name: o for o in frame.named()}
  size = frame.image.shape[0]
  return {a, b} <= named.keys() and _OPPOSITE[word] in _relations(named[a], named[b], size)


def axis(said: str) -> str:
  """The axis of the picture that a sentence speaks of, as `types.Asked` has it."""
  words = (("left of", "across"), ("right of", "across"), ("above", "down"), ("below", "down"))
  return next((name for word, name in words if f" {word} " in said), "")


def _of_two(picture: Picture, rng: np.random.Generator) -> _Found | None:
  """How one object stands to another, seen from the camera."""
  objects = picture.frame.named()
  pairs = list(itertools.permutations(objects, 2))
  for place in rng.permutation(len(pairs)):
    a, b = pairs[place]
    words = list(_relations(a, b, picture.size))
    if words:
      word = words[int(rng.integers(len(words)))]
      names = {o.name for o in picture.frame.objects}
      return _said(a.name, word, b.name), list(_falsified(a.name, word, b.name, names)), (a, b)
  return None


def _relations(a: world.SceneObject, b: world.SceneObject, size: int) -> Iterator[str]:
  """What can be said of `a` to `b` that nobody could dispute."""
  middle = lambda o: ((o.box[0] + o.box[2]) / 2 / size, (o.box[1] + o.box[3]) / 2 / size)
  (ax, ay), (bx, by) = middle(a), middle(b)
  if abs(ax - bx) >= _APART:
    yield "left of" if ax < bx else "right of"
  if abs(ay - by) >= _APART:
    yield "above" if ay < by else "below"
  near, far = float(a.center_camera[2]), float(b.center_camera[2])
  if max(near, far) >= _FARTHER * min(near, far):
    yield "nearer than" if near < far else "farther than"


def _said(a: str, word: str, b: str) -> str:
  return f"The {a} is {word} the {b}."


def _falsified(a: str, word: str, b: str, names: set[str]) -> Iterator[str]:
  """The relation turned round, the names exchanged, and attributes that nothing in the picture has."""
  yield _said(a, _OPPOSITE[word], b)
  yield _said(b, word, a)
  for changed in absent_names(a, names):
    yield _said(changed, word, b)
  for changed in absent_names(b, names):
    yield _said(a, word, changed)


def absent_names(name: str, names: set[str]) -> list[str]:
  """Names that differ from `name` in one word, of things that are not there; words of the picture first."""
  color, shape = name.split()
  colors, shapes = {n.split()[0] for n in names}, {n.split()[1] for n in names}
  seen_first = lambda words, seen: sorted(words, key=lambda word: word not in seen)
  changed = [f"{c} {shape}" for c in seen_first(world.COLORS, colors)]
  changed += [f"{color} {s}" for s in seen_first(world.SHAPES, shapes)]
  return [n for n in changed if n not in names]


def _of_count(picture: Picture, rng: np.random.Generator) -> _Found | None:
  """How many objects have a colour, where every one in sight can be told."""
  objects = picture.frame.objects
  if not objects or not all(o.clear for o in objects):
    return None
  colors = [o.color for o in objects]
  color = sorted(set(colors))[int(rng.integers(len(set(colors))))]
  count, others = colors.count(color), sorted(set(world.COLORS) - {color})
  said = lambda number, color: (
    f"There {'is' if number == 1 else 'are'} {number} {color} " + ("object." if number == 1 else "objects.")
  )
  false = [said(n, color) for n in (count + 1, count - 1) if n > 0]
  false += [said(count, c) for c in others if colors.count(c) != count]
  return said(count, color), false, objects  # also of the other colours, whose numbers are false
