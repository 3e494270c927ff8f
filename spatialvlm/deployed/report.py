"""What exported files cost: as tables, and as one picture.

`found`, as `costs.json` holds it: `title`, `machine`, `measured` (when), `rows`. A row holds `name`,
`runtime`, `bytes`; `scores` as in a `summary.json`, None where it was not asked; `changes` from the float
model on the same questions (`statistics.paired`), and `same`, the share of questions with the same answer,
both None of a float model; `speed` (`speed.measure`), None where it was not timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialvlm.reporting import tables
from spatialvlm.reporting.labels import label
from spatialvlm.reporting.tables import Cell, Table, interval, percent, signed

Found = Mapping[str, Any]
_MB = 1e6
_COLOURS = ("#55626f", "#0b6e99", "#c2410c", "#1d7a3e", "#7c5cbf", "#9a5b00", "#c2569a", "#3fb0c4", "#8a9a1f")


def accuracy(found: Found) -> Table:
  """Every file's scores, in all and by kind, and the change from the float model."""
  rows, names = [], _names(found)
  for row in found["rows"]:
    if row["scores"] is None:
      continue
    first, *kinds = (row["scores"][name] for name in names)
    cells = [row["name"], _megabytes(row["bytes"]), f"{percent(first['score'])} ({interval(first)})"]
    cells += [*_change(row["changes"] and row["changes"][names[0]]), percent(row["same"])]
    cells += [percent(score["score"]) for score in kinds]
    rows.append(cells)
  head = [
    "",
    "MB",
    _called(names[0]),
    "change",
    "95 % interval",
    "gained / lost",
    "p",
    "detectable",
    "same answers",
  ]
  head += [label(name) for name in names[1:]]
  guessing = _scored(found)[0]["scores"]
  said = ", ".join(f"{_called(name)} {percent(guessing[name]['guessing'])}" for name in names)
  note = (
    f"In per cent and points, of {guessing[names[0]]['n']} questions, each file within its own runtime;"
    f" guessing: {said}. Changes from the float model that is asked in the same layout, paired by question:"
    " bootstrap over images, exact McNemar test, and the true difference that would have been found in four"
    " runs of five. Marked: the interval excludes zero."
  )
  return tables.make("accuracy", found["title"], head, rows, note=note)


def cost(found: Found) -> Table:
  """Bytes, times and memory of every file."""
  rows = []
  for row in found["rows"]:
    if (speed := row["speed"]) is not None:
      times = [f"{s:.3f} ({low:.3f} – {high:.3f})" for s, low, high in [speed["first_token_s"]]]
      times += [f"{s:.1f} ({low:.1f} – {high:.1f})" for s, low, high in [speed["tokens_per_s"]]]
      memory = [_megabytes(speed[name]) for name in ("peak_bytes", "empty_bytes")]
      prompt = str(speed["prompt_tokens"])
      rows.append([row["name"], row["runtime"], _megabytes(row["bytes"]), prompt, *times, *memory])
  head = ["", "runtime", "MB", "prompt", "first token, s", "tokens/s", "peak, MB", "without a model, MB"]
  note = (
    f"{found['machine']}, one after the other, {found['measured']}. Median of {found['repeats']}"
    f" (least – most): from picture and text, a prompt of so many tokens, to the first token, and"
    f" {found['tokens']} tokens behind it. Peak: the most memory that the runtime's process held, of which"
    " the last column before a model was loaded."
  )
  return tables.make("cost", f"{found['title']}: what it takes", head, rows, note=note)


def plot(found: Found, path: Path) -> None:
  """Scores with intervals over bytes, and below them time, speed and memory, as PNG.

  Guessing is a red dashed line, the float model's score a grey one.
  """
  from matplotlib.figure import Figure

  names, scored = _names(found), _scored(found)
  timed = [row for row in found["rows"] if row["speed"] is not None]
  low = 0.8 + 0.24 * len(timed) if timed else 0.0
  figure = Figure(figsize=(2.3 * len(names) + 0.6, 3.1 + low), layout="constrained")
  upper, lower = figure.subfigures(2, height_ratios=(3.1, low)) if timed else (figure, None)
  colours = dict(zip([row["name"] for row in found["rows"]], _cycle(len(found["rows"])), strict=True))
  _draw_scores(upper, scored, names, colours)
  if lower is not None:
    _draw_costs(lower, timed, colours, found["machine"])
  figure.savefig(path, dpi=130)


def _draw_scores(
  figure: Any, rows: Sequence[Found], names: Sequence[str], colours: Mapping[str, str]
) -> None:
  panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
  sizes = [row["bytes"] / _MB for row in rows]
  for axes, name in zip(panels, names, strict=True):
    guessing = 100 * rows[0]["scores"][name]["guessing"]
    axes.axhline(guessing, color="#c1121f", lw=1, ls="--", label="guessing")
    floats = [row for row in rows if row["changes"] is None]
    if floats:
      axes.axhline(100 * floats[0]["scores"][name]["score"], color="#8b98a5", lw=1, label="float")
    for row, size in zip(rows, sizes, strict=True):
      score, colour = row["scores"][name], colours[row["name"]]
      axes.plot([size] * 2, [100 * score["low"], 100 * score["high"]], color=colour, lw=3, alpha=0.4)
      axes.plot(size, 100 * score["score"], "o", color=colour, ms=5, label=row["name"])
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.4, max(sizes) * 1.4)
    ticks = sorted({float(f"{size:.2g}") for size in (min(sizes), max(sizes))})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(_called(name), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#dfe4e8", lw=0.6)
  panels[0].set_ylabel("accuracy, %, 95 % interval", fontsize=8)
  figure.supxlabel("MB of files", fontsize=8)
  handles, labels = panels[0].get_legend_handles_labels()
  columns = min(len(labels), 10)
  figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)


def _draw_costs(figure: Any, rows: Sequence[Found], colours: Mapping[str, str], machine: str) -> None:
  figure.suptitle(f"measured on this machine: {machine}", fontsize=8)
  panels = figure.subplots(1, 3, sharey=True)
  values = (
    ("first token, s", lambda speed: speed["first_token_s"]),
    ("tokens/s", lambda speed: speed["tokens_per_s"]),
    ("peak of memory, MB", lambda speed: [speed["peak_bytes"] / _MB] * 3),
  )
  for axes, (title, value) in zip(panels, values, strict=True):
    for place, row in enumerate(rows):
      middle, low, high = value(row["speed"])
      axes.barh(place, middle, 0.6, color=colours[row["name"]], alpha=0.75)
      axes.plot([low, high], [place] * 2, color="#222222", lw=1)
      axes.text(high, place, f" {_shown(middle)}", va="center", fontsize=7)
    axes.set_title(title, fontsize=8)
    axes.margins(x=0.18)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=7, length=0)
  panels[0].set_yticks(range(len(rows)), [f"{row['name']} ({row['runtime']})" for row in rows])
  panels[0].invert_yaxis()


def _names(found: Found) -> list[str]:
  """The headline and the kinds of questions."""
  scores = _scored(found)[0]["scores"]
  headline = "official" if "official" in scores else "plain"
  return [headline, *(name for name in scores if name.startswith("task/"))]


def _scored(found: Found) -> list[Found]:
  return [row for row in found["rows"] if row["scores"] is not None]


def _called(name: str) -> str:
  return "all" if name == "plain" else label(name)


def _change(change: Mapping[str, float] | None) -> list[str | Cell]:
  if not change:
    return ["", "", "", "", ""]
  kind = "good" if change["low"] > 0 else "bad" if change["high"] < 0 else ""
  counts = f"{change['gained']} / {change['lost']}" if "gained" in change else ""
  return [
    Cell(signed(change["difference"]), kind),
    Cell(f"{signed(change['low'])} to {signed(change['high'])}", kind),
    counts,
    tables.p_value(change["p"]) if "p" in change else "",
    percent(change["detectable"]),
  ]


def _megabytes(count: int | None) -> str:
  return "" if count is None else f"{count / _MB:,.1f}" if count < 100 * _MB else f"{count / _MB:,.0f}"


def _shown(number: float) -> str:
  return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _cycle(count: int) -> list[str]:
  return [_COLOURS[place % len(_COLOURS)] for place in range(count)]
