"""The curve of a run, from its metrics file."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from spatialvlm import workdir as workdir_lib
from spatialvlm.training import metrics


def loss_curve(workdir: pathlib.Path, best: Mapping[str, Any] | None = None) -> None:
  """Writes `loss.png`: losses and the learning rate over steps, and below them the scores of evaluations.

  Args:
    best: the step whose parameters the run ends with, `step`, is marked; None for the last.

  Nothing is written without rows.

  Raises:
    UserError: the disk is full.
  """
  import matplotlib.figure

  rows = metrics.read(workdir / metrics.FILE)
  trained = [row for row in rows if "loss" in row]
  validated = [row for row in rows if "validation/loss" in row]
  scored = [row for row in rows if any(key.startswith(metrics.SCORES) for key in row)]
  if not trained and not validated and not scored:
    return
  # A figure of its own: pyplot would keep state, and look for a display.
  figure = matplotlib.figure.Figure(figsize=(7, 6.4 if scored else 4), layout="constrained")
  if scored:
    axis, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    _draw_scores(below, scored)
  else:
    axis = below = figure.add_subplot()
  axis.set_ylabel("loss")
  below.set_xlabel("step")
  below.xaxis.get_major_locator().set_params(integer=True)
  _draw_losses(axis, trained, validated)
  if best and best.get("step"):
    for each in {axis, below}:
      each.axvline(best["step"], color="0.4", linestyle=":", linewidth=1, label=f"best: step {best['step']}")
  for each in {axis, below}:
    each.legend(loc="best", fontsize=8, framealpha=0.8)
  path = workdir / "loss.png"
  with workdir_lib.writing(path):
    figure.savefig(path, dpi=120)


def _draw_losses(axis: Any, trained: Sequence[Mapping], validated: Sequence[Mapping]) -> None:
  if trained:
    steps = [row["step"] for row in trained]
    axis.plot(steps, [row["loss"] for row in trained], color="tab:blue", linewidth=1, label="training")
    rate = axis.twinx()
    rate.plot(steps, [row["learning_rate"] for row in trained], color="0.75", linewidth=1)
    rate.set_ylabel("learning rate", color="0.55")
  if validated:
    steps = [row["step"] for row in validated]
    losses = [row["validation/loss"] for row in validated]
    axis.plot(steps, losses, color="tab:orange", marker="o", markersize=3, label="validation")
  axis.set_zorder(1)
  axis.patch.set_visible(False)


def _draw_scores(axis: Any, scored: Sequence[Mapping]) -> None:
  """The score of all questions, official where that applies, and thinner those of the tasks."""
  names = [key.removeprefix(metrics.SCORES) for key in scored[0] if key.startswith(metrics.SCORES)]
  main = "official" if "official" in names else "plain"
  for name in (main, *(n for n in names if n.startswith("task/"))):
    found = [(row["step"], 100 * row[metrics.SCORES + name]) for row in scored]
    style = {"color": "black", "linewidth": 2} if name == main else {"linewidth": 1}
    axis.plot(*zip(*found, strict=True), marker="o", markersize=3, label=name.removeprefix("task/"), **style)
  axis.set_ylabel("score, %")
