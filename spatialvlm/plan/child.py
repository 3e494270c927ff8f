"""The process that compiles for one target: `python -m spatialvlm.plan.child`.

Reads one JSON object from stdin (`config`, `target`, `programs`, `tiles`, `tokens`, `dump`) and writes one a
line to stdout: a `plan` as each program is done, at last `end`, or an `error` in one line. What compilers
print goes to stderr. Its environment is `targets.Target.environment`, which libraries read once.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any


def plans(said: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """What is written of a request, in order."""
  import jax

  from spatialvlm.config import from_stored
  from spatialvlm.core import axes, backend
  from spatialvlm.plan import abstract, compiled, programs, targets

  target = targets.find(said["target"])
  config = from_stored(said["config"])
  mesh = axes.make_mesh(config.mesh, target.devices())
  dump = pathlib.Path(said["dump"]) if said["dump"] else None
  with backend.tracing_for(target.backend):
    run = abstract.describe(config, mesh)
    shapes = programs.shapes_of(run, said["tiles"], said["tokens"])
    for name in said["programs"]:
      made = programs.PROGRAMS[name](run, shapes)
      if made is None:
        continue
      with jax.set_mesh(mesh):
        found = compiled.compile_for(name, made, target, mesh, shapes, dump)
      yield {"plan": compiled.to_json(found)}


def main() -> None:
  replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)  # what libraries print is no reply
  say = lambda reply: print(json.dumps(reply), file=replies, flush=True)
  from spatialvlm.types import UserError

  try:
    for reply in plans(json.load(sys.stdin)):
      say(reply)
    say({"end": True})
  except UserError as error:
    say({"error": " ".join(str(error).split())})
  replies.flush()
  os._exit(0)  # a compiler's threads need not be waited for


if __name__ == "__main__":
  main()
