"""How far predicted depths are from true ones, beside constants that see no picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spatialvlm.reporting import tables

# AbsRel, RMSE in metres, share within a factor of 1.25.
Errors = tuple[float, float, float]


def errors(found: np.ndarray, truth: np.ndarray, others: np.ndarray, farthest: float) -> dict[str, Errors]:
  """AbsRel, RMSE in metres, share within a factor of 1.25, over pixels (Eigen et al., arXiv 1406.2283).

  Args:
    found, truth: metres (N, H, W); what is not above 0, or beyond `farthest`, is no depth.
    others: true depths of other pictures, (M, H, W), that the constants are taken of: "one depth", their
      median, and "by place", that of each pixel.
  """
  seen = lambda depth: np.where((depth > 0) & (depth <= farthest), depth, np.nan)
  good = np.isfinite(seen(truth))
  everywhere = np.nanmedian(seen(others))
  count = np.isfinite(seen(others)).sum(0)
  filled = np.where(count > 0, seen(others), everywhere)
  place = np.nanmedian(filled, axis=0)
  said = {
    "one depth": np.full(truth.shape, everywhere),
    "by place": np.broadcast_to(place, truth.shape),
    "model": found,
  }
  return {name: _errors(values[good], truth[good]) for name, values in said.items()}


def _errors(found: np.ndarray, truth: np.ndarray) -> Errors:
  apart = np.abs(found - truth)
  near = np.maximum(found / truth, truth / found) < 1.25
  return float((apart / truth).mean()), float(np.sqrt((apart**2).mean())), float(near.mean())


def table(scores: Mapping[str, Errors]) -> tables.Table:
  """One row a way of saying depths."""
  rows = [(name, f"{a:.3f}", f"{r:.2f} m", f"{100 * d:.1f} %") for name, (a, r, d) in scores.items()]
  return tables.make("depth", "Depth", ("", "AbsRel", "RMSE", "within 1.25"), rows)
