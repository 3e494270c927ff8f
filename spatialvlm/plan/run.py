"""Plans of a run: one process a target, whose answers are read as they come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from spatialvlm.config import RunConfig, nearest, to_dict
from spatialvlm.plan.compiled import Plan, from_json
from spatialvlm.plan.programs import PROGRAMS
from spatialvlm.plan.targets import Target
from spatialvlm.types import UserError

# What a plan holds where nobody says: a training's step and an evaluator's two kinds of pass.
USUAL = ("train", "prefix", "decode")


def check(programs: Sequence[str]) -> None:
  """Raises a UserError for a program that is none."""
  for name in programs:
    if name not in PROGRAMS:
      raise UserError(f"--programs: there is no {name!r}; {nearest(name, PROGRAMS)}")


def plan(
  config: RunConfig,
  target: Target,
  programs: Sequence[str] = USUAL,
  *,
  tiles: int | None = None,
  tokens: int | None = None,
  dump: Path | None = None,
) -> Iterator[Plan]:
  """Compiles programs of a run for a target, and yields each as it is done.

  Args:
    tiles, tokens: of a row; None for what the run's settings say (`programs.shapes_of`).
    dump: folder for the optimised programs' texts; None for nowhere.

  Raises:
    UserError: the target's compiler is not installed or fails; anything in the config that the user can mend.
  """
  if missing := target.missing():
    raise UserError(f"--topology={target.name}: {missing}")
  check(programs)
  said = dict(config=to_dict(config), target=target.name, programs=list(programs), tiles=tiles, tokens=tokens)
  said["dump"] = str(dump.resolve()) if dump else ""
  root = Path(__file__).resolve().parents[2]  # where this library lies, installed or not
  paths = [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | target.environment()
  with tempfile.TemporaryFile("w+", errors="replace") as log:
    process = subprocess.Popen(
      [sys.executable, "-m", "spatialvlm.plan.child"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      env=environment,
      text=True,
    )
    try:
      process.stdin.write(json.dumps(said))
      process.stdin.close()
      for line in process.stdout:
        reply = json.loads(line)
        if "error" in reply:
          raise UserError(reply["error"])
        if "end" in reply:
          return
        yield from_json(reply["plan"])
      log.seek(0)
      last = [text.strip() for text in log.read().splitlines() if text.strip()][-1:]
      said_last = f" ({last[0][:300]})" if last else ""
      raise UserError(
        f"--topology={target.name}: the compiler's process ended with code {process.wait()}{said_last}"
      )
    finally:
      process.kill()
      process.wait()
      process.stdout.close()
