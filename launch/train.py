"""Training: `launch/train.py --config=configs/lora.py[:tiny] [--config.any.key=value] [--workdir=DIR]`."""

from __future__ import annotations

import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from spatialvlm import cli
from spatialvlm.config import RunConfig


def main(config: RunConfig, workdir: str | None) -> int:
  from spatialvlm import workdir as workdir_lib
  from spatialvlm.training import stages

  config = stages.completed(config)
  summary = stages.train(config, workdir_lib.choose(workdir, config))
  return 0 if summary["finished"] else 128 + summary["signal"]


def run() -> None:
  cli.run(main, RunConfig, "lora:tiny")


if __name__ == "__main__":
  run()
