"""Means over questions with 95 % intervals that resample scenes, and differences between models, paired."""

from __future__ import annotations

from typing import Any

import numpy as np

from spatialvlm.config import ExplainConfig
from spatialvlm.probing.probes import Measured

Score = dict[str, Any]
# How many resamples, and their seed, where nothing else is said.
PLAIN = ExplainConfig()


def mean(values_N: Any, scenes_N: list[str], config: ExplainConfig = PLAIN) -> Score:
  """The mean of values, NaN left out: `value`, `low`, `high` (None where there are none), and `n` of them."""
  return ratio(values_N, np.ones(len(scenes_N)), scenes_N, config)


def ratio(above_N: Any, below_N: Any, scenes_N: list[str], config: ExplainConfig = PLAIN) -> Score:
  """The sum of `above` over that of `below`, as `mean`; None where the interval of the latter holds 0."""
  above_N, below_N, scenes = _known(above_N, below_N, scenes=scenes_N)
  n = len(above_N)
  if n and not np.all(below_N == 1):
    spread = mean(below_N, list(scenes), config)
    if not spread["low"] * spread["high"] > 0:
      return {"value": None, "low": None, "high": None, "n": n}
  return _summary([above_N, below_N], scenes, lambda s: s[..., 0] / s[..., 1], config) | {"n": n}


def change(before_N: Any, after_N: Any, scenes_N: list[str], config: ExplainConfig = PLAIN) -> Score:
  """The mean of the differences of the same questions, as `mean`."""
  before_N, after_N, scenes = _known(before_N, after_N, scenes=scenes_N)
  sums = [after_N - before_N, np.ones(len(before_N))]
  return _summary(sums, scenes, lambda s: s[..., 0] / s[..., 1], config) | {"n": len(before_N)}


def fitted(x_NF: Any, y_N: Any, scenes_N: list[str], config: ExplainConfig = PLAIN) -> list[Score]:
  """Least squares of `y` on the columns of `x` with a constant: each column's coefficient, as `mean`.

  Columns are divided by their own deviation first, so that a coefficient is the change for one of it.
  """
  x_NF, y_N = np.asarray(x_NF, float), np.asarray(y_N, float)
  x_NF = np.concatenate([(x_NF - x_NF.mean(0)) / x_NF.std(0), np.ones((len(x_NF), 1))], 1)
  F = x_NF.shape[1]
  gram = (x_NF[:, :, None] * x_NF[:, None, :]).reshape(len(x_NF), -1)
  sums = [*gram.T, *(x_NF * y_N[:, None]).T]

  def score(column: int):
    def solved(s):
      matrix = s[..., : F * F].reshape(*s.shape[:-1], F, F)
      return np.linalg.solve(matrix, s[..., F * F :, None])[..., column, 0]

    return solved

  return [_summary(sums, scenes_N, score(f), config) | {"n": len(y_N)} for f in range(F - 1)]


def _known(*arrays: Any, scenes: list[str]) -> tuple[np.ndarray, ...]:
  """The entries at which no array is NaN, and their scenes."""
  found = [np.asarray(a, np.float64) for a in arrays]
  known = np.all([np.isfinite(a) for a in found], axis=0) if len(scenes) else np.zeros(0, bool)
  return (*(a[known] for a in found), np.asarray(scenes, dtype=object)[known])


def _summary(values: list[np.ndarray], scenes: Any, score: Any, config: ExplainConfig) -> Score:
  if not len(scenes):
    return {"value": None, "low": None, "high": None}
  _, place = np.unique(np.asarray(scenes, str), return_inverse=True)
  sums = np.stack([np.bincount(place, v) for v in values], 1)
  found = Measured(sums, score).summary(config.bootstrap, config.seed)
  return {name: found[name] for name in ("value", "low", "high")}
