"""A whole study: what is missing is done, and all that is there is summed up."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from spatialvlm import workdir
from spatialvlm.config import StudyConfig, to_dict
from spatialvlm.reporting import tables, terminal
from spatialvlm.study import curves, grid, measured, report, running
from spatialvlm.study.claims import Claims
from spatialvlm.study.grid import Base, Read, Run
from spatialvlm.types import UserError

JSON, TEXT, MARKDOWN, LATEX, PLOT = "study.json", "table.txt", "tables.md", "tables.tex", "study.png"
CURVE = "curve.png"
# Seconds: after which a worker that gives no sign is taken for gone, and between looks at what others do.
LEASE, POLL = 300.0, 5.0
# As `running.in_process`, without `prepare`.
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
  lease: float = LEASE,
  do: Do | None = None,
) -> int:
  """Scores the untrained model, trains every cell with every seed, and writes what came of it.

  The same command again skips what is finished and continues what is not; cells and seeds may be added.
  Beside it, on this machine or on others that see the folder, the same command is a further worker: each run
  is of one of them at a time, and one whose worker is gone is taken over after `lease` seconds.
  Afterwards `folder` holds config.json, `untrained` (an evaluation), `runs/CELL/seed-N` (ordinary runs), and
  study.json, table.txt, tables.md, tables.tex, study.png and, with an axis, curve.png, of all that is
  finished, also where it was stopped half-way.

  Args:
    read: makes a training's config of a recipe and settings, as `grid.Read` says.
    prepare: called first in each run's process, with its job; of a module's top.
    only_report: nothing is trained or asked; other processes may be at work in the folder.
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
  if not lease > 0:
    raise UserError(f"--lease={lease:g}: seconds above 0")
  grid.check_folders(study, runs, folder, busy=only_report)
  bases = grid.bases(study, runs, folder)
  if only_report:
    if any(not base.finished for base in bases):
      raise UserError(f"{folder}: the untrained model was not scored yet; run the study first")
    _sum_up(study, runs, bases, folder, {})
    return 0
  with workdir.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  workdir.write_json(folder / workdir.CONFIG_FILE, to_dict(study))
  do = do or functools.partial(running.in_process, prepare=prepare)
  ran = _work(runs, bases, Claims(folder, lease), do)
  if all(base.finished for base in bases):
    _sum_up(study, runs, bases, folder, ran.failed)
  for name, why in ran.failed.items():
    _say(f"failed: {name}: {why}")
  return 128 + ran.signal if ran.signal else int(bool(ran.failed))


def _work(runs: list[Run], bases: list[Base], claims: Claims, do: Do) -> running.Ran:
  """Untrained models that no other worker has, then runs, then those untrained models that another had."""
  score = lambda base, received, lost: do(running.score, base, base.folder, received=received, lost=lost)
  train = lambda one, received, lost: do(running.train, one, one.folder, received=received, lost=lost)
  worker = lambda work, wait: running.Worker(work, claims, wait=wait, say=_say)
  if signal := _score(worker(score, None), bases):
    return running.Ran({}, signal)
  ran = worker(train, POLL).do(runs)
  return running.Ran(ran.failed, ran.signal or _score(worker(score, POLL), bases))


def _score(worker: running.Worker, bases: list[Base]) -> int:
  """The number of the signal that ended it, else 0."""
  missing = [base for base in bases if not base.finished]
  ran = worker.do(missing, "untrained model") if missing else running.Ran({})
  if ran.failed:
    raise UserError("; ".join(f"{name}: {why}" for name, why in ran.failed.items()))
  return ran.signal


def _sum_up(
  study: StudyConfig, runs: list[Run], bases: list[Base], folder: pathlib.Path, failed: dict[str, str]
) -> None:
  found = measured.collect(study, runs, bases, failed)
  workdir.write_json(folder / JSON, found)
  every = [report.scores(found), report.changes(found)]
  every += [report.changes(found, study.control)] if study.control else []
  every += [report.beside(found)] if report.has_beside(found) else []
  every += [report.costs(found)]
  workdir.write_text(folder / TEXT, "\n".join(terminal.plain_text(table, width=190) for table in every))
  workdir.write_text(folder / MARKDOWN, "\n".join(map(tables.to_markdown, every)))
  workdir.write_text(folder / LATEX, "\n".join(map(tables.to_latex, every)))
  if any(run.finished for run in runs):
    with workdir.writing(folder / PLOT):
      report.plot(found, folder / PLOT)
      if study.axis:
        curves.plot(found, study.axis, folder / CURVE)
  for table in every:
    if table.rows:
      terminal.show(table)
  _say(f"tables, numbers and drawing: {folder}")


def _say(text: str) -> None:
  print(text, flush=True)
