"""Attention carried through layers: rollout, and gradient-weighted relevance. Rows alone, so no T x T
product.

Both are products of a matrix a layer; of some rows they are products of vectors, from the last layer down.
"""

from __future__ import annotations

import numpy as np


def rollout(mean_LTT: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Attention rollout (Abnar and Zuidema, arXiv 2005.00928), float32 (L, Q, T): from row q at layer l down.

  Each layer is half its attention, the mean over heads, and half the identity, for the residual stream. What
  a row of attention lacks to 1 (a soft prompt has it) stays out.
  """
  L, T, _ = mean_LTT.shape
  found = np.zeros((L, len(rows), T), np.float32)
  for top in range(L):
    r_QT = np.zeros((len(rows), T), np.float32)
    r_QT[np.arange(len(rows)), rows] = 1
    for layer in range(top, -1, -1):
      r_QT = 0.5 * (r_QT + r_QT @ mean_LTT[layer])
    found[top] = r_QT
  return found


def relevance(weighted_LTT: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Gradient-weighted relevance (Chefer et al., arXiv 2103.15679), float32 (Q, T): R <- R + A R, from R = 1.

  Args:
    weighted_LTT: A of each layer, the mean over heads of max(0, gradient * attention):
      `core.attention.traced`.
  """
  r_QT = np.zeros((len(rows), weighted_LTT.shape[1]), np.float32)
  r_QT[np.arange(len(rows)), rows] = 1
  return carried(weighted_LTT, r_QT)


def carried(weighted_LTT: np.ndarray, r_QT: np.ndarray) -> np.ndarray:
  """Relevance that stands at the top, (Q, T), carried down through layers as `relevance` does it."""
  for a_TT in weighted_LTT[::-1]:
    r_QT = r_QT + r_QT @ a_TT
  return r_QT
