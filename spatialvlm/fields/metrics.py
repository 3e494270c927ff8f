"""How near rendered pictures and depths are to the truth, and what simple guesses reach.

A guess knows the fitted views alone: a constant (their mean colour, their median depth), and the fitted view
whose camera is nearest, taken as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spatialvlm.fields.posed.cameras import Camera, View


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
  """Peak signal-to-noise ratio in dB of two uint8 pictures; 99 for equal ones."""
  error = ((image.astype(np.float64) - truth.astype(np.float64)) ** 2).mean()
  return float(-10 * np.log10(error / 255**2)) if error else 99.0


def abs_rel(depth: np.ndarray, truth: np.ndarray) -> float | None:
  """Mean of |depth - truth| / truth over the pixels whose true depth is known; None where there is none.

  A pixel without a depth (0) counts as an error of 1, so that leaving hard ones out gains nothing.
  """
  known = truth > 0
  if not known.any():
    return None
  d, t = depth[known].astype(np.float64), truth[known].astype(np.float64)
  return float(np.where(d > 0, np.abs(d - t) / t, 1.0).mean())


def nearest(camera: Camera, views: Sequence[View]) -> View:
  """The view whose camera is nearest: by what is seen, the angle between the axes, then by place."""
  ahead = np.array([1 - v.camera.pose[:3, 2] @ camera.pose[:3, 2] for v in views])
  apart = np.array([np.linalg.norm(v.camera.pose[:3, 3] - camera.pose[:3, 3]) for v in views])
  return views[int(np.argmin(apart / max(apart.max(), 1e-9) + ahead / max(ahead.max(), 1e-9)))]


def constant_colour(views: Sequence[View]) -> np.ndarray:
  """(3,) uint8, the mean colour of all pixels."""
  total = sum(v.image.reshape(-1, 3).astype(np.float64).sum(0) for v in views)
  return np.rint(total / sum(v.image.shape[0] * v.image.shape[1] for v in views)).astype(np.uint8)


def constant_depth(views: Sequence[View]) -> float:
  """Metres, the median of all known depths; 0 where none is known."""
  known = [v.depth[v.depth > 0] for v in views if v.depth is not None]
  return float(np.median(np.concatenate(known))) if known and sum(map(len, known)) else 0.0


def interval(values: Sequence[float], seed: int, resamples: int = 2000) -> dict[str, float]:
  """Mean of values by view, and its 95 % interval by bootstrap over the views."""
  values = np.asarray(values, np.float64)
  rng = np.random.default_rng((seed, 0xB007))
  means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
  low, high = np.percentile(means, (2.5, 97.5))
  return {"mean": float(values.mean()), "low": float(low), "high": float(high), "views": len(values)}
