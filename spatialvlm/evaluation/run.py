"""From an EvaluateConfig to predictions and a summary in a workdir."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from spatialvlm import loading, priors, workdir
from spatialvlm.config import EvaluateConfig, ModelConfig, PriorConfig, called, check_dtype
from spatialvlm.core import axes
from spatialvlm.data.sources.registry import open_questions
from spatialvlm.evaluation import beforehand
from spatialvlm.evaluation.asking import controls, protocols
from spatialvlm.evaluation.asking.protocols import ProcessorPrompter
from spatialvlm.evaluation.evaluate import SUMMARY_FILE, Result, evaluate
from spatialvlm.evaluation.report import run_page, run_tables
from spatialvlm.models import execution
from spatialvlm.processing.processor import load_processor
from spatialvlm.reporting import tables, terminal
from spatialvlm.serving import usage
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.types import Question, UserError


def run(
  config: EvaluateConfig,
  folder: pathlib.Path,
  find: Callable[[ModelConfig, str | None], loading.Found] = loading.find,
  *,
  show_tables: bool = True,
) -> Result:
  """Scores the model on the questions, or continues what was begun in `folder`, and shows the table.

  Afterwards the folder holds config.json, environment.json, identity.json, predictions.jsonl, summary.json
  and table.txt. Everything that can be checked is checked before anything is written.

  Args:
    find: what finds the config's model and adapter; `training.runs.find` knows training runs too.
    show_tables: on the screen as well; they are written in any case.

  Raises:
    UserError: anything in the config, data, weights or folder that the user can mend.
  """
  with workdir.alone(folder):
    return _run(config, folder, find, show_tables)


def _run(
  config: EvaluateConfig, folder: pathlib.Path, find: Callable[..., loading.Found], show_tables: bool
) -> Result:
  check(config)
  workdir.check(folder, config)
  mesh = axes.make_mesh(config.mesh)
  model = find(config.model, config.adapter)
  known = _priors(model, config)
  loading.note_pictures(model, config.model)
  processor = load_processor(model.folder, priors=priors.reader_of(known), **config.model.tiling)
  controls.check_sight(processor.sees, config.score.controls)
  controls.check_priors(bool(known), config.score.controls)
  prompter = ProcessorPrompter(processor)
  questions = open_questions(config.data)
  if not len(questions):
    raise UserError(f"{called(config.data)}: holds no questions; look at data.path and data.tasks")
  if not (folder / SUMMARY_FILE).exists():
    beforehand.check(questions, prompter, config.score)
  vlm = execution.keep_whole(model.load(mesh), config.mesh.whole, mesh)
  if taken := vlm.config.text.max_length - vlm.max_length:  # by a soft prompt
    reads = priors.reader_of(known)
    processor = load_processor(model.folder, reserved=taken, priors=reads, **config.model.tiling)
    prompter = ProcessorPrompter(processor)
    if not (folder / SUMMARY_FILE).exists():
      beforehand.check(questions, prompter, config.score)
  continues = workdir.claim(folder, config, lambda: model.identity() | identity(questions))
  if jax.process_index() == 0:
    count = min(len(questions), config.score.limit or len(questions))
    begins = "continues" if continues else "begins"
    print(f"{begins} in {folder}: {count} questions to {model.name}", flush=True)
    if note := getattr(questions, "note", ""):
      print(f"note: {note}", flush=True)
  with terminal.progress() as show:
    scorer, before = VlmScorer(vlm, mesh), usage.compiled()
    result = evaluate(
      questions, scorer, prompter, config.score, folder=folder, on_progress=show, on_note=show.note
    )
  if jax.process_index() == 0:
    headed = title(config, model.name if prompter.sees else f"{model.name} (text alone)")
    table = run_tables.result(result.summary, headed)
    workdir.write_text(folder / "table.txt", terminal.plain_text(table))
    # Files first: whatever befalls the screen, they are there.
    run_page.write(folder, result.all_rows, result.summary, headed, questions)
    for shown in (table, *_other_tables(config, result)) if show_tables else ():
      terminal.show(shown)
    compiled = usage.compiled() - before
    for line in (usage.programs(scorer.programs, compiled), usage.peak_memory(), *result.notes):
      print(line)
    print(f"predictions, summary, tables and report: {folder}")
  return result


def check(config: EvaluateConfig) -> None:
  """Raises a UserError for settings that cannot work, before anything is loaded or written."""
  check_dtype(config.model.dtype)
  score = config.score
  protocols.check(score)
  controls.check(config.data, score.controls)
  if score.batch_size < 1 or score.limit < 0 or score.bootstrap < 1:
    raise UserError("config.score: batch_size and bootstrap must be at least 1, limit at least 0")
  for name in ("lengths", "tiles"):
    sizes = getattr(score, name)
    if not sizes or sorted(set(sizes)) != list(sizes) or sizes[0] < 1:
      raise UserError(f"config.score.{name}: {sizes} must be ascending and positive")


def _priors(model: loading.Found, config: EvaluateConfig) -> dict[str, PriorConfig]:
  """The model's priors, as this evaluation takes pictures that lack something."""
  return priors.with_missing(model.priors, config.score.missing_priors)


def _other_tables(config: EvaluateConfig, result: Result) -> Iterator[tables.Table]:
  """Protocols and controls, where there are any beside the headline, and what others published."""
  if len(result.summary["protocols"]) > 1:
    yield run_tables.protocols(result.summary)
    if (answered := run_tables.answered(result.summary)).rows:
      yield answered
  if result.summary["controls"]:
    yield run_tables.controls(result.summary)
  if config.published:
    yield run_tables.published(result.summary, config.published)


def identity(questions: Sequence[Question]) -> dict[str, Any]:
  """What the name of the data stood for: how many questions, which in which order, and their content."""
  found: dict[str, Any] = {"questions": len(questions)}
  for name in ("row_order", "content", "note"):
    if value := getattr(questions, name, ""):
      found[name] = value
  return found


def title(config: EvaluateConfig, model: str) -> str:
  """What was scored on what, as the table is headed."""
  names = {"cvbench": "CV-Bench", "scenes": "held-out scenes", "views": "held-out views"}
  data = getattr(config.data, "path", "") or names.get(config.data.kind, config.data.kind)
  if shift := getattr(config.data, "shift", ""):
    data += f", shift {shift!r}"
  return f"{model} on {data}"
