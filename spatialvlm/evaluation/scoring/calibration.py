"""Whether a model's confidence means anything: probabilities of the letters against what was right.

These figures stand apart and are never a headline: they are of the letters' log-probabilities, renormalised
over a question's own options, not of the choice alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm.evaluation.records import Prediction
from spatialvlm.types import LETTERS

BINS = 10


def probabilities(row: Prediction) -> np.ndarray:
  """The probability of each option among the question's options, float64 (K,), summing to 1."""
  logprob_K = np.asarray(row.logprobs, float)
  weight_K = np.exp(logprob_K - logprob_K.max())
  return weight_K / weight_K.sum()


def calibration(rows: Sequence[Prediction], bins: int = BINS) -> dict[str, Any]:
  """Expected calibration error, Brier score and the bins of a reliability diagram.

  `ece` (Naeini et al., AAAI 2015): over bins of equal width of the chosen option's probability, the mean
  distance between that probability and the share that is right, weighted by the bin's questions. `brier`
  (Brier, Monthly Weather Review 78, 1950): the mean over questions of the squared error summed over options,
  0 to 2; `brier_guessing` is that of even probabilities. `bins` holds low, high, confidence, correct and n of
  those that are not empty.
  """
  if not rows:
    raise ValueError("there is no question to calibrate on")
  probability = [probabilities(row) for row in rows]
  confidence_N = np.array([p.max() for p in probability])
  correct_N = np.array(
    [LETTERS.index(row.gold) == p.argmax() for row, p in zip(rows, probability, strict=True)]
  )
  brier = [_brier(p, row) for row, p in zip(rows, probability, strict=True)]
  even = [1 - 1 / len(row.choices) for row in rows]
  bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
  found = []
  for b in range(bins):
    inside = bin_N == b
    if inside.any():
      found.append(
        {
          "low": b / bins,
          "high": (b + 1) / bins,
          "confidence": float(confidence_N[inside].mean()),
          "correct": float(correct_N[inside].mean()),
          "n": int(inside.sum()),
        }
      )
  return {
    "ece": sum(b["n"] * abs(b["confidence"] - b["correct"]) for b in found) / len(rows),
    "brier": float(np.mean(brier)),
    "brier_guessing": float(np.mean(even)),
    "confidence": float(confidence_N.mean()),
    "bins": found,
  }


def contextual(rows: Sequence[Prediction], blind: Sequence[Prediction]) -> tuple[np.ndarray, int]:
  """Whether each row is right once what the model says without the picture is taken off.

  Contextual calibration (Zhao et al., ICML 2021, arXiv:2102.09690): of each option's log-probability the one
  of the same question in a blind run is subtracted, and the largest of what is left is the choice.

  Args:
    blind: predictions of the same questions, asked without their picture; in any order, options as in `rows`.

  Returns:
    bool (N,) in the order of `rows`, and how many choices changed by it.

  Raises:
    ValueError: a row has no blind counterpart, or one with other options.
  """
  prior: Mapping[int, Prediction] = {row.idx: row for row in blind}
  right, changed = np.zeros(len(rows), bool), 0
  for i, row in enumerate(rows):
    other = prior.get(row.idx)
    if other is None or other.choices != row.choices:
      raise ValueError(f"question {row.idx} has no blind counterpart with the same options")
    choice = int(np.argmax(np.subtract(row.logprobs, other.logprobs)))
    right[i] = choice == LETTERS.index(row.gold)
    changed += choice != int(np.argmax(row.logprobs))
  return right, changed


def _brier(probability_K: np.ndarray, row: Prediction) -> float:
  truth_K = np.arange(len(probability_K)) == LETTERS.index(row.gold)
  return float(np.sum((probability_K - truth_K) ** 2))
