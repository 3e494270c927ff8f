"""CV-Bench's own four kinds, in its templates: Count, Relation, Depth, Distance."""

from __future__ import annotations

import math

import numpy as np

from spatialvlm.worlds.questions import AXES, object_text
from spatialvlm.worlds.rooms.classes import ALIKE, CLASSES
from spatialvlm.worlds.rooms.questions.kind import (
  KINDS,
  NEAR,
  OVERLAP,
  Candidates,
  Kind,
  Measures,
  Said,
  Told,
  bits,
  collected,
  metres,
)
from spatialvlm.worlds.wordings import COUNT

MOST = 6
# Classes that are counted: those whose name is theirs alone.
_COUNTED = [k for k, of in enumerate(CLASSES) if not of.alike]


def crowd(m: Measures) -> np.ndarray:
  """(B,): how full a picture is, in steps: more things go with more of one class."""
  return np.minimum(m.seen.sum(1) // 4, 4)


def find_count(m: Measures) -> Candidates:
  """Rows: scene, class. All of the class show clearly, or none does at all."""
  kind = m.of.kind
  is_class = kind[:, :, None] == np.array(_COUNTED)
  number = (is_class & m.seen[..., None]).sum(1)
  unsure = (is_class & (m.there & ~m.of.clear & (m.of.seen.covered > 0))[..., None]).any(1)
  valid = ~unsure & (number <= MOST)
  found = collected(valid, number, [(np.array(_COUNTED)[None], KINDS), (crowd(m)[:, None], 5)])
  found.rows[:, 1] = np.array(_COUNTED)[found.rows[:, 1]]
  return found


def say_count(told: Told) -> Said:
  of = CLASSES[told.roles[0]]
  n = told.answer
  there = f"{'is' if n == 1 else 'are'} {n or 'no'} {of.name if n == 1 else of.plural}"
  choices = tuple(str(a) for a in told.window)
  return Said(COUNT.format(x=of.plural), choices, f"There {there} in the image.", str(n))


def find_relation(m: Measures) -> Candidates:
  """Rows: scene, axis, first, second. Answer 0: left or above."""
  wins, clear = m.opinions("area", "middle")
  (edge,), edge_clear = m.opinions("edge")
  valid, answers = [], []
  for axis in (0, 1):
    middle, low, high = m.middle[..., axis], m.low[..., axis], m.high[..., axis]
    difference = middle[:, :, None] - middle[:, None]
    shared = np.minimum(high[:, :, None], high[:, None]) - np.maximum(low[:, :, None], low[:, None])
    smaller = np.minimum(m.extent[..., axis][:, :, None], m.extent[..., axis][:, None])
    ok = m.pairs & clear & (np.abs(difference) >= m.dial.offset) & (shared <= OVERLAP * smaller)
    valid.append(ok & (edge_clear | (axis == 1)))
    answers.append(difference > 0)
  # On above and below the lower edge is what is asked, not a rule.
  axis = np.arange(2)[None, :, None, None]
  digits = [(axis, 2), *((d[:, None], r) for d, r in m.pair_names()), (edge[:, None] & (axis == 0), 2)]
  digits += [(w[:, None], 2) for w in wins]
  found = collected(np.stack(valid, 1), np.stack(answers, 1), digits)
  return Candidates(found.key, found.answer, found.rows[:, [0, 2, 3, 1]])


def say_relation(told: Told) -> Said:
  axis = told.roles[2]
  text, choices = object_text("Relation", told.names, told.boxes or ("red",), axis, bool(told.boxes))
  word = AXES[axis][told.answer]
  side = {"left": "to the left of", "right": "to the right of"}.get(word, word)
  return Said(text, tuple(choices), f"The {told.names[0]} is {side} the {told.names[1]}.", word)


def find_depth(m: Measures) -> Candidates:
  """Answer 0: the first is nearer, by depth, by distance, and by what shows of it."""
  wins, clear = m.opinions("edge", "area", "middle")
  z, least = m.of.camera[..., 2], math.log(m.dial.depth)
  second = z[:, :, None] > z[:, None]
  valid = m.pairs & clear
  for value in (z, m.range):
    log = np.log(np.maximum(value, 1e-3))
    difference = log[:, :, None] - log[:, None]
    valid &= (np.abs(difference) >= least) & ((difference > 0) == second)
  near = m.of.seen.nearest
  valid &= (near[:, :, None] > near[:, None]) == second
  return collected(valid, second, [*m.pair_names(), *bits(wins)])


def say_depth(told: Told) -> Said:
  text, choices = object_text("Depth", told.names, told.boxes)
  depths = [told.measured.camera[told.scene, o, 2] for o in told.roles[:2]]
  first, second = (f"the {n} is about {metres(d)} away" for n, d in zip(told.names, depths, strict=True))
  return Said(text, tuple(choices), f"{first[0].upper()}{first[1:]}, {second}.", choices[told.answer])


def gaps(m: Measures) -> np.ndarray:
  """(B, N, N) metres between the boxes around things, along the world's axes."""
  c, s = np.abs(np.cos(m.of.yaw)), np.abs(np.sin(m.of.yaw))
  d, w, h = np.moveaxis(m.of.extent, -1, 0) / 2
  half = np.stack([c * d + s * w, s * d + c * w, h], -1)
  apart = np.abs(m.of.center[:, :, None] - m.of.center[:, None]) - half[:, :, None] - half[:, None]
  return np.linalg.norm(np.maximum(apart, 0), axis=-1)


def find_distance(m: Measures) -> Candidates:
  """Roles: reference, first, second. Answer 0: the first is nearer, between middles and between sides."""
  N = m.there.shape[1]
  wins, clear = m.opinions("edge", "area")
  pair = m.pairs & clear
  eye = np.eye(N)
  space = np.linalg.norm(m.of.center[:, :, None] - m.of.center[:, None], axis=-1) + eye
  flat = np.linalg.norm(m.middle[:, :, None] - m.middle[:, None], axis=-1) + eye
  side = gaps(m)
  space = np.maximum(space, 1e-6)
  first, second = space[..., None], space[:, :, None]
  answer = first > second
  ratio = np.abs(np.log(first) - np.log(second)) >= math.log(m.dial.distance)
  seen = np.log(np.maximum(flat, 1e-6))
  seen = seen[..., None] - seen[:, :, None]
  valid = pair[:, None] & m.pairs[..., None] & m.pairs[:, :, None] & ratio
  valid &= (np.abs(first - second) >= m.dial.distance_gap) & (np.abs(seen) >= math.log(NEAR))
  valid &= (side[..., None] > side[:, :, None]) == answer
  names = [(m.name[:, :, None, None], 2 * KINDS), *((d[:, None], r) for d, r in m.pair_names())]
  return collected(valid, answer, [*names, (seen < 0, 2), *((w[:, None], 2) for w in wins)])


def say_distance(told: Told) -> Said:
  text, choices = object_text("Distance", told.names, told.boxes)
  center = told.measured.center[told.scene]
  r, a, b = told.roles[:3]
  first, second = (metres(np.linalg.norm(center[r] - center[o])) for o in (a, b))
  reason = (
    f"The {told.names[1]} is about {first} from the {told.names[0]}, the {told.names[2]} about {second}."
  )
  return Said(text, tuple(choices), reason, choices[told.answer])


COUNT_KIND = Kind("Count", "2D", (4, 4, 6, 4, 5), find_count, say_count, things=0, shuffled=True)
RELATION = Kind("Relation", "2D", (2,), find_relation, say_relation, boxes=("red",), coin=True)
DEPTH = Kind("Depth", "3D", (2,), find_depth, say_depth, boxes=("red", "blue"))
DISTANCE = Kind("Distance", "3D", (2,), find_distance, say_distance, things=3, boxes=("red", "blue", "green"))
assert len(ALIKE) == KINDS
