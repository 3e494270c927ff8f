"""From rows to numbers: every aggregation of every pass, always all of them, labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation import records
from spatialvlm.evaluation.asking import controls
from spatialvlm.evaluation.records import SIGHTED, Prediction
from spatialvlm.evaluation.scoring import aggregation, baselines, forest, statistics
from spatialvlm.types import LETTERS


def summarize(rows: Sequence[Prediction], config: ScoreConfig) -> dict[str, Any]:
  """All that is said of a run, as in `summary.json`.

  Of the headline (the first protocol, sighted): `protocol`, `questions`, `images`, `official_note`, `scores`,
  `at_chance` (whether guessing lies in the interval of the score of all questions), `letters` (how often each
  was right and chosen) and `baselines[baseline][name]`. `scores[name]` holds score, low, high (95 %), n,
  guessing and answered; names are `official`, `official/2D`, `official/3D` (where the formula applies:
  `official_note` says why not, or on what part), `plain`, `macro`, `type/...`, `task/...`, `source/...`,
  `source_dataset/...`.

  `protocols[protocol]` holds scores, answered and at_chance; for generated answers `cut`, the share that was
  cut at the limit. `controls[condition]` holds scores and answered and

  - circular: scores are means over all rotations of the options, `all_right[name]` the share of questions
    with every rotation right, `letters` counts of right and chosen letters as they were shown;
  - grey, no_image, other_image, first_image, no_prior, other_prior, prior_alone: `gap[name]`, what the
    image, the further ones, or priors give: difference, low, high;
  - flip: `consistency[name]`, the share of answers that follow the mirrored image as they must, and
    `sighted`, the scores of the same questions as they are.
  """
  passes = records.passes(rows)
  headline = passes[_headline(rows, config), SIGHTED]
  table = aggregation.aggregation(headline)
  shortcuts = baselines.priors(headline, config.seed) | baselines.rules(headline)
  if config.text_forest:
    shortcuts["text forest"] = forest.text_forest(headline, config.seed, config.text_forest)
  shortcuts = {name: table.values(right) for name, right in shortcuts.items()}
  found = scores(headline, config)
  return {
    "protocol": headline[0].protocol,
    "questions": len(headline),
    "images": len({row.image for row in headline}),
    "official_note": table.official_note,
    "scores": found,
    "at_chance": _at_chance(found),
    "baselines": shortcuts,
    "letters": _letters(headline),
    "protocols": {
      protocol: _protocol(part, config)
      for (protocol, condition), part in passes.items()
      if condition == SIGHTED
    },
    "controls": {
      condition: _control(condition, headline, part, config)
      for (_, condition), part in passes.items()
      if condition != SIGHTED
    },
  }


def _headline(rows: Sequence[Prediction], config: ScoreConfig) -> str:
  """Rows by hand may be of another protocol than the config's: then the first row's."""
  first = config.protocols[0]
  return first if any(row.protocol == first for row in rows) else rows[0].protocol


def _protocol(rows: Sequence[Prediction], config: ScoreConfig) -> dict[str, Any]:
  every = scores(rows, config)
  found = {"scores": every, "answered": every["plain"]["answered"], "at_chance": _at_chance(every)}
  if any(row.output is not None for row in rows):
    found["cut"] = float(np.mean([not row.ended for row in rows]))
  return found


def _control(
  condition: str, headline: Sequence[Prediction], rows: Sequence[Prediction], config: ScoreConfig
) -> dict[str, Any]:
  if condition == "circular":
    found = _circular(headline, rows, config)
  else:
    found = {"scores": scores(rows, config)}
  if condition in controls.GAPS:
    gaps = statistics.paired(rows, headline, resamples=config.bootstrap, seed=config.seed)
    found["gap"] = {
      name: {key: gap[key] for key in ("difference", "low", "high")} for name, gap in gaps.items()
    }
  if condition == "flip":
    found |= _flip(headline, rows, config)
  return {"protocol": headline[0].protocol, "answered": found["scores"]["plain"]["answered"]} | found


def _circular(
  headline: Sequence[Prediction], rotated: Sequence[Prediction], config: ScoreConfig
) -> dict[str, Any]:
  of_question: dict[int, list[Prediction]] = {row.idx: [row] for row in headline}
  for row in rotated:
    of_question[row.idx].append(row)
  parts = [of_question[row.idx] for row in headline]
  right_N = np.array([np.mean([row.correct for row in part]) for part in parts])
  all_N = np.array([all(row.correct for row in part) for part in parts], float)
  answered_N = np.array([np.mean([row.choice != "" for row in part]) for part in parts])
  return {
    "scores": scores(headline, config, right_N, answered_N),
    "all_right": scores(headline, config, all_N, answered_N),
    "letters": _letters([row for part in parts for row in part]),
  }


def _flip(
  headline: Sequence[Prediction], mirrored: Sequence[Prediction], config: ScoreConfig
) -> dict[str, Any]:
  before = {row.idx: row for row in headline}
  same = [before[row.idx] for row in mirrored]
  follows = [
    float(bool(now.choice) and now.choice == _must_follow(was))
    for was, now in zip(same, mirrored, strict=True)
  ]
  return {
    "consistency": scores(mirrored, config, np.array(follows)),
    "sighted": scores(same, config),
  }


def _must_follow(row: Prediction) -> str | None:
  return controls.flipped_letter(row.task, row.question, row.choices, row.choice)


def scores(
  rows: Sequence[Prediction],
  config: ScoreConfig,
  right_N: np.ndarray | None = None,
  answered_N: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
  """Every aggregation of how right each row is (its `correct`) with interval, guessing, answered rate."""
  right_N = np.array([row.correct for row in rows], float) if right_N is None else right_N
  answered_N = np.array([row.choice != "" for row in rows], float) if answered_N is None else answered_N
  table = aggregation.aggregation(rows)
  values, counts = table.values(right_N), table.counts()
  guessing, answered = table.values(aggregation.guessing(rows)), table.values(answered_N)
  spread = statistics.intervals(rows, right_N, resamples=config.bootstrap, seed=config.seed)
  return {
    name: {
      "score": value,
      "low": spread[name][0],
      "high": spread[name][1],
      "n": counts[name],
      "guessing": guessing[name],
      "answered": answered[name],
    }
    for name, value in values.items()
  }


def _at_chance(found: Mapping[str, Mapping[str, float]]) -> bool:
  score = found.get("official", found["plain"])
  return bool(score["low"] <= score["guessing"] <= score["high"])


def _letters(rows: Sequence[Prediction]) -> dict[str, dict[str, int]]:
  """How often each letter was right, and chosen, as the options were shown."""
  count = lambda field, letter: sum(
    controls.displayed(getattr(row, field), row.shift, len(row.choices)) == letter for row in rows
  )
  letters = LETTERS[: max(len(row.choices) for row in rows)]
  return {letter: {"gold": count("gold", letter), "chosen": count("choice", letter)} for letter in letters}
