"""Objects of a photograph with depth, measured, and what can be asked of them without doubt.

Margins are those of the rendered scenes (`worlds.candidates.MARGINS`). A camera sees the surface of an object
alone, so that its centre may lie up to half its width behind: an answer about distances must hold wherever
in between the centres are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from spatialvlm.data.sources.rgbd_files import Intrinsics
from spatialvlm.data.sources.rgbd_layouts import Objects, directions
from spatialvlm.worlds.candidates import MARGINS

# What nobody points at, and classes that are none.
_NO_OBJECTS = ("wall", "floor", "ceiling", "unknown", "void", "background", "unlabeled", "object")
_NO_PREFIX = ("other",)
# Objects below this share of a picture are specks: they are not counted when names must be unique.
_SPECK = 5e-4
# Least share of an object's pixels that must have a depth, and their number.
_MEASURED, _LEAST_PIXELS = 0.5, 16
# Focal length as a share of the larger side, where it is not known: of a wide lens, whose objects are larger.
_WIDEST = 0.5
# How far into the nearest and outermost parts of an object its surface is believed: edges mix near and far.
_TAIL = 5.0


class Measured(NamedTuple):
  """An object that may be named.

  Attributes:
    name: unique in its picture.
    box: (x0, y0, x1, y1) pixels, half-open. pixels: of its mask.
    depth, range: metres, medians of the depth and of the distance from the camera. nearest: a low percentile
      of the distance, without intrinsics of the depth.
    surface: (3,) metres in the camera's OpenCV axes, the median of its visible surface.
    reach: metres, half of its smaller side across the line of sight; without intrinsics the most it may be.
  All are NaN without depth, range and surface without intrinsics too.
  """

  name: str
  box: tuple[int, int, int, int]
  pixels: int
  depth: float
  range: float
  nearest: float
  surface: np.ndarray
  reach: float


class Ask(NamedTuple):
  """A question: the objects in the order of mention, the index of the answer (0 where it is no choice), and
  the axis of a relation.
  """

  kind: str
  roles: tuple[int, ...]
  answer: int
  axis: int = 0


def measured(
  objects: Objects, depth: np.ndarray, intrinsics: Intrinsics | None, least: float
) -> list[Measured]:
  """The objects that can be named: at least a share `least` of the picture, and alone with their name.

  Args:
    objects: ids (H, W) and names.
    depth: (H, W) metres, 0 where there is none.
  """
  pixels = {i: at for i, at in _pixels(objects.ids) if i in objects.names}
  names = {i: _called(objects.names[i]) for i in pixels}
  seen = [name for i, name in names.items() if len(pixels[i]) >= _SPECK * depth.size]
  large = [i for i in names if len(pixels[i]) >= least * depth.size]
  kept = [i for i in large if _nameable(names[i]) and seen.count(names[i]) == 1]
  rays = None if intrinsics is None else directions(intrinsics, depth.shape).reshape(-1, 3)
  return [_measure(names[i], pixels[i], depth, rays) for i in kept]


def _pixels(ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Each id with the flat places of its pixels, ascending."""
  flat = ids.ravel()
  if flat.min() >= 0 and flat.max() < 2**16:
    flat = flat.astype(np.uint16)  # which are sorted by counting
  order = np.argsort(flat, kind="stable")
  edges = np.flatnonzero(np.diff(flat[order].astype(np.int64))) + 1
  for part in np.split(order, edges):
    yield int(flat[part[0]]), part


def _called(name: str) -> str:
  return " ".join(name.replace("_", " ").lower().split())


def _nameable(name: str) -> bool:
  return bool(name) and name not in _NO_OBJECTS and not name.startswith(_NO_PREFIX)


def _measure(name: str, at: np.ndarray, depth: np.ndarray, rays: np.ndarray | None) -> Measured:
  """`at`: flat places of its pixels; `rays`: (H * W, 3), `directions`."""
  rows, cols = np.divmod(at, depth.shape[1])
  box = int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1
  unknown = Measured(name, box, len(at), math.nan, math.nan, math.nan, np.full(3, np.nan), math.nan)
  z = depth.ravel()[at]
  at, z = at[z > 0], z[z > 0]
  if len(z) < max(_LEAST_PIXELS, _MEASURED * unknown.pixels):
    return unknown
  known = rays is not None
  if not known:
    rows, cols = np.divmod(at, depth.shape[1])
    across = np.stack([cols, rows], 1) / (_WIDEST * max(depth.shape)) * z[:, None]
  points = rays[at] * z[:, None] if known else across
  away = np.linalg.norm(points, axis=1) if known else z
  low, high = np.percentile(points[:, :2], (_TAIL, 100 - _TAIL), axis=0)
  near, far = np.percentile(away, (_TAIL, 50))
  return unknown._replace(
    depth=float(np.median(z)),
    range=float(far) if known else math.nan,
    nearest=float(near),
    surface=np.median(points, axis=0) if known else unknown.surface,
    reach=float(np.min(high - low)) / 2,
  )


def asks(
  objects: Sequence[Measured], shape: tuple[int, ...], kinds: Sequence[str]
) -> Mapping[str, list[Ask]]:
  """What can be asked of each kind: of Metres each object, else each pair (or pair and reference) once, in
  one of its two orders.
  """
  found: dict[str, list[Ask]] = {kind: [] for kind in kinds}
  pairs = [
    (i, j)
    for i, j in itertools.combinations(range(len(objects)), 2)
    if _apart(objects[i].box, objects[j].box)
  ]
  if "Metres" in found:
    found["Metres"] = [Ask("Metres", (i,), 0) for i, o in enumerate(objects) if not math.isnan(o.depth)]
  for i, j in pairs:
    if "Relation" in found:
      found["Relation"] += _relations(i, j, objects[i], objects[j], shape)
    if "Depth" in found and (answer := _nearer(objects[i], objects[j])) is not None:
      found["Depth"].append(Ask("Depth", (i, j), answer))
  if "Distance" in found:
    known = {frozenset(pair) for pair in pairs}
    closer = _closer(objects)
    for r, (i, j) in itertools.product(range(len(objects)), pairs):
      if closer[r, i, j] >= 0 and {frozenset((r, i)), frozenset((r, j))} <= known:
        found["Distance"].append(Ask("Distance", (r, i, j), int(closer[r, i, j])))
  return found


def _apart(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
  """Whether two boxes can be told apart: they share little of the smaller one."""
  shared = math.prod(max(0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
  return shared <= MARGINS.cover * min((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))


def _relations(i: int, j: int, a: Measured, b: Measured, shape: tuple[int, ...]) -> list[Ask]:
  found = []
  for axis, side in enumerate((shape[1], shape[0])):
    (a0, a1), (b0, b1) = ((o.box[axis], o.box[axis + 2]) for o in (a, b))
    offset = ((a0 + a1) - (b0 + b1)) / 2
    shared = min(a1, b1) - max(a0, b0)
    if abs(offset) >= MARGINS.offset * side and shared <= MARGINS.overlap * min(a1 - a0, b1 - b0):
      found.append(Ask("Relation", (i, j), int(offset > 0), axis))
  return found


def _nearer(a: Measured, b: Measured) -> int | None:
  """0 where the first is nearer, 1 where the second is; None where a careful person could differ."""
  if math.isnan(a.depth) or math.isnan(b.depth):
    return None
  second = a.depth > b.depth
  if (a.nearest > b.nearest) != second:
    return None
  measures = []
  for one, other in itertools.product(_behind(a), _behind(b)):
    measures.append((a.depth * one, b.depth * other))
    if not math.isnan(a.range):
      measures.append((a.range * one, b.range * other))
  ratios = [math.log(x / y) for x, y in measures]
  clear = all(abs(ratio) >= math.log(MARGINS.depth) and (ratio > 0) == second for ratio in ratios)
  return int(second) if clear else None


def _closer(objects: Sequence[Measured]) -> np.ndarray:
  """Which of two is closer to a reference, in space, (reference, first, second): 0, 1, or -1 for no answer.

  No answer where a careful person could differ, or where a place is not known.
  """
  places = np.array([[o.surface * part for part in _behind(o)] for o in objects]).reshape(-1, 2, 3)
  away = np.linalg.norm(places[:, :, None, None] - places, axis=-1)  # reference, its place, object, its place
  low, high = away.min(-1)[:, :, None, :], away.max(-1)[:, :, :, None]
  first = ((low >= MARGINS.distance * high) & (low - high >= MARGINS.distance_gap)).all(1)
  return np.where(first, 0, np.where(first.swapaxes(1, 2), 1, -1))


def _behind(o: Measured) -> tuple[float, float]:
  """What its surface is multiplied by for the nearest and the farthest place of its centre."""
  return 1.0, 1.0 + o.reach / (o.depth if math.isnan(o.range) else o.range)
