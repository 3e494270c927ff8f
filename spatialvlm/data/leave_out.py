"""Rows that training leaves out: those in which a leak check found a benchmark's pictures.

`launch/leaks.py` writes beside its findings what each source was (`described`), so that a file that was made
of other rows is refused, not applied to the wrong ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spatialvlm.config import SourceConfig, fingerprint, read_json
from spatialvlm.mixture import ENDLESS
from spatialvlm.types import UserError


def described(config: SourceConfig, rows: int) -> dict[str, Any]:
  """What says which rows a source has: its settings but the weight, and how many there are."""
  alike = dataclasses.replace(config, weight=1.0)
  return {"settings": fingerprint(alike), "rows": None if rows == ENDLESS else rows}


def kept(
  path: str, configs: Mapping[str, SourceConfig], opened: Mapping[str, Sequence[Any]]
) -> dict[str, np.ndarray]:
  """The rows that are left of each source of which some are left out, int, ascending.

  Left out is what the check found by its picture; a name alone (`0001.jpg`) proves nothing.

  Args:
    path: what `launch/leaks.py --output` wrote.
    configs, opened: the sources by name. Of those without an end, which are rendered, nothing is left out.

  Raises:
    UserError: no such file or none of its form; a source that it says nothing of, or of which it was made
      with other settings, of another number of rows, or not of all of them.
  """
  again = "run launch/leaks.py --output again with this config"
  found = read_json(Path(path).expanduser(), missing="launch/leaks.py --output writes it", damaged=again)
  if not {"sources", "leaks"} <= found.keys():
    raise UserError(f"data.leave_out: {path} is not what launch/leaks.py --output writes")
  left: dict[str, set[int]] = {}
  for leak in found["leaks"]:
    if leak["distance"] is not None:
      left.setdefault(leak["source"], set()).add(int(leak["index"]))
  result = {}
  for name, source in opened.items():
    if len(source) == ENDLESS:
      continue
    looked = found["sources"].get(name)
    if looked is None or "of" not in looked:
      raise UserError(f"data.leave_out: {path} says nothing of source {name!r}; {again}")
    if looked["of"] != described(configs[name], len(source)):
      raise UserError(f"data.leave_out: {path} was made of other rows of source {name!r}; {again}")
    if looked["examples"] < len(source):
      raise UserError(
        f"data.leave_out: {path} looked at {looked['examples']} of {len(source)} rows of source {name!r}; "
        "run launch/leaks.py without --scan"
      )
    if name in left:
      result[name] = np.setdiff1d(np.arange(len(source)), sorted(left[name]))
  return result
