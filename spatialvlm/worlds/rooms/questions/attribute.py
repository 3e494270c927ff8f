"""Attribute: how many things of a class have a colour, where others of the class have others."""

from __future__ import annotations

import numpy as np

from spatialvlm.worlds.rooms.classes import CLASSES
from spatialvlm.worlds.rooms.parts import COLORS
from spatialvlm.worlds.rooms.questions.kind import KINDS, Candidates, Kind, Measures, Said, Told, collected
from spatialvlm.worlds.wordings import COUNT

_MOST = 7
_PAINTED = [k for k, of in enumerate(CLASSES) if of.painted and not of.alike]


def find(m: Measures) -> Candidates:
  """Roles: the class. Any number of what is there may be painted so; how many there are tells nothing."""
  is_class = m.of.kind[:, :, None] == np.array(_PAINTED)
  number = (is_class & m.seen[..., None]).sum(1)
  unsure = (is_class & (~m.of.clear & (m.of.seen.covered > 0))[..., None]).any(1)
  answers = np.arange(_MOST + 1)
  valid = (~unsure & (number >= 3) & (number <= _MOST))[..., None] & (answers <= number[..., None])
  digits = [(np.array(_PAINTED)[None, :, None], KINDS), (number[..., None], _MOST + 1)]
  found = collected(valid, answers, digits)
  rows = np.stack([found.rows[:, 0], np.array(_PAINTED)[found.rows[:, 1]]], 1)
  return Candidates(found.key, found.answer, rows)


def painted(
  m: Measures, scene: int, roles: tuple[int, ...], answer: int, color: str, rng: np.random.Generator
) -> dict[int, int]:
  """So many of the class in the colour, drawn out of all of it; the others in others."""
  things = np.flatnonzero(m.seen[scene] & (m.of.kind[scene] == roles[0]))
  wanted = list(COLORS).index(color)
  others = [c for c in range(len(COLORS)) if c != wanted]
  chosen = set(rng.permutation(things)[:answer].tolist())
  return {int(t): wanted if t in chosen else others[int(rng.integers(len(others)))] for t in things}


def say(told: Told) -> Said:
  of, n = CLASSES[told.roles[0]], told.answer
  there = (told.measured.kind[told.scene] == told.roles[0]) & (told.measured.seen.visible[told.scene] > 0)
  reason = f"Of {int(there.sum())} {of.plural}, {n or 'none'} {'is' if n == 1 else 'are'} {told.color}."
  choices = tuple(str(a) for a in told.window)
  return Said(COUNT.format(x=f"{told.color} {of.plural}"), choices, reason, str(n))


ATTRIBUTE = Kind("Attribute", "2D", (4,), find, say, things=0, shuffled=True, painted=painted)
