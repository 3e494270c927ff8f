"""Objectives: what a run minimises, by kind. `objective` holds the contract; each kind is one file here."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from spatialvlm.config import LossConfig, from_config_dict, nearest
from spatialvlm.models.outputs import Wants
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.training.objectives.answer import Answer
from spatialvlm.training.objectives.contrast import Contrast
from spatialvlm.training.objectives.dense_depth import DenseDepth
from spatialvlm.training.objectives.depth_probe import DepthProbe
from spatialvlm.training.objectives.distil import Distil
from spatialvlm.training.objectives.distil_hidden import DistilHidden
from spatialvlm.training.objectives.distil_relations import DistilRelations
from spatialvlm.training.objectives.field_features import FieldFeatures
from spatialvlm.training.objectives.grpo import Grpo
from spatialvlm.training.objectives.objective import Metrics, Models, Objective, Other
from spatialvlm.training.objectives.reach import check_reach
from spatialvlm.training.objectives.words import Words
from spatialvlm.types import UserError

__all__ = [
  "OBJECTIVES",
  "Answer",
  "Contrast",
  "DenseDepth",
  "DepthProbe",
  "Distil",
  "DistilHidden",
  "DistilRelations",
  "FieldFeatures",
  "Grpo",
  "Metrics",
  "Models",
  "Objective",
  "Other",
  "Terms",
  "asks_of",
  "check_data",
  "check_false_answers",
  "check_reach",
  "extra_of",
  "false_settings",
  "make_heads",
  "make_objective",
  "make_objectives",
  "meet",
  "of_phases",
  "read_vocabulary",
  "typed",
  "wants_of",
]

OBJECTIVES: dict[str, type[Objective]] = {
  "answer": Answer,
  "distil": Distil,
  "distil_hidden": DistilHidden,
  "distil_relations": DistilRelations,
  "words": Words,
  "depth_probe": DepthProbe,
  "dense_depth": DenseDepth,
  "field_features": FieldFeatures,
  "grpo": Grpo,
  "contrast": Contrast,
}

# The terms of a run by name, each with its weight.
Terms = Mapping[str, tuple[float, Objective]]


def make_objectives(configs: Mapping[str, LossConfig]) -> dict[str, tuple[float, Objective]]:
  """The weighted terms of a run, by name; those of weight 0 are left out.

  Raises:
    UserError: no term with a weight, an unknown kind, or a setting that the kind does not have.
  """
  terms = {name: (config.weight, make_objective(name, config)) for name, config in configs.items()}
  if not any(weight for weight, _ in terms.values()):
    raise UserError("config.losses: no term with a weight; add one, e.g. answer")
  return {name: term for name, term in terms.items() if term[0]}


def make_objective(name: str, config: LossConfig) -> Objective:
  """One term. `config.target` is the setting of that name, written beside the kind.

  Raises:
    UserError: as `make_objectives`; or a name that cannot stand in the names of arrays and files.
  """
  where = f"config.losses.{name}"
  if config.kind not in OBJECTIVES:
    raise UserError(f"{where}.kind: unknown {config.kind!r}; {nearest(config.kind, OBJECTIVES)}")
  if not name.replace("-", "").replace("_", "").isalnum():
    raise UserError(f"{where}: the name becomes part of a file's; letters, digits, - and _ do")
  kind = OBJECTIVES[config.kind]
  settings: dict[str, Any] = dict(config.kwargs)
  if config.target:
    if "target" not in {field.name for field in dataclasses.fields(kind.Settings)}:
      raise UserError(f"{where}.target: a loss of kind {config.kind!r} has no target; leave it out")
    settings["target"] = config.target
  return kind(typed(kind.Settings, settings, f"{where}.kwargs"), where)


def read_vocabulary(terms: Terms, encode: Callable[[str], Sequence[int]]) -> None:
  """Tells the terms the ids of the words that their settings name; `encode` gives those of a text.

  Raises:
    UserError: words that the tokenizer cannot tell apart.
  """
  for _, objective in terms.values():
    objective.read_vocabulary(encode)


def wants_of(terms: Terms) -> Wants:
  """All that the terms want, for the one pass that serves them."""
  wants = Wants()
  for _, objective in terms.values():
    wants |= objective.wants
  return wants


def asks_of(terms: Terms) -> dict[str, Wants]:
  """All that the terms ask of other models, by their names."""
  asks: dict[str, Wants] = {}
  for _, objective in terms.values():
    for name, wants in objective.asks.items():
      asks[name] = asks.get(name, Wants()) | wants
  return asks


def extra_of(terms: Terms) -> frozenset[str]:
  """The arrays of `Batch.extra` that the terms need of the data."""
  return frozenset(name for _, objective in terms.values() for name in objective.extra)


def of_phases(terms: Terms) -> frozenset[str]:
  """The arrays of `Batch.extra` that the terms need of a phase."""
  return frozenset(name for _, objective in terms.values() for name in objective.of_phases)


def meet(terms: Terms, others: Mapping[str, Other]) -> None:
  """Tells each term what is known of the models that it asks, by name.

  Raises:
    UserError: one of them cannot give what is asked.
  """
  for _, objective in terms.values():
    objective.meet({name: others[name] for name in objective.asks})


def make_heads(terms: Terms, model: VlmConfig, seed: int) -> dict[str, nnx.Module]:
  """Fresh heads by the name of their term, each drawn from `seed` and its name alone.

  Raises:
    UserError: the model cannot give what a term wants.
  """
  heads = {}
  for name, (_, objective) in terms.items():
    objective.check(model)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    head = objective.head(model, nnx.Rngs(key))
    if head is not None:
      heads[name] = head
  return heads


def false_settings(sources: Mapping[str, Any], where: str) -> list[str]:
  """The settings of sources with a weight that ask for what is false."""
  return [
    f"config.data.{where}.{name}.{setting}"
    for name, source in sorted(sources.items())
    for setting in ("false_answers", "false_pictures")
    if source.weight and getattr(source, setting, 0)
  ]


def check_false_answers(terms: Terms, training: Sequence[str], held_out: Sequence[str] = ()) -> None:
  """Raises a UserError where a term needs what is false and no data source gives it, or nobody reads it.

  Args:
    training, held_out: settings of data sources that give wrong answers, or pictures.
  """
  needing = [objective.where for _, objective in terms.values() if objective.false_answers]
  if needing and not training:
    raise UserError(
      f"{needing[0]}: no data source gives wrong answers; set false_answers of one of kind scenes or skills,"
      " or false_pictures of one of kind skills"
    )
  if not needing and (unread := [*training, *held_out]):
    raise UserError(f"{unread[0]}: no loss reads them; add one of kind contrast, or set it to 0")


def check_data(terms: Terms, given: Mapping[str, Iterable[str]]) -> None:
  """Raises a UserError where a term needs an array of `Batch.extra` that no data source gives.

  Args:
    given: names of the arrays by source.
  """
  found = sorted({name for names in given.values() for name in names})
  for _, objective in terms.values():
    for name in objective.extra:
      if name not in found:
        listed = f"; there are {', '.join(found)}" if found else "; sources of kind skills give some"
        raise UserError(f"{objective.where}: no data source gives the dense target {name!r}{listed}")


def typed(cls: type, values: Mapping[str, Any], where: str) -> Any:
  """Settings of a kind's own class, a frozen dataclass; numbers without a fraction may stand for integers.

  Raises:
    UserError: a name that the class lacks (with the nearest it has), or a value of another type.
  """
  hints = {field.name: field.type for field in dataclasses.fields(cls)}
  whole = lambda k, v: hints.get(k) == "int" and isinstance(v, float) and v.is_integer()
  return from_config_dict({k: int(v) if whole(k, v) else v for k, v in values.items()}, cls, where)
