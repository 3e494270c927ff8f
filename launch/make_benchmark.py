"""Writes rendered questions in CV-Bench's schema and numbers: `python launch/make_benchmark.py --out=FOLDER`.

Two parquet files, as CV-Bench has them: 2,638 questions, of the same tasks and source names. They try a whole
evaluation where CV-Bench is not at hand; scores on them say nothing about CV-Bench's photos.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.types import UserError

_OUT = flags.DEFINE_string("out", None, "folder to write")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 96, "pixels of the square images")
_SEED = flags.DEFINE_integer("seed", 2_000_000, "of the rendered world")
_SHARE = flags.DEFINE_float("share", 1.0, "of CV-Bench's numbers of questions, for a quick look")


def main(arguments: Sequence[str]) -> None:
  from spatialvlm.data import scene_benchmark

  if arguments or not _OUT.value:
    raise UserError("--out is missing; name the folder to write, as --out=FOLDER")
  folder = pathlib.Path(_OUT.value).expanduser()
  if folder.is_dir() and any(folder.iterdir()):
    raise UserError(f"{folder}: is not empty; name another --out")
  counts = scene_benchmark.write(folder, _SEED.value, _IMAGE_SIZE.value, _SHARE.value)
  parts = ", ".join(f"{task} {count}" for task, count in counts.items())
  print(f"{folder}: {sum(counts.values())} questions ({parts})")


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
