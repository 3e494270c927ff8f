"""Folders for what can be made again, where a user has no home folder, or none that can be written.

- `user() -> Path | None`: the user's own, `XDG_CACHE_HOME` or `~/.cache`.
- `folder() -> Path`: that, else one in the system's temporary folder.
- `prepare()`: libraries that would write to a home folder get one there. Without it they fail on local files
  too, or make a folder that is called `~`. `import spatialvlm` calls it, before any of them is imported.
- `say()`: tells the user, where that was done.

Nothing here makes a folder of the user's, and nothing heavy is imported.
"""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path

_moved: list[str] = []


def user() -> Path | None:
  """The user's cache folder, which may not be there yet; None where it cannot be written."""
  found = _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
  return found if found and _writable(found) else None


def folder() -> Path:
  """A cache folder that can be written."""
  return user() or temporary()


@functools.cache
def temporary() -> Path:
  """A folder of this user's alone in the system's temporary folder, the same in every run."""
  import tempfile

  found = Path(tempfile.gettempdir(), f"spatialvlm-{os.getuid()}")
  try:
    found.mkdir(mode=0o700, exist_ok=True)
    stat = found.lstat()
    if found.is_symlink() or stat.st_uid != os.getuid() or not _writable(found):
      raise PermissionError
  except OSError:  # another user was there first
    return Path(tempfile.mkdtemp(prefix="spatialvlm-"))
  return found


def prepare() -> None:
  """Sets the environment of Hugging Face's libraries and Matplotlib where their own folders will not do.

  What the user has set stays. A cache that is there and can only be read is still read from.
  """
  moved = False
  above = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  found = _expanded(os.environ.get("HF_HOME") or f"{above}/huggingface")
  if not (found and _writable(found)):
    if "HF_HOME" not in os.environ and not (found and os.path.isdir(found)):
      os.environ["HF_HOME"] = str(temporary() / "huggingface")
      moved = True
    for name, below in (("HF_DATASETS_CACHE", "datasets"), ("HF_MODULES_CACHE", "modules")):
      moved |= name not in os.environ
      os.environ.setdefault(name, str(temporary() / "huggingface" / below))
  config = _expanded(os.environ.get("XDG_CONFIG_HOME") or "~/.config")
  if not (config and _writable(config)):
    os.environ.setdefault("MPLCONFIGDIR", str(temporary() / "matplotlib"))
  if moved:
    _moved[:] = [f"no home folder that can be written; caches are in {temporary()}"]


def say() -> None:
  """Warns once, with a `Note`, where `prepare` has named other folders."""
  while _moved:
    from spatialvlm.types import Note

    warnings.warn(_moved.pop(), Note, stacklevel=3)


def _expanded(name: str) -> Path | None:
  """Without its `~`; None where nobody knows what that stands for."""
  found = Path(os.path.expanduser(name))
  return found if found.is_absolute() else None


def _writable(path: Path) -> bool:
  """Whether files can be made in a folder, or the folder first."""
  # Not by `Path.exists`, which raises below a folder that may not be entered.
  there = next(above for above in (path, *path.parents) if os.path.lexists(above))
  return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)
