"""Questions of an evaluation that was run, as it asked them, and the links of its report to their pages."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spatialvlm import config as config_lib
from spatialvlm import loading, workdir
from spatialvlm.config import EvaluateConfig, ModelConfig, RunConfig, ScoreConfig, SourceConfig, read_json
from spatialvlm.data.sources import registry
from spatialvlm.evaluation import records
from spatialvlm.evaluation.asking.protocols import PROTOCOLS, ProcessorPrompter
from spatialvlm.evaluation.report import run_page
from spatialvlm.inside.asked import Asked, of_benchmark
from spatialvlm.inside.opened import Opened
from spatialvlm.processing.processor import Processor
from spatialvlm.reporting import page
from spatialvlm.types import Question, UserError

Find = Callable[[ModelConfig, str | None], loading.Found]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """An evaluation that was run.

  Attributes:
    folder: its workdir.
    opened: what it asked, in which numbers and with which tiles.
    data, score: what it asked of it, and how.
  """

  folder: pathlib.Path
  opened: Opened
  data: SourceConfig
  score: ScoreConfig

  @property
  def protocol(self) -> str:
    """The headline's way of asking."""
    return self.score.protocols[0]


def open_run(folder: pathlib.Path, find: Find) -> Run:
  """Opens the workdir of `launch/evaluate.py`, or `evaluation/before` or `after` of a training's.

  Args:
    find: what finds a model; `training.runs.find` knows training runs too.

  Raises:
    UserError: no evaluation there, or a model that is not found.
  """
  if not (folder / records.FILE).exists():
    raise UserError(f"{folder}: holds no answers ({records.FILE}); name the workdir of an evaluation")
  home = run_page.settings_folder(folder)
  stored: Mapping[str, Any] = read_json(home / workdir.CONFIG_FILE)
  if home == folder:
    config = config_lib.from_stored(stored, EvaluateConfig)
    found = find(config.model, config.adapter)
    return Run(folder, Opened(config.model, found, config.score.missing_priors), config.data, config.score)
  run = config_lib.from_stored(stored, RunConfig)
  if run.eval is None or folder.name not in ("before", "after"):
    raise UserError(
      f"{folder}: no evaluation of a training's; name its evaluation/before or evaluation/after"
    )
  if folder.name == "before" and run.peft.resume_from:
    raise UserError(f"{folder}: of a model that began with an adapter; explain evaluation/after instead")
  model = run.model if folder.name == "before" else dataclasses.replace(run.model, path=str(home))
  opened = Opened(model, find(model, None), run.eval.missing_priors)
  return Run(folder, opened, run.eval.source, run.eval)


def questions(run: Run, ids: Sequence[int]) -> list[Question]:
  """The questions of these numbers, in this order.

  Raises:
    UserError: a number that the run did not ask.
  """
  source = registry.open_questions(run.data)
  known = getattr(source, "ids", None)
  numbers = [int(i) for i in known] if known is not None else [int(q.idx) for q in source]
  place = {idx: n for n, idx in enumerate(numbers)}
  for idx in ids:
    if idx not in place:
      least, most = min(numbers), max(numbers)
      raise UserError(
        f"{run.folder}: asked no question {idx}; its {len(numbers)} are between {least} and {most}"
      )
  return registry.read(source, [place[idx] for idx in ids])


def asked(run: Run, processor: Processor, question: Question) -> Asked:
  """A question as the run's headline protocol puts it; errors as of `asked.ask`."""
  prompter = ProcessorPrompter(processor)
  prompt = prompter(question, run.protocol)
  option_ids = prompt.option_ids
  if PROTOCOLS[run.protocol].reading == "texts":
    option_ids = [ids[0] for ids in prompter.answers(question.choices)]
    if len(set(option_ids)) < len(option_ids):
      raise UserError(
        f"question {question.idx}: protocol {run.protocol!r} answers by texts, and two of them begin with"
        f" the same"
        " token; explain a run whose first protocol asks for letters"
      )
  encoded = prompt.encoded
  if question.shots:  # read with the pictures, in place of what the prompter left out
    text, prefix = PROTOCOLS[run.protocol].text(question), PROTOCOLS[run.protocol].answer_prefix
    encoded = processor.encode_prompt(
      question.images, text, prefix, f"question {question.idx}", shots=question.shots
    )
  return of_benchmark(processor, question, encoded, option_ids)


def folder_of(run: Run, idx: int) -> pathlib.Path:
  """Where the page of a question lies."""
  return (run.folder / run_page.INSIDE.format(idx=idx)).parent


def link(folder: pathlib.Path) -> None:
  """Writes the run's report anew, with a link from each question to its page where there is one.

  Raises:
    UserError: the folder cannot be written.
  """
  rows, title = records.read(folder), page.title_of(folder / run_page.PAGE) or str(folder)
  summary = read_json(folder / "summary.json", missing="the evaluation is not finished; run it to its end")
  run_page.write(folder, rows, summary, title)
