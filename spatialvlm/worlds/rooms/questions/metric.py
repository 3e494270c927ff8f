"""Metric: how many metres something is from the camera, or from another thing."""

from __future__ import annotations

import math

import numpy as np

from spatialvlm.worlds.rooms.questions.kind import (
  KINDS,
  Candidates,
  Kind,
  Measures,
  Said,
  Told,
  collected,
  marked,
  metres,
)

FROM_CAMERA = "How far from the camera is the {a}, in metres?"
BETWEEN = "How far apart are the {a} and the {b} in the real world, between their middles, in metres?"
# Distances are put into cells, each so many times the one before; the options are cells some steps apart.
STEP, LEAST, CELLS = 1.15, 0.4, 36
# The part of a cell, around its middle, in which a distance may lie.
_WITHIN = 0.35


def middle_of(cell: int) -> float:
  """Metres of the middle of a cell."""
  return LEAST * STEP**cell


def find(m: Measures) -> Candidates:
  """Roles: the first thing, the second or the first again, which means the camera. Answers: cells."""
  space = np.linalg.norm(m.of.center[:, :, None] - m.of.center[:, None], axis=-1)
  N = space.shape[1]
  itself = np.eye(N, dtype=bool)
  space = np.where(itself, m.range[:, :, None], space)
  cell = np.log(np.maximum(space, 1e-3) / LEAST) / math.log(STEP)
  near = np.round(cell).astype(int)
  valid = (m.pairs | (itself & m.usable[:, :, None])) & (np.abs(cell - near) <= _WITHIN)
  valid &= (near >= 0) & (near < CELLS)
  second = np.where(itself, 2 * KINDS, m.name[:, None])
  return collected(valid, near, [(m.name[:, :, None], 2 * KINDS), (second, 2 * KINDS + 1)])


def say(told: Told) -> Said:
  first, second = told.roles[:2]
  a = marked(told.names[0], told.boxes[0])
  choices = tuple(metres(middle_of(cell)) for cell in told.window)
  right = metres(middle_of(told.answer))
  if first == second:
    depth = metres(told.measured.camera[told.scene, first, 2])
    reason = f"The {told.names[0]} is about {right} away, {depth} of it straight ahead."
    return Said(FROM_CAMERA.format(a=a), choices, reason, f"about {right}")
  b = marked(told.names[1], told.boxes[1])
  away = [metres(np.linalg.norm(told.measured.camera[told.scene, o])) for o in (first, second)]
  reason = f"The {told.names[0]} is about {away[0]} from the camera and the {told.names[1]} {away[1]}."
  return Said(BETWEEN.format(a=a, b=b), choices, reason, f"about {right}")


METRIC = Kind(
  "Metric", "3D", (4,), find, say, boxes=("red", "blue"), shuffled=True, stride=lambda of: of.dial.ladder
)
