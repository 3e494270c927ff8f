"""Fits a radiance field to posed views: `python launch/field.py --config=configs/field.py:scene`.

Writes the field, new views and the given ones with depth (renders/, depth/, transforms.json), and a report on
held-out views. `configs/field.py:folder,path=FOLDER` reads transforms.json or COLMAP's text. Stop it at any
moment; the same command goes on.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from spatialvlm import cli
from spatialvlm.config import FieldConfig


def main(config: FieldConfig, workdir: str | None) -> None:
  from spatialvlm import workdir as workdir_lib
  from spatialvlm.fields.run import run as fit

  fit(config, workdir_lib.choose(workdir, config))


def run() -> None:
  cli.run(main, FieldConfig, "field")


if __name__ == "__main__":
  run()
