"""Settings in files: a JSON object, read so that what is wrong with it is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spatialvlm.types import UserError

_POINTERS = (b"version https://git-lfs.", b"version https://hawser.")


def refuse_pointer(file: Path | str, head: bytes | None = None) -> None:
  """Refuses what git leaves in place of a large file that was not fetched: a few lines that name it.

  Source: git-lfs, docs/spec.md.

  Args:
    file: what the message calls it.
    head: its first 32 bytes or more; None: they are read here, where there is such a file.

  Raises:
    UserError: the file is such a pointer.
  """
  if head is None:
    try:
      with open(file, "rb") as stream:
        head = stream.read(32)
    except OSError:
      return
  if head.startswith(_POINTERS):
    raise UserError(
      f"{file}: a pointer of git-lfs in place of the file itself, which was not fetched; run 'git lfs pull' "
      "in its folder, or download it again"
    )


def read_json(path: Path, *, missing: str | None = None, damaged: str = "") -> dict[str, Any]:
  """The JSON object in a file; {} where there is no such file, unless `missing` says that there must be.

  Args:
    missing: why the file is needed, or what to do where it is not there: the end of the message.
    damaged: what to do where the file is no JSON object: the end of the message.

  Raises:
    UserError: the file is needed and not there, cannot be read, is a pointer of git-lfs, or holds no JSON
      object.
  """
  way_out = f"; {damaged}" if damaged else ""
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    if missing is None:
      return {}
    raise UserError(f"{path}: missing; {missing}") from None
  except (ValueError, OSError) as error:
    refuse_pointer(path)
    raise UserError(f"{path}: cannot be read as JSON ({error}){way_out}") from None
  if not isinstance(found, dict):
    raise UserError(f"{path}: a JSON object is wanted{way_out}")
  return found
