"""Keeps what a run's teachers say on disk: `python launch/teach.py --config=configs/distil.py:tiny-run`.

Asks every teacher whose `config.teachers.NAME.cache` names a folder about all examples that a run of this
config will read, and keeps the likeliest tokens of each position there (docs/distillation.md). The training
then needs no teacher in memory. What is there already stays; damaged files are made anew.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from spatialvlm import cli
from spatialvlm.config import RunConfig


def main(config: RunConfig, workdir: str | None) -> None:
  from spatialvlm import peft
  from spatialvlm.training import teach
  from spatialvlm.types import UserError

  if workdir:
    raise UserError("--workdir: the folders are those of config.teachers.NAME.cache; leave it out")
  peft.completed(config.peft)
  teach.teach(config, lambda text: print(text, flush=True))


def run() -> None:
  cli.run(main, RunConfig)


if __name__ == "__main__":
  run()
