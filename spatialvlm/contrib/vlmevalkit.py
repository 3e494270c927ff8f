"""A model class for VLMEvalKit, and its command with our models in it:

  python -m spatialvlm.contrib.vlmevalkit runs/mine --data CV-Bench-2D --verbose

takes the path of a model and then what VLMEvalKit's `run.py` takes, but for --model. VLMEvalKit must be
importable (`vlmeval`), and its `run.py` lie in the current folder, where its instructions say to start it.
Written for `vlmeval.vlm.base.BaseModel` as of version 0.2.
"""

from __future__ import annotations

import functools
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vlmeval.vlm.base import BaseModel

from spatialvlm.contrib import asking
from spatialvlm.server.chat import Message

NAME = "spatialvlm"


class SpatialVlm(BaseModel):
  """Answers by the library's own engine, in this process, one question at a time, as VLMEvalKit asks."""

  INTERLEAVE = True

  def __init__(self, model_path: str, max_new_tokens: int = 1024, **settings: Any):
    """Loads a model.

    Args:
      model_path: a model's or adapter's folder or hub id, or a training run's workdir.
      max_new_tokens: of an answer.
      settings: of `spatialvlm.load_vlm`, and `context`.
    """
    super().__init__()
    self._asker = asking.Asker(model_path, rows=1, **settings)
    self._max_tokens = max_new_tokens

  def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
    """The greedy answer to texts and files of pictures, in their order."""
    parts = [asking.picture(p["value"]) if p["type"] == "image" else p["value"] for p in message]
    (answer,) = self._asker.answers(
      [asking.chat([Message("user", tuple(parts))], max_tokens=self._max_tokens)]
    )
    return answer


def register(path: str, name: str = NAME, **settings: Any) -> None:
  """Makes a model known to VLMEvalKit by a name."""
  from vlmeval import config

  config.supported_VLM[name] = functools.partial(SpatialVlm, model_path=path, **settings)


def main(arguments: Sequence[str]) -> None:
  """Registers the model that the first argument names, and runs VLMEvalKit's command with the others."""
  path, *rest = arguments
  register(path)
  sys.argv = ["run.py", *rest, "--model", NAME]
  runpy.run_path("run.py", run_name="__main__")


if __name__ == "__main__":
  if len(sys.argv) < 2:
    sys.exit("error: name a model: python -m spatialvlm.contrib.vlmevalkit runs/mine --data ...")
  main(sys.argv[1:])
