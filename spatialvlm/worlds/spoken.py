"""Distances in words: how far ahead a thing is, asked openly and answered in metres.

"Ahead" is along the camera's optical axis, as questions of depth compare (`facts.said`), not along the line
of sight; metres are rounded to one decimal.
"""

from __future__ import annotations

PROMPT = "How far ahead is the {}? Answer in meters."


def metres(depth: float) -> str:
  """A depth as it is answered, "2.4 m"."""
  return f"{depth:.1f} m"


def others(answer: str) -> list[str]:
  """Depths that are plainly wrong, each a quarter and more off, the nearest ones first."""
  right = float(answer.removesuffix(" m"))
  return [metres(right * factor) for factor in (1.3, 0.75, 1.6, 0.6, 2.0, 0.5)]
