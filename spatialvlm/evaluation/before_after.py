"""Two runs on the same questions, e.g. before and after training: what changed, on screen and in files."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from spatialvlm import workdir
from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation.evaluate import Result
from spatialvlm.evaluation.report import change_tables
from spatialvlm.evaluation.scoring import statistics
from spatialvlm.reporting import terminal


def compare(
  before: Result, after: Result, config: ScoreConfig, folder: pathlib.Path, title: str = ""
) -> Mapping[str, Mapping[str, float]]:
  """Shows and keeps `statistics.paired` of two results; returns it.

  Writes comparison.json, comparison.txt (the table as it is shown) and scores.png into `folder`, which must
  exist. On several processes the first one writes and shows.

  Raises:
    UserError: the results are not of the same questions, or the disk is full.
  """
  changes = statistics.paired(before.rows, after.rows, resamples=config.bootstrap, seed=config.seed)
  if jax.process_index() == 0:
    table = change_tables.beside_baselines(changes, after.summary, title)
    content: dict[str, Any] = {
      "protocol": after.summary["protocol"],
      "official_note": after.summary["official_note"],
      "changes": changes,
      "baselines": after.summary["baselines"],
    }
    workdir.write_json(folder / "comparison.json", content)
    workdir.write_text(folder / "comparison.txt", terminal.plain_text(table))
    with workdir.writing(folder / "scores.png"):
      change_tables.plot_bars(changes, after.summary, folder / "scores.png", title)
    terminal.show(table)
  return changes
