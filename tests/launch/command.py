"""The commands as a user types them, run in this process."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest
from absl import flags


@dataclasses.dataclass(frozen=True)
class Done:
  """How a command ended: exit code, and what stood on its two streams (of the process, not only Python's)."""

  code: int
  out: str
  err: str


def run(capfd: pytest.CaptureFixture, name: str, *arguments: object) -> Done:
  """`python launch/<name>.py <arguments>`, from flag parsing to the exit code.

  Each command has flags of its own, which another one may have as well; so its module is imported anew.
  """
  full = f"spatialvlm.launch.{name}"
  sys.modules.pop(full, None)
  module = importlib.import_module(full)
  old, sys.argv = sys.argv, [f"launch/{name}.py", *map(str, arguments)]
  capfd.readouterr()
  try:
    with pytest.raises(SystemExit) as ended:
      module.run()
  finally:
    sys.argv = old
    for flag in list(flags.FLAGS):  # libraries that were imported meanwhile keep theirs
      if str(flags.FLAGS.find_module_defining_flag(flag)).startswith(("spatialvlm.launch", "spatialvlm.cli")):
        delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()
  return Done(ended.value.code or 0, *capfd.readouterr())


def files(folder: Path) -> dict[str, tuple[int, int]]:
  """Every file and folder below, with size and time of its last change; but Python's own of read recipes."""
  found = {}
  for path in sorted(folder.rglob("*")):
    if "__pycache__" in path.parts:
      continue
    stat = path.lstat()
    found[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
  return found
