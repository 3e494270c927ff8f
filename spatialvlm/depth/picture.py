"""Pictures beside how far everything in them is: true, and as a model says."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spatialvlm import workdir as workdir_lib


class Shown(NamedTuple):
  """A picture, uint8 (H, W, 3), and depths in metres, (H, W), NaN where there is none; None: unknown."""

  image: np.ndarray
  found: np.ndarray
  truth: np.ndarray | None = None


def draw(rows: Sequence[Shown], path: pathlib.Path) -> None:
  """Writes a PNG, a picture a column: image, truth where known, prediction, on one scale of metres.

  Raises:
    UserError: the disk is full or not writable.
  """
  import matplotlib.figure

  known = [row.truth for row in rows if row.truth is not None]
  depths = np.concatenate([depth[np.isfinite(depth)] for depth in known or [row.found for row in rows]])
  low, high = (float(np.quantile(depths, share)) for share in (0.01, 0.99))
  scale = dict(cmap="viridis_r", vmin=low, vmax=high)
  count = 3 if known else 2
  figure = matplotlib.figure.Figure(figsize=(1.9 * len(rows) + 0.9, 1.95 * count), layout="constrained")
  axes = figure.subplots(count, len(rows), squeeze=False)
  last = None
  for column, row in enumerate(rows):
    axes[0, column].imshow(row.image)
    if known and row.truth is not None:
      axes[1, column].imshow(row.truth, **scale)
    last = axes[-1, column].imshow(row.found, **scale)
  for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
  labels = ("picture", "truth", "model") if known else ("picture", "model")
  for axis, label in zip(axes[:, 0], labels, strict=True):
    axis.set_ylabel(label)
  figure.colorbar(last, ax=axes, label="metres", shrink=0.8)
  with workdir_lib.writing(path):
    figure.savefig(path, dpi=110)
