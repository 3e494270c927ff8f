"""Drawings of a record, maps over the picture and log-odds by layer: PNGs for papers, and their panels."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from spatialvlm import workdir
from spatialvlm.inside.record import Lens, Record

# Layers that the drawing of maps shows, evenly taken, and maps in a row of it.
SHOWN, COLUMNS = 6, 5


def maps(record: Record, path: pathlib.Path) -> None:
  """Writes where the answer's place looks: by layers, then what is carried through them.

  Raises:
    UserError: the disk is full or not writable.
  """
  import matplotlib.figure

  panels = list(_panels(record))
  rows = -(-(len(panels) + 1) // COLUMNS)
  columns = min(len(panels) + 1, COLUMNS)
  figure = matplotlib.figure.Figure(
    figsize=(1.9 * columns, 2.15 * rows * len(record.pictures)), layout="constrained"
  )
  axes = figure.subplots(rows * len(record.pictures), columns, squeeze=False)
  for axis in axes.flat:
    axis.set_axis_off()
  for number, (pixels, canvas) in enumerate(zip(record.pictures, record.canvases, strict=True)):
    first, *others = axes[number * rows : (number + 1) * rows].flat
    first.imshow(pixels)
    first.set_title("picture", fontsize=8)
    for axis, (title, values, fine) in zip(others, panels, strict=False):
      over(axis, pixels, canvas.finer(fine).lay(values))
      axis.set_title(title, fontsize=8)
  _save(figure, path)


def _panels(record: Record) -> Iterator[tuple[str, np.ndarray, int]]:
  """Title, values of image tokens or patches, and how many patches' edges make a token's."""
  chosen = np.unique(
    np.linspace(0, len(record.layers) - 1, min(SHOWN, len(record.layers))).round().astype(int)
  )
  for index in chosen:
    yield f"layer {record.layers[index]}", record.looked[index, -1], 1
  if record.rollout.size:
    yield "rollout", record.rollout[-1, -1], 1
  if record.gradient.size:
    yield "gradient-weighted", record.gradient[-1], 1
  if record.vision is not None:
    fine = record.vision.side // record.canvases[0].side
    if record.rollout.size:
      yield "rollout, both towers", record.through_vision(record.rollout[-1, -1]), fine
    if record.vision.gradient.size:
      yield "gradient, both towers", record.vision.gradient.ravel(), fine


def over(axis: Any, picture: np.ndarray, cells: np.ndarray) -> None:
  """Draws a map over a picture, on Matplotlib axes.

  Args:
    picture: uint8 (H, W, 3), drawn grey.
    cells: (rows, columns) of shares, none negative, as `Canvas.lay` gives them; the largest is brightest.
  """
  height, width = picture.shape[:2]
  grey = picture.astype(np.float32).mean(axis=-1) / 255
  axis.imshow(0.35 + 0.65 * grey, cmap="gray", vmin=0, vmax=1)
  share = np.sqrt(cells / max(float(cells.max()), 1e-30))
  axis.imshow(share, cmap="inferno", alpha=0.85 * share, vmin=0, vmax=1, extent=(0, width, height, 0))


def lens(record: Record, path: pathlib.Path) -> None:
  """Writes the options' log-odds at the answer's place by layer, by each lens; errors as `maps`."""
  import matplotlib.figure

  lenses = [("logit lens", record.lens)] + ([("tuned lens", record.tuned)] if record.tuned else [])
  figure = matplotlib.figure.Figure(figsize=(4.2 * len(lenses), 3), layout="constrained")
  for axis, (title, found) in zip(figure.subplots(1, len(lenses), squeeze=False)[0], lenses, strict=True):
    curves(axis, record, found, title)
  _save(figure, path)


def curves(axis: Any, record: Record, found: Lens | None = None, title: str = "") -> None:
  """Draws the options' log-odds by layer, on Matplotlib axes; a line stands where the right one overtakes.

  Args:
    found: the reading that is drawn; None: the record's logit lens.
  """
  found = record.lens if found is None else found
  target = record.right if record.right >= 0 else record.chosen
  for k, name in enumerate(record.curves):
    axis.plot(found.log_odds[:, k], label=name, linewidth=2.2 if k == target else 1.2)
  if (layer := found.overtakes(target)) is not None:
    axis.axvline(layer, color="0.4", linestyle="--", linewidth=1)
  axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
  axis.set(title=title, xlabel="layer", ylabel="log-odds")
  axis.xaxis.get_major_locator().set_params(integer=True)
  axis.legend(fontsize=7)


def _save(figure: Any, path: pathlib.Path) -> None:
  buffer = io.BytesIO()
  figure.savefig(buffer, dpi=130, format="png")
  workdir.write_bytes(path, buffer.getvalue())
