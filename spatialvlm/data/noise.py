"""Answers made wrong on purpose (`config.NoiseConfig`): a fixed share of rows says another letter."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from spatialvlm.config import NoiseConfig, nearest
from spatialvlm.data.sources.registry import Source, read
from spatialvlm.types import Example, Turn, UserError
from spatialvlm.worlds.false_answers import other_letters

# Sets these draws apart from others of the same seed and row: which rows of a block, and which letter.
_ROWS, _LETTERS = 0xE44, 0xE45
# Of so many rows in succession exactly the share is wrong: a small source has as much noise as a large one.
BLOCK = 100


def check(config: NoiseConfig, sources: Mapping[str, object]) -> None:
  """Raises a UserError for a share out of range, or a source that is none of the data's."""
  if not 0 <= config.share <= 1:
    raise UserError(f"config.data.noise.share: {config.share} is out of range; use a number from 0 to 1")
  for name in config.sources:
    if name not in sources:
      raise UserError(
        f"config.data.noise.sources: {name!r} is no source of the data; {nearest(name, list(sources))}"
      )


class NoisyAnswers(Sequence[Example]):
  """A source of which some answers are another option's letter; all else of it stays as it is.

  What the source offers beside `Source` (`deferred`, `pictures`, `picture_counts`) is offered as well.
  """

  def __init__(self, source: Source, config: NoiseConfig, name: str):
    """`name`: of the source, so that those of one mixture are wrong in other rows."""
    self._source, self._config, self._name = source, config, name
    self._key = config.seed, zlib.crc32(name.encode())
    if hasattr(source, "deferred"):
      self.deferred = lambda indices: self._flipped(indices, source.deferred(indices))
    for also in ("pictures", "picture_counts"):
      if hasattr(source, also):
        setattr(self, also, getattr(source, also))

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    return self._flipped([index], [self._source[index]])[0]

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    return self._flipped(indices, read(self._source, indices))

  def wrong(self, index: int, turn: int = 0) -> bool:
    """Whether a row's answer (of several questions, the one of this number) is made wrong."""
    block, place = divmod(int(index), BLOCK)
    rng = np.random.default_rng((_ROWS, *self._key, block, turn))
    # A share that is no whole number of a block's rows is met on average.
    return bool(rng.permutation(BLOCK)[place] + rng.uniform() < BLOCK * self._config.share)

  def _flipped(self, indices: Sequence[int], examples: Sequence[Example]) -> list[Example]:
    return [self._example(index, example) for index, example in zip(indices, examples, strict=True)]

  def _example(self, index: int, example: Example) -> Example:
    turns = tuple(self._turn(int(index), number, turn) for number, turn in enumerate(example.turns))
    return dataclasses.replace(example, turns=turns)

  def _turn(self, index: int, number: int, turn: Turn) -> Turn:
    others = other_letters(turn.prompt, turn.answer)
    if not others or f"\n({turn.answer}) " not in turn.prompt:
      raise UserError(
        f"config.data.noise: the answer {turn.answer[:40]!r} is no letter of an option, so there is no other"
        " to put in its place; name the sources of multiple-choice questions in config.data.noise.sources"
      )
    if not self.wrong(index, number):
      return turn
    rng = np.random.default_rng((_LETTERS, *self._key, index, number))
    answer = others[int(rng.integers(len(others)))]
    # Letters that are set against the answer hold the right one now.
    false = tuple(turn.answer if letter == answer else letter for letter in turn.false)
    return dataclasses.replace(turn, answer=answer, false=false)


def noisy(sources: Mapping[str, Source], config: NoiseConfig | None) -> dict[str, Source]:
  """The opened sources, of which those that `config` names, or all, have wrong answers among theirs."""
  if config is None or not config.share:
    return dict(sources)
  of = config.sources or tuple(sources)
  return {name: NoisyAnswers(s, config, name) if name in of else s for name, s in sources.items()}


def said(config: NoiseConfig | None, sources: Mapping[str, object]) -> list[str]:
  """What the user is told of it, a line for each source."""
  if config is None or not config.share:
    return []
  names = [name for name in sources if not config.sources or name in config.sources]
  return [
    f"data source {name!r}: {100 * config.share:g} % of its answers are made wrong"
    f" (data.noise, seed {config.seed})"
    for name in names
  ]
