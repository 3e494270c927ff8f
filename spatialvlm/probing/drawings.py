"""Features as pictures: three principal components as red, green and blue; and the sheet of all encoders."""

from __future__ import annotations

import base64
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from spatialvlm import workdir

_EDGE = 160


def principal(features_KRCD: np.ndarray) -> np.ndarray:
  """uint8 (K, R, C, 3): each patch by the three directions in which the patches of all K images vary most.

  Components run from their 1st to their 99th percentile. Signs are set so that each direction's largest
  entry is positive; which component is which colour says nothing across encoders.
  """
  x_PD = features_KRCD.reshape(-1, features_KRCD.shape[-1]).astype(np.float64)
  x_PD = x_PD - x_PD.mean(0)
  _, vectors = np.linalg.eigh(x_PD.T @ x_PD)
  top = vectors[:, ::-1][:, :3]
  top = top * np.sign(top[np.abs(top).argmax(0), np.arange(top.shape[1])])
  parts = x_PD @ top
  parts = np.pad(parts, ((0, 0), (0, 3 - parts.shape[1])))
  low, high = np.percentile(parts, (1, 99), axis=0)
  scaled = (parts - low) / np.maximum(high - low, 1e-12)
  return (255 * np.clip(scaled, 0, 1)).round().astype(np.uint8).reshape(*features_KRCD.shape[:3], 3)


def as_uri(image: np.ndarray, edge: int = _EDGE) -> str:
  """A square picture as a data URI, its pixels enlarged without smoothing."""
  filters = Image.Resampling
  small = Image.fromarray(image).resize((edge, edge), filters.NEAREST if len(image) < edge else filters.BOX)
  buffer = io.BytesIO()
  small.save(buffer, "PNG", optimize=True)
  return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_sheet(
  path: pathlib.Path,
  images: np.ndarray,
  components: Mapping[str, np.ndarray],
  charts: Sequence[tuple[str, Mapping[str, Mapping[str, float]]]],
) -> None:
  """Writes encoders.png: the scenes, each encoder's components of them, and a chart of each probe.

  Args:
    images: uint8 (K, R, R, 3).
    components: `principal` by encoder.
    charts: (title, summaries by row) of each probe.

  Raises:
    UserError: the disk is full.
  """
  import matplotlib.figure

  rows = {"scene": images, **components} if len(images) else {}
  names = list(charts[0][1])
  low = 0.26 * len(names) + 0.7
  figure = matplotlib.figure.Figure(figsize=(11, 1.05 * len(rows) + low + 0.2), layout="constrained")
  upper, below = figure.subfigures(2, height_ratios=(1.05 * len(rows) + 0.1, low)) if rows else (None, figure)
  if rows:
    grid = upper.subplots(len(rows), len(images), squeeze=False)
    for axes, (name, pictures) in zip(grid, rows.items(), strict=True):
      for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
      axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
  for number, (axis, (title, found)) in enumerate(zip(below.subplots(1, len(charts)), charts, strict=True)):
    _chart(axis, title, found, first=number == 0)
  buffer = io.BytesIO()
  figure.savefig(buffer, dpi=100, format="png")
  workdir.write_bytes(path, buffer.getvalue())


def _chart(axis: Any, title: str, found: Mapping[str, Mapping[str, float]], first: bool) -> None:
  names = list(found)
  for place, name in enumerate(names):
    one = found[name]
    if one["value"] is None:
      continue
    colour = "0.55" if place < 3 or name.endswith("(drawn)") else "tab:blue"
    axis.plot([one["low"], one["high"]], [place, place], color=colour, linewidth=3, alpha=0.45)
    axis.plot(one["value"], place, "o", color=colour, markersize=4)
  axis.set_title(title, fontsize=8)
  axis.set_yticks(range(len(names)), names if first else [""] * len(names), fontsize=8)
  axis.tick_params(axis="x", labelsize=7)
  axis.invert_yaxis()
  axis.grid(axis="x", linewidth=0.4)
