"""Intervals for scores: a bootstrap that resamples images, not questions, within each source.

Questions on one image share its difficulty, so they are drawn together (cluster bootstrap: Davison and
Hinkley, Bootstrap Methods and their Application, 1997, section 3.8); the official formula fixes the sources'
weights, so each source is resampled within itself (stratified). Percentile intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spatialvlm.evaluation.cvbench import Aggregation, aggregation
from spatialvlm.evaluation.records import Prediction
from spatialvlm.types import UserError

# Bounds the memory of one block of resamples: about 40 MB of float64.
BLOCK = 5_000_000


def intervals(
  rows: Sequence[Prediction], correct_N: np.ndarray, *, resamples: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
  """The interval of each score of `aggregation(rows)`, by its name."""
  table = aggregation(rows)
  drawn = _resample(rows, table, np.asarray(correct_N, float)[:, None], resamples, seed)
  return {name: _percentiles(values[:, 0], level) for name, values in drawn.items()}


def paired(
  before: Sequence[Prediction],
  after: Sequence[Prediction],
  *,
  resamples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
) -> dict[str, dict[str, float]]:
  """What changed between two runs on the same questions: both drawn with the same resampled images.

  Returns, by the name of the score: before, after, difference, low, high (of the difference) and n.

  Raises:
    UserError: the runs are not of the same questions.
  """
  first, second = ({row.idx: row for row in rows} for rows in (before, after))
  if first.keys() != second.keys():
    odd = min(first.keys() ^ second.keys())
    raise UserError(f"the two runs are not of the same questions: number {odd} is in one of them only")
  rows = list(before)
  correct_N2 = np.array([[row.correct, second[row.idx].correct] for row in rows], float)
  table = aggregation(rows)
  was, now = (table.values(correct_N2[:, i]) for i in range(2))
  counts = table.counts()
  found = {}
  for name, values in _resample(rows, table, correct_N2, resamples, seed).items():
    low, high = _percentiles(values[:, 1] - values[:, 0], level)
    found[name] = {
      "before": was[name],
      "after": now[name],
      "difference": now[name] - was[name],
      "low": low,
      "high": high,
      "n": counts[name],
    }
  return found


def _resample(
  rows: Sequence[Prediction], table: Aggregation, correct_NS: np.ndarray, resamples: int, seed: int
) -> dict[str, np.ndarray]:
  """Scores of `resamples` draws (R, S), for S vectors of correctness drawn alike."""
  keys = [(row.source, row.image) for row in rows]
  clusters = {key: i for i, key in enumerate(sorted(set(keys)))}
  cluster_N = np.array([clusters[key] for key in keys])
  names = list(table.groups)
  size_CG = np.zeros((len(clusters), len(names)))
  right_CGS = np.zeros((len(clusters), len(names), correct_NS.shape[1]))
  for g, name in enumerate(names):
    mask = table.groups[name]
    np.add.at(size_CG[:, g], cluster_N[mask], 1.0)
    np.add.at(right_CGS[:, g], cluster_N[mask], correct_NS[mask])
  strata = np.array([key[0] for key in sorted(clusters, key=clusters.get)], dtype=object)
  blocks = []
  for weight_RC in _weights(strata, resamples, seed):
    right_RGS = np.einsum("rc,cgs->rgs", weight_RC, right_CGS, optimize=True)
    blocks.append(right_RGS / _positive(weight_RC @ size_CG)[..., None])
  means_RGS = np.concatenate(blocks)
  column = {name: g for g, name in enumerate(names)}
  return {
    score: sum(w * means_RGS[:, column[group]] for group, w in parts.items())
    for score, parts in table.scores.items()
  }


def _weights(strata: np.ndarray, resamples: int, seed: int):
  """Blocks (r, C) of how often each cluster is drawn; a stratum keeps its number of clusters."""
  rng = np.random.default_rng(seed)
  step = max(1, BLOCK // len(strata))
  for start in range(0, resamples, step):
    weight_RC = np.zeros((min(step, resamples - start), len(strata)))
    for stratum in sorted(set(strata)):
      (members,) = np.nonzero(strata == stratum)
      even = np.full(len(members), 1.0 / len(members))
      weight_RC[:, members] = rng.multinomial(len(members), even, size=len(weight_RC))
    yield weight_RC


def _positive(count: np.ndarray) -> np.ndarray:
  """A draw without any question of a group says nothing on it: NaN, left out of the percentiles."""
  return np.where(count > 0, count, np.nan)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
  tail = 50.0 * (1.0 - level)
  low, high = np.nanpercentile(values, [tail, 100.0 - tail])
  return float(low), float(high)
