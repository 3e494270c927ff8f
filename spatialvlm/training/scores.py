"""Questions scored before, during and after training."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from spatialvlm.config import RunConfig
from spatialvlm.data import pipeline
from spatialvlm.data.processor import Processor
from spatialvlm.evaluation import protocols, report
from spatialvlm.evaluation.compare import compare
from spatialvlm.evaluation.evaluate import Result, evaluate
from spatialvlm.evaluation.score import VlmScorer
from spatialvlm.training.state import Split, TrainState, weights


class Scores:
  """The evaluation of a run. Without `config.eval` it does nothing."""

  def __init__(self, config: RunConfig, split: Split, processor: Processor, workdir: pathlib.Path):
    self._config, self._split, self._workdir = config.eval, split, workdir
    self._before: Result | None = None
    if self._config is None:
      return
    self._questions = pipeline.open_questions(self._config.source)
    protocols.check(self._config)
    self._encoder = protocols.ProcessorEncoder(processor)

  def before(self, state: TrainState) -> None:
    """Scores the model as it was loaded; kept in `evaluation/before`, so that a continued run reads it."""
    if self._config is not None and self._config.before:
      self._before = self._score(state.params, "before")

  def during(self, state: TrainState, step: int) -> Mapping[str, Any]:
    """Figures for the metrics, `evaluation/...`."""
    result = self._score(weights(state), None)
    return {f"evaluation/{name}": score["score"] for name, score in result.summary["scores"].items()}

  def after(self, state: TrainState) -> Mapping[str, Any] | None:
    """Scores the trained model; kept in `evaluation/after`, and shown against `before` where there is one."""
    if self._config is None:
      return None
    result = self._score(weights(state), "after")
    if self._before is not None:
      compare(self._before, result, self._config, self._workdir, "before and after training")
    elif jax.process_index() == 0:
      report.show(report.table(result.summary, "after training"))
    return result.summary["scores"]

  def _score(self, params, name: str | None) -> Result:
    model = self._split.model(params, self._split.frozen)
    folder = self._workdir / "evaluation" / name if name else None
    scorer = VlmScorer(model, self._split.mesh)
    if name is None:  # within training, whose own bar is on the screen
      return evaluate(self._questions, scorer, self._encoder, self._config)
    with report.progress(f"scoring {name} training") as show:
      return evaluate(self._questions, scorer, self._encoder, self._config, folder=folder, on_progress=show)
