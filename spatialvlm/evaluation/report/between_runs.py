"""Finished runs held against each other: what changed, how sure that is, and on which questions."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from spatialvlm import workdir
from spatialvlm.config import nearest, read_json
from spatialvlm.evaluation import records
from spatialvlm.evaluation.records import Prediction
from spatialvlm.evaluation.report import change_tables, run_page
from spatialvlm.evaluation.scoring import statistics
from spatialvlm.reporting import figures, page, tables
from spatialvlm.reporting.labels import label
from spatialvlm.reporting.page import Browser, Section
from spatialvlm.reporting.tables import Table, escape, percent, signed
from spatialvlm.types import UserError

JSON, DIFFERENCES, PLOT = "comparison.json", "differences.jsonl", "forest.png"


@dataclasses.dataclass(frozen=True)
class Run:
  """One pass of a finished run.

  Attributes:
    name: what it is called in tables; different runs have different names.
    rows: its sighted rows under `protocol`.
  """

  name: str
  folder: pathlib.Path
  protocol: str
  rows: tuple[Prediction, ...]


def open_runs(arguments: Sequence[str]) -> list[Run]:
  """Reads two or more runs, each given as a folder, or as `FOLDER:PROTOCOL` for another than its headline.

  Raises:
    UserError: fewer than two; a folder that holds no predictions, or none under that protocol; headlines of
      several protocols; other questions, options or answers than the first run's.
  """
  if len(arguments) < 2:
    raise UserError(
      "name two runs or more: launch/compare.py RUN_A RUN_B; the first is what others are held to"
    )
  split = [_split(argument) for argument in arguments]
  found = [_open(folder, protocol) for folder, protocol in split]
  headlines = {run.protocol for run, (_, named) in zip(found, split, strict=True) if not named}
  if len(headlines) > 1:
    raise UserError(
      f"the runs were asked under several protocols ({', '.join(sorted(headlines))}), which do not compare; "
      f"to hold them against each other all the same, say so: {arguments[0]}:{found[0].protocol} ..."
    )
  names = _names(found)
  if len(set(names)) < len(names):
    raise UserError(
      "one run stands twice; a run is held against other runs, or under another protocol (RUN:PROTOCOL)"
    )
  found = [dataclasses.replace(run, name=name) for run, name in zip(found, names, strict=True)]
  for run in found[1:]:
    _refuse_others(found[0], run)
  return found


def paired_changes(
  runs: Sequence[Run], *, resamples: int = 2000, seed: int = 0
) -> list[dict[str, dict[str, Any]]]:
  """`statistics.paired` of the first run and each of the others."""
  first = runs[0]
  return [statistics.paired(first.rows, run.rows, resamples=resamples, seed=seed) for run in runs[1:]]


def write(runs: Sequence[Run], changes: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> list[Table]:
  """Writes comparison.json, differences.jsonl, forest.png, tables.md, tables.tex and report.html; the tables.

  Raises:
    UserError: the folder holds something else, or cannot be written.
  """
  if folder.is_dir() and any(folder.iterdir()) and not (folder / JSON).exists():
    raise UserError(f"{folder}: not empty, and no comparison; name another --workdir")
  with workdir.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  by_name = {run.name: change for run, change in zip(runs[1:], changes, strict=True)}
  found = [change_tables.tested(runs[0].name, name, change) for name, change in by_name.items()]
  content = {
    "runs": [{"name": r.name, "folder": str(r.folder), "protocol": r.protocol} for r in runs],
    "changes": by_name,
  }
  workdir.write_json(folder / JSON, content)
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in differences(runs)]
  workdir.write_text(folder / DIFFERENCES, "".join(lines))
  with workdir.writing(folder / PLOT):
    change_tables.plot_forest(runs[0].name, by_name, folder / PLOT)
  workdir.write_text(folder / run_page.MARKDOWN, "\n".join(map(tables.to_markdown, found)))
  workdir.write_text(folder / run_page.LATEX, "\n".join(map(tables.to_latex, found)))
  workdir.write_text(folder / run_page.PAGE, _page(runs, changes, found, len(lines)))
  return found


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """The questions on which not all runs choose the same, with what each of them chose."""
  by_run = [{row.idx: row for row in run.rows} for run in runs]
  kept = ("idx", "task", "source", "source_dataset", "filename", "question", "choices", "gold")
  found = []
  for row in runs[0].rows:
    answers = [rows[row.idx] for rows in by_run]
    if len({a.choice for a in answers}) > 1:
      said = {run.name: _said(answer) for run, answer in zip(runs, answers, strict=True)}
      found.append({key: getattr(row, key) for key in kept} | {"answers": said})
  return found


def _said(row: Prediction) -> dict[str, Any]:
  return {
    "choice": row.choice,
    "correct": row.correct,
    "logprobs": list(row.logprobs),
    "output": row.output,
  }


def _page(
  runs: Sequence[Run], changes: Sequence[Mapping[str, Any]], found: Sequence[Table], differ: int
) -> str:
  parts = [_verdict(runs[0], run, change) for run, change in zip(runs[1:], changes, strict=True)]
  sections = [Section("result", "Result", "".join(parts))]
  body = "".join(f"<div class='table'>{tables.to_html(table)}</div>" for table in found)
  sections.append(Section("scores", "Changes", body))
  by_run = [{row.idx: row for row in run.rows} for run in runs]
  asked = [run_page.asked(row, [rows[row.idx] for rows in by_run]) for row in runs[0].rows]
  browser = Browser(tuple(run.name for run in runs), asked, first=1, second=0, result="changed")
  pictures: dict[int, str] = {}
  for run in runs:
    pictures = page.pictures_of(run.folder / run_page.PAGE) | pictures
  facts = {run.name: f"{run.folder}, {run.protocol}" for run in runs}
  facts["questions"] = f"{len(runs[0].rows)}, chosen otherwise on {differ}"
  title = f"{', '.join(run.name for run in runs[1:])} against {runs[0].name}"
  # Where not all fit, those that are to be looked at first stay.
  changed = {a.idx for a in asked if len({answer.choice for answer in a.answers}) > 1}
  first = dict(sorted(pictures.items(), key=lambda item: item[0] not in changed))
  return page.page(title, facts, sections, browser, page.within(first))


def _verdict(first: Run, second: Run, changes: Mapping[str, Mapping[str, Any]]) -> str:
  name = "official" if "official" in changes else "plain"
  change = changes[name]
  kind, said = "alarm", "no difference shown"
  if change["low"] > 0:
    kind, said = "good", "better"
  elif change["high"] < 0:
    kind, said = "bad", "worse"
  counted = changes["plain"]
  p = tables.p_value(counted["p"])
  test = f"p {p}" if p.startswith("<") else f"p = {p}"
  reach = 1.1 * max(0.05, abs(change["low"]), abs(change["high"]))
  left = (
    f"<div><p class='what'>{escape(second.name)} − {escape(first.name)}, {escape(label(name))}</p>"
    f"<p class='number'>{signed(change['difference'])}<small>points</small></p>"
    f"<p class='within'>95 % interval {signed(change['low'])} to {signed(change['high'])}</p>"
    f"<span class='pill {kind}'>{said}</span></div>"
  )
  right = (
    f"<div>{figures.change(change, reach)}<p class='note'>From {percent(change['before'])} to "
    f"{percent(change['after'])} %. {counted['gained']} questions gained, {counted['lost']} lost (exact "
    f"McNemar: {test}). A true difference of {percent(change['detectable'])} points would be found four "
    "times in five.</p></div>"
  )
  return f"<div class='hero'>{left}{right}</div>"


def _split(argument: str) -> tuple[pathlib.Path, str]:
  path = pathlib.Path(argument).expanduser()
  if not path.exists() and ":" in argument:
    folder, _, protocol = argument.rpartition(":")
    return pathlib.Path(folder).expanduser(), protocol
  return path, ""


def _open(folder: pathlib.Path, protocol: str) -> Run:
  if not (folder / records.FILE).is_file():
    raise UserError(f"{folder}: holds no {records.FILE}; name the workdir of an evaluation")
  summary = read_json(folder / "summary.json")
  if not summary:
    raise UserError(f"{folder}: the evaluation has not ended (no summary.json); run its command again first")
  passes = records.passes(records.read(folder))
  known = [name for name, condition in passes if condition == records.SIGHTED]
  protocol = protocol or summary["protocol"]
  if protocol not in known:
    raise UserError(f"{folder}: was not asked under protocol {protocol!r}; {nearest(protocol, known)}")
  return Run(folder.name or str(folder), folder, protocol, tuple(passes[protocol, records.SIGHTED]))


def _names(runs: Sequence[Run]) -> list[str]:
  """Folder names, with as much of the path and the protocol as tells them apart."""
  depth, longest = 1, max(len(run.folder.resolve().parts) for run in runs)
  folders = {run.folder.resolve() for run in runs}
  tail = lambda folder: "/".join(folder.parts[-depth:])
  while len({tail(f) for f in folders}) < len(folders) and depth < longest:
    depth += 1
  several = len({run.protocol for run in runs}) > 1
  return [tail(run.folder.resolve()) + (f", {run.protocol}" if several else "") for run in runs]


def _refuse_others(first: Run, second: Run) -> None:
  """Raises where the runs do not answer the same questions."""
  before = {row.idx: row for row in first.rows}
  after = {row.idx: row for row in second.rows}
  odd = sorted(before.keys() ^ after.keys())
  if odd:
    where = first.folder if odd[0] in before else second.folder
    raise UserError(
      f"{first.folder} and {second.folder} are not of the same questions: {len(odd)} are in one of them "
      f"only, e.g. {odd[0]} in {where}"
    )
  for idx, row in before.items():
    if (row.choices, row.gold) != (after[idx].choices, after[idx].gold):
      raise UserError(
        f"{first.folder} and {second.folder}: question {idx} has other options or another answer"
      )
