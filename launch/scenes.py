"""Renders a data set of questions about rooms into files: `python launch/scenes.py --out=FOLDER`.

Parquet in CV-Bench's schema with depth and cameras, a contact sheet and a card. Stop it at any moment; the
same command goes on. `--config.source.size=`, `--config.source.difficulty=`, `--config.shard=` and the like
change it.
"""

from __future__ import annotations

import pathlib
import sys

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.config import RoomFilesConfig
from spatialvlm.types import UserError

_OUT = flags.DEFINE_string("out", None, "folder to write")


def main(config: RoomFilesConfig, workdir: str | None) -> None:
  from spatialvlm.data import room_files

  if workdir:
    raise UserError("--workdir: this command writes no run; name the folder as --out=FOLDER")
  if not _OUT.value:
    raise UserError("--out is missing; name the folder to write, as --out=FOLDER")
  counts = room_files.write(_OUT.value, config)
  parts = ", ".join(f"{task} {count}" for task, count in counts.items())
  print(f"{_OUT.value}: {sum(counts.values())} questions ({parts})")


def run() -> None:
  cli.run(main, RoomFilesConfig, "rooms_files")


if __name__ == "__main__":
  run()
