"""Difficulty as one number from 0 to 1, and all that hangs on it."""

from __future__ import annotations

import dataclasses

from spatialvlm.types import UserError

MAX_THINGS = 16


@dataclasses.dataclass(frozen=True)
class Dial:
  """What a difficulty means. Lengths in the picture are shares of its side.

  Attributes:
    things: fewest and most things that are placed.
    spread: least distance of two things in the picture, as share of their radii there: small is cluttered.
    shown: least share of a thing that shows, so that it may be asked about.
    depth: least ratio of two depths, of the distances from the camera as well.
    distance, distance_gap: least ratio, and difference in metres, of two distances.
    size: least ratio of two sizes in metres.
    height: least difference of two heights in metres.
    offset: least distance of box middles along the axis that Relation asks about.
    angle: most degrees by which a facing may be off its name.
    ladder: ratio of neighbouring numbers among the options of a distance in metres.
    hidden: least share of a thing that another one hides, where that is asked.
  """

  things: tuple[int, int]
  spread: float
  shown: float
  depth: float
  distance: float
  distance_gap: float
  size: float
  height: float
  offset: float
  angle: float
  ladder: int
  hidden: float


def dial(difficulty: float) -> Dial:
  """Raises UserError where the difficulty is outside 0 .. 1."""
  if not 0 <= difficulty <= 1:
    raise UserError(f"rooms: difficulty {difficulty} is outside 0 .. 1; 0 is easy, 1 is hard")
  between = lambda easy, hard: easy + (hard - easy) * difficulty
  most = round(between(8, MAX_THINGS))
  return Dial(
    things=(round(between(5, 11)), most),
    spread=between(0.75, 0.35),
    shown=between(0.75, 0.45),
    depth=between(1.4, 1.08),
    distance=between(1.5, 1.12),
    distance_gap=between(0.4, 0.12),
    size=between(1.6, 1.15),
    height=between(0.35, 0.10),
    offset=between(0.12, 0.06),
    angle=between(22.0, 34.0),
    ladder=3 if difficulty < 0.5 else 2,
    hidden=between(0.25, 0.10),
  )
