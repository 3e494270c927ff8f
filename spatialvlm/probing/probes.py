"""Linear probes on frozen features: ridge and logistic regression, with intervals by image.

Every probe reads cells' features (N, C, D) alone: it is fitted on one part of the scenes, its penalty is
chosen on a second, and its scores are those of a third.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from spatialvlm.probing.worlds import APART, Worlds

FIT, CHOOSE, TEST = range(3)
# A depth is right when it and the truth differ by a factor below this (Eigen et al., 2014).
DELTA = 1.25
# Sharpness of the weighted mean that turns a map of scores into one place.
_SHARPNESS = (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
_INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_ROWS = 8192


Fitted = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """Sums over the questions of each image, from which a score and its interval are made.

  Attributes:
    sums_NS: (images, sums); images without a question are left out.
    score: from sums over images (..., S) to the score.
  """

  sums_NS: np.ndarray
  score: Callable[[np.ndarray], np.ndarray]

  def summary(self, resamples: int, seed: int, level: float = 0.95) -> dict[str, float | int | None]:
    """value, low and high (percentiles of a bootstrap over images), and the number of images."""
    images = len(self.sums_NS)
    if not images:
      return {"value": None, "low": None, "high": None, "images": 0}
    rng = np.random.default_rng(seed)
    weights_BN = rng.multinomial(images, np.full(images, 1 / images), resamples)
    drawn = self.score(weights_BN @ self.sums_NS)
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(drawn, (tail, 100 - tail))
    value = float(self.score(self.sums_NS.sum(0)))
    return {"value": value, "low": float(low), "high": float(high), "images": images}


def run(cells_NCD: np.ndarray, worlds: Worlds, penalties: Sequence[float]) -> dict[str, Measured]:
  """All probes on one encoder's features: `rmse`, `delta`, `place`, `relation`, `nearer`."""
  found = dict(zip(("rmse", "delta"), depth(cells_NCD, worlds, penalties), strict=True))
  found |= dict(zip(("place", "relation"), places(cells_NCD, worlds, penalties), strict=True))
  return found | {"nearer": nearer(cells_NCD, worlds)}


def guessing(worlds: Worlds) -> dict[str, Measured]:
  """The scores that one answer for all would get: the mean depth, the mean place, a coin."""
  target, image, part = _depth_rows(worlds)
  mean = target[part == FIT].mean()
  test = part == TEST
  found = dict(
    zip(("rmse", "delta"), _depth_scores(np.full(test.sum(), mean), target[test], image[test]), strict=True)
  )
  part_M = worlds.part_N[worlds.named_M2[:, 0]]
  middle = worlds.centres_M2[part_M == FIT].mean(0)
  guess = np.broadcast_to(middle, worlds.centres_M2[part_M == TEST].shape)
  found |= dict(zip(("place", "relation"), _place_scores(guess, worlds), strict=True))
  coin = np.full((worlds.part_N[worlds.pair_scene_Q] == TEST).sum(), 0.5)
  return found | {"nearer": shares(coin, worlds.pair_scene_Q[worlds.part_N[worlds.pair_scene_Q] == TEST])}


# Depth of each cell.


def depth(cells_NCD, worlds: Worlds, penalties: Sequence[float]) -> tuple[Measured, Measured]:
  """Root of the mean squared error in metres, and the share of cells within a factor of 1.25."""
  target, image, part = _depth_rows(worlds)
  test = part == TEST
  predicted = fit_depth(cells_NCD, worlds, penalties)(cells_NCD[np.isfinite(worlds.depth_NC)][test])
  return _depth_scores(predicted[:, 0], target[test], image[test])


def fit_depth(cells_NCD, worlds: Worlds, penalties: Sequence[float]) -> Fitted:
  """The probe by itself: from features (N, D) of cells to metres (N, 1)."""
  target, _, part = _depth_rows(worlds)
  return _chosen(cells_NCD[np.isfinite(worlds.depth_NC)], target[:, None], part, penalties)


def fit_place(cells_NCD, worlds: Worlds, place_CK: np.ndarray, penalties: Sequence[float]) -> Fitted:
  """From features (N, D) of cells to what is said of each cell's place (N, K)."""
  N, C, D = cells_NCD.shape
  target = np.broadcast_to(place_CK, (N, *place_CK.shape)).reshape(N * C, -1)
  return _chosen(cells_NCD.reshape(N * C, D), target, np.repeat(worlds.part_N, C), penalties)


def _chosen(rows_MD, target_MK, part_M, penalties: Sequence[float]) -> Fitted:
  """Ridge regression on the scenes that probes are fitted on, with the penalty that the next ones choose."""
  ridge = Ridge(rows_MD[part_M == FIT], target_MK[part_M == FIT])
  choose = part_M == CHOOSE
  error = lambda w: float(np.mean((w(rows_MD[choose]) - target_MK[choose]) ** 2))
  return min((ridge.solve(p) for p in penalties), key=error)


def _depth_rows(worlds: Worlds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Depth, image, and part of every cell that has a depth."""
  known = np.isfinite(worlds.depth_NC)
  image = np.nonzero(known)[0]
  return worlds.depth_NC[known].astype(np.float64), image, worlds.part_N[image]


def _depth_scores(predicted: np.ndarray, target: np.ndarray, image: np.ndarray) -> tuple[Measured, Measured]:
  positive = np.maximum(predicted, 1e-3)
  right = np.maximum(positive / target, target / positive) < DELTA
  squares = _by_image(image, (predicted - target) ** 2)
  return Measured(squares, lambda s: np.sqrt(s[..., 0] / s[..., 1])), shares(right, image)


# Where a named object is: a map for each name, and the place where it is highest.


def places(cells_NCD, worlds: Worlds, penalties: Sequence[float]) -> tuple[Measured, Measured]:
  """Mean distance from a named object's true centre, as a share of the picture's edge; and the share of pairs
  of named objects whose order, left to right and top to bottom, follows from the places found."""
  shape = worlds.names_NCZ.shape
  part_M = worlds.part_N[worlds.named_M2[:, 0]]
  pick = lambda part: cells_NCD[worlds.part_N == part].reshape(-1, cells_NCD.shape[-1])
  ridge = Ridge(pick(FIT), worlds.names_NCZ[worlds.part_N == FIT].reshape(-1, shape[-1]))
  first = np.searchsorted(worlds.part_N, np.arange(3))  # the parts stand one behind another

  def found(solved, sharpness: float, part: int) -> np.ndarray:
    maps = solved(pick(part)).reshape(-1, *shape[1:])
    scene, name = worlds.named_M2[part_M == part].T
    return _centroid(maps[scene - first[part], :, name], sharpness)

  def error(setting) -> float:
    return float(np.mean(_distance(found(*setting, CHOOSE), worlds.centres_M2[part_M == CHOOSE])))

  solved = [ridge.solve(p) for p in penalties]
  best = min(itertools.product(solved, _SHARPNESS), key=error)
  return _place_scores(found(*best, TEST), worlds)


def _centroid(scores_MC: np.ndarray, sharpness: float) -> np.ndarray:
  """(M, 2): the mean of cells' middles (x, y), weighted by exp(sharpness * score)."""
  side = round(scores_MC.shape[1] ** 0.5)
  middle = (np.arange(side) + 0.5) / side
  cells_C2 = np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)  # x runs fastest
  weights = np.exp(sharpness * (scores_MC - scores_MC.max(1, keepdims=True)))
  return weights @ cells_C2 / weights.sum(1, keepdims=True)


def _distance(found_M2: np.ndarray, true_M2: np.ndarray) -> np.ndarray:
  return np.linalg.norm(found_M2 - true_M2, axis=1)


def _place_scores(found_M2: np.ndarray, worlds: Worlds) -> tuple[Measured, Measured]:
  """How far off the test's objects are placed, and the share of pairs that lie right, by image."""
  test = worlds.part_N[worlds.named_M2[:, 0]] == TEST
  scene, true_M2 = worlds.named_M2[test, 0], worlds.centres_M2[test]
  sums = _by_image(scene, _distance(found_M2, true_M2))
  right, image = [], []
  for i, j in itertools.combinations(range(len(scene)), 2):
    if scene[i] != scene[j]:
      continue
    for axis in range(2):
      true, found = true_M2[i, axis] - true_M2[j, axis], found_M2[i, axis] - found_M2[j, axis]
      if abs(true) >= APART:
        right.append(0.5 if found == 0 else float((found > 0) == (true > 0)))
        image.append(scene[i])
  mean = lambda s: s[..., 0] / s[..., 1]
  return Measured(sums, mean), shares(np.array(right), np.array(image, int))


# Which of two objects is nearer.


def nearer(cells_NCD, worlds: Worlds) -> Measured:
  """Share of pairs rightly ordered in depth, from the difference of the features under either object."""
  part_Q = worlds.part_N[worlds.pair_scene_Q]
  if not all((part_Q == part).any() for part in range(3)):
    return shares(np.zeros(0), np.zeros(0, int))
  x_QD = np.stack(
    [w @ cells_NCD[i] for i, w in zip(worlds.pair_scene_Q, worlds.pair_QC, strict=True)]
  ).astype(np.float64)
  x_QD /= np.maximum(x_QD[part_Q == FIT].std(0), 1e-6)
  y_Q = worlds.first_nearer_Q
  fitted = [_logistic(x_QD[part_Q == FIT], y_Q[part_Q == FIT], c) for c in _INVERSE_PENALTIES]
  best = max(fitted, key=lambda m: m.score(x_QD[part_Q == CHOOSE], y_Q[part_Q == CHOOSE]))
  right = best.predict(x_QD[part_Q == TEST]) == y_Q[part_Q == TEST]
  return shares(right, worlds.pair_scene_Q[part_Q == TEST])


def _logistic(x: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
  # Without an intercept, since a pair the other way round must get the other answer: so each stands twice.
  model = LogisticRegression(C=c, fit_intercept=False, max_iter=300)
  return _fitted(model, np.concatenate([x, -x]), np.concatenate([y, ~y]))


def _fitted(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty that does not settle is not chosen
    return model.fit(x, y)


# How many objects there are.


def count(cells_NCD, worlds: Worlds, penalties: Sequence[float]) -> Measured:
  """Mean distance from the true number of objects in sight, by ridge regression on the sum of all cells."""
  x_ND = cells_NCD.mean(1, dtype=np.float64)
  predicted = _chosen(x_ND, worlds.count_N[:, None].astype(np.float64), worlds.part_N, penalties)(x_ND)[:, 0]
  return _count_score(predicted, worlds)


def count_guessing(worlds: Worlds) -> Measured:
  """The same of one answer for all: the median number."""
  return _count_score(np.full(len(worlds.part_N), np.median(worlds.count_N[worlds.part_N == FIT])), worlds)


def _count_score(predicted_N: np.ndarray, worlds: Worlds) -> Measured:
  test = np.flatnonzero(worlds.part_N == TEST)
  error = np.abs(predicted_N - worlds.count_N)[test]
  return Measured(_by_image(test, error), lambda s: s[..., 0] / s[..., 1])


# Which of two choices is right.


def choice(x_ND: np.ndarray, y_N: np.ndarray, image_N: np.ndarray, part_N: np.ndarray) -> Measured:
  """Share of questions whose right choice, 0 or 1, logistic regression reads off features (N, D)."""
  fit, choose, test = (part_N == part for part in range(3))
  x_ND = (x_ND - x_ND[fit].mean(0)) / np.maximum(x_ND[fit].std(0), 1e-6)
  models = [_fitted(LogisticRegression(C=c, max_iter=300), x_ND[fit], y_N[fit]) for c in _INVERSE_PENALTIES]
  best = max(models, key=lambda m: m.score(x_ND[choose], y_N[choose]))
  return shares(best.predict(x_ND[test]) == y_N[test], image_N[test])


# Regression and sums.


class Ridge:
  """Ridge regression of standardised features, solved for any penalty from one eigendecomposition.

  Minimises the mean of (y - x w)^2 plus penalty * |w|^2 (Hoerl and Kennard, 1970); the mean is not penalised.
  Features that never vary are left out.
  """

  def __init__(self, x_ND: np.ndarray, y_NK: np.ndarray):
    count = len(x_ND)
    self._mean = x_ND.mean(0, dtype=np.float64)
    self._target = y_NK.mean(0, dtype=np.float64)
    gram = np.zeros((x_ND.shape[1],) * 2)
    cross = np.zeros((x_ND.shape[1], y_NK.shape[1]))
    for i in range(0, count, _ROWS):
      x = x_ND[i : i + _ROWS] - self._mean
      gram += x.T @ x / count
      cross += x.T @ (y_NK[i : i + _ROWS] - self._target) / count
    deviation = np.sqrt(np.diag(gram))
    varies = deviation > 1e-6 * max(deviation.max(), 1e-12)
    self._scale = np.where(varies, 1 / np.where(varies, deviation, 1.0), 0.0)
    self._values, self._vectors = np.linalg.eigh(gram * self._scale[:, None] * self._scale)
    self._rotated = self._vectors.T @ (cross * self._scale[:, None])

  def solve(self, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
    """The fitted function, from features (N, D) to targets (N, K)."""
    inverse = 1 / (np.maximum(self._values, 0) + penalty)
    w_DK = (self._scale[:, None] * (self._vectors @ (inverse[:, None] * self._rotated))).astype(np.float32)
    bias = (self._target - self._mean @ w_DK).astype(np.float32)
    return lambda x_ND: x_ND @ w_DK + bias


def _by_image(image: np.ndarray, values: np.ndarray) -> np.ndarray:
  """(images, 2): sum and count of the values of each image that has any."""
  _, place = np.unique(image, return_inverse=True)
  return np.stack([np.bincount(place, values), np.bincount(place)], 1).astype(np.float64)


def shares(right: np.ndarray, image: np.ndarray) -> Measured:
  """The share of questions that are right, by image."""
  return Measured(_by_image(image, np.asarray(right, float)), lambda s: s[..., 0] / s[..., 1])


def summaries(found: Mapping[str, Measured], resamples: int, seed: int) -> dict[str, dict[str, Any]]:
  """Each probe's `Measured.summary`."""
  return {name: measured.summary(resamples, seed) for name, measured in found.items()}
