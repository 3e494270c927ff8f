"""How near spoken distances are to the true ones, beside guesses that see no picture.

AbsRel and the share within a factor of 1.25 are those of monocular depth (Eigen et al., arXiv 1406.2283);
within 25 per cent of the truth is what SpatialRGPT (Cheng et al., arXiv 2406.01584) counts as a success.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from spatialvlm.evaluation.scoring import statistics

# Cells along a side of the picture in which the guess "by place" knows a distance of its own.
PLACES = 4
_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class DistanceScore:
  """How near answers are, over all that were asked; one that says no length is an error of 1, never within.

  Attributes:
    count: asked. unread: answers that say no length.
    abs_rel: mean of |said - true| / true, and its 95 % interval by bootstrap over the questions.
    within: shares within a factor of 1.25, within 10 % and within 25 % of the truth, each with Wilson's 95 %
      interval.
  """

  count: int
  unread: int
  abs_rel: tuple[float, float, float]
  within: Mapping[str, tuple[float, float, float]]


def score(said: Sequence[float | None], right: Sequence[float], seed: int = 0) -> DistanceScore:
  """Scores lengths in metres; None is an answer that says none. `right` are above 0; both of one length."""
  given = np.array([np.nan if value is None else value for value in said], np.float64)
  truth = np.asarray(right, np.float64)
  error = np.abs(given - truth) / truth
  error = np.where(np.isnan(error), 1.0, error)
  ratio = np.maximum(given / truth, truth / np.maximum(given, 1e-9))
  # A bound that is reached but for rounding is reached.
  near = {"1.25": ratio < 1.25, "10 %": error <= 0.1 + 1e-9, "25 %": error <= 0.25 + 1e-9}
  rng = np.random.default_rng((seed, 0xD15))
  means = error[rng.integers(len(error), size=(_RESAMPLES, len(error)))].mean(1)
  count = len(truth)

  def share(hits: np.ndarray) -> tuple[float, float, float]:
    right = int(np.count_nonzero(hits & ~np.isnan(given)))
    return (right / count, *statistics.wilson(right, count))

  return DistanceScore(
    count,
    int(np.count_nonzero(np.isnan(given))),
    (float(error.mean()), *map(float, np.percentile(means, (2.5, 97.5)))),
    {name: share(hits) for name, hits in near.items()},
  )


def guesses(
  others: Sequence[float], other_places: np.ndarray, places: np.ndarray
) -> dict[str, list[float | None]]:
  """What two guesses say that see no picture.

  Args:
    others: metres, the right answers to other questions.
    other_places, places: (M, 2) and (N, 2), of the others and of what is asked: where in the picture the
      middle of the thing lies, x and y as shares of its sides.

  Returns:
    "one distance", the others' median; "by place", the median of those in the same of PLACES x PLACES cells,
    and of all where there are none.
  """
  known = np.asarray(others, np.float64)
  cell = lambda at: np.clip((np.asarray(at) * PLACES).astype(int), 0, PLACES - 1) @ (PLACES, 1)
  everywhere, there = float(np.median(known)), cell(other_places)
  by_place = {int(c): float(np.median(known[there == c])) for c in np.unique(there)}
  return {
    "one distance": [everywhere] * len(places),
    "by place": [by_place.get(int(c), everywhere) for c in cell(places)],
  }
