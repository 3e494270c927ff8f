"""Facing: which way a thing that has a front looks, as the camera sees it."""

from __future__ import annotations

import numpy as np

from spatialvlm.worlds.rooms.classes import CLASSES
from spatialvlm.worlds.rooms.frames import facing
from spatialvlm.worlds.rooms.questions.kind import (
  KINDS,
  Candidates,
  Kind,
  Measures,
  Said,
  Told,
  collected,
  marked,
)

TEXT = "Seen from the camera, which way is the front of the {a} facing?"
WAYS = ("towards the camera", "to the right", "away from the camera", "to the left")
_FRONT = np.array([*(of.front for of in CLASSES), False])


def find(m: Measures) -> Candidates:
  """Role: the thing. Answers: WAYS. A rule could go by the third of the picture that it stands in."""
  turn = facing(m.of.yaw, m.of.center, m.of.position[:, None])
  way = np.round(turn / 90.0).astype(int) % 4
  off = np.abs(turn - 90.0 * np.round(turn / 90.0))
  valid = m.usable & _FRONT[m.of.kind] & (off <= m.dial.angle)
  third = np.minimum((3 * m.middle[..., 0]).astype(int), 2)
  return collected(valid, way, [(m.name, 2 * KINDS), (third, 3)])


def say(told: Told) -> Said:
  way = WAYS[told.answer]
  name = told.names[0]
  return Said(TEXT.format(a=marked(name, told.boxes[0])), WAYS, f"The front of the {name} points {way}.", way)


FACING = Kind("Facing", "3D", (4,), find, say, things=1, boxes=("red",), shuffled=True)
