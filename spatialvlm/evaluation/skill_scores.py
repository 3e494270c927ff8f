"""How well a model has learned each skill of `worlds.skills`: greedy answers that are exactly right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from spatialvlm import generation
from spatialvlm.data.batch import collate
from spatialvlm.evaluation.asking.extraction import same_text
from spatialvlm.evaluation.scoring import statistics
from spatialvlm.reporting import tables
from spatialvlm.reporting.tables import Table, percent
from spatialvlm.types import Example, UserError

if TYPE_CHECKING:
  from spatialvlm.models.vlm import Vlm
  from spatialvlm.processing.processor import Processor

# The longest answer, a list of eight objects, has 23 tokens and an end.
NEW_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class SkillScore:
  """One row of the table.

  Attributes:
    right: answers that say the expected text (`extraction.same_text`), out of `count`.
    low, high: Wilson's 95 % interval of the share.
    misses: up to five (prompt, expected, given).
  """

  right: int
  count: int
  low: float
  high: float
  misses: tuple[tuple[str, str, str], ...] = ()

  @property
  def share(self) -> float:
    return self.right / self.count


def score_skill(
  vlm: Vlm,
  processor: Processor,
  examples: Sequence[Example],
  *,
  batch_size: int = 32,
  lengths: Sequence[int] = (64, 128, 256),
) -> SkillScore:
  """Asks the first question of each example and compares the greedy answer with the expected one.

  Raises:
    UserError: no example, or a prompt longer than the largest of `lengths`.
  """
  if not examples:
    raise UserError("skills: no example to ask; raise the count")
  right, misses = 0, []
  for start in range(0, len(examples), batch_size):
    part = examples[start : start + batch_size]
    answers = _answers(vlm, processor, part, batch_size, lengths)
    for example, given in zip(part, answers, strict=True):
      turn = example.turns[0]
      hit = same_text(given, turn.answer)
      right += hit
      if not hit and len(misses) < 5:
        misses.append((turn.prompt, turn.answer, given))
  return SkillScore(right, len(examples), *statistics.wilson(right, len(examples)), tuple(misses))


def table(scores: Mapping[str, SkillScore]) -> Table:
  """A row for each skill, by its name."""
  rows = [
    [name, percent(s.share), f"{percent(s.low)} to {percent(s.high)}", str(s.count)]
    for name, s in scores.items()
  ]
  columns = ("skill", "exact answers", "95 % interval", "questions")
  return tables.make(
    "skills", "Exact answers by skill", columns, rows, note="In per cent. Wilson's intervals."
  )


def _answers(
  vlm: Vlm, processor: Processor, examples: Sequence[Example], batch_size: int, lengths: Sequence[int]
) -> list[str]:
  encoded = [processor.encode_prompt(e.images, e.turns[0].prompt, id=f"example {e.id!r}") for e in examples]
  longest = max(len(e.tokens) for e in encoded)
  if longest > max(lengths):
    raise UserError(f"skills: a prompt of {longest} tokens does not fit the largest length {max(lengths)}")
  batch = collate(
    encoded,
    length=min(n for n in lengths if n >= longest),
    tiles=max(len(e.tiles) for e in encoded),
    targets=0,
    pad_id=processor.pad_id,
    batch_size=batch_size,
  )
  tokens_BT = generation.generate(
    vlm, batch, max_new_tokens=NEW_TOKENS, stop_ids=processor.stop_ids, pad_id=processor.pad_id
  )
  return [
    processor.decode(_until_stop(row, processor.stop_ids)).strip() for row in tokens_BT[: len(examples)]
  ]


def _until_stop(tokens_T: np.ndarray, stop_ids: Sequence[int]) -> np.ndarray:
  stops = np.flatnonzero(np.isin(tokens_T, stop_ids))
  return tokens_T[: stops[0]] if len(stops) else tokens_T
