"""The contract of an objective: what it wants of the model, what it learns beside it, what it adds up.

`OBJECTIVES` (`training.objectives`) names the classes by kind. A term of `config.losses` is one instance:

    class Mine(Objective):
      Settings = MySettings            # frozen dataclass: what `config.losses.NAME.kwargs` may hold
      wants = Wants(image=True)        # what of the model it reads; one pass serves all terms of a step
      asks = {"base": Wants(...)}      # what of other models, by name (`training.teachers`), likewise
      extra = ("depth",)               # arrays of `Batch.extra` that it needs, of the data
      of_phases = ()                   # those that it needs of a phase (`training.phases`)
      false_answers = False            # whether it needs wrong answers of the data (`Batch.branches`)
      validates = True                 # whether it says something of held-out data as it is
      teaches = True                   # whether its gradient is to reach the model, not its own head alone
      names = ()                       # beginnings of names of parameters that it reads beside `wants`
      def head(self, model, rngs): ... # parameters of its own, or None
      def __call__(self, outputs, models, batch, key): ...  # -> (sum, weight, metrics)

`sum` is differentiated and divided by `weight`, added up over all microbatches and shards of a step: a mean
of microbatch means is not the mean over tokens where answers differ in length. `weight` must depend on the
batch alone, and is 0 for a batch that has nothing to say. `metrics` are further pairs (sum, weight) by name,
averaged in the same way; of one that is called `rmse` or `..._rmse` the root of the mean is shown. All are
float32. A row of a batch may hold several conversations (`data.packing`): add up over targets, tokens or
tiles, never over rows.

An objective may not run a tower: it asks by `wants`, and other models by `asks`, so that terms share one pass
of each. Of the models themselves it may use what is cheap, such as the vocabulary product of a few vectors.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
from flax import nnx

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import Batch, UserError

Sum = tuple[jax.Array, jax.Array]
Metrics = dict[str, Sum]


@dataclasses.dataclass(frozen=True)
class Models:
  """What an objective is shown of the trainee.

  Attributes:
    vlm: the model, as it stands in this step.
    head: the objective's own, None where it has none.
    others: models by name that are only asked (`training.teachers`); no gradient reaches them.
    asked: what the terms ask of them, by name: of one pass each over `batch.view(name)`.
  """

  vlm: Any
  head: nnx.Module | None = None
  others: Mapping[str, nnx.Module] = dataclasses.field(default_factory=dict)
  asked: Mapping[str, Outputs] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Other:
  """What is known of a model that is asked, before it is there.

  Attributes:
    model: its configuration.
    same_tokens: it reads the very batch; otherwise a view of it (`Batch.views`).
    same_pictures: its image tokens show the same parts of pictures, in the same order and number.
    cached: it is not there: the likeliest tokens that it finds come in the batch (`training.taught`).
  """

  model: VlmConfig
  same_tokens: bool = True
  same_pictures: bool = True
  cached: bool = False


@dataclasses.dataclass(frozen=True)
class NoSettings:
  """The settings of an objective that has none."""


class Objective:
  """One term of what is minimised; see this module.

  Attributes:
    settings: as `config.losses` gives them, of the class `Settings`.
    where: `config.losses.NAME`, for messages.
  """

  Settings: ClassVar[type] = NoSettings
  wants: Wants = Wants()
  asks: Mapping[str, Wants] = types.MappingProxyType({})
  extra: tuple[str, ...] = ()
  of_phases: tuple[str, ...] = ()
  false_answers: bool = False
  validates: bool = True
  teaches: bool = True
  names: tuple[str, ...] = ()

  def __init__(self, settings: Any = None, where: str = "config.losses"):
    """Raises a UserError for settings that cannot work with any model."""
    self.settings = self.Settings() if settings is None else settings
    self.where = where

  def meet(self, others: Mapping[str, Other]) -> None:
    """Called once, before `check` and `head`, with what is known of the models that it asks, by name.

    Of a model that is cached it may ask nothing from then on (`asks`), but name arrays instead (`extra`).

    Raises a UserError where one of them cannot give what is asked.
    """

  def check(self, model: VlmConfig) -> None:
    """Raises a UserError where this model cannot give what is wanted; called before anything is written."""
    if (self.wants.image or self.wants.of_encoder) and model.vision is None:
      raise UserError(
        f"{self.where}: reads what a model makes of images, but this is a language model by itself"
        f" ({model.family})"
      )

  def read_vocabulary(self, encode: Callable[[str], Sequence[int]]) -> None:
    """Called once before the first step with the ids of a text, for objectives whose settings are words.

    Raises a UserError for words that the model's tokenizer cannot tell apart.
    """

  def head(self, model: VlmConfig, rngs: nnx.Rngs) -> nnx.Module | None:
    """Fresh parameters of its own, every one a float32 `nnx.Param`; None where it needs none."""
    return None

  def __call__(
    self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, jax.Array, Metrics]:
    """(sum, weight, metrics) of a batch; traced. `key` is the step's and microbatch's own."""
    raise NotImplementedError
