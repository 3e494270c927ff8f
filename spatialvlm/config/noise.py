"""How wrong the answers of the training stream are made."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
  """Wrong answers among those that are trained on, to learn what good labels are worth (`docs/study.md`).

  Held-out answers, of validation and of scores, are never touched.

  Attributes:
    share: of the multiple-choice answers that are another option's letter, from 0 to 1: of each hundred rows
      of a source as many, always the same ones, in every epoch.
    seed: of which rows they are, and of which wrong letter.
    sources: names of the data sources whose answers are; empty for all.
  """

  share: float = 0.0
  seed: int = 0
  sources: tuple[str, ...] = ()
