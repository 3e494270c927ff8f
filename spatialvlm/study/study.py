"""A whole study: what is missing is done, and all that is there is summed up."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from spatialvlm import workdir
from spatialvlm.config import StudyConfig, to_dict
from spatialvlm.evaluation.evaluate import SUMMARY_FILE
from spatialvlm.reporting import tables, terminal
from spatialvlm.study import grid, measured, report, running
from spatialvlm.study.grid import Read, Run
from spatialvlm.training import guards
from spatialvlm.types import UserError

JSON, TEXT, MARKDOWN, LATEX, PLOT = "study.json", "table.txt", "tables.md", "tables.tex", "study.png"
# As `running.in_process` with its first three arguments and the last.
Do = Callable[..., running.Ended]


def spare_accelerators() -> None:
  """Keeps this process, and none that it starts, off them: their memory belongs to the runs."""
  jax.config.update("jax_platforms", "cpu")


def nothing(config: Any) -> None:
  """What a run's process prepares where nobody says otherwise."""


def run(
  study: StudyConfig,
  folder: pathlib.Path,
  read: Read,
  prepare: Callable[[Any], None] = nothing,
  *,
  only_report: bool = False,
  do: Do | None = None,
) -> int:
  """Scores the untrained model, trains every cell with every seed, and writes what came of it.

  The same command again skips what is finished and continues what is not; cells and seeds may be added.
  Afterwards `folder` holds config.json, `untrained` (an evaluation), `runs/CELL/seed-N` (ordinary runs), and
  study.json, table.txt, tables.md, tables.tex and study.png of all that is finished, also where it was
  stopped half-way.

  Args:
    read: makes a training's config of a recipe and settings, as `grid.Read` says.
    prepare: called first in each run's process, with its config; of a module's top.
    only_report: nothing is trained or asked; another process may be at work in the folder.
    do: what does a run's work, in the place of a process of its own.

  Returns:
    The exit code: 0; 1 where a run failed, whose name was said; 128 and the signal's number.

  Raises:
    UserError: all that can be wrong with the config or the folder, before anything is written; the untrained
      model cannot be scored; or the disk is full.
  """
  runs = grid.expand(study, folder, read)
  if jax.distributed.is_initialized():
    raise UserError("a study is of one process; train single cells on several with launch/train.py")
  grid.check_folders(study, runs, folder, busy=only_report)
  do = do or functools.partial(running.in_process, prepare=prepare)
  base = folder / grid.BASE
  if only_report:
    if not (base / SUMMARY_FILE).exists():
      raise UserError(f"{folder}: the untrained model was not scored yet; run the study first")
    _sum_up(study, runs, folder, {})
    return 0
  with workdir.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  workdir.write_json(folder / workdir.CONFIG_FILE, to_dict(study))
  if not (base / SUMMARY_FILE).exists():
    ended = _score(study, runs, base, do)
    if ended.signal:
      return 128 + ended.signal
  work = lambda one, received: do(running.train, one.config, one.folder, received=received)
  ran = running.all_runs(runs, work, say=_say)
  _sum_up(study, runs, folder, ran.failed)
  for name, why in ran.failed.items():
    _say(f"failed: {name}: {why}")
  return 128 + ran.signal if ran.signal else int(bool(ran.failed))


def _score(study: StudyConfig, runs: list[Run], folder: pathlib.Path, do: Do) -> running.Ended:
  _say("the untrained model is scored")
  with guards.signals() as received:
    ended = do(running.score, grid.base(study, runs), folder, received=received)
  if received.number or ended.signal:
    return running.Ended(signal=received.number or ended.signal)
  if ended.error:
    raise UserError(f"{grid.BASE}: {ended.error}")
  return ended


def _sum_up(study: StudyConfig, runs: list[Run], folder: pathlib.Path, failed: dict[str, str]) -> None:
  found = measured.collect(study, runs, folder, failed)
  workdir.write_json(folder / JSON, found)
  every = [report.scores(found), report.changes(found)]
  every += [report.changes(found, study.control)] if study.control else []
  every += [report.costs(found)]
  workdir.write_text(folder / TEXT, "\n".join(terminal.plain_text(table, width=190) for table in every))
  workdir.write_text(folder / MARKDOWN, "\n".join(map(tables.to_markdown, every)))
  workdir.write_text(folder / LATEX, "\n".join(map(tables.to_latex, every)))
  if any(run.finished for run in runs):
    with workdir.writing(folder / PLOT):
      report.plot(found, folder / PLOT)
  for table in every:
    terminal.show(table)
  _say(f"tables, numbers and drawing: {folder}")


def _say(text: str) -> None:
  print(text, flush=True)
