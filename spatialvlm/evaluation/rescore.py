"""Every rule of extraction and aggregation over the answers that a run has kept; no model, no images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from spatialvlm import config as config_lib
from spatialvlm import workdir
from spatialvlm.config import EvaluateConfig, ScoreConfig, read_json
from spatialvlm.evaluation import records
from spatialvlm.evaluation.asking import asks, controls, extraction
from spatialvlm.evaluation.records import SIGHTED, Prediction
from spatialvlm.evaluation.report import run_page
from spatialvlm.evaluation.scoring import summary
from spatialvlm.reporting import page, tables
from spatialvlm.reporting.labels import label
from spatialvlm.reporting.tables import Table
from spatialvlm.types import UserError

FILE = "rescored.json"


def rescore(folder: pathlib.Path) -> dict[str, Any]:
  """Reads a finished run's rows anew.

  Returns:
    `summary`, as in `summary.json`, from answers extracted again by each protocol's own rule; and
    `extractors[protocol][rule]`, the scores of the answers that a protocol generated under every rule, with
    `answered` and `differs`, the questions that the protocol's own rule reads otherwise.

  Raises:
    UserError: no run there, a damaged one, or one that is not finished.
  """
  rows, config = _read(folder)
  found: dict[str, dict[str, Any]] = {}
  for (protocol, condition), part in records.passes(rows).items():
    if condition != SIGHTED or any(row.output is None for row in part):
      continue
    found[protocol] = {}
    for rule in extraction.EXTRACTORS:
      read = [extracted(row, rule) for row in part]
      scores = summary.scores(read, config)
      found[protocol][rule] = {
        "scores": scores,
        "answered": scores["plain"]["answered"],
        "differs": sum(a.choice != b.choice for a, b in zip(part, read, strict=True)),
      }
  return {"summary": summary.summarize(rows, config), "extractors": found}


def write(folder: pathlib.Path) -> dict[str, Any]:
  """Writes what `rescore` finds to rescored.json, and the run's report and tables anew; returns it.

  The page keeps its title and its pictures.

  Raises:
    UserError: as `rescore`, or the folder cannot be written.
  """
  found = rescore(folder)
  workdir.write_json(folder / FILE, found)
  title = page.title_of(folder / run_page.PAGE) or str(folder)
  run_page.write(folder, _read(folder)[0], found["summary"], title)
  return found


def extracted(row: Prediction, rule: str) -> Prediction:
  """The row with the letter that a rule finds in its raw answer; one without a raw answer as it is."""
  if row.output is None:
    return row
  shown = row.choices[row.shift :] + row.choices[: row.shift]
  choice = controls.unrotated(extraction.extract_choice(row.output, shown, rule), row.shift, len(row.choices))
  return dataclasses.replace(row, choice=choice, correct=choice == row.gold)


def table(found: Mapping[str, Any]) -> Table:
  """Rows of protocols and rules, the protocol's own rule strong."""
  names = [n for n in ("official", "plain") if n in found["summary"]["scores"]]
  rows, rules = [], []
  for protocol, read in found["extractors"].items():
    for rule, part in read.items():
      kind = "strong" if rule == protocol else ""
      cells = [tables.Cell(tables.percent(part["scores"][n]["score"]), kind) for n in names]
      answered = tables.Cell(tables.percent(part["answered"]), "alarm" if part["answered"] < 0.99 else "")
      rows.append([f"{protocol}, read by {rule}", *cells, answered, str(part["differs"])])
    rules.append(len(rows) - 1)
  head = ["", *(label(n) for n in names), "answered", "read otherwise"]
  return tables.make(
    "extractors", "The same answers under every rule", head, rows, rules, note="In per cent."
  )


def _read(folder: pathlib.Path) -> tuple[list[Prediction], ScoreConfig]:
  """A finished run's rows, their answers extracted again by their protocols' own rules, and its settings."""
  rows = records.read(folder)
  if not rows:
    raise UserError(f"{folder}: holds no {records.FILE}; name the workdir of an evaluation")
  config = _settings(folder, rows)
  _check_finished(folder, rows, config)
  return [extracted(row, row.protocol) for row in rows], config


def _settings(folder: pathlib.Path, rows: Sequence[Prediction]) -> ScoreConfig:
  """The run's own settings; those of a run without a config follow from its rows."""
  file = run_page.settings_folder(folder) / workdir.CONFIG_FILE
  passes = records.passes(rows)
  if not file.exists():
    names = dict.fromkeys(protocol for protocol, condition in passes if condition == SIGHTED)
    conditions = dict.fromkeys(condition for _, condition in passes if condition != SIGHTED)
    return ScoreConfig(protocols=tuple(names), controls=tuple(conditions))
  stored = dict(read_json(file))
  if stored.get("eval"):  # of a training
    kept = {field.name for field in dataclasses.fields(ScoreConfig)}
    stored["score"] = {name: value for name, value in stored["eval"].items() if name in kept}
  score = dict(stored.get("score") or {})
  if "protocol" in score:  # from before there were passes
    score["protocols"] = [score.pop("protocol")]
  try:
    return config_lib.from_stored({"score": score}, EvaluateConfig).score
  except UserError as e:
    raise UserError(f"{file}: not the config of an evaluation ({e})") from e


def _check_finished(folder: pathlib.Path, rows: Sequence[Prediction], config: ScoreConfig) -> None:
  there = {row.key for row in rows}
  missing = {key for row in rows for key in asks.keys_of_row(row, config)} - there
  stored = _question_count(folder)
  count = len({row.idx for row in rows})
  if missing or (stored and count < (min(stored, config.limit) if config.limit else stored)):
    raise UserError(f"{folder}: is not finished; finish it with the command that began it")


def _question_count(folder: pathlib.Path) -> int:
  """Questions that the run's data hold, 0 where nobody says."""
  file = folder / workdir.IDENTITY_FILE
  return int(read_json(file).get("questions", 0))
