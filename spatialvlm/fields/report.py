"""What is measured of held-out views, beside guesses that know the fitted views alone; a table, a picture."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm import workdir
from spatialvlm.fields import metrics
from spatialvlm.fields.field import Rendered
from spatialvlm.fields.posed.cameras import View
from spatialvlm.reporting import tables

FIELD, NEAREST, CONSTANT = "field", "nearest fitted view", "constant"
_SHOWN = 4


def measured(
  held: Sequence[View], rendered: Sequence[Rendered], fitted: Sequence[View], seed: int
) -> dict[str, Any]:
  """PSNR, and AbsRel where depth is known: means with 95 % intervals over the views, and every view's own.

  `gain` is the field's less the better guess's, view by view (for AbsRel: how much lower it is).
  """
  mean, middle = metrics.constant_colour(fitted), metrics.constant_depth(fitted)
  psnr: dict[str, list[float]] = {FIELD: [], NEAREST: [], CONSTANT: []}
  depth: dict[str, list[float]] = {
    f"{FIELD}, median": [],
    f"{FIELD}, expected": [],
    NEAREST: [],
    CONSTANT: [],
  }
  for view, seen in zip(held, rendered, strict=True):
    other = metrics.nearest(view.camera, fitted)
    same = other.image.shape == view.image.shape
    psnr[FIELD].append(metrics.psnr(seen.image, view.image))
    psnr[CONSTANT].append(metrics.psnr(np.broadcast_to(mean, view.image.shape), view.image))
    if same:
      psnr[NEAREST].append(metrics.psnr(other.image, view.image))
    if view.depth is None or not (view.depth > 0).any():
      continue
    depth[f"{FIELD}, median"].append(metrics.abs_rel(seen.median, view.depth))
    depth[f"{FIELD}, expected"].append(metrics.abs_rel(seen.expected, view.depth))
    if middle:
      depth[CONSTANT].append(metrics.abs_rel(np.full_like(view.depth, middle), view.depth))
    if same and other.depth is not None:
      depth[NEAREST].append(metrics.abs_rel(other.depth, view.depth))
  return {"psnr": _summed(psnr, 1, seed), "abs_rel": _summed(depth, -1, seed)}


def _summed(values: Mapping[str, list[float]], better: int, seed: int) -> dict[str, Any]:
  values = {name: found for name, found in values.items() if found}
  out: dict[str, Any] = {
    name: metrics.interval(found, seed) | {"each": [round(v, 4) for v in found]}
    for name, found in values.items()
  }
  ours = [name for name in values if name.startswith(FIELD)]
  whole = [n for n in values if n not in ours and ours and len(values[n]) == len(values[ours[0]])]
  if whole:
    best = max(whole, key=lambda name: better * out[name]["mean"])
    for name in ours:
      gain = better * (np.array(values[name]) - np.array(values[best]))
      out[name]["gain"] = metrics.interval(gain, seed) | {"over": best}
  return out


def table(found: Mapping[str, Any]) -> tables.Table:
  """The measured means with their intervals."""
  rows = []
  for score, digits in (("psnr", 2), ("abs_rel", 4)):
    for name, one in found[score].items():
      gain = one.get("gain")
      rows.append(
        (
          f"{'PSNR, dB' if score == 'psnr' else 'AbsRel of depth'}: {name}",
          f"{one['mean']:.{digits}f}",
          f"{one['low']:.{digits}f} to {one['high']:.{digits}f}",
          ""
          if gain is None
          else f"{gain['mean']:+.{digits}f} ({gain['low']:+.{digits}f} to {gain['high']:+.{digits}f})",
        )
      )
  views = max((one["views"] for score in found.values() for one in score.values()), default=0)
  return tables.make(
    "field",
    f"{views} held-out views",
    ("", "mean", "95 % interval", "better than the best guess"),
    rows,
    note="Intervals: bootstrap over views. AbsRel: pixels without a rendered depth count as an error of 1.",
  )


def draw(path: pathlib.Path, held: Sequence[View], rendered: Sequence[Rendered]) -> None:
  """Writes held-out views beside the field's: truth, rendered, and the depth of both where it is known.

  Raises:
    UserError: the file cannot be written.
  """
  import matplotlib.figure

  held, rendered = held[:_SHOWN], rendered[:_SHOWN]
  known = any(view.depth is not None for view in held)
  heads = ["truth", "rendered"] + (["true depth"] if known else []) + ["rendered depth"]
  figure = matplotlib.figure.Figure(figsize=(2.1 * len(heads), 2.1 * len(held) + 0.2), layout="constrained")
  grid = figure.subplots(len(held), len(heads), squeeze=False)
  for axes, view, seen in zip(grid, held, rendered, strict=True):
    depths = ([view.depth] if known else []) + [seen.depth]
    # By 1 / depth, in which what is near differs most; what has no depth stays white.
    inverse = [None if d is None else 1 / np.ma.masked_less_equal(d, 0) for d in depths]
    known_there = [d.compressed() for d in inverse if d is not None and d.count()]
    low, high = np.percentile(known_there[0], (2, 99)) if known_there else (0, 1)
    for axis, image in zip(axes, [view.image, seen.image, *inverse], strict=True):
      if image is not None and image.ndim == 3:
        axis.imshow(image, interpolation="nearest")
      elif image is not None:
        axis.imshow(image, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
      axis.set(xticks=[], yticks=[])
  for axis, head in zip(grid[0], heads, strict=True):
    axis.set_title(head, fontsize=9)
  buffer = io.BytesIO()
  figure.savefig(buffer, dpi=100, format="png")
  workdir.write_bytes(path, buffer.getvalue())
