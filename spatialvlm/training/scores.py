"""Questions scored before, during and after training."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from spatialvlm import priors
from spatialvlm.config import EvalConfig, RunConfig, TrainConfig, nearest
from spatialvlm.data import pipeline
from spatialvlm.data.sources import registry
from spatialvlm.evaluation import beforehand
from spatialvlm.evaluation.asking import controls, protocols
from spatialvlm.evaluation.before_after import compare
from spatialvlm.evaluation.evaluate import Result, evaluate
from spatialvlm.evaluation.report import between_runs, run_page, run_tables
from spatialvlm.evaluation.scoring import aggregation
from spatialvlm.processing.processor import Processor
from spatialvlm.reporting import terminal
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.training.checkpoint import VALIDATION
from spatialvlm.training.state import Split, TrainState, weights
from spatialvlm.types import Question, UserError

FOLDER = "evaluation"
_BLOCK = 32


class Scores:
  """The evaluation of a run. Without `config.eval` it does nothing."""

  def __init__(self, config: RunConfig, split: Split, processor: Processor, workdir: pathlib.Path):
    self._config, self._split, self._workdir = config.eval, split, workdir
    self._name = config.name
    self._before: Result | None = None
    if self._config is None:
      return
    self._questions = pipeline.open_questions(self._config.source)
    protocols.check(self._config)
    controls.check(self._config.source, self._config.controls)
    if config.train.evaluate_every:
      self._some = some(self._questions, self._config)
    controls.check_sight(processor.sees, self._config.controls)
    controls.check_priors(bool(config.priors), self._config.controls)
    if self._config.missing_priors:
      known = priors.with_missing(config.priors, self._config.missing_priors)
      processor = processor.with_priors(priors.reader_of(known))
    self._prompter = protocols.ProcessorPrompter(processor)

  def check(self, config: TrainConfig) -> None:
    """Looks at all questions beforehand, and whether `train.best` is a score that those in training give.

    Raises:
      UserError: it is not, or a question cannot be asked.
    """
    if self._config is None:
      return
    beforehand.check(self._questions, self._prompter, self._config)
    if config.best in (None, VALIDATION):
      return
    table = aggregation.aggregation(list(_labels(self._some)))
    if config.best not in table.scores:
      why = f" (official: {table.official_note})" if table.official_note else ""
      known = [VALIDATION, *table.scores]
      raise UserError(f"config.train.best: unknown score {config.best!r}; {nearest(config.best, known)}{why}")

  def before(self, state: TrainState) -> None:
    """Scores the model as it was loaded; kept in `evaluation/before`, so that a continued run reads it."""
    if self._config is not None and self._config.before:
      self._before = self._score(state.params, "before")

  def during(self, state: TrainState) -> Mapping[str, float]:
    """Scores by name of the weights that would be exported: the headline's, of `eval.during` questions.

    `answered`, which is no score, is the share of them with an answer.
    Nothing is written: an evaluation that is interrupted is made anew.
    """
    config = dataclasses.replace(
      self._config, protocols=self._config.protocols[:1], controls=(), text_forest=0, limit=0
    )
    result = evaluate(self._some, self._scorer(weights(state)), self._prompter, config)
    scores = result.summary["scores"]
    found = {name: score["score"] for name, score in scores.items()}
    return found | {"answered": scores["plain"]["answered"]}

  def after(self, state: TrainState) -> Mapping[str, Any] | None:
    """Scores the trained model; kept in `evaluation/after`, and held against `before` where there is one."""
    if self._config is None or not self._config.after:
      return None
    result = self._score(weights(state), "after")
    if self._before is not None:
      compare(self._before, result, self._config, self._workdir, "before and after training")
      if jax.process_index() == 0:
        self._write_comparison()
    elif jax.process_index() == 0:
      terminal.show(run_tables.result(result.summary, "after training"))
    return result.summary["scores"]

  def _write_comparison(self) -> None:
    """The report that `launch/compare.py` makes, in `evaluation/comparison`."""
    folder = self._workdir / FOLDER
    runs = between_runs.open_runs([str(folder / name) for name in ("before", "after")])
    changes = between_runs.paired_changes(runs, resamples=self._config.bootstrap, seed=self._config.seed)
    between_runs.write(runs, changes, folder / "comparison")

  def _score(self, params, name: str) -> Result:
    folder, scorer = self._workdir / FOLDER / name, self._scorer(params)
    with terminal.progress(f"scoring {name} training") as show:
      result = evaluate(
        self._questions,
        scorer,
        self._prompter,
        self._config,
        folder=folder,
        on_progress=show,
        on_note=show.note,
      )
    if jax.process_index() == 0 and not (folder / run_page.PAGE).exists():
      title = f"{self._name}, {name} training"
      run_page.write(folder, result.all_rows, result.summary, title, self._questions)
    return result

  def _scorer(self, params) -> VlmScorer:
    return VlmScorer(self._split.model(params, self._split.frozen), self._split.mesh)


class Some(Sequence[Question]):
  """The questions at some places of a sequence."""

  def __init__(self, questions: Sequence[Question], places: Sequence[int]):
    self._questions, self._places = questions, [int(place) for place in places]
    if (ids := getattr(questions, "ids", None)) is not None:
      self.ids = tuple(ids[place] for place in self._places)

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Question:
    return self._questions[self._places[index]]

  def __getitems__(self, indices: Sequence[int]) -> list[Question]:
    return registry.read(self._questions, [self._places[index] for index in indices])


def some(questions: Sequence[Question], config: EvalConfig) -> Sequence[Question]:
  """The questions that are asked within training: drawn, since sets come sorted by task."""
  count = min(len(questions), config.limit) if config.limit else len(questions)
  size = min(config.during, count) if config.during else count
  return Some(questions, sorted(np.random.default_rng(config.seed).choice(count, size, replace=False)))


def _labels(questions: Sequence[Question]) -> Iterator[Question]:
  """The questions without their images, of which not all may fit in memory."""
  for start in range(0, len(questions), _BLOCK):
    places = range(start, min(start + _BLOCK, len(questions)))
    for question in registry.read(questions, places):
      yield dataclasses.replace(question, images=(), shots=())
