"""Scores a model on plain scenes and on each shifted world: `python launch/shifts.py [--shifts=roll,dark]`.

`--config.model.path` names a model's folder or hub id, a PEFT adapter's, or the workdir of a training run.
Shapes, colours, surfaces, cameras and light that training never shows are one shift each
(`spatialvlm/worlds/shifts.py`). The recipe is configs/shifted.py unless `--config` names another.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.config import EvaluateConfig

_SHIFTS = flags.DEFINE_list("shifts", [], "only these shifts, separated by commas; all where it is empty")


def main(config: EvaluateConfig, workdir: str | None) -> None:
  from spatialvlm import workdir as workdir_lib
  from spatialvlm.evaluation import shifts
  from spatialvlm.training import runs

  shifts.run(config, workdir_lib.choose(workdir, config), _SHIFTS.value, runs.find)


def run() -> None:
  cli.run(main, EvaluateConfig, "shifted")


if __name__ == "__main__":
  run()
