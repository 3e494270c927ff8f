"""From the workdirs of finished runs to the numbers of a study; nothing else is read."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm.config import StudyConfig, read_json, to_dict
from spatialvlm.evaluation.report import between_runs
from spatialvlm.evaluation.scoring import statistics
from spatialvlm.evaluation.scoring import summary as summaries
from spatialvlm.study import extra
from spatialvlm.study.grid import Base, Run
from spatialvlm.training import metrics, one_run, scores

HELPED, NOTHING, WORSE = "better", "no difference shown", "worse"


def collect(
  study: StudyConfig, runs: Sequence[Run], bases: Sequence[Base], failed: Mapping[str, str]
) -> dict[str, Any]:
  """What study.json holds: all shares from 0 to 1, memory in bytes, `changes` from the untrained model.

  - `config`: the study's; `protocol`, `questions`: how and how many were asked; `headline`: the score that
    verdicts go by.
  - `untrained[name]`, of each untrained model, the first one's under "untrained": `scores` and `baselines` of
    its summary.json; `beside`, as of a cell without changes.
  - `cells[name]`, of its finished runs: `at`, its place on the axes; `untrained`, the name of the model that
    it began from; `scores[score]` (`summary.scores` of the mean over seeds), `changes[score]`
    (`statistics.paired_mean`), `verdict` (of the headline's change: whether its interval excludes zero),
    `beside` (`extra.collect`), `runs` (one for each seed), `parameters`; `missing` seeds. Of a cell without a
    finished run `at`, `untrained` and `missing` alone. With a control, of every other cell that begins from
    the same model `against` as well: `changes` from it, seed by seed, and the `verdict`, over the `seeds`
    that both have finished.
  - `failed`: what went wrong, by the run's name.

  Args:
    failed: of runs that were tried just now.

  Raises:
    UserError: predictions are damaged, or not of the questions that the untrained models were asked.
  """
  done = [run for run in runs if run.finished]
  answers = [*(base.folder for base in bases), *(evaluation(run) for run in done)]
  opened = between_runs.open_runs(list(map(str, answers))) if len(answers) > 1 else []
  rows = {job.name: found.rows for job, found in zip([*bases, *done], opened, strict=False)}
  summaries_ = {base.name: read_json(base.folder / one_run.SUMMARY_FILE) for base in bases}
  first = summaries_[bases[0].name]
  headline = "official" if "official" in first["scores"] else "plain"
  cells: dict[str, Any] = {}
  for base, name in ((base, name) for name in study.cells for base in bases if name in base.cells):
    own = [run for run in done if run.cell == name]
    missing = [run.seed for run in runs if run.cell == name and not run.finished]
    found = _cell(study, own, rows[base.name], [rows[run.name] for run in own]) if own else {}
    if found:
      found["verdict"] = verdict(found["changes"][headline])
      found["beside"] = extra.collect(
        study, base.folder, [run.folder for run in own], list(map(evaluation, own))
      )
    control = [run for run in done if run.cell == study.control and study.control in base.cells]
    against = _against(study, own, control, rows)
    if against:
      found["against"] = {**against, "verdict": verdict(against["changes"][headline])}
    cells[name] = {"at": dict(study.cells[name].at), "untrained": base.name, **found, "missing": missing}
  return {
    "config": to_dict(study),
    "protocol": first["protocol"],
    "questions": first["questions"],
    "headline": headline,
    "untrained": {
      base.name: {key: summaries_[base.name][key] for key in ("scores", "baselines")}
      | {"beside": extra.collect(study, base.folder, [], [base.folder])}
      for base in bases
    },
    "cells": cells,
    "failed": dict(failed),
  }


def evaluation(run: Run) -> pathlib.Path:
  """Where a run has left the answers of what it ended with."""
  return run.parts[-1] / scores.FOLDER / "after"


def verdict(change: Mapping[str, float]) -> str:
  return HELPED if change["low"] > 0 else WORSE if change["high"] < 0 else NOTHING


def _cell(
  study: StudyConfig, runs: Sequence[Run], before: Sequence, answers: Sequence[Sequence]
) -> dict[str, Any]:
  asked = study.questions
  by = [{row.idx: row for row in rows} for rows in answers]
  right_NS = np.array([[found[row.idx].correct for found in by] for row in before], float)
  spoke_NS = np.array([[found[row.idx].choice != "" for found in by] for row in before], float)
  return {
    "scores": summaries.scores(before, asked, right_NS.mean(axis=1), spoke_NS.mean(axis=1)),
    "changes": statistics.paired_mean([before], answers, resamples=asked.bootstrap, seed=asked.seed),
    "parameters": _parameters(runs[0]),
    "runs": [_run(run) for run in runs],
  }


def _against(
  study: StudyConfig, runs: Sequence[Run], control: Sequence[Run], rows: Mapping[str, Sequence]
) -> dict[str, Any]:
  """How a cell differs from the control, over the seeds of both; empty for the control itself, or no seed."""
  same = {run.seed: run for run in control if run not in runs}
  own = [run for run in runs if run.seed in same]
  if not own:
    return {}
  before, after = [rows[same[run.seed].name] for run in own], [rows[run.name] for run in own]
  asked = study.questions
  changes = statistics.paired_mean(before, after, resamples=asked.bootstrap, seed=asked.seed)
  return {"changes": changes, "seeds": [run.seed for run in own]}


def _parameters(run: Run) -> dict[str, int] | None:
  """Of the stage that trains most; None of a run from before runs said it."""
  found = [read_json(part / one_run.SUMMARY_FILE).get("parameters") for part in run.parts]
  known = [counts for counts in found if counts]
  return max(known, key=lambda counts: counts["trained"] + counts["heads"], default=None)


def _run(run: Run) -> dict[str, Any]:
  """Of one run: seed, workdir, scores, steps of all stages, mean seconds of one, and the peaks of memory."""
  said = [read_json(part / one_run.SUMMARY_FILE) for part in run.parts]
  steps = seconds = 0.0
  for part in run.parts:
    last = 0
    for row in metrics.read(part / metrics.FILE):
      if "seconds_per_step" in row:
        seconds += row["seconds_per_step"] * (row["step"] - last)
        steps += row["step"] - last
        last = row["step"]
  memory = [summary["memory"] for summary in said if "memory" in summary]
  peak = lambda name: max((taken[name] for taken in memory if taken[name]), default=None)
  return {
    "seed": run.seed,
    "folder": str(run.folder),
    "scores": {name: score["score"] for name, score in said[-1]["scores"].items()},
    "steps": int(steps),
    "seconds_per_step": seconds / steps if steps else None,
    "memory": {name: peak(name) for name in ("step", "process", "device")},
  }
