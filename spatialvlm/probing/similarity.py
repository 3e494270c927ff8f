"""How alike two encoders see: linear centred kernel alignment (CKA; Kornblith et al., ICML 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_ROWS = 4096


def linear_cka(x_ND: np.ndarray, y_NE: np.ndarray) -> float | None:
  """From 0 to 1: 1 where one is a rotation and scaling of the other.

  ||Y'X||^2 / (||X'X|| ||Y'Y||) of centred columns, in Frobenius norms. With fewer rows than columns it is
  high for unrelated features too. None where a side does not vary.
  """
  if x_ND.shape[0] < 2:
    return None
  own = np.linalg.norm(_product(x_ND, x_ND)) * np.linalg.norm(_product(y_NE, y_NE))
  return float(np.linalg.norm(_product(x_ND, y_NE)) ** 2 / own) if own > 0 else None


def _product(x_ND: np.ndarray, y_NE: np.ndarray) -> np.ndarray:
  """X'Y of centred columns in float64, a block of rows at a time."""
  x_mean, y_mean = x_ND.mean(0, dtype=np.float64), y_NE.mean(0, dtype=np.float64)
  total = np.zeros((x_ND.shape[1], y_NE.shape[1]))
  for i in range(0, len(x_ND), _ROWS):
    total += (x_ND[i : i + _ROWS] - x_mean).T @ (y_NE[i : i + _ROWS] - y_mean)
  return total


def debiased_cka(x_ND: np.ndarray, y_NE: np.ndarray) -> float | None:
  """Linear CKA, estimated so that unrelated features give 0 on average, whatever their width.

  By the unbiased estimator of HSIC (Song et al., JMLR 2012, equation 4), as Nguyen et al. (ICLR 2021) have
  it; it may fall a little below 0. For few rows, since it compares each with each. None where a side does not
  vary, and below four rows.
  """
  if len(x_ND) < 4:
    return None
  x, y = (_gram(f) for f in (x_ND, y_NE))
  own = _hsic(x, x) * _hsic(y, y)
  return float(_hsic(x, y) / np.sqrt(own)) if own > 0 else None


def _gram(x_ND: np.ndarray) -> np.ndarray:
  x = x_ND - x_ND.mean(0, dtype=np.float64)
  gram = x @ x.T
  np.fill_diagonal(gram, 0)
  return gram


def _hsic(k_NN: np.ndarray, l_NN: np.ndarray) -> float:
  n = len(k_NN)
  both, k, l_ = np.sum(k_NN * l_NN), k_NN.sum(0), l_NN.sum(0)
  return (both + k.sum() * l_.sum() / ((n - 1) * (n - 2)) - 2 * (k @ l_) / (n - 2)) / (n * (n - 3))


def table(
  features: Sequence[np.ndarray], alike: Callable[[np.ndarray, np.ndarray], float | None] = linear_cka
) -> list[list[float | None]]:
  """CKA of each with each."""
  found: list[list[float | None]] = [[1.0] * len(features) for _ in features]
  for i, x in enumerate(features):
    for j in range(i):
      found[i][j] = found[j][i] = alike(x, features[j])
  return found
