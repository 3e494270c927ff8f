"""A runtime's process (`child`), from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatialvlm.types import UserError


class Child:
  """A model in a runtime; as a context it ends with it.

  Args:
    module: full name of a module with a `Runtime`.
    folder: the model's files.
    settings: of the runtime, see `child`.

  Raises:
    UserError: the runtime does not load the files, or ends.
  """

  def __init__(self, module: str, folder: Path, settings: Mapping[str, Any]):
    self.folder = folder
    root = Path(__file__).resolve().parents[2]  # where this library lies, installed or not
    paths = [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    threads = str(settings["threads"])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", "spatialvlm.deployed.child", module, str(folder), json.dumps(settings)]
    self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by `close`)
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment, text=True
    )
    try:
      self._read()
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> Child:
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def close(self) -> None:
    self._process.kill()
    self._process.communicate()
    self._log.close()

  def letters(self, asked: Mapping[str, Any]) -> tuple[int, list[float]]:
    got = self._ask(do="letters", asked=asked)
    return got["tokens"], got["logprobs"]

  def generate(self, asked: Mapping[str, Any], count: int) -> tuple[list[tuple[float, int]], list[int]]:
    """After how many seconds how many tokens came, and the tokens."""
    got = self._ask(do="generate", asked=asked, count=count)
    return got["came"], got["tokens"]

  def served(self, text: str, pictures: list[str]) -> str | None:
    """The prompt that the runtime's own chat template makes; None of a runtime without one."""
    return self._ask(do="served", text=text, pictures=pictures)["prompt"]

  def memory(self) -> dict[str, int]:
    """Bytes: `empty`, before the model was loaded, and `peak`."""
    return self._ask(do="memory")

  def _ask(self, **said: Any) -> dict[str, Any]:
    try:
      self._process.stdin.write(json.dumps(said) + "\n")
      self._process.stdin.flush()
    except OSError:
      pass  # it has ended: the next line says how
    return self._read()

  def _read(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      self._log.seek(0)
      last = [text.strip() for text in self._log.read().splitlines() if text.strip()][-1:]
      said = f" ({last[0][:200]})" if last else ""
      raise UserError(f"{self.folder}: the runtime ended with code {self._process.wait()}{said}")
    got = json.loads(line)
    if "error" in got:
      raise UserError(f"{self.folder}: {got['error'][:400]}")
    return got
