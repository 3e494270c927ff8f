"""Curves over layers as SVG text, in the stylesheet's colours; every drawing says in words what it shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spatialvlm.reporting.tables import escape

_WIDTH, _HEIGHT, _LEFT, _BELOW = 340, 190, 52, 26
# Colours that the style names; further curves are drawn like the last.
COLOURS = 6


def by_layer(
  values: np.ndarray, names: Sequence[str], title: str, mark: int | None = None, strong: int | None = None
) -> str:
  """Log-odds (L + 1, K) of K options over layers 0 ... L.

  Args:
    mark: a layer that is marked by a line.
    strong: an option that is drawn thicker.
  """
  reach = float(np.clip(np.abs(values).max(), 1, 30))
  at = _scale(0, len(values) - 1, -reach, reach)
  parts = _frame(
    at, len(values) - 1, [(-reach, f"{-reach:.0f}"), (0, "0"), (reach, f"{reach:.0f}")], "log-odds"
  )
  if mark is not None:
    x = at(mark, 0)[0]
    parts.append(f"<line class='mark' x1='{x:.1f}' x2='{x:.1f}' y1='6' y2='{_HEIGHT - _BELOW}'/>")
  for k, name in enumerate(names):
    points = " ".join("{:.1f},{:.1f}".format(*at(layer, v)) for layer, v in enumerate(values[:, k]))
    thick = " strong" if k == strong else ""
    parts.append(f"<polyline class='line c{min(k, COLOURS - 1)}{thick}' points='{points}'/>")
    parts += [
      _dot(at(layer, v), k, f"{name}, layer {layer}: {v:+.2f}") for layer, v in enumerate(values[:, k])
    ]
  ends = "; ".join(f"{name}: {values[-1, k]:+.1f}" for k, name in enumerate(names))
  legend = "".join(
    f"<span class='chip'><i class='swatch c{min(k, COLOURS - 1)}'></i>{escape(name)}</span>"
    for k, name in enumerate(names)
  )
  return f"{_svg(f'{title}, log-odds by layer. At the end: {ends}.', parts)}<p class='chips'>{legend}</p>"


def band(values: np.ndarray, layers: np.ndarray, title: str) -> str:
  """Shares (l, heads) over layers: their mean as a line, in a band from the least to the most."""
  top = max(float(values.max()), 0.05)
  at = _scale(0, int(layers[-1]), 0, top)
  parts = _frame(
    at, int(layers[-1]), [(0, "0"), (top / 2, f"{50 * top:.0f} %"), (top, f"{100 * top:.0f} %")], "share"
  )
  low, high, mean = values.min(axis=1), values.max(axis=1), values.mean(axis=1)
  line = lambda ys, order=1: [at(int(layer), y) for layer, y in list(zip(layers, ys, strict=True))[::order]]
  text = lambda points: " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
  parts.append(f"<polygon class='band' points='{text(line(high) + line(low, -1))}'/>")
  parts.append(f"<polyline class='line c0 strong' points='{text(line(mean))}'/>")
  for layer, v, a, b in zip(layers, mean, low, high, strict=True):
    said = f"layer {layer}: {100 * v:.1f} %, heads {100 * a:.1f} to {100 * b:.1f} %"
    parts.append(_dot(at(int(layer), v), 0, said))
  return _svg(f"{title}, from {100 * mean[0]:.0f} to {100 * mean[-1]:.0f} %.", parts)


def _scale(first: float, last: float, low: float, high: float):
  """Places on the drawing of (layer, value)."""

  def at(layer: float, value: float) -> tuple[float, float]:
    x = _LEFT + (_WIDTH - _LEFT - 8) * (layer - first) / max(last - first, 1)
    share = (np.clip(value, low, high) - low) / (high - low)
    return x, 6 + (_HEIGHT - _BELOW - 6) * (1 - float(share))

  return at


def _frame(at, last: int, ticks: Sequence[tuple[float, str]], label: str) -> list[str]:
  parts = []
  for value, text in ticks:
    _, y = at(0, value)
    parts.append(f"<line class='grid' x1='{_LEFT}' x2='{_WIDTH - 8}' y1='{y:.1f}' y2='{y:.1f}'/>")
    parts.append(f"<text x='{_LEFT - 5}' y='{y + 4:.1f}' text-anchor='end'>{escape(text)}</text>")
  for layer in sorted({0, last // 2, last}):
    x, _ = at(layer, ticks[0][0])
    parts.append(f"<text x='{x:.1f}' y='{_HEIGHT - 10}' text-anchor='middle'>{layer}</text>")
  parts.append(f"<text x='{_WIDTH - 8}' y='{_HEIGHT}' text-anchor='end'>layer</text>")
  parts.append(
    f"<text transform='translate(8 {(_HEIGHT - _BELOW) / 2}) rotate(-90)' text-anchor='middle'>{label}</text>"
  )
  return parts


def _dot(point: tuple[float, float], colour: int, said: str) -> str:
  x, y = point
  kind = f"c{min(colour, COLOURS - 1)}"
  return (
    f"<circle class='point {kind}' cx='{x:.1f}' cy='{y:.1f}' r='3'><title>{escape(said)}</title></circle>"
  )


def _svg(words: str, parts: Sequence[str]) -> str:
  inner = "".join(parts)
  size = f"viewBox='0 0 {_WIDTH} {_HEIGHT + 2}'"
  return f"<svg class='layers' {size} role='img' aria-label='{escape(words)}'>{inner}</svg>"
