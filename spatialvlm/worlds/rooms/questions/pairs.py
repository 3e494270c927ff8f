"""Questions that set one thing against another: Size, Height, Occlusion, Reach."""

from __future__ import annotations

import math

import numpy as np

from spatialvlm.worlds.rooms.questions.kind import (
  Candidates,
  Kind,
  Measures,
  Said,
  Told,
  bits,
  collected,
  marked,
  metres,
)

SIZE = "Which object is taller in the real world, from its foot to its top, the {a} or the {b}?"
HEIGHT = "Which object is higher above the ground in the real world, the {a} or the {b}?"
OCCLUSION = "Which object is partly hidden behind the other one, the {a} or the {b}?"
REACH = "A robot's arm of {r:g} m is mounted at the camera. Which of the {a} and the {b} can it touch?"
ARMS = (0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.2, 4.0)
# A thing within this share of an arm's length of its end is not asked about.
_EITHER = 0.1


def _said(template: str, told: Told, **more: float) -> str:
  a, b = (marked(name, box) for name, box in zip(told.names, told.boxes, strict=True))
  return template.format(a=a, b=b, **more)


def _begun(sentence: str) -> str:
  return sentence[0].upper() + sentence[1:]


def _both(template: str, told: Told, values: np.ndarray, verb: str) -> Said:
  """A question whose options are the two things, and whose reason names a length of each."""
  first, second = (f"the {n} {verb.format(metres(v))}" for n, v in zip(told.names, values, strict=True))
  return Said(_said(template, told), told.names, _begun(f"{first}, {second}."), told.names[told.answer])


def find_size(m: Measures) -> Candidates:
  """Answer 0: the first is taller in metres. Rules: the taller box, the bigger box, the lower edge."""
  wins, clear = m.opinions("tall", "area", "edge")
  tall = np.log(m.of.extent[..., 2])
  difference = tall[:, :, None] - tall[:, None]
  valid = m.pairs & clear & (np.abs(difference) >= math.log(m.dial.size))
  return collected(valid, difference < 0, [*m.pair_names(), *bits(wins)])


def say_size(told: Told) -> Said:
  values = told.measured.extent[told.scene][list(told.roles[:2]), 2]
  return _both(SIZE, told, values, "is about {} tall")


def find_height(m: Measures) -> Candidates:
  """Answer 0: the middle of the first is higher in metres. Rules: higher in the picture, bigger, centre."""
  wins, clear = m.opinions("upper", "area", "middle")
  difference = m.of.center[..., 2][:, :, None] - m.of.center[..., 2][:, None]
  foot = m.of.foot[:, :, None] - m.of.foot[:, None]
  # Both the feet and the middles say so, or the feet are level.
  agree = (foot * difference >= 0) | (np.abs(foot) < 0.02)
  valid = m.pairs & clear & agree & (np.abs(difference) >= m.dial.height)
  return collected(valid, difference < 0, [*m.pair_names(), *bits(wins)])


def say_height(told: Told) -> Said:
  values = told.measured.center[told.scene][list(told.roles[:2]), 2]
  return _both(HEIGHT, told, values, "is about {} above the ground")


def find_occlusion(m: Measures) -> Candidates:
  """Answer 0: the first is hidden in part, by the second, which hides nothing else from view of it."""
  wins, clear = m.opinions("edge", "area")
  seen = m.of.seen
  large = m.nameable & (seen.visible >= 0.0012 * m.of.size**2)
  share = seen.hides / np.maximum(seen.covered, 1)[:, None]  # [a, b]: share of b that a hides
  behind = np.swapaxes(share, 1, 2)  # [a, b]: share of a that b hides
  some = (behind >= m.dial.hidden) & (share <= 0.005)
  valid = m.paired(large, 1.0) & clear & (some | np.swapaxes(some, 1, 2))
  return collected(valid, ~some, [*m.pair_names(), *bits(wins)])


def say_occlusion(told: Told) -> Said:
  hidden, front = told.names[told.answer], told.names[1 - told.answer]
  reason = f"The {front} stands before a part of the {hidden}."
  return Said(_said(OCCLUSION, told), told.names, reason, hidden)


def find_reach(m: Measures) -> Candidates:
  """Roles: first, second, the arm. Answers: the first alone, the second alone, both, neither."""
  wins, clear = m.opinions("edge", "area")
  arms = np.array(ARMS)
  near = np.where(np.isfinite(m.of.seen.nearest), m.of.seen.nearest, 1e3)
  within = near[..., None] <= arms
  plain = np.abs(np.log(near[..., None] / arms)) >= _EITHER
  first, second = within[:, :, None], within[:, None]
  answer = np.where(first & second, 2, np.where(first | second, np.where(first, 0, 1), 3))
  valid = (m.pairs & clear)[..., None] & plain[:, :, None] & plain[:, None]
  digits = [*((d[..., None], r) for d, r in m.pair_names()), *((w[..., None], 2) for w in wins)]
  return collected(valid, answer, [*digits, (np.arange(len(arms)), len(arms))])


def say_reach(told: Told) -> Said:
  a, b = told.names
  arm = ARMS[told.roles[2]]
  near = told.measured.seen.nearest[told.scene]
  first, second = (
    f"the {n} begins about {metres(near[o])} away" for n, o in zip((a, b), told.roles, strict=False)
  )
  choices = (f"only the {a}", f"only the {b}", "both", "neither")
  return Said(_said(REACH, told, r=arm), choices, _begun(f"{first}, {second}."), choices[told.answer])


_BOXES = ("red", "blue")
SIZE_KIND = Kind("Size", "3D", (2,), find_size, say_size, boxes=_BOXES)
HEIGHT_KIND = Kind("Height", "3D", (2,), find_height, say_height, boxes=_BOXES)
OCCLUSION_KIND = Kind("Occlusion", "2D", (2,), find_occlusion, say_occlusion, boxes=_BOXES)
REACH_KIND = Kind("Reach", "3D", (4,), find_reach, say_reach, boxes=_BOXES, shuffled=True)
