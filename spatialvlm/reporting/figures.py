"""Drawings for the report as SVG text. Colours are classes of the stylesheet and follow light and dark.

Widths in per cent let a drawing follow the screen; every drawing says in words what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spatialvlm.reporting.tables import Cell, escape, percent, signed


def strip(
  score: Mapping[str, float],
  shortcut: tuple[str, float] | None = None,
  *,
  low: float = 0.0,
  high: float = 1.0,
) -> str:
  """A score from `low` to `high`: interval, point, guessing as a dashed line, the best shortcut."""
  at = _scale(low, high)
  words = f"{percent(score['score'])} %, 95 % interval {percent(score['low'])} to {percent(score['high'])}"
  parts = [
    "<line class='axis' x1='0' x2='100%' y1='46' y2='46'/>",
    *(_tick(at(t), percent(t).removesuffix(".0"), t, low, high) for t in _ticks(low, high)),
    f"<line class='guess' x1='{at(score['guessing'])}' x2='{at(score['guessing'])}' y1='2' y2='52'/>",
  ]
  if shortcut:
    words += f"; best shortcut, {shortcut[0]}, {percent(shortcut[1])} %"
    parts.append(f"<line class='shortcut' x1='{at(shortcut[1])}' x2='{at(shortcut[1])}' y1='14' y2='46'/>")
  parts += [
    f"<line class='ci' x1='{at(score['low'])}' x2='{at(score['high'])}' y1='28' y2='28'/>",
    f"<circle class='dot' cx='{at(score['score'])}' cy='28' r='7'/>",
  ]
  words += f"; guessing {percent(score['guessing'])} %"
  return _svg("strip", 70, words, parts)


def bar(score: Mapping[str, float], *, low: float = 0.0, high: float = 1.0) -> str:
  """A score, its interval and guessing in one line, as high as a row of a table."""
  at = _scale(low, high)
  words = (
    f"{percent(score['score'])} %, 95 % interval {percent(score['low'])} to {percent(score['high'])}, "
    f"guessing {percent(score['guessing'])} %"
  )
  guess = at(score["guessing"])
  parts = [
    "<line class='axis' x1='0' x2='100%' y1='11' y2='11'/>",
    f"<line class='guess' x1='{guess}' x2='{guess}' y1='1' y2='21'/>",
    f"<line class='ci' x1='{at(score['low'])}' x2='{at(score['high'])}' y1='11' y2='11'/>",
    f"<circle class='dot' cx='{at(score['score'])}' cy='11' r='4.5'/>",
  ]
  return _svg("bar", 22, words, parts)


def change(found: Mapping[str, float], reach: float) -> str:
  """A difference and its interval around zero, on a scale from -`reach` to `reach`."""
  at = _scale(-reach, reach)
  words = f"{signed(found['difference'])}, 95 % interval {signed(found['low'])} to {signed(found['high'])}"
  kind = "up" if found["low"] > 0 else "down" if found["high"] < 0 else "even"
  parts = [
    "<line class='axis' x1='0' x2='100%' y1='11' y2='11'/>",
    "<line class='zero' x1='50%' x2='50%' y1='0' y2='22'/>",
    f"<line class='ci {kind}' x1='{at(found['low'])}' x2='{at(found['high'])}' y1='11' y2='11'/>",
    f"<circle class='dot {kind}' cx='{at(found['difference'])}' cy='11' r='4.5'/>",
  ]
  return _svg("bar", 22, words, parts)


def ends(low: float, high: float) -> Cell:
  """The head of a column of bars: the ends of their scale."""
  left, right = f"{100 * low:.0f} %", f"{100 * high:.0f} %"
  return Cell(
    f"{left} to {right}", figure=f"<span class='ends'><span>{left}</span><span>{right}</span></span>"
  )


def reliability(found: Mapping[str, Any]) -> str:
  """`calibration.calibration`: the share that is right over the probability of the chosen option.

  The area of a point follows the number of its questions; points on the diagonal are what a model says that
  knows how much it knows.
  """
  side, margin = 240, 34
  top = max(b["n"] for b in found["bins"])

  def at(x: float, y: float) -> tuple[float, float]:
    return margin + x * side, 8 + (1 - y) * side

  parts = []
  for t in (0, 0.25, 0.5, 0.75, 1):
    x, y = at(t, t)
    parts.append(f"<line class='grid' x1='{margin}' x2='{margin + side}' y1='{y:.1f}' y2='{y:.1f}'/>")
    parts.append(f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='8' y2='{8 + side}'/>")
    parts.append(f"<text x='{margin - 6}' y='{y + 4:.1f}' text-anchor='end'>{100 * t:.0f}</text>")
    parts.append(f"<text x='{x:.1f}' y='{side + 24}' text-anchor='middle'>{100 * t:.0f}</text>")
  (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
  parts.append(f"<line class='diagonal' x1='{x0}' y1='{y0}' x2='{x1}' y2='{y1}'/>")
  points = [(*at(b["confidence"], b["correct"]), b) for b in found["bins"]]
  line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
  parts.append(f"<polyline class='curve' points='{line}'/>")
  for x, y, b in points:
    title = f"said {percent(b['confidence'])} %, right {percent(b['correct'])} % of {b['n']}"
    radius = 3 + 9 * (b["n"] / top) ** 0.5
    parts.append(
      f"<circle class='dot' cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}'><title>{title}</title></circle>"
    )
  middle = margin + side / 2
  parts.append(f"<text x='{middle}' y='{side + 40}' text-anchor='middle'>probability of the choice, %</text>")
  parts.append(
    f"<text transform='translate(9 {8 + side / 2}) rotate(-90)' text-anchor='middle'>right, %</text>"
  )
  words = f"Reliability diagram: expected calibration error {percent(found['ece'])} points. " + "; ".join(
    f"said {percent(b['confidence'])}, right {percent(b['correct'])} of {b['n']}" for b in found["bins"]
  )
  return _svg("reliability", None, words, parts, view=f"0 0 {side + margin + 10} {side + 48}")


def reach(scores: Sequence[Mapping[str, float]]) -> tuple[float, float]:
  """A scale on which all of these scores, intervals and guessing have room, to the next ten per cent."""
  values = [v for s in scores for v in (s["low"], s["high"], s["score"], s["guessing"])]
  low = max(0, int((min(values) - 0.02) * 10)) / 10
  high = min(10, -int(-(max(values) + 0.02) * 10 // 1)) / 10
  return low, max(high, low + 0.1)


def _ticks(low: float, high: float) -> list[float]:
  step = 0.1 if high - low <= 0.7 else 0.2
  return [t for k in range(11) if low - 1e-9 <= (t := round(k * step, 1)) <= high + 1e-9]


def _tick(x: str, text: str, value: float, low: float, high: float) -> str:
  anchor = "start" if value <= low + 1e-9 else "end" if value >= high - 1e-9 else "middle"
  return (
    f"<line class='axis' x1='{x}' x2='{x}' y1='46' y2='51'/>"
    f"<text x='{x}' y='66' text-anchor='{anchor}'>{text}</text>"
  )


def _scale(low: float, high: float):
  return lambda value: f"{min(max(100 * (value - low) / (high - low), 0), 100):.2f}%"


def _svg(kind: str, height: int | None, words: str, parts: Sequence[str], view: str = "") -> str:
  size = f"width='100%' height='{height}'" if height else f"viewBox='{view}'"
  return f"<svg class='{kind}' {size} role='img' aria-label='{escape(words)}'>{''.join(parts)}</svg>"
