"""What could be asked of rendered scenes: pairs and triples of objects, and counts, sorted by what they show.

Every candidate has a code of mixed radix: the answer first, then the shapes, then whether the answer agrees
with each simple rule of two dimensions. `questions` decides on a code and looks for a scene that has it.
Cases that a careful person could dispute are left out by the margins below.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from spatialvlm.worlds import render, world

N = render.MAX_OBJECTS
SHAPES = len(world.SHAPES)
COLORS = len(world.COLORS)


@dataclasses.dataclass(frozen=True)
class Margins:
  """Differences below which a case counts as ambiguous. Lengths in the picture are shares of its side.

  Attributes:
    depth: ratio of the farther to the nearer object's depth, and of their distances from the camera.
    distance: ratio of the larger to the smaller distance from the reference, between centres.
    distance_gap: the same difference in metres.
    offset: between box centres along the axis that a relation asks about.
    overlap: of two boxes along that axis, as share of the smaller extent.
    cover: of two boxes, intersection as share of the smaller area, in every question that names both.
    edge, size, near, middle: of the 2D rules (lower edges, ratio of box areas, ratio of distances in the
      picture, distances from its centre), so that each rule has a clear opinion.
  """

  depth: float = 1.12
  distance: float = 1.2
  distance_gap: float = 0.25
  offset: float = 0.08
  overlap: float = 0.25
  cover: float = 0.35
  edge: float = 2.5 / 96
  size: float = 1.25
  near: float = 1.1
  middle: float = 3.0 / 96


MARGINS = Margins()


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """Candidates of one kind. `codes` (M,) ascending; `rows` (M, 1 + roles): the scene, then its objects."""

  radices: tuple[int, ...]
  codes: np.ndarray
  rows: np.ndarray

  def places(self, digits: Sequence[int]) -> tuple[int, int]:
    """Where the rows whose leading digits are these begin and end."""
    rest = math.prod(self.radices[len(digits) :])
    first = 0
    for digit, radix in zip(digits, self.radices, strict=False):
      first = first * radix + int(digit)
    low, high = np.searchsorted(self.codes, [first * rest, (first + 1) * rest])
    return int(low), int(high)

  def matching(self, digits: Sequence[int]) -> np.ndarray:
    """The rows whose leading digits are these."""
    low, high = self.places(digits)
    return self.rows[low:high]

  def digits(self, place: int) -> tuple[int, ...]:
    """All digits of the row that stands there."""
    return tuple(int(d) for d in np.unravel_index(self.codes[place], self.radices))


def table(radices: Sequence[int], valid: np.ndarray, digits: Sequence[np.ndarray]) -> Table:
  """Sorts the true entries of `valid` (B, ...) by their digits, each broadcastable to its shape."""
  rows = np.argwhere(valid)
  codes = np.zeros(len(rows), np.int64)
  for radix, digit in zip(radices, digits, strict=True):
    codes = codes * radix + np.broadcast_to(digit, valid.shape)[valid]
  order = np.argsort(codes, kind="stable")
  return Table(tuple(radices), codes[order], rows[order])


class Scenes:
  """The measures that questions are made of, for all scenes of a pool: B scenes, N objects in each."""

  def __init__(self, pool: world.Pool, margins: Margins = MARGINS):
    self.margins = margins
    box = pool.rendering.box.astype(np.float64) / pool.size
    self.shape, self.color = pool.layout.shape, pool.layout.color
    self.seen = pool.rendering.visible > 0
    self.clear, self.hidden = pool.clear, pool.layout.present & ~pool.clear
    name = np.where(self.seen, self.color * SHAPES + self.shape, -1 - np.arange(N))
    self.usable = pool.clear & ((name[:, :, None] == name[:, None]).sum(2) == 1)
    self.low, self.high = box[..., :2], box[..., 2:]
    self.middle, self.extent = (self.low + self.high) / 2, self.high - self.low
    self.area = np.maximum(self.extent.prod(2), 1e-9)
    self.off_centre = np.linalg.norm(self.middle - 0.5, axis=2)
    self.camera = pool.center_camera.astype(np.float64)
    self.radius = np.linalg.norm(pool.layout.scene.half[:, :N], axis=2)
    self.range = np.linalg.norm(self.camera, axis=2)

  def pairs(self) -> np.ndarray:
    """(B, N, N): both may be asked about, and their boxes are apart enough to be told apart."""
    return self.usable[:, :, None] & self.usable[:, None] & self.apart()

  def apart(self) -> np.ndarray:
    """(B, N, N): boxes of two objects that cover no more of each other than the margin."""
    low = np.maximum(self.low[:, :, None], self.low[:, None])
    high = np.minimum(self.high[:, :, None], self.high[:, None])
    shared = np.maximum(high - low, 0).prod(-1)
    smaller = np.minimum(self.area[:, :, None], self.area[:, None])
    return (shared <= self.margins.cover * smaller) & ~np.eye(N, dtype=bool)

  def opinions(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For lower edge, bigger box and centre: whether the first of a pair wins, and whether that is clear."""
    m = self.margins
    edge, area, middle = self.high[..., 1], np.log(self.area), -self.off_centre
    wins, clear = [], []
    for value, margin in ((edge, m.edge), (area, math.log(m.size)), (middle, m.middle)):
      difference = value[:, :, None] - value[:, None]
      wins.append(difference > 0)
      clear.append(np.abs(difference) >= margin)
    return wins, clear

  def _names(self) -> list[np.ndarray]:
    """Digits of a pair's names: of one colour or not, shape of the first, shape of the second."""
    same = self.color[:, :, None] == self.color[:, None]
    return [same, self.shape[:, :, None], self.shape[:, None]]

  def beside(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, N, N): whether the first of a pair lies right of (below) the second; whether it is clear."""
    middle, low, high = self.middle[..., axis], self.low[..., axis], self.high[..., axis]
    difference = middle[:, :, None] - middle[:, None]
    shared = np.minimum(high[:, :, None], high[:, None]) - np.maximum(low[:, :, None], low[:, None])
    extent = self.extent[..., axis]
    smaller = np.minimum(extent[:, :, None], extent[:, None])
    sure = (np.abs(difference) >= self.margins.offset) & (shared <= self.margins.overlap * smaller)
    return difference > 0, sure

  def farther(self) -> tuple[np.ndarray, np.ndarray]:
    """(B, N, N): whether the first of a pair is the farther from the camera; whether that is clear.

    It is where depths, distances and nearest points agree, the first two by the margin.
    """
    z, nearest = self.camera[..., 2], self.range - self.radius
    farther = z[:, :, None] > z[:, None]
    sure = (nearest[:, :, None] > nearest[:, None]) == farther
    for value in (z, self.range):
      log = np.log(np.maximum(value, 1e-3))
      difference = log[:, :, None] - log[:, None]
      sure &= (np.abs(difference) >= math.log(self.margins.depth)) & ((difference > 0) == farther)
    return farther, sure

  def relation(self) -> Table:
    """Digits: axis (0 left/right, 1 above/below), answer (0 left or above), names, opinions (1: first wins).

    On above/below the lower edge is what is asked, not a rule: its digit is 0.
    """
    wins, clear = self.opinions()
    valid, answers = [], []
    for axis in (0, 1):
      second, sure = self.beside(axis)
      valid.append(self.pairs() & sure & clear[1] & clear[2] & (clear[0] | (axis == 1)))
      answers.append(second)
    axis = np.arange(2)[None, :, None, None]
    digits = [axis, np.stack(answers, 1), *(d[:, None] for d in self._names())]
    digits += [wins[0][:, None] & (axis == 0), wins[1][:, None], wins[2][:, None]]
    found = table((2, 2, 2, SHAPES, SHAPES, 2, 2, 2), np.stack(valid, 1), digits)
    return dataclasses.replace(found, rows=found.rows[:, [0, 2, 3]])

  def depth(self) -> Table:
    """Digits: answer (0: the first is nearer), names, agreement with lower edge, bigger box, centre."""
    wins, clear = self.opinions()
    second, sure = self.farther()
    valid = self.pairs() & clear[0] & clear[1] & clear[2] & sure
    agrees = [w != second for w in wins]
    return table((2, 2, SHAPES, SHAPES, 2, 2, 2), valid, [second, *self._names(), *agrees])

  def distance(self) -> Table:
    """Roles: reference, first, second. The reference's colour is neither's.

    Digits: answer (0: the first is nearer), names of first and second, agreement with nearer in the picture,
    lower edge, bigger box, centre.
    """
    m = self.margins
    wins, clear = self.opinions()
    pair = self.pairs() & clear[0] & clear[1] & clear[2]
    apart = self.pairs() & (self.color[:, :, None] != self.color[:, None])
    space = np.linalg.norm(self.camera[:, :, None] - self.camera[:, None], axis=-1) + np.eye(N)
    flat = np.linalg.norm(self.middle[:, :, None] - self.middle[:, None], axis=-1) + np.eye(N)
    first, second = space[..., None], space[:, :, None]
    answer = first > second
    ratio = np.abs(np.log(first) - np.log(second)) >= math.log(m.distance)
    seen = np.log(np.maximum(flat, 1e-6))
    seen = seen[..., None] - seen[:, :, None]
    valid = pair[:, None] & apart[..., None] & apart[:, :, None] & ratio
    valid &= (np.abs(first - second) >= m.distance_gap) & (np.abs(seen) >= math.log(m.near))
    agrees = [(seen < 0) != answer, *(w[:, None] != answer for w in wins)]
    names = [d[:, None] for d in self._names()]
    return table((2, 2, SHAPES, SHAPES, 2, 2, 2, 2), valid, [answer, *names, *agrees])

  def count(self) -> Table:
    """Rows: scene, shape, colour or COLORS for any. Digits: how many there are, coloured or not, shape.

    Only scenes whose objects all show clearly.
    """
    is_shape = self.seen[..., None] & (self.shape[..., None] == np.arange(SHAPES))
    is_color = np.concatenate(
      [self.color[..., None] == np.arange(COLORS), np.ones((*self.color.shape, 1))], 2
    )
    number = np.einsum("bns,bnc->bsc", is_shape.astype(np.int64), is_color.astype(np.int64))
    valid = np.broadcast_to(~self.hidden.any(1)[:, None, None], number.shape)
    colored = (np.arange(COLORS + 1) < COLORS)[None, None]
    return table((N + 1, 2, SHAPES), valid, [number, colored, np.arange(SHAPES)[None, :, None]])
