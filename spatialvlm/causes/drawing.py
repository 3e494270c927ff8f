"""All that was found as one drawing: intervals as bars, layers and heads as heat maps around zero."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm import workdir
from spatialvlm.causes.greyed import SHOWN

Found = Mapping[str, Any]
_COLOURS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7c3aed", "#8b98a5")
_WIDTH = 12.0


def write(path: pathlib.Path, results: Found) -> None:
  """Draws the parts that there are, one below the other.

  Raises:
    UserError: the disk is full.
  """
  import matplotlib.figure

  parts = [(DRAWN[part], found) for part, found in results.items() if part in DRAWN]
  heights = [height(found) for (height, _), found in parts]
  figure = matplotlib.figure.Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
  below = np.atleast_1d(figure.subfigures(len(parts), height_ratios=heights))
  for ((_, draw), found), place in zip(parts, below, strict=True):
    draw(place, found)
  buffer = io.BytesIO()
  figure.savefig(buffer, dpi=110, format="png")
  workdir.write_bytes(path, buffer.getvalue())


def _points(axes: Any, rows: Sequence[tuple[str, Mapping[str, Any], str]], middle: float | None) -> None:
  """A point and its interval for each row (label, score, colour)."""
  if middle is not None:
    axes.axvline(middle, color="#55626f", lw=1, ls="--")
  for place, (_, score, colour) in enumerate(rows):
    if score["value"] is not None:
      axes.plot([score["low"], score["high"]], [place, place], color=colour, lw=3, alpha=0.45)
      axes.plot(score["value"], place, "o", color=colour, ms=4)
  axes.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=7)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.tick_params(axis="x", labelsize=7)
  axes.grid(axis="x", lw=0.4)


def _models(found: Found) -> list[str]:
  return list(next(iter(found.values())))


def _height_of_regions(found: Found) -> float:
  return 1.2 + 0.2 * len(found) * len(_models(found)) + 1.8


def _regions(figure: Any, found: Found) -> None:
  colours = dict(zip(_models(found), _COLOURS, strict=False))
  upper, lower = figure.subfigures(2, height_ratios=(1, 0.8))
  panels = upper.subplots(1, 3, sharey=True)
  titles = (
    "pointing score: the named object over another",
    "over its own mask elsewhere",
    "lower part over upper",
  )
  for axes, key, title in zip(panels, ("pointing", "pointing_moved", "lower_more"), titles, strict=True):
    rows = [
      (f"{task}, {name}", row.get(key, {"value": None}), colours[name])
      for task, models in found.items()
      for name, row in models.items()
    ]
    _points(axes, rows, 0.5)
    axes.set_title(title, fontsize=8)
  for axes, (task, models) in zip(np.atleast_1d(lower.subplots(1, len(found))), found.items(), strict=True):
    width = 0.8 / len(models)
    for place, (name, row) in enumerate(models.items()):
      scores = [row.get(f"size/{kind}", {"value": None, "low": None, "high": None}) for kind in SHOWN]
      number = lambda key, scores=scores: np.array(
        [s[key] if s["value"] is not None else np.nan for s in scores], float
      )
      at = np.arange(len(SHOWN)) + width * (place - (len(models) - 1) / 2)
      value = number("value")
      ends = np.abs(np.stack([value - number("low"), number("high") - value]))
      axes.bar(at, value, width, color=colours[name], yerr=ends, error_kw={"lw": 0.8}, label=name)
    axes.set_xticks(range(len(SHOWN)), SHOWN, fontsize=7, rotation=45)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(f"{task}: change of log-odds, greyed", fontsize=8)
  axes.legend(fontsize=6, frameon=False)


def _edges(figure: Any, found: Found) -> None:
  weights, scores = figure.subplots(1, 2, width_ratios=(1, 1))
  colours = dict(zip(found, _COLOURS, strict=False))
  of = lambda key: [
    (f"{name}: {cue}", score, colours[name]) for name, row in found.items() for cue, score in row[key].items()
  ]
  _points(weights, of("weights"), 0.0)
  weights.set_title("what answers about depth follow: log-odds for one deviation of a cue", fontsize=8)
  _points(scores, of("scores"), 0.5)
  scores.set_title("right answers about depth", fontsize=8)


def _maps(figure: Any, found: Found) -> None:
  panels = figure.subplots(1, 3, sharey=True)
  colours = dict(zip(_models(found), _COLOURS, strict=False))
  for axes, key in zip(panels, ("points", "deletion", "insertion"), strict=True):
    rows = [
      (f"{task}, {name}, {kind}", scores[key], colours[name])
      for task, models in found.items()
      for name, row in models.items()
      for kind, scores in row.items()
      if kind != "cells"
    ]
    _points(axes, rows, None)
    axes.set_title({"points": "pointing game"}.get(key, f"{key}: area under the curve"), fontsize=8)


def _heat(axes: Any, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], reach: float) -> Any:
  image = axes.imshow(values, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
  axes.set_yticks(range(len(rows)), rows, fontsize=7)
  axes.set_xticks(range(len(columns)), columns, fontsize=7)
  if values.size <= 64:
    for (row, column), value in np.ndenumerate(values):
      if np.isfinite(value):
        light = "white" if abs(value) > 0.6 * reach else "black"
        axes.text(
          column, row, f"{round(value, 2) + 0.0:.2f}", ha="center", va="center", fontsize=6, color=light
        )
  return image


def _values(scores: Sequence[Mapping[str, Any]]) -> list[float]:
  return [np.nan if score["value"] is None else score["value"] for score in scores]


def _layers(figure: Any, found: Found) -> None:
  tasks, names = list(found), _models(found)
  upper, lower = figure.subfigures(2)
  for part, kind, title in ((upper, "cut", "attention cut"), (lower, "patched", "share that comes back")):
    panels = part.subplots(len(names), len(tasks), squeeze=False)
    for (r, name), (c, task) in ((a, b) for a in enumerate(names) for b in enumerate(tasks)):
      tables = {model: row[kind] for model, row in found[task].items()}
      reach = 1.0 if kind == "patched" else _reach(s for t in tables.values() for s in t.values())
      values = np.array([_values(scores) for scores in tables[name].values()], float)
      count, axes = values.shape[1], panels[r, c]
      columns = [*map(str, range(1, count)), "all"] if kind == "cut" else list(map(str, range(count)))
      _heat(axes, values, list(tables[name]) if c == 0 else [""] * len(values), columns, reach)
      axes.set_title(f"{title}: {task}, {name}", fontsize=8)
      axes.set_xlabel("block" if kind == "cut" else "layer", fontsize=7)
      if not np.isfinite(values).any():
        axes.text(
          0.5, 0.5, "both pictures are answered alike", transform=axes.transAxes, ha="center", fontsize=8
        )


def _reach(rows: Iterable[Sequence[Mapping[str, Any]]]) -> float:
  """The largest of all values, so that what stands side by side has one scale."""
  return max(float(np.nanmax(np.abs([_values(row) for row in rows]))), 1e-6)


def _heads(figure: Any, found: Found) -> None:
  tasks, names = list(found), _models(found)
  panels = figure.subplots(len(names), len(tasks), squeeze=False)
  for (r, name), (c, task) in ((a, b) for a in enumerate(names) for b in enumerate(tasks)):
    row = found[task][name]
    values = np.array([_values(scores) for scores in row["change"]], float)
    reach = _reach(scores for model in found[task].values() for scores in model["change"])
    rows = [f"block {block}" for block in row["blocks"]] if c == 0 else [""] * len(values)
    _heat(panels[r, c], values, rows, [f"{i + 1}" for i in range(values.shape[1])], reach)
    panels[r, c].set_title(f"{task}, {name}: heads out (r {row['rank_correlation']:.2f})", fontsize=8)


def _probes(figure: Any, found: Found) -> None:
  panels = figure.subplots(1, 5)
  colours = dict(zip(found, _COLOURS, strict=False))
  controls = ("guessing", "place alone", "raw pixels")
  shown = (
    ("rmse", "depth, error, m"),
    ("place", "place, error"),
    ("relation", "relation"),
    ("nearer", "nearer"),
  )
  for axes, (probe, title) in zip(panels, (*shown, ("count", "number, error")), strict=True):
    for name, row in found.items():
      layers = [layer for layer in row["features"] if layer not in controls]
      scores = [row["features"][layer][probe] for layer in layers]
      axes.fill_between(
        range(len(layers)),
        [s["low"] for s in scores],
        [s["high"] for s in scores],
        color=colours[name],
        alpha=0.2,
      )
      axes.plot(_values(scores), color=colours[name], lw=1.5, marker="o", ms=3, label=name)
    row = next(iter(found.values()))["features"]
    for control, style in zip(controls, (":", "--", "-."), strict=True):
      axes.axhline(row[control][probe]["value"], color="#55626f", lw=1, ls=style, label=control)
    axes.set_xticks(range(len(layers)), layers, fontsize=6, rotation=90)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(title, fontsize=8)
  axes.legend(fontsize=6, frameon=False)


# By part: how high its drawing is, in inches, and what draws it.
DRAWN: dict[str, tuple[Callable[[Found], float], Callable[[Any, Found], None]]] = {
  "regions": (_height_of_regions, _regions),
  "edges": (lambda found: 0.8 + 0.16 * 6 * len(found), _edges),
  "maps": (lambda found: 0.8 + 0.15 * 5 * len(found) * len(_models(found)), _maps),
  "layers": (lambda found: 3.6 * len(_models(found)), _layers),
  "heads": (lambda found: 0.3 + 1.5 * len(_models(found)), _heads),
  "probes": (lambda found: 3.0, _probes),
}
