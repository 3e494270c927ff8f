"""The tables of one run, from its summary: scores, protocols, controls, baselines, letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm.evaluation.asking.protocols import PROTOCOLS
from spatialvlm.evaluation.records import Prediction
from spatialvlm.evaluation.scoring import calibration, statistics
from spatialvlm.reporting import figures, tables
from spatialvlm.reporting.labels import best_shortcut, label, rows_of, short
from spatialvlm.reporting.tables import Cell, Table, interval, percent, signed
from spatialvlm.types import LETTERS

# Weighted sums of the same counts differ in their last digits.
TIE = 1e-9
_SCORE_HEAD = ("score", "95 % interval", "answered", "guessing", "best shortcut", "n")
_MARKS = "Marked: an interval that reaches down to guessing; over one question in a hundred with no answer."


def headline(scores: Mapping[str, Any]) -> str:
  """The score that stands for a run: the official one where it is defined, else the plain mean."""
  return "official" if "official" in scores else "plain"


def reads_letters(protocol: str) -> bool:
  """Whether a protocol's answers are letters' probabilities, which alone can be held to be calibrated."""
  return protocol in PROTOCOLS and PROTOCOLS[protocol].reading == "letters"


def scores(summary: Mapping[str, Any]) -> Table:
  """Every aggregation with its interval, guessing, the best shortcut and its count."""
  low, high = figures.reach([s for _, _, s in rows_of(summary["scores"])])
  rows, rules = [], []
  for number, (name, section, score) in enumerate(rows_of(summary["scores"])):
    first, *rest = _score_row(name, score, summary)
    rows.append([first, Cell("", figure=figures.bar(score, low=low, high=high)), *rest])
    if section:
      rules.append(number)
  note = f"In per cent. {_MARKS.removesuffix('.')}; a shortcut that does as well."
  if summary.get("official_note"):
    note += f" Official aggregation: {summary['official_note']}."
  columns = ("", figures.ends(low, high), *_SCORE_HEAD)
  return tables.make("scores", "Scores", columns, rows, rules, minor=(1, 6, 7), note=note)


def result(summary: Mapping[str, Any], title: str = "") -> Table:
  """The rows of `scores` as a run shows them at its end: without drawings, with what is at chance in words.

  The answered rates have a column where there are questions without an answer.
  """
  silent = any(score["answered"] < 1 for score in summary["scores"].values())
  left_out = () if silent else (1 + _SCORE_HEAD.index("answered"),)
  shown = lambda cells: [cell for i, cell in enumerate(cells) if i not in left_out]
  rows, rules = [], []
  for number, (name, section, score) in enumerate(rows_of(summary["scores"])):
    rows.append(shown(_score_row(name, score, summary)))
    if section:
      rules.append(number)
  main = [n for n in summary["scores"] if n in ("official", "plain") or n.startswith("task/")]
  chance = statistics.at_chance({name: summary["scores"][name] for name in main})
  note = f"Official aggregation: {summary['official_note']}.\n" if summary["official_note"] else ""
  note += f"Protocol {summary['protocol']}. Answered: {percent(summary['scores']['plain']['answered'])} %. "
  note += "Marked: reaches down to guessing; a shortcut that does as well"
  note += "; over one question in a hundred with no answer." if silent else "."
  if chance:
    note += f"\nNot to be told from guessing, or below: {', '.join(map(label, chance))}."
  return tables.make("result", title, shown(("", *_SCORE_HEAD)), rows, rules, note=note)


def protocols(summary: Mapping[str, Any]) -> Table:
  """One row for each protocol: every score, and the share of questions with an answer."""
  found = summary["protocols"]
  name = headline(summary["scores"])
  low, high = figures.reach([p["scores"][name] for p in found.values()])
  columns = [n for n, _, _ in rows_of(summary["scores"]) if n != name]
  rows = []
  for protocol, part in found.items():
    answered = part.get("answered", part["scores"][name].get("answered"))
    rows.append(
      [
        protocol,
        Cell("", figure=figures.bar(part["scores"][name], low=low, high=high)),
        Cell(percent(part["scores"][name]["score"]), "strong"),
        _reaching(part["scores"][name]),
        _answered(answered),
        *(percent(part["scores"][c]["score"]) for c in columns),
      ]
    )
  head = ["", figures.ends(low, high), label(name, summary), "95 % interval", "answered"]
  head += [label(c, summary) for c in columns]
  note = f"In per cent. One model, the same questions: only how it was asked and read differs. {_MARKS}"
  return tables.make("protocols", "Protocols", head, rows, minor=(1,), note=note)


def answered(summary: Mapping[str, Any]) -> Table:
  """The share of questions with an answer behind each score of `protocols`; no rows where all have one."""
  names = [n for n, _, _ in rows_of(summary["scores"])]
  rows = []
  for protocol, part in summary["protocols"].items():
    shares = [part["scores"][n]["answered"] for n in names]
    if min(shares) < 1:
      rows.append([protocol, *map(_answered, shares)])
  columns = ["", *(label(n, summary) for n in names)]
  note = "In per cent. Marked: below 99. Protocols that are not here had an answer to every question."
  return tables.make("answered", "Questions with an answer", columns, rows, note=note)


def published(summary: Mapping[str, Any], others: Mapping[str, float]) -> Table:
  """Numbers that others gave, in percent, and how far each protocol's aggregations lie from them."""
  names = [n for n in ("official", "plain") if n in summary["scores"]]
  rows = []
  for protocol, part in summary["protocols"].items():
    cells = []
    for name in names:
      score = part["scores"][name]
      cells.append(Cell(percent(score["score"]), "strong"))
      for value in others.values():
        inside = score["low"] <= value / 100 <= score["high"]
        cells.append(Cell(signed(score["score"] - value / 100), "good" if inside else ""))
    rows.append([protocol, *cells, percent(part["answered"])])
  head = [""]
  for name in names:
    head += [label(name, summary), *(f"minus {value:g}" for value in others.values())]
  note = "In per cent. Marked: the published number lies within the interval. Published: "
  note += "; ".join(f"{value:g}, {name}" for name, value in others.items()) + "."
  return tables.make("published", "Beside what was published", [*head, "answered"], rows, note=note)


def controls(summary: Mapping[str, Any]) -> Table:
  """The headline protocol sighted, and under every control."""
  name = headline(summary["scores"])
  parts = {"sighted": summary["scores"]}
  parts |= {c: part["scores"] for c, part in summary["controls"].items() if name in part["scores"]}
  low, high = figures.reach([part[name] for part in parts.values()])
  rows = []
  for condition, part in parts.items():
    # What is mirrored leaves out some questions: it stands beside the same ones as they are.
    beside = summary["controls"].get(condition, {}).get("sighted", summary["scores"])
    gap = beside[name]["score"] - part[name]["score"]
    rows.append(
      [
        words(condition),
        Cell("", figure=figures.bar(part[name], low=low, high=high)),
        Cell(percent(part[name]["score"]), "strong"),
        _reaching(part[name]) if condition == "sighted" else interval(part[name]),
        "" if condition == "sighted" else signed(gap),
        _answered(part[name]["answered"]),
        str(part[name]["n"]),
      ]
    )
  columns = (
    "",
    figures.ends(low, high),
    label(name, summary),
    "95 % interval",
    "sighted minus it",
    "answered",
    "n",
  )
  note = f"In per cent. Circular: the mean over all orders of the options. {_MARKS}"
  title = "The same questions, asked otherwise"
  return tables.make("controls", title, columns, rows, (0,), minor=(1, 6), note=note)


def gaps(summary: Mapping[str, Any]) -> Table:
  """What the picture gives: sighted minus with less to see, with intervals, in all and by task."""
  found = {c: part["gap"] for c, part in summary["controls"].items() if "gap" in part}
  names = [headline(summary["scores"]), *(n for n in summary["scores"] if n.startswith("task/"))]
  rows = []
  for condition, gap in found.items():
    cells = [
      Cell(
        f"{signed(gap[n]['difference'])} ({signed(gap[n]['low'])} to {signed(gap[n]['high'])})",
        "good" if gap[n]["low"] > 0 else "bad" if gap[n]["high"] < 0 else "",
      )
      for n in names
    ]
    rows.append([words(condition), *cells])
  note = (
    "Sighted minus with less to see, in points, with the 95 % interval of the pair. Marked: it excludes zero."
  )
  columns = ["", *(label(n, summary) for n in names)]
  return tables.make("gaps", "What the picture gives", columns, rows, note=note)


def steadiness(summary: Mapping[str, Any]) -> Table:
  """Whether answers stay with what is shown: right in every order of the options, mirrored with it."""
  names = [headline(summary["scores"]), *(n for n in summary["scores"] if n.startswith("task/"))]
  rows = []
  for condition, part in summary["controls"].items():
    for key, said in (("all_right", "right in every order"), ("consistency", "follows the mirrored picture")):
      if key in part:
        shown = [percent(part[key][n]["score"]) if n in part[key] else "" for n in names]
        rows.append([f"{words(condition)}: {said}", *shown, percent(part["answered"])])
  columns = ["", *(label(n, summary) for n in names), "answered"]
  return tables.make(
    "steadiness", "Does the answer stay with what is shown?", columns, rows, note="In per cent."
  )


def _score_row(name: str, score: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str | Cell]:
  """The cells of one score, under `_SCORE_HEAD`."""
  best, value = best_shortcut(summary, name)
  return [
    label(name, summary),
    Cell(percent(score["score"]), "strong"),
    _reaching(score),
    _answered(score.get("answered")),
    percent(score["guessing"]),
    Cell(f"{percent(value)} {short(best)}", _warn(value, score)),
    str(score["n"]),
  ]


def _reaching(score: Mapping[str, float]) -> Cell:
  """The interval, marked where it reaches down to guessing."""
  return Cell(interval(score), "alarm" if score["low"] <= score["guessing"] else "")


def _answered(share: float | None) -> Cell:
  return Cell(percent(share), "alarm" if share is not None and share < 0.99 else "")


def _warn(shortcut: float, score: Mapping[str, float]) -> str:
  return "alarm" if shortcut >= score["score"] - TIE else ""


def words(name: str) -> str:
  return name.replace("_", " ")


def baselines(summary: Mapping[str, Any]) -> Table:
  """Every baseline by score, the run itself in the first row."""
  names = [n for n, _, _ in rows_of(summary["scores"])]
  rows = [["this run", *(Cell(percent(summary["scores"][n]["score"]), "strong") for n in names)]]
  for baseline, values in summary["baselines"].items():
    cells = [Cell(percent(values[n]), _warn(values[n], summary["scores"][n])) for n in names]
    rows.append([baseline, *cells])
  note = "In per cent. Marked: what does as well as the run, unseeing or by a rule of thumb."
  return tables.make(
    "baselines",
    "What can be had without seeing",
    ["", *(label(n, summary) for n in names)],
    rows,
    (0,),
    note=note,
  )


def letters(summary: Mapping[str, Any]) -> Table:
  """How often each letter was right and chosen; after `circular` also over all orders of the options."""
  rotated = summary.get("controls", {}).get("circular", {}).get("letters")
  rows = []
  for letter, n in summary["letters"].items():
    row = [letter, str(n["gold"]), str(n["chosen"]), _lean(n, summary["letters"])]
    rows.append([*row, _lean(rotated[letter], rotated)] if rotated else row)
  columns = ["", "right", "chosen", "lean", *(["lean over all orders"] if rotated else [])]
  note = "Lean: how much oftener a letter was chosen than right, in points of all answers."
  return tables.make("letters", "Letters", columns, rows, note=note)


def _lean(count: Mapping[str, int], all_letters: Mapping[str, Mapping[str, int]]) -> str:
  return signed((count["chosen"] - count["gold"]) / sum(n["gold"] for n in all_letters.values()))


def calibrated(rows: Sequence[Prediction]) -> Table:
  """ECE and Brier score for all questions and by task."""
  parts = {"all": list(rows)}
  for task in dict.fromkeys(row.task for row in rows):
    parts[task] = [row for row in rows if row.task == task]
  body = []
  for name, part in parts.items():
    found = calibration.calibration(part)
    worse = found["brier"] >= found["brier_guessing"]
    body.append(
      [
        name,
        Cell(percent(found["ece"]), "strong"),
        Cell(f"{found['brier']:.3f}", "alarm" if worse else ""),
        f"{found['brier_guessing']:.3f}",
        percent(found["confidence"]),
        percent(float(np.mean([row.correct for row in part]))),
        str(len(part)),
      ]
    )
  columns = ("", "calibration error", "Brier", "Brier of guessing", "mean probability", "right", "n")
  note = "From the letters' probabilities among a question's own options. Marked: no better than guessing."
  return tables.make("calibration", "Calibration", columns, body, (0,), minor=(3, 6), note=note)


def contextual(rows: Sequence[Prediction], blind: Mapping[str, Sequence[Prediction]]) -> Table:
  """What is right once the answers of a blind run are taken off, by blind condition."""
  plain = float(np.mean([row.correct for row in rows]))
  body = []
  for condition, others in blind.items():
    right, changed = calibration.contextual(rows, others)
    body.append(
      [
        words(condition),
        percent(plain),
        Cell(percent(float(right.mean())), "strong"),
        signed(float(right.mean()) - plain),
        str(changed),
      ]
    )
  columns = ("prior taken from", "right", "right, calibrated", "difference", "choices changed")
  note = "The plain mean over questions. Contextual calibration, Zhao et al. 2021; no headline."
  return tables.make("contextual", "Contextual calibration", columns, body, note=note)


def confusions(rows: Sequence[Prediction]) -> dict[int, np.ndarray]:
  """By number of options K the counts (K, K + 1) of right letter by chosen letter, the last for no answer."""
  found: dict[int, np.ndarray] = {}
  for row in rows:
    count = len(row.choices)
    matrix = found.setdefault(count, np.zeros((count, count + 1), int))
    matrix[LETTERS.index(row.gold), LETTERS.index(row.choice) if row.choice else count] += 1
  return dict(sorted(found.items()))
