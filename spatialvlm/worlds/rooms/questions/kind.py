"""What a kind of question is, and what all kinds measure alike.

A kind finds candidates: places in scenes where it could be asked. Each has a key and an answer. The key is
all that a reader of the text, or a simple rule of two dimensions, could go by: the names, and each rule's
opinion. Questions are asked in groups of one key that hold every option as the answer once (`choice`), so
that text and rules, alone and together, are right exactly as often as guessing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from spatialvlm.worlds.rooms.classes import ALIKE, CLASSES
from spatialvlm.worlds.rooms.frames import Measured

_ALIKE = np.array([*ALIKE, -1])  # the last is for what is not there
_PAINTED = np.array([*(of.painted for of in CLASSES), False])
KINDS = len(CLASSES)
# How a thing is named: by its class alone, or by colour and class, as others of its class are there.
ALONE, COLORED = 0, 1
# Boxes that share more of the smaller one are not set against each other. Margins of the 2D rules: shares of
# the picture, or ratios.
COVER, EDGE, AREA, MIDDLE, NEAR, OVERLAP = 0.35, 0.026, 1.25, 0.03, 1.1, 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
  """M places where a kind could be asked.

  Attributes:
    key: (M,) int64, what text and rules know. answer: (M,) int, from 0.
    rows: (M, 1 + roles) int, the scene, then the things named (or what else `say` needs).
  """

  key: np.ndarray
  answer: np.ndarray
  rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Said:
  """A question in words.

  Attributes:
    text: without its options. choices: all that the group's window holds, in the order of the answers.
    reason: why the right one is right, a sentence or two; words: the right one as an open answer.
  """

  text: str
  choices: tuple[str, ...]
  reason: str
  words: str


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
  """What a kind's `say` knows of the question that it words.

  Attributes:
    measured: the scene's pool; scene: its number there. roles: the row's columns after the scene.
    names: of the things named, in the roles' order, without "the". boxes: the colours drawn around them.
    window: the answers that are options, ascending. answer: the right one. marked: a coin of the group.
      color: the word of a colour of the group, for what is counted by colour.
  """

  measured: Measured
  scene: int
  roles: tuple[int, ...]
  names: tuple[str, ...]
  boxes: tuple[str, ...]
  window: tuple[int, ...]
  answer: int
  marked: bool
  color: str


class Kind(NamedTuple):
  """A kind of question.

  Attributes:
    name: of the task. type: "2D" or "3D", as CV-Bench has it.
    options: how many options groups have, in turn. stride: between the answers of a group's window, of the
      pool's dial. shuffled: whether options are listed in a drawn order, else in that of the answers.
    things: how many of a row's roles are things that are named. boxes: around which boxes are drawn, in
      the order of the roles: colours; `coin` says that they are drawn for half of the groups only.
    find: candidates of a pool. say: a question in words.
    painted: colours that the answer wants: (measures, scene, roles, answer, the group's colour, rng) ->
      {thing: index into COLORS}; None for none.
  """

  name: str
  type: str
  options: tuple[int, ...]
  find: Callable[[Measures], Candidates]
  say: Callable[[Told], Said]
  things: int = 2
  boxes: tuple[str, ...] = ()
  coin: bool = False
  shuffled: bool = False
  stride: Callable[[Measured], int] = lambda of: 1
  painted: Callable[..., dict[int, int]] | None = None


class Measures:
  """What questions are made of: B scenes of a pool, N things. Lengths in the picture are shares of it."""

  def __init__(self, of: Measured):
    self.of, self.dial = of, of.dial
    self.there = of.kind >= 0
    self.seen = of.seen.visible > 0
    box = of.seen.box / of.size
    self.low, self.high = box[..., :2], box[..., 2:]
    self.middle, self.extent = (self.low + self.high) / 2, self.high - self.low
    self.area = np.maximum(self.extent.prod(-1), 1e-9)
    self.off_centre = np.linalg.norm(self.middle - 0.5, axis=-1)
    self.range = np.linalg.norm(of.camera, axis=-1)
    group = np.where(self.seen, _ALIKE[of.kind], -1)
    same = (group[:, :, None] == group[:, None]) & (group >= 0)[:, None]
    self.others = same.sum(-1) - 1
    # Others of one class, and painted, may be told apart by colour.
    one_class = ~(same & (of.kind[:, :, None] != of.kind[:, None])).any(-1)
    self.mode = np.where(self.others > 0, COLORED, ALONE)
    self.nameable = self.seen & ((self.others == 0) | (one_class & _PAINTED[of.kind] & (self.others < 4)))
    self.usable = self.nameable & of.clear
    self.name = of.kind * 2 + self.mode

  @functools.cached_property
  def pairs(self) -> np.ndarray:
    """(B, N, N): both may be asked about, and their boxes are apart enough to be told apart."""
    return self.paired(self.usable, COVER)

  def paired(self, usable: np.ndarray, cover: float) -> np.ndarray:
    N = usable.shape[1]
    low = np.maximum(self.low[:, :, None], self.low[:, None])
    high = np.minimum(self.high[:, :, None], self.high[:, None])
    shared = np.maximum(high - low, 0).prod(-1)
    smaller = np.minimum(self.area[:, :, None], self.area[:, None])
    return usable[:, :, None] & usable[:, None] & (shared <= cover * smaller) & ~np.eye(N, dtype=bool)

  def opinions(self, *names: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Of rules: for each, (B, N, N), whether the first of a pair wins; and where all of them are clear."""
    values = {
      "edge": (self.high[..., 1], EDGE),
      "area": (np.log(self.area), math.log(AREA)),
      "tall": (np.log(np.maximum(self.extent[..., 1], 1e-6)), math.log(1.15)),
      "middle": (-self.off_centre, MIDDLE),
      "upper": (-self.middle[..., 1], MIDDLE),
    }
    wins, clear = [], np.ones((1, 1, 1), bool)
    for name in names:
      value, margin = values[name]
      difference = value[:, :, None] - value[:, None]
      wins.append(difference > 0)
      clear = clear & (np.abs(difference) >= margin)
    return wins, clear

  def pair_names(self) -> list[tuple[np.ndarray, int]]:
    """Digits of a pair's names with their radices."""
    return [(self.name[:, :, None], 2 * KINDS), (self.name[:, None], 2 * KINDS)]


def collected(valid: np.ndarray, answer: np.ndarray, digits: Sequence[tuple[np.ndarray, int]]) -> Candidates:
  """The true entries of `valid` (B, ...) with their answers and keys, each broadcastable to its shape."""
  rows = np.argwhere(valid)
  key = np.zeros(len(rows), np.int64)
  for digit, radix in digits:
    key = key * radix + np.broadcast_to(digit, valid.shape)[valid]
  return Candidates(key, np.broadcast_to(answer, valid.shape)[valid].astype(np.int64), rows)


def bits(wins: Sequence[np.ndarray]) -> list[tuple[np.ndarray, int]]:
  return [(win, 2) for win in wins]


def metres(value: float) -> str:
  """A length as it is said."""
  return f"{value:.2g} m" if value < 10 else f"{value:.0f} m"


def marked(name: str, box: str) -> str:
  return f"{name} (highlighted by a {box} box)" if box else name
