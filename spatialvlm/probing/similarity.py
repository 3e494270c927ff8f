"""How alike two encoders see: linear centred kernel alignment (CKA; Kornblith et al., ICML 2019)."""

from __future__ import annotations

from collections.abc import Sequence

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


def table(features: Sequence[np.ndarray]) -> list[list[float | None]]:
  """CKA of each with each."""
  found: list[list[float | None]] = [[1.0] * len(features) for _ in features]
  for i, x in enumerate(features):
    for j in range(i):
      found[i][j] = found[j][i] = linear_cka(x, features[j])
  return found
