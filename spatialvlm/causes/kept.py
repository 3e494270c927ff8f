"""What was measured of each case, a JSON line each, in files that a stopped run goes on with."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spatialvlm import workdir
from spatialvlm.causes.cases import Case
from spatialvlm.types import UserError

Line = dict[str, Any]


def measured(
  path: pathlib.Path,
  cases: Sequence[Case],
  block: int,
  measure: Callable[[Sequence[Case]], list[Line]],
  show: Callable[[int, int], None] = lambda done, total: None,
) -> None:
  """Measures cases block by block and appends a line for each; what the file holds already is not done again.

  Args:
    block: cases of one call of `measure`. A block that is not whole in the file is measured anew, so that a
      stopped run gives what one that was not would have.

  Raises:
    UserError: the file holds other cases, or cannot be written.
  """
  with workdir.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  lines = read(path)
  done = len(lines) if len(lines) == len(cases) else len(lines) // block * block
  if [line["id"] for line in lines[:done]] != [case.id for case in cases[:done]]:
    raise UserError(f"{path}: holds other questions; name another --workdir")
  if done < len(lines) or (path.exists() and not _whole(path)):
    workdir.write_text(path, "".join(_said(line) for line in lines[:done]))
  for start in range(done, len(cases), block):
    found = measure(cases[start : start + block])
    with workdir.writing(path), open(path, "a", encoding="utf-8") as file:
      file.write("".join(_said(line) for line in found))
    show(min(start + block, len(cases)), len(cases))


def read(path: pathlib.Path) -> list[Line]:
  """The whole lines of a file; none where there is no file.

  Raises:
    UserError: a line that is damaged.
  """
  if not path.is_file():
    return []
  whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline was cut off
  try:
    return [json.loads(line) for line in whole]
  except ValueError as error:
    raise UserError(f"{path}: damaged ({error}); delete it and run the same command again") from None


def _whole(path: pathlib.Path) -> bool:
  return path.read_bytes().endswith(b"\n")


def _said(line: Line) -> str:
  return json.dumps(_plain(line)) + "\n"


def _plain(value: Any) -> Any:
  """JSON's own types: NaN becomes null, numbers have six digits."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple, np.ndarray)):
    return [_plain(item) for item in value]
  if isinstance(value, (np.integer, np.bool_)):
    return value.item()
  if isinstance(value, (float, np.floating)):
    return float(f"{value:.6g}") if math.isfinite(value) else None
  return value


def array(values: Any) -> np.ndarray:
  """float64 of nested lists of numbers, null as NaN."""
  return np.array(values, dtype=np.float64)
