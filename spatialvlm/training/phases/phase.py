"""The types of the contract that `training.phases` states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh

from spatialvlm.training.objectives import Terms
from spatialvlm.training.state import Params, Split, TrainState
from spatialvlm.types import Batch

# (state, frozen, batch, info, key) -> batch
Prepare = Callable[[TrainState, Params, Batch, Any, jax.Array], Batch]


@dataclasses.dataclass(frozen=True)
class PhaseParts:
  """What a phase is started with.

  Attributes:
    split: the way from a state's arrays to the models.
    accumulation: microbatches of a step.
    gives: examples of the batch that the phase must give, over all devices and microbatches.
    processor: of the model: its tokenizer, and the tokens that end an answer.
    wanted: arrays of `Batch.extra` that objectives need of phases.
    begins: the trainables as the run began, before any interruption; empty where no phase asks for them.
  """

  split: Split
  mesh: Mesh
  accumulation: int
  gives: int
  processor: Any = None
  wanted: frozenset[str] = frozenset()
  begins: Params = dataclasses.field(default_factory=dict)

  def giving(self, gives: int) -> PhaseParts:
    """These parts for another number of examples."""
    return dataclasses.replace(self, gives=gives)


class Phase:
  """One phase of a run; see `training.phases`.

  Attributes:
    settings: as `config.phases` gives them, of the class `Settings`.
    where: `config.phases.NAME`, for messages.
    packing: whether it may be given packed rows, which hold several examples each (`data.packing`).
    gives: arrays of `Batch.extra` that it can give to objectives.
    repeats: steps that are taken with what it gave once.
    answers: whether it puts answers of its own in the place of the data's, also in views of the batch.
  """

  Settings: ClassVar[type]
  packing: ClassVar[bool] = False
  gives: ClassVar[tuple[str, ...]] = ()
  repeats: int = 1
  answers: ClassVar[bool] = False

  def __init__(self, settings: Any, where: str = "config.phases"):
    """Raises a UserError for settings that cannot work."""
    self.settings, self.where = settings, where

  def check(self, terms: Terms) -> None:
    """Raises a UserError where the phase makes no sense with these objectives."""

  def reads(self, size: int) -> int:
    """How many examples it must be given to give `size`."""
    return size

  def start(self, parts: PhaseParts) -> Prepare:
    raise NotImplementedError
