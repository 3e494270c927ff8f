"""What a comparison found, as tables and as one HTML page that loads nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from spatialvlm.reporting import page, tables
from spatialvlm.reporting.tables import Cell, Table, escape

Found = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Score:
  """How one score is shown: `factor` times its value with `digits`; `note` says what it is."""

  name: str
  title: str
  unit: str
  note: str
  factor: float = 100.0
  digits: int = 1
  up: bool = True

  def text(self, value: float | None) -> str:
    return "" if value is None else f"{self.factor * value:.{self.digits}f}"


SCORES = (
  Score(
    "rmse", "Depth, error", "m", "Root of the mean squared error of each cell's mean depth, linear in the"
    " features; lower is better.", 1.0, 2, up=False,
  ),
  Score("delta", "Depth, within 1.25", "%", "Cells whose depth and truth differ by a factor below 1.25."),
  Score(
    "place", "Place, error", "% of the edge", "How far from its true centre an object is found by its name,"
    " by a linear map of each name over the cells; lower is better.", up=False,
  ),
  Score(
    "relation", "Relation", "%", "Pairs of named objects whose order, left to right and top to bottom,"
    " follows from the places found."
  ),
  Score(
    "nearer", "Nearer", "%", "Pairs of objects rightly ordered in depth, from the difference of the features"
    " under either; the lower one is as often the farther."
  ),
)  # fmt: skip
CONTROLS = {
  "guessing": "one answer for all: the mean depth, the mean place, a coin",
  "place alone": "the probes know where a cell lies, and nothing of what is in it",
  "raw pixels": "the probes read the cell's pixels",
}
_CONTROL_NOTE = "; ".join(f"{name}: {what}" for name, what in CONTROLS.items()) + "."


def scores(found: Found) -> Table:
  """All probes in one table."""
  columns = ["", *(f"{s.title}, {s.unit}" for s in SCORES)]
  rows = [[name, *(Cell(_with_interval(s, row[s.name])) for s in SCORES)] for name, row in found.items()]
  note = f"95 % intervals over images in brackets. {_CONTROL_NOTE} (drawn): the encoder with drawn weights."
  return tables.make(
    "probes", "Probes on held-out scenes", columns, rows, rules=(len(CONTROLS) - 1,), note=note
  )


def photographs(found: Mapping[str, Any]) -> Table | None:
  """What the scenes' probes say of photographs; None where there are none."""
  names = list(found["rule"])
  if not names:
    return None
  columns = [""]
  for name in names:
    columns += [f"{name}: depth", "across", "down"]
  text = lambda value: Cell("" if value is None else f"{value:.2f}")
  rule = ["the lower, the nearer"]
  for name in names:
    rule += [text(found["rule"][name]), "", ""]
  rows = [rule]
  for row, by_name in found["rows"].items():
    rows.append([row, *(text(by_name[name][key]) for name in names for key in ("depth", "across", "down"))])
  note = (
    "Spearman's rank correlation over a photograph's cells, of probes fitted on rendered scenes alone. Depth:"
    " with its true depth; across, down: of a probe of a cell's own place with its place."
  )
  return tables.make("photos", "Photographs", columns, rows, rules=(len(CONTROLS) - 1,), note=note)


def costs(encoders: Mapping[str, Mapping[str, Any]]) -> Table:
  """Sizes and speeds."""
  columns = ["", "family", "pixels", "tokens", "patches", "width", "parameters, M", "GFLOPs", "images/s",
             "compile, s"]  # fmt: skip
  rows = []
  for name, f in encoders.items():
    sizes = [f["family"], f["image_size"], f["tokens"], f["patches"], f["width"]]
    numbers = [_short(f["parameters"] / 1e6), _short(f["flops"] / 1e9), _short(f["images_per_s"])]
    rows.append([name, *map(str, sizes), *numbers, f"{f['compile_s']:.1f}"])
  note = (
    "Of one image. FLOPs are counted from the shapes, through the whole encoder: matrix products only, a"
    " multiplication with its addition as 2. Images/s are measured, up to the layers that are probed, without"
    " reading and resizing; compiling stands apart."
  )
  return tables.make("costs", "Size and speed", columns, rows, minor=(1, 4, 9), note=note)


def similarity(
  name: str, title: str, labels: list[str], values: list[list[float | None]], note: str = ""
) -> Table:
  """CKA of each pair, darker where more alike."""
  rows = []
  for label, row in zip(labels, values, strict=True):
    rows.append([label, *(Cell("") if v is None else _shaded(v) for v in row)])
  return tables.make(name, title, ["", *labels], rows, note=note)


def _shaded(value: float) -> Cell:
  return Cell(f"{value:.2f}", f"h{min(int(6 * max(value, 0)), 5)}")


def all_tables(results: Mapping[str, Any]) -> list[Table]:
  cka = results["cka"]
  note = "Linear CKA (Kornblith et al., 2019): 1 where one is a rotation and scaling of the other."
  debiased = "By the unbiased estimator (Song et al., 2012): unrelated features give about 0."
  seen = photographs(results["photos"])
  return [
    scores(results["probes"]),
    costs(results["encoders"]),
    *([seen] if seen else []),
    similarity("cka-cells", "Similarity, cell by cell", cka["names"], cka["cells"], note),
    similarity("cka-images", "Similarity, means over images", cka["names"], cka["images"], debiased),
  ]


def markdown(results: Mapping[str, Any]) -> str:
  return "\n".join(tables.to_markdown(table) for table in all_tables(results))


def html(results: Mapping[str, Any], title: str, pictures: Mapping[str, list[str]]) -> str:
  """The page.

  Args:
    pictures: data URIs of the scenes, and of each encoder's components of them, by row.
  """
  _, cost, *others = all_tables(results)
  alike = [table for table in others if table.name != "photos"]
  sections = [
    page.Section("probes", "What a linear probe finds", _probes(results["probes"])),
    *(
      page.Section("photos", "Do they hold on photographs", tables.to_html(table, caption=False))
      for table in others
      if table.name == "photos"
    ),
    page.Section("costs", "Size and speed", tables.to_html(cost, caption=False)),
    page.Section("similarity", "Which encoders see alike", "".join(_framed(table) for table in alike)),
  ]
  if pictures:
    sections.insert(1, page.Section("pictures", "What varies in the features", _pictures(pictures)))
  about = results["scenes"]
  facts = {
    "scenes": f"{about['scenes']} fitted, {about['validation']} for penalties, {about['test']} held out",
    "rendered at": f"{about['render_size']} pixels",
    "cells": f"{about['grid']} x {about['grid']}, depth up to {about['farthest']:g} m",
    "layers": ", ".join(map(str, about["layers"])),
    "seed": str(about["seed"]),
  }
  return page.page(title, facts, sections)


def _probes(found: Found) -> str:
  parts = [f"<div>{tables.to_html(_one(score, found))}</div>" for score in SCORES]
  legend = (
    "<p class='note'>Point and 95 % interval over images; dashed: guessing. "
    f"{escape(_CONTROL_NOTE)} (drawn): the same encoder with drawn weights.</p>"
  )
  return f"<div class='columns'>{''.join(parts)}</div>{legend}"


def _one(score: Score, found: Found) -> Table:
  """One probe, every row with a drawing."""
  known = [row[score.name] for row in found.values() if row[score.name]["value"] is not None]
  low = min(one["low"] for one in known)
  high = max(one["high"] for one in known)
  room = 0.05 * (high - low) or 0.05
  guess = found["guessing"][score.name]["value"]
  rows = []
  for name, row in found.items():
    one = row[score.name]
    drawing = Cell("", figure=_bar(score, one, guess, low - room, high + room))
    kind = "muted" if name in CONTROLS or name.endswith("(drawn)") else "strong"
    rows.append([name, Cell(score.text(one["value"]), kind), drawing])
  title = f"{score.title}, {score.unit}"
  return tables.make(
    score.name, title, ["", score.unit, ""], rows, rules=(len(CONTROLS) - 1,), note=score.note
  )


def _bar(score: Score, one: Mapping[str, float], guess: float, low: float, high: float) -> str:
  if one["value"] is None:
    return ""
  at = lambda value: f"{100 * (value - low) / (high - low):.2f}%"
  words = f"{score.text(one['value'])} {score.unit}, 95 % interval {_interval(score, one)}"
  return (
    f"<svg class='bar' width='100%' height='22' role='img' aria-label='{escape(words)}'>"
    "<line class='axis' x1='0' x2='100%' y1='11' y2='11'/>"
    f"<line class='guess' x1='{at(guess)}' x2='{at(guess)}' y1='1' y2='21'/>"
    f"<line class='ci' x1='{at(one['low'])}' x2='{at(one['high'])}' y1='11' y2='11'/>"
    f"<circle class='dot' cx='{at(one['value'])}' cy='11' r='4.5'/></svg>"
  )


def _pictures(pictures: Mapping[str, list[str]]) -> str:
  rows = []
  for name, uris in pictures.items():
    images = (
      f"<td><img src='{uri}' alt='{escape(name)}, scene {i}'></td>" for i, uri in enumerate(uris, start=1)
    )
    rows.append(f"<tr><th scope='row'>{escape(name)}</th>{''.join(images)}</tr>")
  return (
    "<div class='scroll' tabindex='0' role='region' aria-label='Pictures of features'>"
    f"<table class='shots'><tbody>{''.join(rows)}</tbody></table></div>"
    "<p class='note'>The first three principal components of the patches' features as red, green and blue,"
    " over the scenes shown together. Colours mean nothing across encoders.</p>"
  )


def _framed(table: Table) -> str:
  return f"<div class='table'>{tables.to_html(table)}</div>"


def _with_interval(score: Score, one: Mapping[str, float]) -> str:
  return "" if one["value"] is None else f"{score.text(one['value'])} ({_interval(score, one)})"


def _interval(score: Score, one: Mapping[str, float]) -> str:
  return " – ".join(_each(score, one))


def _each(score: Score, one: Mapping[str, float]) -> Iterator[str]:
  yield score.text(one["low"])
  yield score.text(one["high"])


def _short(value: float) -> str:
  """Three figures."""
  return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
