"""The report of one run: `report.html`, and its tables as Markdown and LaTeX."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm import workdir
from spatialvlm.config import read_json
from spatialvlm.data.sources import registry
from spatialvlm.evaluation import records
from spatialvlm.evaluation.asking.controls import BLIND
from spatialvlm.evaluation.records import Prediction
from spatialvlm.evaluation.report import run_tables
from spatialvlm.evaluation.scoring import calibration, statistics
from spatialvlm.reporting import figures, page, tables
from spatialvlm.reporting.labels import best_shortcut, label
from spatialvlm.reporting.page import Answer, Asked, Browser, Section
from spatialvlm.reporting.tables import Table, escape, percent
from spatialvlm.types import LETTERS, Question

PAGE, MARKDOWN, LATEX = "report.html", "tables.md", "tables.tex"
# The page of a question that `launch/explain.py --run` has looked into.
INSIDE = "explain/{idx}/explain.html"
# Characters of a raw answer on the page; the whole of it is in predictions.jsonl.
LONGEST = 400
_BLOCK = 32
_LEGEND = (
  "<p class='legend'><span><svg aria-hidden='true'><line class='ci' x1='2' x2='20' y1='7' y2='7'/>"
  "<circle class='dot' cx='11' cy='7' r='4'/></svg>score, 95 % interval</span>"
  "<span><svg aria-hidden='true'><line class='guess' x1='11' x2='11' y1='0' y2='14'/></svg>guessing</span>"
  "{more}</p>"
)
_SHORTCUT = (
  "<span><svg aria-hidden='true'><line class='shortcut' x1='11' x2='11' y1='0' y2='14'/></svg>"
  "best shortcut</span>"
)


def write(
  folder: pathlib.Path,
  rows: Sequence[Prediction],
  summary: Mapping[str, Any],
  title: str,
  questions: Sequence[Question] | None = None,
) -> None:
  """Writes report.html, tables.md and tables.tex into a run's folder.

  Args:
    rows: of all passes; those of the headline stand in the order of `questions`.
    summary: as in summary.json.
    questions: for their pictures; None keeps those of the page that is there, if there is one.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  summary = {**summary, "published": published(folder)}
  found = report_tables(rows, summary)
  workdir.write_text(folder / MARKDOWN, "\n".join(map(tables.to_markdown, found)))
  workdir.write_text(folder / LATEX, "\n".join(map(tables.to_latex, found)))
  head = headline_rows(rows, summary)
  if questions is None:
    pictures = page.pictures_of(folder / PAGE)
  else:
    pictures = page.embed(_pictures(head, questions), len(head))
  asked = browser(rows, summary, folder)
  html = page.page(title, facts(folder, summary), sections(rows, summary), asked, pictures)
  workdir.write_text(folder / PAGE, html)


def headline_rows(rows: Sequence[Prediction], summary: Mapping[str, Any]) -> list[Prediction]:
  """The sighted rows of the headline protocol."""
  return records.passes(rows)[summary["protocol"], records.SIGHTED]


def published(folder: pathlib.Path) -> Mapping[str, float]:
  """Numbers of others, in percent, beside which a run's config sets its own; {} where it names none."""
  return read_json(settings_folder(folder) / workdir.CONFIG_FILE).get("published") or {}


def report_tables(rows: Sequence[Prediction], summary: Mapping[str, Any]) -> list[Table]:
  """All tables of a run, in the order of the report; `summary` may hold what was `published` beside."""
  found = [run_tables.scores(summary)]
  if len(summary.get("protocols", {})) > 1:
    found += [t for t in (run_tables.protocols(summary), run_tables.answered(summary)) if t.rows]
  if summary.get("published"):
    found.append(run_tables.published(summary, summary["published"]))
  if summary.get("controls"):
    found.append(run_tables.controls(summary))
    found += [t for t in (run_tables.gaps(summary), run_tables.steadiness(summary)) if t.rows]
  found += [run_tables.baselines(summary), run_tables.letters(summary)]
  head = headline_rows(rows, summary)
  if run_tables.reads_letters(summary["protocol"]):
    found.append(run_tables.calibrated(head))
    blind = _blind(rows, summary)
    if blind:
      found.append(run_tables.contextual(head, blind))
  return found


def sections(rows: Sequence[Prediction], summary: Mapping[str, Any]) -> list[Section]:
  """The parts of the page above the questions."""
  by_name = {
    table.name: tables.to_html(table, caption=table.name not in ("scores", "protocols", "letters"))
    for table in report_tables(rows, summary)
  }

  def part(*names: str) -> str:
    return "".join(f"<div class='table'>{by_name[n]}</div>" for n in names if n in by_name)

  found = [
    Section("result", "Result", _hero(summary)),
    Section("scores", "Scores", part("scores") + _LEGEND.format(more="")),
  ]
  if protocols := part("protocols", "answered", "published"):
    found.append(Section("protocols", "Protocols", protocols))
  found.append(Section("looking", "Was it looking?", part("controls", "gaps", "steadiness", "baselines")))
  head = headline_rows(rows, summary)
  if "calibration" in by_name:
    diagram = figures.reliability(calibration.calibration(head))
    body = (
      f"<div class='columns beside'><div>{diagram}</div><div>{part('calibration', 'contextual')}</div></div>"
    )
    found.append(Section("calibration", "Does it know what it knows?", body))
  confusions = "".join(_confusion(*found) for found in run_tables.confusions(head).items())
  said = "<p class='note'>Rows: the letter that is right; columns: the one chosen. By number of options.</p>"
  confusions = f"<div><div class='wrap'>{confusions}</div>{said}</div>"
  body = f"<div class='columns beside wide'>{part('letters')}{confusions}</div>"
  found.append(Section("letters", "Letters", body))
  return found


def browser(
  rows: Sequence[Prediction], summary: Mapping[str, Any], folder: pathlib.Path | None = None
) -> Browser:
  """The questions with the answers of every pass; shifted options are passes of their own.

  Args:
    folder: of the run; a question is linked to its page in `INSIDE` there, or says how that is made.
  """
  head = headline_rows(rows, summary)
  views: dict[tuple[str, str, int], dict[int, Prediction]] = {(summary["protocol"], records.SIGHTED, 0): {}}
  for row in rows:
    views.setdefault((row.protocol, row.condition, row.shift), {})[row.idx] = row
  asked = [
    _asked(row, [_answer(view.get(row.idx)) for view in views.values()], _inside(folder, row.idx))
    for row in head
  ]
  command = "" if folder is None else f"python launch/explain.py --run={shlex.quote(str(folder))} --ids="
  return Browser(tuple(map(_view_name, views)), asked, explain=command)


def facts(folder: pathlib.Path, summary: Mapping[str, Any]) -> dict[str, str]:
  """What was scored, from the files that a run begins with; what is not there is left out."""
  home = settings_folder(folder)
  config, identity, environment = (
    read_json(home / name) for name in (workdir.CONFIG_FILE, workdir.IDENTITY_FILE, workdir.ENVIRONMENT_FILE)
  )
  model = config.get("model") or {}
  data = (config["eval"] or {}).get("source") if "eval" in config else config.get("data")
  data = data or {}
  weights = identity.get("model") or {}
  tiles = model.get("max_tiles")
  return {
    "model": str(model.get("path") or ""),
    "adapter": str(config.get("adapter") or ""),
    "checkpoint": f"step {identity['run']['step']}" if "run" in identity else "",
    "weights": str(weights.get("sha256") or "")[:12],
    "numbers": str(model.get("dtype") or ""),
    "tiles": f"at most {tiles}" if tiles else "",
    "data": " ".join(str(data[k]) for k in ("kind", "path") if data.get(k)),
    "row order": str(identity.get("row_order") or "")[:12],
    "note": str(identity.get("note") or ""),
    "questions": f"{summary['questions']} on {summary['images']} images",
    "protocol": summary["protocol"],
    "code": str(environment.get("git") or "")[:12],
    "jax": str((environment.get("packages") or {}).get("jax") or ""),
  }


def asked(row: Prediction, answers: Sequence[Prediction | None]) -> Asked:
  """A question with the answers of several passes or runs."""
  return _asked(row, [_answer(a) for a in answers])


def _hero(summary: Mapping[str, Any]) -> str:
  name = run_tables.headline(summary["scores"])
  score = summary["scores"][name]
  shortcut = best_shortcut(summary, name)
  low, high = figures.reach([score, {k: shortcut[1] for k in ("low", "high", "score", "guessing")}])
  kind, verdict = _verdict(score, shortcut)
  deviation = (score["high"] - score["low"]) / (2 * 1.959964)
  detectable = 100 * statistics.minimum_detectable(deviation)
  left = (
    f"<div><p class='what'>{escape(label(name, summary))}, {escape(summary['protocol'])}</p>"
    f"<p class='number'>{percent(score['score'])}<small>%</small></p>"
    f"<p class='within'>95 % interval {escape(tables.interval(score))}</p>"
    f"<span class='pill {kind}'>{verdict}</span></div>"
  )
  right = (
    f"<div>{figures.strip(score, shortcut, low=low, high=high)}{_LEGEND.format(more=_SHORTCUT)}"
    f"<p class='note'>Guessing {percent(score['guessing'])} %. Best shortcut: {escape(shortcut[0])}, "
    f"{percent(shortcut[1])} %. With {score['n']} questions a true distance of {detectable:.1f} points from "
    f"guessing is found four times in five.</p></div>"
  )
  return f"<div class='hero'>{left}{right}</div>{_alarm(summary)}"


def _verdict(score: Mapping[str, float], shortcut: tuple[str, float]) -> tuple[str, str]:
  if score["high"] < score["guessing"]:
    return "bad", "below guessing"
  if score["low"] <= score["guessing"]:
    return "alarm", "not to be told from guessing"
  if score["low"] <= shortcut[1]:
    return "alarm", "above guessing, not above the best shortcut"
  return "good", "above guessing and every shortcut"


def _alarm(summary: Mapping[str, Any]) -> str:
  wanted = [n for n in summary["scores"] if n in ("official", "plain") or n.startswith("task/")]
  found = statistics.at_chance({n: summary["scores"][n] for n in wanted})
  lacking = 1 - summary["scores"]["plain"].get("answered", 1.0)
  lines = []
  if found:
    names = ", ".join(label(n) for n in found)
    lines.append(
      f"<strong>At chance:</strong> {escape(names)}. Such a score says nothing on a sense of space: first "
      "rule out the prompt, the form of the answers, and the order of the options."
    )
  if lacking > 0.01:
    lines.append(f"<strong>Not answered:</strong> {percent(lacking)} % of the questions, counted as wrong.")
  return f"<div class='alarm-box' role='note'>{'<br>'.join(lines)}</div>" if lines else ""


def _confusion(count: int, matrix: np.ndarray) -> str:
  letters = LETTERS[:count]
  silent = matrix[:, count].any()
  head = "".join(f"<th scope='col'>{c}</th>" for c in letters) + (
    "<th scope='col'>none</th>" if silent else ""
  )
  body = []
  for k, letter in enumerate(letters):
    total = max(matrix[k].sum(), 1)
    cells = []
    for j in range(count + bool(silent)):
      shade = min(5, int(6 * matrix[k, j] / total))
      mark = " right" if j == k else ""
      cells.append(f"<td class='h{shade}{mark}'>{matrix[k, j]}</td>")
    body.append(f"<tr><th scope='row'>{letter}</th>{''.join(cells)}</tr>")
  title = f"{count} options, {matrix.sum()} questions"
  return (
    f"<div><table class='confusion'><caption>{title}</caption><thead><tr><td></td>{head}</tr></thead>"
    f"<tbody>{''.join(body)}</tbody></table></div>"
  )


def _inside(folder: pathlib.Path | None, idx: int) -> str:
  """Where the page that explains a question lies, from the run's report; "" where there is none."""
  path = INSIDE.format(idx=idx)
  return path if folder is not None and (folder / path).is_file() else ""


def _asked(row: Prediction, answers: Sequence[Answer | None], inside: str = "") -> Asked:
  return Asked(
    idx=row.idx,
    task=row.task,
    source=row.source,
    source_dataset=row.source_dataset,
    filename=row.filename,
    question=row.question,
    choices=row.choices,
    answers=tuple(answers),
    inside=inside,
  )


def _answer(row: Prediction | None) -> Answer | None:
  if row is None:
    return None
  share = tuple(calibration.probabilities(row).tolist()) if row.logprobs else None
  said = row.output
  if said is not None and len(said) > LONGEST:
    said = f"{said[:LONGEST]} … ({len(row.output)} characters)"
  return Answer(row.choice, row.gold, share, said)


def _view_name(key: tuple[str, str, int]) -> str:
  protocol, condition, shift = key
  name = protocol if condition == records.SIGHTED else f"{protocol}, {condition.replace('_', ' ')}"
  return f"{name} {shift}" if shift else name


def _blind(rows: Sequence[Prediction], summary: Mapping[str, Any]) -> dict[str, list[Prediction]]:
  found = records.passes(rows)
  whole = len(headline_rows(rows, summary))
  passes = {condition: found.get((summary["protocol"], condition), []) for condition in BLIND}
  return {condition: part for condition, part in passes.items() if len(part) == whole}


def _pictures(
  rows: Sequence[Prediction], questions: Sequence[Question]
) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
  """Pictures in an order in which tasks, right and wrong are even wherever the embedding stops."""
  order = page.spread([f"{row.task}/{row.correct}" for row in rows])
  for start in range(0, len(order), _BLOCK):
    places = order[start : start + _BLOCK]
    for place, question in zip(places, registry.read(questions, places), strict=True):
      yield rows[place].idx, question.images


def settings_folder(folder: pathlib.Path) -> pathlib.Path:
  """Where the description of a run lies: itself, or, of a training's evaluations, two folders above."""
  above = folder.absolute().parent
  within = above.name == "evaluation" and not (folder / workdir.CONFIG_FILE).exists()
  return above.parent if within else folder
