"""Writes a SmolVLM with fewer image tokens: `python launch/fewer_tokens.py --model=DIR --by=2 --out=DIR`.

Each square of `--by` x `--by` tokens becomes one, their mean, so that pictures cost a device less; a short
training then teaches the model to read them. The small model that ships with the project has a token for each
patch, which llama.cpp does not run: joined by 2 it does.
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

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "folder or hub id of a SmolVLM")
flags.DEFINE_integer("by", 2, "tokens along a side that become one")
flags.DEFINE_string("out", None, "folder that is written; it must be new or empty")


def main(arguments: Sequence[str]) -> None:
  if arguments:
    raise UserError(f"unexpected argument {arguments[0]!r}; settings are given as --model=, --by= and --out=")
  for name in ("model", "out"):
    if not getattr(FLAGS, name):
      raise UserError(f"--{name} is missing; write --model=FOLDER --by=2 --out=FOLDER")
  from spatialvlm import export, hub

  out = pathlib.Path(FLAGS.out).expanduser()
  export.check_empty(out)
  hub.fewer_tokens(FLAGS.model, FLAGS.by, out)
  print(f"{FLAGS.model} with {FLAGS.by} x {FLAGS.by} image tokens joined: {out}")


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
