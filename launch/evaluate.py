"""Scores a model: `python launch/evaluate.py --config=configs/cvbench.py[:tiny] [--config.key=value]`.

`--config.model.path` names a model's folder or hub id, a PEFT adapter's, or the workdir of a training run.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from spatialvlm import cli
from spatialvlm.config import EvaluateConfig


def main(config: EvaluateConfig, workdir: str | None) -> None:
  from spatialvlm import workdir as workdir_lib
  from spatialvlm.evaluation.run import run as evaluate
  from spatialvlm.training import runs

  evaluate(config, workdir_lib.choose(workdir, config), runs.find)


def run() -> None:
  cli.run(main, EvaluateConfig, "cvbench")


if __name__ == "__main__":
  run()
