"""Which worker does which run: claim files with a lease, in a folder that all workers share.

A worker may be a process or a machine: nothing but files is used, one made where none was (which one of
several alone can do, on shared folders too) and the time at which the folder's own disk saw a file touched,
so that clocks need not agree. A claim is renewed while its work goes on; one that was not renewed for a lease
is its worker's no longer, and the next one may be taken:

    claims/lora.seed-0.000  made by A, who died      claims/lora.seed-0.001  made by B, who goes on

Numbers only grow, so that of two workers who see a lease run out one alone makes the next file. Whoever is
late, as a machine that slept, finds the next number there and lets go (`Claim.lost`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
import threading
import time
import uuid

from spatialvlm import workdir

FOLDER = "claims"
# Renewals within a lease: so many may come late before the claim is another's.
RENEWALS = 4


@dataclasses.dataclass(frozen=True)
class Other:
  """A claim of another worker.

  Attributes:
    who: `process N on HOST`; empty where the file was not written to its end.
    released: that worker is through with it.
    failed: what went wrong with it; empty for nothing.
    age: seconds since it was renewed.
  """

  who: str
  released: bool
  failed: str
  age: float


class Claim:
  """What this worker holds, and renews until `release`.

  Attributes:
    lost: set where the lease ran out and another worker has taken the work: this one must write no more.
  """

  def __init__(self, file: pathlib.Path, following: pathlib.Path, every: float):
    self.lost = threading.Event()
    self._file, self._following, self._every = file, following, every
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def _renew(self) -> None:
    while not self._done.wait(self._every):
      if self._following.exists():
        self.lost.set()
        return
      with contextlib.suppress(OSError):  # a share that is away for a moment
        os.utime(self._file)

  def release(self, failed: str = "") -> None:
    """Lets others take it at once, unless one has; `failed`: why they need not try."""
    self._done.set()
    self._thread.join()
    if self.lost.is_set():
      return
    said = json.loads(self._file.read_text(encoding="utf-8"))
    workdir.write_json(self._file, said | {"released": True, "failed": failed})


class Claims:
  """The claims of one worker in a study's folder."""

  def __init__(self, folder: pathlib.Path, lease: float):
    """`lease`: seconds without renewal after which a claim is its worker's no longer."""
    self._folder, self._lease = folder / FOLDER, lease
    self._me = uuid.uuid4().hex
    with workdir.writing(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
    self._began = self._now()

  def take(self, name: str) -> Claim | None:
    """Claims a piece of work; None where another worker holds it, or was quicker just now."""
    number, last = self._last(name)
    if last is not None and not last.released and last.age < self._lease:
      return None
    file = self._path(name, number + 1)
    with workdir.writing(file):
      try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
      except FileExistsError:  # another worker's, of this very moment
        return None
    said = {"host": socket.gethostname(), "pid": os.getpid(), "worker": self._me, "released": False}
    with os.fdopen(descriptor, "w", encoding="utf-8") as written:
      json.dump(said | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}, written)
    return Claim(file, self._path(name, number + 2), self._lease / RENEWALS)

  def last(self, name: str) -> Other | None:
    """The last claim of a piece of work, whosever; None where there was none."""
    return self._last(name)[1]

  def failed_elsewhere(self, name: str) -> str:
    """Why another worker gave it up since this one began; empty where none did."""
    last = self.last(name)
    recent = last is not None and last.released and last.age < self._now() - self._began
    return last.failed if last is not None and recent else ""

  def holder(self, name: str) -> str:
    """Who has it, in words."""
    last = self.last(name)
    return last.who if last is not None and last.who else "another worker"

  def _last(self, name: str) -> tuple[int, Other | None]:
    pattern = re.compile(re.escape(name) + r"\.(\d{3,})")
    numbers = [int(found[1]) for path in self._folder.iterdir() if (found := pattern.fullmatch(path.name))]
    if not numbers:
      return -1, None
    number = max(numbers)
    file = self._path(name, number)
    age = max(0.0, self._now() - file.stat().st_mtime)
    try:
      said = json.loads(file.read_text(encoding="utf-8"))
      who = f"process {said['pid']} on {said['host']}"
      return number, Other(who, bool(said["released"]), said.get("failed", ""), age)
    except (ValueError, KeyError, TypeError):  # made at this moment, or its worker died within it
      return number, Other("", False, "", age)

  def _path(self, name: str, number: int) -> pathlib.Path:
    return self._folder / f"{name}.{number:03}"

  def _now(self) -> float:
    """The time as the folder's disk has it: that of a file touched there now."""
    file = self._folder / f".now-{self._me}"
    with workdir.writing(file):
      file.touch()
      now = file.stat().st_mtime
      file.unlink()
    return now
