"""The curve of a run, from its metrics file."""

from __future__ import annotations

import pathlib

from spatialvlm import workdir as workdir_lib
from spatialvlm.training import metrics


def loss_curve(workdir: pathlib.Path) -> None:
  """Writes `loss.png`: training and validation loss over steps, and the learning rate. Nothing without rows.

  Raises:
    UserError: the disk is full.
  """
  import matplotlib.figure

  rows = metrics.read(workdir / metrics.FILE)
  trained = [row for row in rows if "loss" in row]
  validated = [row for row in rows if "validation/loss" in row]
  if not trained and not validated:
    return
  # A figure of its own: pyplot would keep state, and look for a display.
  figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
  axis = figure.add_subplot(xlabel="step", ylabel="loss")
  if trained:
    steps = [row["step"] for row in trained]
    axis.plot(steps, [row["loss"] for row in trained], color="tab:blue", linewidth=1, label="training")
    rate = axis.twinx()
    rate.plot(steps, [row["learning_rate"] for row in trained], color="0.75", linewidth=1)
    rate.set_ylabel("learning rate", color="0.55")
  if validated:
    axis.plot(
      [row["step"] for row in validated],
      [row["validation/loss"] for row in validated],
      color="tab:orange",
      marker="o",
      markersize=3,
      label="validation",
    )
  axis.legend(loc="upper right")
  axis.set_zorder(1)
  axis.patch.set_visible(False)
  path = workdir / "loss.png"
  with workdir_lib.writing(path):
    figure.savefig(path, dpi=120)
