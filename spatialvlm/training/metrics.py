"""Where figures go: JSON lines, TensorBoard, Weights & Biases, and the screen. Process 0 alone writes."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from spatialvlm import workdir as workdir_lib
from spatialvlm.config import LogConfig
from spatialvlm.reporting import terminal
from spatialvlm.types import UserError

FILE = "metrics.jsonl"
# Names of the evaluation's scores begin so.
SCORES = "eval/"
# Fields that differ between two runs of one config; all others are equal to the last bit.
TIMED = (
  "time",
  "samples_per_second",
  "tokens_per_second",
  "flops_per_second",
  "seconds_per_step",
  "compilations",
  "compile_seconds",
  "evaluation_seconds",
)


class Metrics:
  """Writes rows `{"step": n, ...}` to `metrics.jsonl` and to the trackers that are switched on."""

  def __init__(self, folder: pathlib.Path, config: LogConfig, *, step: int, name: str, settings: Mapping):
    """Rows past `step`, which an interrupted run wrote after its last checkpoint, are cut."""
    self._path, self._board, self._wandb = folder / FILE, None, None
    self._main = jax.process_index() == 0
    if not self._main:
      return
    cut(self._path, step)
    self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
    if config.tensorboard:
      from tensorboardX import SummaryWriter

      self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
    if config.wandb:
      self._wandb = _start_wandb(folder, config, name, settings)

  def write(self, row: Mapping[str, Any]) -> None:
    """Raises a UserError where the disk is full."""
    if not self._main:
      return
    with workdir_lib.writing(self._path):
      self._file.write(json.dumps(row) + "\n")
      self._file.flush()
    numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
    if self._board:
      for key, value in numbers.items():
        self._board.add_scalar(key, value, row["step"])
    if self._wandb:
      self._wandb.log(numbers, step=row["step"])

  def close(self) -> None:
    if not self._main:
      return
    try:
      # After a write that failed, closing tries it again.
      with workdir_lib.writing(self._path):
        self._file.close()
    finally:
      if self._board:
        self._board.close()
      if self._wandb:
        self._wandb.finish()


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a metrics file; a last line that was cut off in the middle is left out."""
  if not path.exists():
    return []
  rows = []
  lines = path.read_text(encoding="utf-8").split("\n")
  for number, line in enumerate(lines):
    if not line:
      continue
    try:
      rows.append(json.loads(line))
    except ValueError as e:
      if number == len(lines) - 1:
        break
      raise UserError(
        f"{path}, line {number + 1}: not JSON; remove the line, or name another --workdir"
      ) from e
  return rows


def cut(path: pathlib.Path, step: int) -> None:
  """Drops the rows past `step`, and half a last line; the file is replaced whole or not at all."""
  if path.exists():
    kept = [row for row in read(path) if row["step"] <= step]
    workdir_lib.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def _start_wandb(folder: pathlib.Path, config: LogConfig, name: str, settings: Mapping):
  try:
    import wandb
  except ImportError:
    raise UserError("config.log.wandb: package wandb is missing; pip install 'spatialvlm[wandb]'") from None
  run = f"{name}-{folder.name}"
  return wandb.init(
    project=config.wandb_project, name=run, id=run, dir=str(folder), config=dict(settings), resume="allow"
  )


class Screen:
  """A live bar on a terminal, a plain line per report elsewhere."""

  def __init__(self, total: int, step: int):
    self._total, self._bar = total, terminal.StepBar(total, step)

  def advance(self, step: int) -> None:
    self._bar.update(step)

  def report(self, row: Mapping[str, Any]) -> None:
    """Shows the figures of a row of training."""
    figures = " · ".join(
      [
        f"loss {row['loss']:.4f}",
        f"lr {row['learning_rate']:.2e}",
        f"{row['samples_per_second']:.1f} samples/s",
        f"{row['tokens_per_second']:.0f} tokens/s",
        f"fill {row['fill']:.0%}",
        f"{scaled(row['flops_per_second'])}FLOP/s",
      ]
    )
    if self._bar.live:
      self._bar.update(row["step"], figures)
      return
    left = (self._total - row["step"]) * row["seconds_per_step"]
    self.say(f"step {row['step']}/{self._total} · {figures} · {_duration(left)} left")

  def say(self, text: str) -> None:
    """A line that stays."""
    self._bar.say(text)

  def close(self) -> None:
    self._bar.close()


def scaled(value: float, base: int = 1000) -> str:
  """12345678 -> "12.3 M"."""
  for unit in ("", "k", "M", "G", "T", "P"):
    if abs(value) < base or unit == "P":
      return f"{value:.3g} {unit}"
    value /= base
  raise AssertionError


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
