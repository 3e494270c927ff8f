"""The model and the training state of a run as shapes and places: nothing is loaded, drawn or moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spatialvlm import hub, peft, quantise
from spatialvlm.config import ModelConfig, RunConfig
from spatialvlm.core.quantised import QuantisedParam, wrap
from spatialvlm.models import execution
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.peft import select
from spatialvlm.training import objectives, one_run, optim, start
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class Run:
  """What a run of one stage would hold, its arrays `jax.ShapeDtypeStruct` with their places on `mesh`.

  Attributes:
    vlm: the model that is evaluated, adapters attached.
    step: of `training.step.train_step_of`.
  """

  config: RunConfig
  mesh: Mesh
  model: VlmConfig
  split: state_lib.Split
  state: state_lib.TrainState
  terms: objectives.Terms
  step: step_lib.StepFn

  @property
  def vlm(self) -> nnx.Module:
    return self.split.model(self.state.params, self.split.frozen)


def describe(config: RunConfig, mesh: Mesh) -> Run:
  """The run of a config on a mesh whose devices need not be there.

  Raises:
    UserError: as a training of this config would; or a part of it that needs data, weights or another model
      to be described, by its setting.
  """
  config = dataclasses.replace(config, peft=peft.completed(config.peft))
  one_run.check(config)
  one_run.check_batch(config, mesh)
  terms = objectives.make_objectives(config.losses)
  refuse(config, terms)
  model = hub.read_shape(config.model.path, config.model.revision, config.model.dtype)
  vlm = adapted(config, model)
  execution.keep_whole(vlm, config.mesh.whole, mesh)
  execution.apply(vlm, execution_of(config))
  heads = nnx.eval_shape(lambda: objectives.make_heads(terms, model, config.seed))
  split = state_lib.Split(vlm, peft.trainable_filter(vlm, config.peft), mesh, heads)
  objectives.check_reach(terms, [n for n in split.params if not state_lib.is_head(n)], model)
  rate = optim.schedule(config.optim, optim.span(config.optim, config.train.steps))
  tx = optim.make_optimizer(config.optim, rate, split.params)
  state = state_lib.abstract_state(split.params, tx, ema=bool(config.optim.ema), mesh=mesh)
  step = step_lib.train_step_of(config, split, terms)
  return Run(config, mesh, model, split, state, terms, step)


def refuse(config: RunConfig, terms: objectives.Terms) -> None:
  """Raises a UserError for what shapes alone do not say."""
  for name in ("stages", "teachers", "phases", "priors"):
    if getattr(config, name):
      raise UserError(
        f"config.{name}: a plan compiles one step that asks no other model and reads pictures and text alone;"
        f" set {name}={{}} in the recipe, or plan a recipe without"
      )
  if config.model.encoders:
    raise UserError(
      "config.model.encoders: a plan reads one config.json; write the model first (launch/train.py or"
      " hub.assemble does), and give its folder as model.path"
    )
  if config.peft.resume_from:
    raise UserError("config.peft.resume_from: a plan loads no adapter; leave it out and give its options")
  if peft.of_batches(config.peft):
    raise UserError(
      "config.peft: its ranks follow from the run's data, which a plan does not read; use init=default"
    )
  for _, objective in terms.values():
    learns_words = type(objective).read_vocabulary is not objectives.Objective.read_vocabulary
    if objective.extra or objective.of_phases or objective.asks or objective.false_answers or learns_words:
      raise UserError(
        f"{objective.where}: needs more than pictures, text and answers, which a plan does not make"
      )


def execution_of(config: RunConfig) -> execution.Execution:
  """How the model computes there."""
  own = start.execution_of(config)
  if own.attention == "cudnn":
    raise UserError(
      "config.model.attention=cudnn: cuDNN makes its kernels on the card itself, so that none can be compiled"
      " without one; plan with attention=xla, whose scores take more memory"
    )
  return own


def adapted(config: RunConfig, model: VlmConfig) -> nnx.Module:
  """The model with its adapters and quantised kernels; a variable's value is a description."""
  kept = _few_bits(config.model, model)

  def build() -> nnx.Module:
    vlm = Vlm(model, rngs=nnx.Rngs(0))
    for path, described in kept.items():
      names = select.get(vlm, path).get_metadata()
      names = {name: names[name] for name in ("out_sharding", "eager_sharding") if name in names}
      array = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), described)
      select.put(vlm, path, QuantisedParam(array, **names))
    wrap(vlm)
    return peft.apply(vlm, config.peft)

  return nnx.eval_shape(build)


def _few_bits(settings: ModelConfig, model: VlmConfig) -> Mapping[select.Path, Any]:
  """Path of each kernel that is kept in few bits -> what describes its arrays."""
  chosen = quantise.chosen(settings)
  if chosen is None:
    return {}
  vlm = nnx.eval_shape(lambda: Vlm(model, rngs=nnx.Rngs(0)))
  described: dict[Any, Any] = {}
  found = {}
  for path in quantise.replacements(chosen, settings.quantize_target)(vlm):
    kernel = select.get(vlm, path)
    key = tuple(kernel.shape), jnp.dtype(kernel.dtype)
    if key not in described:  # one kernel of each shape, in place of a rule of each format's
      array = chosen.quantise(np.zeros(*key))
      described[key] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), array)
    found[path] = described[key]
  return found
