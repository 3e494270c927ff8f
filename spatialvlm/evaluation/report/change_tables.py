"""What changed between two runs on the same questions (`statistics.paired`), as tables and as drawings.

`changes[name]` holds before, after, difference, low and high (its 95 % interval), n and what is said there,
by the name of the score; shares from 0 to 1, which tables show in per cent.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from spatialvlm.reporting import figures, tables
from spatialvlm.reporting.labels import best_shortcut, label, rows_of, short
from spatialvlm.reporting.tables import Cell, Table, percent, signed

Changes = Mapping[str, Mapping[str, Any]]


def beside_baselines(changes: Changes, summary: Mapping[str, Any], title: str = "") -> Table:
  """Both runs and the change beside guessing and the best shortcut.

  The answered rates have a column where there are questions without an answer.

  Args:
    summary: of either run: the baselines are those of the questions.
  """
  silent = any(c[key] < 1 for c in changes.values() for key in ("answered_before", "answered_after"))
  rows, rules = [], []
  for number, (name, section, change) in enumerate(rows_of(changes)):
    best, shortcut = best_shortcut(summary, name)
    kind = _kind(change)
    answered = f"{percent(change['answered_before'])} / {percent(change['answered_after'])}"
    rows.append(
      [
        label(name, summary),
        percent(change["before"]),
        Cell(percent(change["after"]), "strong"),
        Cell(signed(change["difference"]), kind),
        Cell(f"{signed(change['low'])} – {signed(change['high'])}", kind),
        *([answered] if silent else []),
        percent(summary["scores"][name]["guessing"]),
        f"{percent(shortcut)} {short(best)}",
        str(int(change["n"])),
      ]
    )
    if section:
      rules.append(number)
  head = ["", "before", "after", "change", "95 % interval", *(["answered"] if silent else [])]
  head += ["guessing", "best shortcut", "n"]
  official = f"Official aggregation: {summary['official_note']}.\n" if summary["official_note"] else ""
  answered = "before / after" if silent else "every question, before and after"
  note = f"{official}Protocol {summary['protocol']}. Marked: the interval of the change excludes zero.\n"
  return tables.make("comparison", title, head, rows, rules, note=f"{note}Answered: {answered}.")


def tested(first: str, second: str, changes: Changes) -> Table:
  """Scores of two runs, the difference with its interval, McNemar's test, and what could have been found.

  Args:
    first, second: names of the runs.
  """
  reach = max(0.05, *(abs(c[k]) for c in changes.values() for k in ("low", "high", "difference")))
  rows, rules = [], []
  for number, (name, section, change) in enumerate(rows_of(changes)):
    kind = _kind(change)
    p = change.get("p_holm", change.get("p"))
    rows.append(
      [
        label(name),
        Cell("", figure=figures.change(change, reach)),
        percent(change["before"]),
        percent(change["after"]),
        Cell(signed(change["difference"]), kind),
        Cell(f"{signed(change['low'])} to {signed(change['high'])}", kind),
        f"{percent(change['answered_before'])} / {percent(change['answered_after'])}",
        f"{change['gained']} / {change['lost']}" if "gained" in change else "",
        "" if p is None else tables.p_value(p) + ("*" if "p_holm" in change else ""),
        percent(change["detectable"]),
        str(change["n"]),
      ]
    )
    if section:
      rules.append(number)
  ends = Cell(
    "", figure=f"<span class='ends'><span>{signed(-reach)}</span><span>{signed(reach)}</span></span>"
  )
  head = ("", ends, first, second, "change", "95 % interval")
  head += ("answered", "gained / lost", "p", "detectable", "n")
  note = (
    "In per cent and points. Intervals: bootstrap over images, within sources, with the same draws of both. "
    "p: exact McNemar over questions; with * corrected for the number of tasks (Holm). Detectable: the true "
    "difference that these questions would show in four runs of five. Marked: the interval excludes zero. "
    f"Answered: {first} / {second}."
  )
  title = f"{second} against {first}"
  return tables.make(f"changes-{second}", title, head, rows, rules, (7, 9, 10), note)


def plot_bars(changes: Changes, summary: Mapping[str, Any], path: pathlib.Path, title: str = "") -> None:
  """Before and after as bars per task and for all, guessing drawn in, as PNG.

  The whisker on `after` is the 95 % interval of the change.
  """
  from matplotlib.figure import Figure

  names = [n for n in changes if n.startswith("task/")] + [n for n in ("plain", "official") if n in changes]
  figure = Figure(figsize=(1.6 + 1.3 * len(names), 3.6), layout="constrained")
  axes = figure.subplots()
  for place, name in enumerate(names):
    change = changes[name]
    before, after = 100 * change["before"], 100 * change["after"]
    low, high = 100 * (change["difference"] - change["low"]), 100 * (change["high"] - change["difference"])
    axes.bar(place - 0.2, before, 0.38, color="#9aa5b1", label="" if place else "before")
    axes.bar(place + 0.2, after, 0.38, color="#2a6f97", label="" if place else "after")
    axes.errorbar(place + 0.2, after, [[max(low, 0)], [max(high, 0)]], color="#222222", capsize=3, lw=1.2)
    guess = 100 * summary["scores"][name]["guessing"]
    axes.hlines(
      guess, place - 0.42, place + 0.42, color="#c1121f", ls="--", lw=1.2, label="" if place else "guessing"
    )
    text = signed(change["difference"])
    axes.text(place + 0.2, after + max(high, 0) + 1, text, ha="center", fontsize=8)
  axes.set_xticks(range(len(names)), ["all" if n == "plain" else label(n) for n in names])
  axes.set_ylim(0, 100)
  axes.set_ylabel("accuracy, %")
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, fontsize=8)
  axes.set_title(title, fontsize=10)
  figure.savefig(path, dpi=140)


def plot_forest(first: str, changes: Mapping[str, Changes], path: pathlib.Path) -> None:
  """A forest plot as PNG: the change of each score with its interval, one colour a run, around zero.

  Args:
    first: name of the run that the others are held against.
    changes: by the name of the other run.
  """
  from matplotlib.figure import Figure

  some = next(iter(changes.values()))
  names = [name for name, _, _ in rows_of(some)]
  colours = ("#0b6e99", "#c2410c", "#1d7a3e", "#7c5cbf", "#9a5b00", "#55626f")
  figure = Figure(figsize=(7.2, 1.3 + (0.24 + 0.13 * len(changes)) * len(names)), layout="constrained")
  axes = figure.subplots()
  axes.axvline(0, color="#55626f", lw=1)
  step = 0.62 / len(changes)
  for k, (run, change) in enumerate(changes.items()):
    for place, name in enumerate(names):
      c = change[name]
      y = place + (k - (len(changes) - 1) / 2) * step
      colour = colours[k % len(colours)]
      axes.plot(
        [100 * c["low"], 100 * c["high"]], [y, y], color=colour, lw=3, alpha=0.45, solid_capstyle="round"
      )
      axes.plot(100 * c["difference"], y, "o", color=colour, ms=5, label="" if place else run)
  axes.set_yticks(range(len(names)), [f"{label(n)}  ({some[n]['n']})" for n in names])
  axes.invert_yaxis()
  axes.set_xlabel(f"change against {first}, points, with 95 % interval")
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.tick_params(axis="y", length=0)
  axes.grid(axis="x", color="#dfe4e8", lw=0.6)
  if len(changes) > 1:
    figure.legend(loc="outside upper right", ncols=len(changes), frameon=False, fontsize=8)
  figure.savefig(path, dpi=140)


def _kind(change: Mapping[str, float]) -> str:
  """The kind of a change's cells: "good" or "bad" where its interval excludes zero, else ""."""
  return "good" if change["low"] > 0 else "bad" if change["high"] < 0 else ""
