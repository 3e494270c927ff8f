"""The rules of a workdir, for every command: never overwritten in silence, continued only if it matches.

- `choose(flag, config) -> Path`: what the user names, else `runs/<name>-<fingerprint>`.
- `check(path, config) -> bool` touches nothing: whether a run of exactly this config is there to be
  continued. A folder of other settings, or of other files, is a `UserError`.
- `claim(path, config, identity) -> bool` makes the folder and writes `config.json`, `environment.json` and
  `identity.json`; a run goes on with the same inputs alone. From then on this process alone writes there,
  until it ends or leaves `alone(path)`; another one is refused.
- `write_json`, `write_text`, `write_bytes`: whole or not at all; `writing(path)`: a full disk is a
  `UserError`.

On several processes the first one looks and writes, and all do as it found (`agreed`): they call `check` and
`claim` together.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from spatialvlm import agreed
from spatialvlm import config as config_lib
from spatialvlm.types import Note, UserError

# Where a run computes, what watches it, and where it keeps what can be computed again: a run may go on with
# others.
PLACEMENT = ("mesh", "model.scan_layers", "log", "score.features", "eval.features", "train.cache_vision")
PLACEMENT += ("train.cache_vision_mib", "train.cache_vision_folder", "data.processes")
_PLACED = rf"(stages\.[^.]+\.)?({'|'.join(map(re.escape, PLACEMENT))}|teachers\.[^.]+\.mesh)\b"
CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
IDENTITY_FILE = "identity.json"
PAGE_FILE = "inspect.html"
LOCK_FILE = ".lock"
BOARD_FOLDER = "tensorboard"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def choose(flag: str | None, config: Any) -> pathlib.Path:
  """The folder of a run: what the user names, else `runs/<name>-<fingerprint>`."""
  if flag:
    return pathlib.Path(flag).expanduser()
  return pathlib.Path("runs") / f"{config.name}-{config_lib.fingerprint(config)}"


def check(path: pathlib.Path, config: Any, *, shared: bool = False) -> bool:
  """Whether `path` holds a run of exactly this config (True) or nothing yet (False); touches nothing.

  Args:
    shared: another process may write there, which is else refused.

  Raises:
    UserError: `path` holds other files, or a run with other settings (the first few that differ are named),
      or another process writes there.
  """
  return agreed.from_first(lambda: _check(path, config, shared))


def _check(path: pathlib.Path, config: Any, shared: bool = False) -> bool:
  if not path.exists():
    return False
  if not path.is_dir():
    raise UserError(f"{path}: is a file; name a folder with --workdir")
  if not shared:
    _refuse_other_writers(path)
  stored = path / CONFIG_FILE
  if not stored.exists():
    if _results(path):
      raise UserError(f"{path}: not empty, and it holds no run ({CONFIG_FILE}); name another --workdir")
    return False
  old, new = _completed(_read(stored), type(config)), config_lib.to_dict(config)
  # A mistake in the settings often ends a run at its first step, and the same folder is wanted again.
  way_out = (
    "name another --workdir" if _results(path) else "delete it (no results yet), or name another --workdir"
  )
  if set(old) - set(new):
    raise UserError(f"{path}: holds a run of another command or version; {way_out}")
  other = [found for found in _different(old, new) if not re.match(_PLACED, found)]
  if other:
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    raise UserError(f"{path}: holds a run with other settings ({'; '.join(other[:3])}{more}); {way_out}")
  return True


def _results(path: pathlib.Path) -> bool:
  """Whether a folder holds more than a run's description, the page of `inspect_data`, and empty files."""
  mere = {CONFIG_FILE, ENVIRONMENT_FILE, IDENTITY_FILE, PAGE_FILE, LOCK_FILE}
  found = (file.relative_to(path) for file in path.rglob("*") if file.is_file() and file.stat().st_size)
  return any(str(file) not in mere and file.parts[0] != BOARD_FOLDER for file in found)


Identity = Mapping[str, Any]


def claim(path: pathlib.Path, config: Any, identity: Identity | Callable[[], Identity] | None = None) -> bool:
  """Makes the folder of a run and writes what the run is; returns whether it continues an earlier one.

  Beside the config stand the package versions, git revision and devices (of the first start), and
  `identity`: what the names in the config stood for, e.g. hashes of weights. A run is continued only if
  these are the same, so that a file never mixes two models. Where it takes long to find (hashes of weights),
  it is a function, which the first process alone calls.

  Raises:
    UserError: as `check`; another identity; or the folder cannot be written.
  """
  return agreed.from_first(lambda: _claim(path, config, identity))


def _claim(path: pathlib.Path, config: Any, identity: Identity | Callable[[], Identity] | None) -> bool:
  identity = json.loads(json.dumps(identity() if callable(identity) else identity or {}))
  _check(path, config)
  _lock(path)
  continues = _check(path, config)  # what another run may have begun meanwhile
  if continues and (path / IDENTITY_FILE).exists():
    other = _different(_read(path / IDENTITY_FILE), identity)
    if other:
      raise UserError(f"{path}: began with other inputs ({'; '.join(other[:3])}); name another --workdir")
  if not continues:
    write_json(path / ENVIRONMENT_FILE, environment())
    write_json(path / IDENTITY_FILE, identity)
    # The last of the three: a folder with a config is a run that began in order.
    write_json(path / CONFIG_FILE, config_lib.to_dict(config))
  return continues


# The locks of this process: folder -> descriptor of its lock file. The system takes a lock back when its
# process ends, however it ends, so that a lock file that a killed run has left means nothing by itself.
_LOCKS: dict[pathlib.Path, int] = {}


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
  """Gives the folder free at the end, whichever way it comes, if it was claimed within."""
  try:
    yield
  finally:
    descriptor = _LOCKS.pop(path.absolute(), None)
    if descriptor is not None:
      with contextlib.suppress(OSError):
        (path / LOCK_FILE).unlink()
      os.close(descriptor)


def _lock(path: pathlib.Path) -> None:
  """Makes the folder and locks it for this process; raises a UserError where another one holds it."""
  if path.absolute() in _LOCKS:
    return
  if path.exists() and not path.is_dir():
    raise UserError(f"{path}: is a file; name a folder with --workdir")
  with writing(path):
    path.mkdir(parents=True, exist_ok=True)
  file = path / LOCK_FILE
  while True:
    try:
      descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # what cannot be written needs no lock: a finished run is read there
      return
    try:
      fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      os.close(descriptor)
      if error.errno in (errno.EACCES, errno.EAGAIN):
        raise _written_by_another(path) from None
      warnings.warn(f"{path}: cannot be locked there; see that no other run writes to it", Note, stacklevel=3)
      return
    # Its holder may have removed the file between the two calls, and a lock on that one keeps nobody out.
    if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
      break
    os.close(descriptor)
  said = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, (json.dumps(said) + "\n").encode(), 0)
  _LOCKS[path.absolute()] = descriptor


def busy(path: pathlib.Path) -> bool:
  """Whether another process writes in a folder that was claimed; touches nothing."""
  try:
    _refuse_other_writers(path)
  except UserError:
    return True
  return False


def _refuse_other_writers(path: pathlib.Path) -> None:
  """Raises a UserError where another process holds the folder; leaves no trace."""
  # To close any descriptor of a file gives up the locks of this process on it.
  if path.absolute() in _LOCKS or not (path / LOCK_FILE).exists():
    return
  with contextlib.suppress(FileNotFoundError, PermissionError), open(path / LOCK_FILE, "r+b") as file:
    try:
      fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in (errno.EACCES, errno.EAGAIN):
        raise _written_by_another(path) from None


def _written_by_another(path: pathlib.Path) -> UserError:
  try:
    said = json.loads((path / LOCK_FILE).read_text(encoding="utf-8"))
    who = f"process {said['pid']} on {said['host']}, since {said['since']}"
  except (OSError, ValueError, KeyError, TypeError):  # it begins at this very moment
    who = "another process"
  return UserError(
    f"{path}: a run is writing there ({who}); wait for it or end it, or name another --workdir"
  )


def environment() -> dict[str, Any]:
  """What a result depends on beside its config: versions, git revision, devices."""
  versions = {}
  for name in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  devices = jax.devices()
  return {
    "packages": versions,
    "python": platform.python_version(),
    "platform": platform.platform(),
    "git": _git_revision(),
    "devices": {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()},
  }


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file whole or not at all.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file whole or not at all; errors as `write_json`."""
  write_bytes(path, text.encode("utf-8"))


def write_bytes(path: pathlib.Path, data: bytes) -> None:
  """Writes a file whole or not at all; errors as `write_json`."""
  temporary = path.with_name(path.name + ".tmp")
  with writing(path):
    try:
      with open(temporary, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
      os.replace(temporary, path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


# That a folder is not there, though its parents are made: /proc and the like.
_UNWRITABLE = {
  errno.EACCES,
  errno.EROFS,
  errno.EPERM,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.EEXIST,
  errno.ENOENT,
}


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Turns a full disk, a limit on sizes, and what cannot be written into a `UserError` that names `path`."""
  try:
    yield
  except OSError as e:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
      raise UserError(f"{path}: no space left on the disk; free some and run the same command again") from e
    if e.errno == errno.EFBIG:
      raise UserError(f"{path}: too large for a file there (see `ulimit -f`); name another folder") from e
    if e.errno in _UNWRITABLE:
      raise UserError(f"{path}: cannot be written ({e.strerror}); name another folder") from e
    raise


def _read(path: pathlib.Path) -> dict[str, Any]:
  return config_lib.read_json(path, damaged="name another --workdir")


def _completed(stored: Any, cls: type) -> Any:
  """A stored config with the defaults of settings that came later, so that a new setting ends no old run."""
  try:
    return config_lib.to_dict(config_lib.from_stored(stored, cls))
  except UserError:
    return stored


def _different(old: Any, new: Any, where: str = "") -> list[str]:
  """`key: old, now new` for every leaf in which two nested JSON values differ."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    found = []
    for key in sorted({*old, *new}):
      found += _different(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    return found
  return [] if old == new else [f"{where}: {json.dumps(old)}, now {json.dumps(new)}"]


def _git_revision() -> str | None:
  """The checkout's commit, `-dirty` where files differ from it; None outside of a checkout."""
  here = pathlib.Path(__file__).resolve().parent.parent
  if not (here / ".git").exists():
    return None
  command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
  try:
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return found.stdout.strip() or None
