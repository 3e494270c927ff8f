"""Rewards: how good a sampled answer is, told by rules from the right one. No model judges.

`REWARDS` names the classes by kind. Each holds an answer (`Said`) against what the data says and gives a
number, mostly in [0, 1], or None where it does not apply to the question: it is then left out. What is right
is what the evaluation takes for right (`evaluation.asking.extraction`), so that a reward is the score.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from spatialvlm.config import nearest
from spatialvlm.evaluation.asking import extraction
from spatialvlm.evaluation.asking.lengths import METRES, metres, quantity
from spatialvlm.training.objectives import typed
from spatialvlm.types import LETTERS, UserError


@dataclasses.dataclass(frozen=True)
class Said:
  """One sampled answer.

  Attributes:
    prompt, answer: the question and its right answer, as the data has them.
    output: what was generated, without special tokens.
    ended: whether a stop token ended it, not the limit.
    length: tokens, the stop token included; limit: how many there may be.
  """

  prompt: str
  answer: str
  output: str
  ended: bool
  length: int
  limit: int


@dataclasses.dataclass(frozen=True)
class RewardSettings:
  """One reward of several.

  Attributes:
    kind: a key of `REWARDS`; empty for the name it stands under.
    weight: of the reward in the sum.
    kwargs: settings of the kind.
  """

  kind: str = ""
  weight: float = 1.0
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ByRule:
  """How an answer is read off.

  Attributes:
    rule: of lettered questions: whose rule finds the letter, a key of `extraction.EXTRACTORS`.
  """

  rule: str = "vlmevalkit"


class Reward:
  """One kind of reward.

  Attributes:
    settings: of the class `Settings`.
    where: the setting's full name, for messages.
  """

  Settings: ClassVar[type]

  def __init__(self, settings: Any, where: str = "rewards"):
    """Raises a UserError for settings that cannot work."""
    self.settings, self.where = settings, where
    if (rule := getattr(settings, "rule", None)) is not None and rule not in extraction.EXTRACTORS:
      known = nearest(rule, extraction.EXTRACTORS)
      raise UserError(f"{where}.kwargs.rule: no rule {rule!r} reads answers; {known}")

  def __call__(self, said: Said) -> float | None:
    """The reward, or None where it does not apply to the question."""
    raise NotImplementedError


class Exact(Reward):
  """1 for the right answer, else 0.

  Of a lettered question the letter must be right, as a protocol's rule finds it; else the whole text, numbers
  by their value.
  """

  Settings = ByRule

  def __call__(self, said: Said) -> float:
    return float(extraction.is_right(said.output, said.answer, said.prompt, self.settings.rule))


class Count(Reward):
  """1 - |said - right| / max(right, 1), at least 0, where the right answer is a plain number.

  Of a lettered question the numbers are those of the options. The graded count of SpatialThinker
  (arXiv 2511.07403). 0 where no number is said.
  """

  Settings = ByRule

  def __call__(self, said: Said) -> float | None:
    answer, output = _read(said, self.settings.rule)
    expected, given = quantity(answer), quantity(output)
    if expected is None or expected[1]:
      return None
    if given is None or given[1]:
      return 0.0
    return max(0.0, 1 - abs(given[0] - expected[0]) / max(abs(expected[0]), 1.0))


@dataclasses.dataclass(frozen=True)
class DistanceSettings(ByRule):
  """How lengths are read.

  Attributes:
    unit: of right answers that are bare numbers; empty: these are no lengths, and the reward does not apply.
  """

  unit: str = ""


class Distance(Reward):
  """Mean relative accuracy of a length in any unit: the share of theta = .5, .55, ... .95 with
  |said - right| / right < 1 - theta (Yang et al. 2024, VSI-Bench, arXiv 2412.14171).

  It applies where the right answer is a length ("2.3 m"); a number that is said without a unit is taken in
  the unit of the right one. 0 where no length is said, or one that may be read in two ways
  (`evaluation.asking.lengths`).
  """

  Settings = DistanceSettings

  def __init__(self, settings: DistanceSettings, where: str = "rewards"):
    super().__init__(settings, where)
    if settings.unit and settings.unit not in METRES:
      raise UserError(
        f"{where}.kwargs.unit: {settings.unit!r} is no unit of length; {nearest(settings.unit, METRES)}"
      )

  def __call__(self, said: Said) -> float | None:
    answer, output = _read(said, self.settings.rule)
    expected = quantity(answer)
    unit = (expected and expected[1]) or self.settings.unit
    if expected is None or unit not in METRES or not expected[0] > 0:
      return None
    given = metres(output, unit)
    if given is None:
      return 0.0
    error = abs(given / (expected[0] * METRES[unit]) - 1)
    # An error that is a bound but for rounding does not lie below it.
    return sum(error < (100 - theta) / 100 - 1e-9 for theta in range(50, 100, 5)) / 10


@dataclasses.dataclass(frozen=True)
class FormatSettings:
  """What an answer must look like.

  Attributes:
    pattern: regex that fits all of an answer but white space around it; empty: the form of the right answer,
      a lone letter or a lone number with its unit, or a line of words.
  """

  pattern: str = ""


class Format(Reward):
  """1 for an answer that ends by itself and has the wanted form, right or not; else 0."""

  Settings = FormatSettings

  def __init__(self, settings: FormatSettings, where: str = "rewards"):
    super().__init__(settings, where)
    try:
      self._pattern = re.compile(settings.pattern, re.DOTALL)
    except re.error as error:
      raise UserError(f"{where}.kwargs.pattern: {settings.pattern!r} is no regex: {error}") from None

  def __call__(self, said: Said) -> float:
    output = said.output.strip()
    if self.settings.pattern:
      fits = self._pattern.fullmatch(output)
    elif choices := extraction.choices_of(said.prompt, said.answer):
      fits = re.fullmatch(rf"\(?[{LETTERS[: len(choices)]}]\)?\.?", output)
    elif quantity(said.answer) is not None:
      fits = quantity(output) is not None
    else:
      fits = re.fullmatch(r".+", output)
    return float(said.ended and bool(fits))


@dataclasses.dataclass(frozen=True)
class OverlongSettings:
  """When an answer begins to be too long.

  Attributes:
    buffer: so many tokens before the limit.
  """

  buffer: int = 4


class Overlong(Reward):
  """Soft overlong punishment: 0, and within the last `buffer` tokens before the limit down to -1; -1 too for
  an answer that the limit cuts off (DAPO, Yu et al. 2025, arXiv 2503.14476, equation 13).
  """

  Settings = OverlongSettings

  def __init__(self, settings: OverlongSettings, where: str = "rewards"):
    super().__init__(settings, where)
    if settings.buffer < 1:
      raise UserError(f"{where}.kwargs.buffer: {settings.buffer} tokens; use 1 or more")

  def __call__(self, said: Said) -> float:
    if not said.ended:
      return -1.0
    return min(0.0, (said.limit - self.settings.buffer - said.length) / self.settings.buffer)


REWARDS: dict[str, type[Reward]] = {
  "exact": Exact,
  "count": Count,
  "distance": Distance,
  "format": Format,
  "overlong": Overlong,
}


def make_rewards(configs: Mapping[str, RewardSettings], where: str) -> dict[str, tuple[float, Reward]]:
  """Weighted rewards by name; those of weight 0 are left out.

  Raises:
    UserError: none with a weight, an unknown kind, or a setting that the kind does not have.
  """
  made = {}
  for name, config in configs.items():
    place, kind = f"{where}.{name}", config.kind or name
    if kind not in REWARDS:
      raise UserError(f"{place}.kind: unknown {kind!r}; {nearest(kind, REWARDS)}")
    if config.weight:
      settings = typed(REWARDS[kind].Settings, config.kwargs, f"{place}.kwargs")
      made[name] = config.weight, REWARDS[kind](settings, place)
  if not made:
    raise UserError(f"{where}: no reward with a weight; add one, e.g. exact")
  return made


def _read(said: Said, rule: str) -> tuple[str, str]:
  """The right answer and what was said; of a lettered question the texts of their options, "" for none."""
  answer, output = said.answer, said.output
  if choices := extraction.choices_of(said.prompt, answer):
    letter = extraction.extract_choice(output, choices, rule)
    answer = choices[LETTERS.index(extraction.right_letter(answer, choices))]
    output = choices[LETTERS.index(letter)] if letter else ""
  return answer, output
