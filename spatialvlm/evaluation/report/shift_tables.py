"""One model on the plain world and on shifted ones, as tables; from what `evaluation.shifts.run` returns.

`worlds[name]` holds differs, scores, baselines and, but for the first (the plain one), changes by score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spatialvlm.reporting import tables
from spatialvlm.reporting.labels import best_shortcut, label, short
from spatialvlm.reporting.tables import Cell, Table, interval, percent, signed

Worlds = Mapping[str, Mapping[str, Any]]


def scores(model: str, worlds: Worlds, left_out: Mapping[str, str]) -> Table:
  """A row for each world: all questions and each kind with intervals, beside what needs no sight.

  Args:
    left_out: shifts that were not asked, and why.
  """
  kinds = _kinds(worlds)
  rows = []
  for name, world in worlds.items():
    change = world.get("changes", {}).get("plain")
    best, value = best_shortcut(world, "plain")
    score = world["scores"]["plain"]
    rows.append(
      [
        name,
        Cell(percent(score["score"]), "strong"),
        Cell(interval(score), "alarm" if score["low"] <= score["guessing"] else ""),
        *(_change(change) if change else ("", "")),
        *(_kind(world, kind) for kind in kinds),
        percent(score["guessing"]),
        f"{percent(value)} {short(best)}",
      ]
    )
  rows += [[name, *[""] * 4, *[""] * len(kinds), "", "not asked"] for name in left_out]
  head = [
    "",
    "all",
    "95 % interval",
    "change",
    "its interval",
    *map(label, kinds),
    "guessing",
    "best shortcut",
  ]
  count = next(iter(worlds.values()))["scores"]["plain"]["n"]
  note = (
    f"In per cent, of {count} questions in each world; in brackets 95 % intervals. Change: from the plain"
    " world. Marked: a change, of all or of the kind, whose interval excludes zero; an interval that reaches"
    " down to guessing."
  )
  note += "".join(f"\n{name} was not asked: {why}." for name, why in left_out.items())
  return tables.make("shifts", f"{model} on plain and shifted worlds", head, rows, (0,), note=note)


def changes(worlds: Worlds) -> Table:
  """What each shift changes, of all questions and of each kind, and what it is."""
  kinds = ["plain", *_kinds(worlds)]
  rows = []
  for name, world in worlds.items():
    if "changes" in world:
      cells = [_change(world["changes"][kind]) for kind in kinds]
      rows.append([name, *(Cell(f"{a.text} ({b.text})", a.kind) for a, b in cells), world["differs"]])
  head = ["", "all", *map(label, kinds[1:]), "what is shifted"]
  note = "In points, from the plain world, with 95 % intervals. Marked: the interval excludes zero."
  return tables.make("shift-changes", "What each shift changes", head, rows, note=note)


def _kinds(worlds: Worlds) -> list[str]:
  return [name for name in next(iter(worlds.values()))["scores"] if name.startswith("task/")]


def _change(change: Mapping[str, float]) -> tuple[Cell, Cell]:
  kind = "good" if change["low"] > 0 else "bad" if change["high"] < 0 else ""
  ends = f"{signed(change['low'])} – {signed(change['high'])}"
  return Cell(signed(change["difference"]), kind), Cell(ends, kind)


def _kind(world: Mapping[str, Any], kind: str) -> Cell:
  """The score of one kind of question with its interval, marked where it is another than on plain scenes."""
  score, change = world["scores"][kind], world.get("changes", {}).get(kind)
  marked = _change(change)[0].kind if change else ""
  return Cell(f"{percent(score['score'])} ({interval(score)})", marked)
