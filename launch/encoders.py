"""Compares encoders: `python launch/encoders.py --config=configs/probe.py --config.encoders.NAME=PATH`.

As many as are wanted, each under a name of its own; a path is a folder or hub id, of an encoder or of a
vision-language model.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from spatialvlm import cli
from spatialvlm.config import ProbeConfig


def main(config: ProbeConfig, workdir: str | None) -> None:
  from spatialvlm import workdir as workdir_lib
  from spatialvlm.probing.run import run as compare

  compare(config, workdir_lib.choose(workdir, config))


def run() -> None:
  cli.run(main, ProbeConfig, "probe")


if __name__ == "__main__":
  run()
