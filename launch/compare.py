"""Holds finished evaluations against each other: `python launch/compare.py RUN_A RUN_B [...]`.

Every run is compared with the first one: differences with intervals, exact McNemar tests, the questions on
which they differ. `RUN:PROTOCOL` takes another protocol than the run's headline, so that one run can be held
against itself.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "folder for report, tables and plot; runs/compare-A-B by default"
)
_BOOTSTRAP = flags.DEFINE_integer("bootstrap", 2000, "resamples of the intervals", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of the resamples")


def main(arguments: Sequence[str]) -> None:
  import re

  from spatialvlm.evaluation.report import between_runs
  from spatialvlm.reporting import terminal

  runs = between_runs.open_runs(arguments)
  name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", run.name) for run in runs)
  folder = pathlib.Path(_WORKDIR.value or f"runs/compare-{name[:120]}").expanduser()
  changes = between_runs.paired_changes(runs, resamples=_BOOTSTRAP.value, seed=_SEED.value)
  for table in between_runs.write(runs, changes, folder):
    terminal.show(table)
  print(f"report, tables, forest plot and differing questions: {folder}")


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
