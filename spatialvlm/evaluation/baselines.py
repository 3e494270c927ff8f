"""What can be scored without looking: guessing and priors of the answers, fitted on other questions.

A prior is fitted on the folds that it is not asked about (five folds, an image's questions all in one), so
it never sees the answer it predicts. What it says of a question is a distribution: equal options share.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from spatialvlm.evaluation.cvbench import guessing
from spatialvlm.evaluation.records import LETTERS, Prediction

FOLDS = 5


def priors(rows: Sequence[Prediction], seed: int = 0) -> dict[str, np.ndarray]:
  """The chance of being right of each prior baseline, by its name, float64 (N,)."""
  return {
    "guessing": guessing(rows),
    "majority letter": majority_letter(rows, seed),
    "majority text": majority_text(rows, seed),
  }


def majority_letter(rows: Sequence[Prediction], seed: int = 0) -> np.ndarray:
  """The letter that is oftenest right among questions of the same task and number of options."""
  return _cross_fitted(
    rows, seed, group=lambda r: (r.task, len(r.choices)), options=lambda r: LETTERS[: len(r.choices)]
  )


def majority_text(rows: Sequence[Prediction], seed: int = 0) -> np.ndarray:
  """The option whose text is oftenest the answer among questions of the same task and source."""
  return _cross_fitted(rows, seed, group=lambda r: (r.task, r.source), options=lambda r: r.choices)


def folds(rows: Sequence[Prediction], seed: int, count: int = FOLDS) -> np.ndarray:
  """The fold of each row, int (N,): images are dealt in a drawn order, with all of their questions."""
  images = sorted({row.image for row in rows})
  order = np.random.default_rng(seed).permutation(len(images))
  fold = {image: int(place) % count for image, place in zip(images, order, strict=True)}
  return np.array([fold[row.image] for row in rows], dtype=int)


def _cross_fitted(
  rows: Sequence[Prediction],
  seed: int,
  group: Callable[[Prediction], Hashable],
  options: Callable[[Prediction], Sequence[str]],
) -> np.ndarray:
  fold_N = folds(rows, seed)
  total: collections.Counter = collections.Counter()
  inside: collections.Counter = collections.Counter()
  for row, fold in zip(rows, fold_N, strict=True):
    key = (group(row), options(row)[LETTERS.index(row.gold)])
    total[key] += 1
    inside[fold, key] += 1
  right = np.zeros(len(rows))
  for i, (row, fold) in enumerate(zip(rows, fold_N, strict=True)):
    keys = [(group(row), option) for option in options(row)]
    counts = np.array([total[key] - inside[fold, key] for key in keys])
    best = counts == counts.max()
    right[i] = best[LETTERS.index(row.gold)] / best.sum()
  return right
