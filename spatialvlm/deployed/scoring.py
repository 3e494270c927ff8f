"""Exported files asked the held-out questions, one by one, in their own runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from spatialvlm import workdir
from spatialvlm.config import ScoreConfig
from spatialvlm.data.sources import registry
from spatialvlm.deployed.asked import Asker
from spatialvlm.deployed.client import Child
from spatialvlm.evaluation import records
from spatialvlm.evaluation.evaluate import SUMMARY_FILE
from spatialvlm.evaluation.records import Prediction
from spatialvlm.evaluation.scoring import baselines
from spatialvlm.evaluation.scoring.summary import summarize
from spatialvlm.types import Question, UserError


def is_scored(folder: Path) -> bool:
  """Whether all questions of a folder are answered."""
  return (folder / SUMMARY_FILE).is_file()


def score(
  questions: Sequence[Question],
  count: int,
  asker: Asker,
  child: Child,
  config: ScoreConfig,
  folder: Path,
  on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prediction]:
  """Answers to the first `count` questions, those that `folder` holds already not asked again.

  A row is what `evaluation.evaluate` makes of the same log-probabilities. Files as there:
  `predictions.jsonl`, which grows answer by answer, and `summary.json` at the end.

  Raises:
    UserError: the runtime's prompt has another number of tokens than this library's; its log-probabilities
      are not finite; it ends; a question that cannot be asked.
  """
  known = {row.idx: row for row in records.read(folder)}
  ids, rows = getattr(questions, "ids", None), []
  writer = records.Writer(folder)
  try:
    for place in range(count):
      if ids is not None and int(ids[place]) in known:
        rows.append(known[int(ids[place])])
      else:
        (question,) = registry.read(questions, [place])
        row = known.get(int(question.idx))
        if row is None:
          row = _answer(question, asker, child, config.protocols[0])
          writer.write([row])
        rows.append(row)
      on_progress(place + 1, count)
  finally:
    writer.close()
  workdir.write_json(folder / SUMMARY_FILE, summarize(rows, config))
  return rows


def _answer(question: Question, asker: Asker, child: Child, protocol: str) -> Prediction:
  asked = asker(question)
  tokens, logprobs = child.letters(asked.given)
  if tokens != asked.tokens:
    raise UserError(
      f"{child.folder}: question {question.idx} is a prompt of {tokens} tokens in its runtime and of"
      f" {asked.tokens} here, so that it would be asked something else; set model.longest_edge and"
      " model.max_tiles to what the files were written with"
    )
  return records.predict(question, logprobs, baselines.rule_letters(question), protocol=protocol)
