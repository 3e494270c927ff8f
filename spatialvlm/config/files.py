"""Settings in files: a JSON object, read so that what is wrong with it is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spatialvlm.types import UserError


def read_json(path: Path, *, missing: str | None = None, damaged: str = "") -> dict[str, Any]:
  """The JSON object in a file; {} where there is no such file, unless `missing` says that there must be.

  Args:
    missing: why the file is needed, or what to do where it is not there: the end of the message.
    damaged: what to do where the file is no JSON object: the end of the message.

  Raises:
    UserError: the file is needed and not there, cannot be read, or holds no JSON object.
  """
  way_out = f"; {damaged}" if damaged else ""
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    if missing is None:
      return {}
    raise UserError(f"{path}: missing; {missing}") from None
  except (ValueError, OSError) as error:
    raise UserError(f"{path}: cannot be read as JSON ({error}){way_out}") from None
  if not isinstance(found, dict):
    raise UserError(f"{path}: a JSON object is wanted{way_out}")
  return found
