"""How well a model has learned each skill of `worlds.skills`: greedy answers, exactly right or how near."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from spatialvlm import generation
from spatialvlm.data.batch import collate
from spatialvlm.evaluation.asking import lengths
from spatialvlm.evaluation.asking.extraction import same_text
from spatialvlm.evaluation.scoring import distances, statistics
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
    given: every answer, in the order of the examples.
  """

  right: int
  count: int
  low: float
  high: float
  misses: tuple[tuple[str, str, str], ...] = ()
  given: tuple[str, ...] = ()

  @property
  def share(self) -> float:
    return self.right / self.count


def score_skill(
  vlm: Vlm,
  processor: Processor,
  examples: Sequence[Example],
  *,
  batch_size: int = 32,
  lengths: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
) -> SkillScore:
  """Asks the first question of each example and compares the greedy answer with the expected one.

  Raises:
    UserError: no example, or a prompt longer than the largest of `lengths`.
  """
  if not examples:
    raise UserError("skills: no example to ask; raise the count")
  right, misses, said = 0, [], []
  for start in range(0, len(examples), batch_size):
    part = examples[start : start + batch_size]
    answers = _answers(vlm, processor, part, batch_size, lengths)
    said += answers
    for example, given in zip(part, answers, strict=True):
      turn = example.turns[0]
      hit = same_text(given, turn.answer)
      right += hit
      if not hit and len(misses) < 5:
        misses.append((turn.prompt, turn.answer, given))
  return SkillScore(
    right, len(examples), *statistics.wilson(right, len(examples)), tuple(misses), tuple(said)
  )


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


def score_distances(
  given: Sequence[str], asked: Sequence[Example], others: Sequence[Example]
) -> dict[str, distances.DistanceScore]:
  """How near spoken distances are: the model's, and guesses of `others`, which see no picture.

  Args:
    given: answers to the first questions of `asked`, whose own answers are lengths such as "2.4 m".
    others: other examples of the skill; all name one thing (`types.Asked.named`), in one picture.
  """
  true = lambda examples: [lengths.metres(e.turns[0].answer) for e in examples]
  said = {"model": [lengths.metres(text, unit="m") for text in given]}
  said |= distances.guesses(true(others), _places(others), _places(asked))
  return {name: distances.score(values, true(asked)) for name, values in said.items()}


def distance_table(scores: Mapping[str, distances.DistanceScore]) -> Table:
  """A row for the model and each guess, by its name."""
  percent_ = lambda share: f"{percent(share[0])} ({percent(share[1])} to {percent(share[2])})"
  rows = [
    [
      name,
      f"{s.abs_rel[0]:.3f} ({s.abs_rel[1]:.3f} to {s.abs_rel[2]:.3f})",
      *(percent_(share) for share in s.within.values()),
      f"{s.unread} of {s.count}",
    ]
    for name, s in scores.items()
  ]
  columns = ("", "AbsRel", "within 1.25, %", "within 10 %, %", "within 25 %, %", "no length said")
  note = "95 % intervals. An answer that says no length is an error of 1. The guesses see no picture."
  return tables.make("distances", "Spoken distances", columns, rows, note=note)


def _places(examples: Sequence[Example]) -> np.ndarray:
  """(N, 2): where the middle of what is asked about lies, as shares of the picture's sides."""
  found = []
  for example in examples:
    ((x0, y0, x1, y1),) = example.geometry.asked[0].named
    height, width = example.images[0].shape[:2]
    found.append(((x0 + x1) / 2 / width, (y0 + y1) / 2 / height))
  return np.array(found)


def _answers(
  vlm: Vlm, processor: Processor, examples: Sequence[Example], batch_size: int, lengths: Sequence[int]
) -> list[str]:
  encoded = [
    processor.encode_prompt(e.images, e.turns[0].prompt, id=f"example {e.id!r}", shots=e.shots)
    for e in examples
  ]
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
