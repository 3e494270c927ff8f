"""Writes the untrained folder of the tiny model: `python launch/make_tiny.py --out=checkpoints/smolvlm-tiny`.

Config, tokenizer, chat template and image settings, in Hugging Face's format; `launch/train.py
--config=configs/base.py:tiny` then draws and trains the weights.
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


def main(arguments: Sequence[str]) -> None:
  from spatialvlm import workdir
  from spatialvlm.worlds import tiny

  if arguments or not _OUT.value:
    raise UserError("--out is missing; name the folder to write, as --out=FOLDER")
  with workdir.writing(pathlib.Path(_OUT.value)):
    print(tiny.write(_OUT.value))


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
