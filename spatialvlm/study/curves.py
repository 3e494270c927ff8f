"""A study along an axis: scores over, say, the number of questions, on a logarithmic axis."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from spatialvlm.reporting.labels import label

Found = Mapping[str, Any]
COLORS = ("#0b6e99", "#c2410c", "#3f7d20", "#7b3fa0", "#8a6d00", "#5b6770", "#b5336b", "#111111")
MARKS = "osD^vPX*"


def lines(found: Found, axis: str, name: str) -> dict[str, list[dict[str, Any]]]:
  """By line, its points along the axis: `at`, `score`, `low`, `high` and `seeds`, the single runs' scores.

  A line is what cells of equal other coordinates make, and is called by their values; those that all lines
  share are not said.

  Args:
    name: of the score.
  """
  placed = {n: cell for n, cell in found["cells"].items() if axis in cell["at"] and "scores" in cell}
  others = lambda cell: {key: value for key, value in cell["at"].items() if key != axis}
  every = [others(cell) for cell in placed.values()]
  keys = list(dict.fromkeys(key for one in every for key in one))
  said = [key for key in keys if len({str(one.get(key)) for one in every}) > 1]
  made: dict[str, list[dict[str, Any]]] = {}
  for cell in placed.values():
    called = ", ".join(str(cell["at"][key]) for key in said if key in cell["at"]) or "trained"
    score = cell["scores"][name]
    point = {key: score[key] for key in ("score", "low", "high")}
    single = [run["scores"][name] for run in cell["runs"]]
    made.setdefault(called, []).append({"at": cell["at"][axis], **point, "seeds": single})
  return {called: sorted(points, key=lambda point: point["at"]) for called, points in made.items()}


def plot(found: Found, axis: str, path: pathlib.Path) -> None:
  """Writes the drawing as PNG."""
  drawn(found, axis).savefig(path, dpi=140)


def drawn(found: Found, axis: str) -> Any:
  """A Matplotlib figure: a panel for all questions and for each of several kinds, with intervals.

  The mean of the seeds with its interval, a small dot for each of several seeds; dashed what guessing gives,
  dotted what the untrained model does.
  """
  from matplotlib.figure import Figure
  from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

  base = found["untrained"][next(iter(found["untrained"]))]["scores"]
  kinds = [name for name in base if name.startswith("task/")]
  names = [found["headline"], *kinds] if len(kinds) > 1 else kinds or [found["headline"]]
  ticks = sorted({point["at"] for points in lines(found, axis, names[0]).values() for point in points})
  figure = Figure(figsize=(1.0 + 3.1 * len(names), 3.5), layout="constrained")
  panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
  for axes, name in zip(panels, names, strict=True):
    axes.axhline(100 * base[name]["guessing"], color="#c1121f", lw=1, ls="--", label="guessing")
    axes.axhline(100 * base[name]["score"], color="#55626f", lw=1, ls=":", label="untrained")
    made = lines(found, axis, name)
    for number, (called, points) in enumerate(made.items()):
      # A little apart, so that intervals at the same place can be told.
      shift = 1.045 ** (number - (len(made) - 1) / 2)
      at = [point["at"] * shift for point in points]
      middle = [100 * point["score"] for point in points]
      ends = [
        [100 * (p["score"] - p["low"]) for p in points],
        [100 * (p["high"] - p["score"]) for p in points],
      ]
      style = {"color": COLORS[number % len(COLORS)], "marker": MARKS[number % len(MARKS)]}
      axes.errorbar(at, middle, yerr=ends, label=called, ms=4.5, lw=1.6, elinewidth=1, capsize=2, **style)
      for place, point in zip(at, points, strict=True):
        if len(point["seeds"]) > 1:
          single = [100 * score for score in point["seeds"]]
          axes.plot([place] * len(single), single, ".", color=style["color"], ms=3, alpha=0.6)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_title("all" if name == "plain" else label(name), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(color="#dfe4e8", lw=0.6)
  panels[0].set_ylabel("per cent right, with 95 % interval", fontsize=8)
  figure.supxlabel(axis, fontsize=9)
  figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
  return figure
