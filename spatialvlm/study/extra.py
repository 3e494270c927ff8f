"""From what models were asked beside a study's questions, and under controls, to numbers."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm.config import StudyConfig, read_json
from spatialvlm.evaluation import records
from spatialvlm.evaluation.asking.controls import BLIND
from spatialvlm.evaluation.records import SIGHTED, Prediction
from spatialvlm.evaluation.scoring import statistics
from spatialvlm.study.beside import FOLDER, SKILLS_FILE


def collect(
  study: StudyConfig, base: pathlib.Path, runs: Sequence[pathlib.Path], asked: Sequence[pathlib.Path]
) -> dict[str, Any]:
  """What a cell's runs, or with none the untrained model, are worth beyond the questions of a study.

  - `gaps[control]`: what the image gives, the score with it minus the score under the control: `difference`,
    `low`, `high` (95 %, over questions, of the mean of the runs), of all questions.
  - `worlds[name]`: of all questions asked beside: `score`; of runs also `change` from the untrained model,
    with `difference`, `low`, `high`.
  - `skills[skill]`, and `all` of them: `score`, the share of exact answers; of runs `change` likewise.

  Args:
    base: workdir of the untrained model's evaluation. runs: workdirs of the cell's runs.
    asked: folders of the evaluations whose controls are read.
  """
  resamples = {"resamples": study.questions.bootstrap, "seed": study.questions.seed}
  return {
    "gaps": _gaps(
      [condition for condition in study.questions.controls if condition in BLIND], asked, resamples
    ),
    "worlds": {name: _world(name, base, runs, resamples) for name in study.beside},
    "skills": _skills(base, runs, resamples) if study.skills else {},
  }


def _gaps(
  conditions: Sequence[str], asked: Sequence[pathlib.Path], resamples: Mapping[str, int]
) -> dict[str, Any]:
  found = {}
  for condition in conditions:
    passes = [records.passes(records.read(folder)) for folder in asked]
    of = lambda wanted: [_of(part, wanted) for part in passes]  # noqa: B023
    found[condition] = _plain(statistics.paired_mean(of(condition), of(SIGHTED), **resamples))
  return found


def _of(passes: Mapping[tuple[str, str], list[Prediction]], condition: str) -> list[Prediction]:
  """The rows of the headline, the first protocol, under a condition."""
  return next(rows for (_, name), rows in passes.items() if name == condition)


def _world(
  name: str, base: pathlib.Path, runs: Sequence[pathlib.Path], resamples: Mapping[str, int]
) -> dict[str, Any]:
  rows = lambda folder: _of(records.passes(records.read(folder / FOLDER / name)), SIGHTED)
  score = lambda part: float(np.mean([row.correct for row in part]))
  before, after = rows(base), [rows(run) for run in runs]
  if not runs:
    return {"score": score(before), "n": len(before)}
  change = _plain(statistics.paired_mean([before], after, **resamples))
  return {"score": float(np.mean(list(map(score, after)))), "n": len(before), "change": change}


def _skills(
  base: pathlib.Path, runs: Sequence[pathlib.Path], resamples: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
  read = lambda folder: read_json(folder / FOLDER / SKILLS_FILE)
  before, after = read(base), [read(run) for run in runs]
  names = {name: (name,) for name in before} | {"all": tuple(before)}
  found = {}
  for name, parts in names.items():
    was_N = np.concatenate([before[part] for part in parts]).astype(float)
    if not runs:
      found[name] = {"score": float(was_N.mean()), "n": len(was_N)}
      continue
    now_N = np.mean([np.concatenate([answers[part] for part in parts]) for answers in after], axis=0)
    change = {"difference": float((now_N - was_N).mean())} | _interval(now_N - was_N, **resamples)
    found[name] = {"score": float(now_N.mean()), "n": len(was_N), "change": change}
  return found


def _interval(change_N: np.ndarray, *, resamples: int, seed: int) -> dict[str, float]:
  """The 95 % interval of a mean, by a bootstrap over questions, which here have a picture each."""
  drawn = np.random.default_rng(seed).integers(len(change_N), size=(resamples, len(change_N)))
  low, high = np.percentile(change_N[drawn].mean(axis=1), [2.5, 97.5])
  return {"low": float(low), "high": float(high)}


def _plain(changes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
  return {key: changes["plain"][key] for key in ("difference", "low", "high")}
