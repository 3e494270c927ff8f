"""What was found, as tables: figures with 95 % intervals over scenes, marked where they exclude chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spatialvlm.reporting import tables
from spatialvlm.reporting.tables import Cell, Table

Found = Mapping[str, Any]
_PERCENT = ("accuracy", "pointing", "pointing_moved", "lower_more")
_NOTE = "95 % intervals over scenes in brackets."


def percent(score: Mapping[str, Any], against: float | None = None) -> Cell:
  """A share in per cent with its interval; marked where that leaves out `against`."""
  return _cell(score, 100, 1, against)


def number(score: Mapping[str, Any], against: float | None = None) -> Cell:
  """A number with its interval; marked where that leaves out `against`."""
  return _cell(score, 1, 2, against)


def _cell(score: Mapping[str, Any], factor: float, digits: int, against: float | None) -> Cell:
  if score["value"] is None:
    return Cell("")
  value, low, high = (_text(factor * score[key], digits) for key in ("value", "low", "high"))
  kind = ""
  if against is not None:
    kind = "good" if score["low"] > against else "bad" if score["high"] < against else ""
  return Cell(f"{value} ({low} to {high})", kind)


def _text(value: float, digits: int) -> str:
  """With a real minus sign, and none before what rounds to zero."""
  return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def regions(found: Found) -> Iterator[Table]:
  """The pointing scores, and what greying each kind of region does."""
  columns = [
    "task, model",
    "right, %",
    "pointing, %",
    "against the mask elsewhere, %",
    "lower part over upper, %",
  ]
  rows = []
  for task, name, row in _rows(found):
    blank = {"value": None}
    rows.append(
      [f"{task}, {name}", percent(row["accuracy"])]
      + [percent(row.get(key, blank), 0.5) for key in ("pointing", "pointing_moved", "lower_more")]
    )
    if "changes" in row:
      change = row["changes"]
      cells = [percent(change.get(key, blank), 0.0) for key in _PERCENT]
      rows.append([f"{task}, {name}, change", *cells])
  note = (
    "Pointing: how often greying an object that the question names changes the right option's log-odds more"
    f" than greying one that it does not name; 50 where it matters alike. {_NOTE} Marked: without 50, or a"
    " change without 0."
  )
  yield tables.make("pointing", "Does the named object matter more than another?", columns, rows, note=note)
  kinds = ("named", "other", "moved", "box", "frame", "upper", "lower", "else", "all")
  for prefix, title, note in (
    ("size", "How much greying a region changes the log-odds of the right option", "Without sign. "),
    ("shift", "The same with sign", "Below 0: the right option loses. "),
  ):
    rows = [
      [f"{task}, {name}", *(number(row.get(f"{prefix}/{kind}", {"value": None})) for kind in kinds)]
      for task, name, row in _rows(found)
    ]
    yield tables.make(prefix, title, ["task, model", *kinds], rows, note=note + _NOTE)
  rows = [
    [f"{task}, {name}", number(row["log_odds"])]
    + [number(row[key], 0.0) for key in ("swap", "swap_elsewhere")]
    + [percent(row[key]) for key in ("swap_flips", "swap_elsewhere_flips")]
    for task, name, row in _rows(found)
    if "swap" in row
  ]
  columns = [
    "task, model",
    "log-odds",
    "exchanged",
    "elsewhere",
    "exchanged: other answer, %",
    "elsewhere, %",
  ]
  note = (
    "Change of the right option's log-odds when the image tokens of two named objects' boxes change places,"
    f" beside two boxes of the same sizes without named objects. {_NOTE}"
  )
  yield tables.make("exchanged", "Image tokens of two objects exchanged", columns, rows, note=note)


def edges(found: Found) -> Iterator[Table]:
  """What answers about depth follow."""
  first = next(iter(found.values()))
  columns = ["model", *first["weights"]]
  rows = [[name, *(number(score, 0.0) for score in row["weights"].values())] for name, row in found.items()]
  note = (
    "Least squares of the log-odds of the first object on four cues, each divided by its own deviation; the"
    f" others held. Above 0: the cue speaks for the first. {_NOTE}"
  )
  yield tables.make("weights", "What answers about depth follow", columns, rows, note=note)
  rows = [[name, *(percent(score) for score in row["scores"].values())] for name, row in found.items()]
  yield tables.make("rules", "Right answers about depth, %", ["model", *first["scores"]], rows, note=_NOTE)


def maps(found: Found) -> Iterator[Table]:
  """What maps point at, and deletion and insertion."""
  columns = ["task, model, map", "points at a named object, %", "deletion", "insertion"]
  rows = []
  for task, name, row in _rows(found):
    for kind, scores in row.items():
      if kind == "cells":
        continue
      cells = [percent(scores["points"]), number(scores["deletion"]), number(scores["insertion"])]
      rows.append([f"{task}, {name}, {kind}", *cells])
  note = (
    "Pointing game: the highest cell lies on an object that the question names. Deletion, insertion: area"
    " under the probability of the model's choice while cells are greyed, or shown, from the highest on."
    f" {_NOTE}"
  )
  yield tables.make("maps", "What maps point at", columns, rows, note=note)


def layers(found: Found) -> Iterator[Table]:
  """Attention cut, and states given, by layer."""
  for kind, title, note in (
    (
      "cut",
      "Attention from the words to image tokens cut in one block",
      "Change of the right option's log-odds.",
    ),
    (
      "patched",
      "States of the clean picture given in one layer",
      "Share of the difference that comes back between the picture for which another option is right (or a"
      " grey one) and the clean one, %; empty where both are answered alike.",
    ),
  ):
    rows, count = [], 0
    for task, name, row in _rows(found):
      for group, scores in row[kind].items():
        show = number if kind == "cut" else percent
        rows.append([f"{task}, {name}: {group}", *(show(score, 0.0) for score in scores)])
        count = max(count, len(scores))
    if kind == "cut":
      columns = ["task, model: tokens", *(f"block {i + 1}" for i in range(count - 1)), "all"]
    else:
      columns = ["task, model: places", *(f"layer {i}" for i in range(count))]
    if len({len(row) for row in rows}) == 1:  # models of other depths have no table in common
      yield tables.make(kind, title, columns, rows, note=f"{note} {_NOTE}")


def heads(found: Found) -> Iterator[Table]:
  """The heads that a task needs most, and whether another seed agrees."""
  columns = ["task, model", "right, %", "head", "seed 1", "seed 2", "median head, seed 2", "rank correlation"]
  rows = []
  for task, name, row in _rows(found):
    for place, top in enumerate(row["top"]):
      first = place == 0
      rows.append(
        [f"{task}, {name}" if first else "", percent(row["accuracy"]) if first else Cell("")]
        + [f"block {top['layer']}, head {top['head']}", number(top["first"], 0.0), number(top["second"], 0.0)]
        + [
          number(row["others"], 0.0) if first else Cell(""),
          f"{row['rank_correlation']:.2f}" if first else "",
        ]
      )
  note = (
    "Change of the right option's log-odds when a head is taken out. The heads are chosen on seed 1; seed 2"
    f" is the check, and the correlation that of both seeds' tables over all heads. {_NOTE}"
  )
  yield tables.make("heads", "Heads that a task needs most", columns, rows, note=note)


def probes(found: Found) -> Iterator[Table]:
  """What probes read off each layer, and what the model makes of it."""
  columns = [
    "model, layer",
    "depth, error, m",
    "place, error, %",
    "relation, %",
    "nearer, %",
    "number, error",
  ]
  rows = []
  for name, row in found.items():
    for layer, scores in row["features"].items():
      cells = [number(scores["rmse"]), percent(scores["place"]), percent(scores["relation"])]
      cells += [percent(scores["nearer"]), number(scores["count"])]
      rows.append([f"{name}, {layer}", *cells])
  yield tables.make("features", "Probes of image tokens by layer", columns, rows, note=_NOTE)
  rows, count = [], 0
  for name, row in found.items():
    for task, scores in row["answers"].items():
      cells = [percent(score, 0.5) for score in scores["layers"]]
      rows.append([f"{task}, {name}", percent(scores["model"]), *cells])
      count = max(count, len(cells))
  if rows and len({len(row) for row in rows}) == 1:
    columns = ["task, model", "the model's own answers, %", *(f"layer {i}" for i in range(count))]
    note = f"The right option read off the last position's state, % of questions. {_NOTE} Marked: without 50."
    yield tables.make("answers", "What the last position knows", columns, rows, note=note)


def _rows(found: Found) -> Iterator[tuple[str, str, Any]]:
  for task, models in found.items():
    for name, row in models.items():
      yield task, name, row
