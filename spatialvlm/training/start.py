"""The model that a run begins with; an adapter that was made of its data is kept, so that it can go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from spatialvlm import hub, loading, peft, priors
from spatialvlm.config import RunConfig
from spatialvlm.core.quantised import formats, weight_bytes
from spatialvlm.models import execution
from spatialvlm.models.vlm import Vlm
from spatialvlm.processing.processor import load_processor
from spatialvlm.training import step as step_lib
from spatialvlm.training import told
from spatialvlm.training.runs import CHECKPOINTS
from spatialvlm.training.state import Split, TrainState
from spatialvlm.types import Batch, UserError

FOLDER = "start"

Batches = Callable[[int], Iterator[Batch]]


def build_model(
  config: RunConfig, mesh: Mesh, workdir: Path, base: Vlm | None = None, first: Batches | None = None
) -> Vlm:
  """The model on its mesh, adapters attached to `base`, in place, where it was loaded already.

  Args:
    workdir: where the start lies that an earlier part of the run has made of its data.
    first: gives the first batches of that data; None where the start must be there.

  Raises:
    UserError: as `peft.apply`; or the start of a run that goes on is missing.
  """
  plain, settings, kept = hub.assembled(config.model), config.peft, workdir / FOLDER
  words = lambda text: load_processor(hub.resolve(plain.path, plain.revision)).word_ids(text)
  if peft.of_batches(settings):
    if kept.is_dir():
      settings = dataclasses.replace(settings, resume_from=str(kept))
    elif (workdir / CHECKPOINTS).exists():
      raise UserError(f"{kept}: missing; the run began with the adapter there, made of its data; put it back")
  model = base or loading.load_base(config.model, mesh)
  model = peft.apply(model, settings, peft.Given(words, first))
  priors.attach(model, config.priors, config.seed, told.begins_at(config))
  execution.keep_whole(model, config.mesh.whole, mesh)
  return execution.apply(model, execution_of(config))


def execution_of(config: RunConfig) -> execution.Execution:
  """How a run's model computes."""
  return execution.Execution(config.model.attention, config.train.remat, config.model.scan_layers)


def batches(stream: Callable[[], Iterator[tuple[Batch, Any]]], mesh: Mesh, method: str) -> Batches:
  """Gives the first so many batches of a stream that is opened for it, on the devices.

  Raises:
    UserError: there are several processes, when they are asked for.
  """

  def give(count: int) -> Iterator[Batch]:
    if jax.process_count() > 1:
      raise UserError(
        f"config.peft: method {method!r} is to begin from the data, which one process alone can read for it;"
        f" begin a run of one, and go on from its {FOLDER}/ by peft.resume_from"
      )
    opened = stream()
    for _ in range(count):
      batch, _ = next(opened)
      yield step_lib.to_devices(dataclasses.replace(batch, extra={}, views={}), mesh)

  return give


def keep(config: RunConfig, split: Split, fresh: TrainState, workdir: Path) -> None:
  """Writes a start that was made of the data, before the first step, where it is not kept yet.

  Raises:
    UserError: the disk is full.
  """
  if peft.of_batches(config.peft) and not (workdir / FOLDER).exists():
    model = priors.without(split.model(fresh.params, split.frozen))  # theirs follow from the seed
    peft.save_adapter(model, workdir / FOLDER, config.model.path)


def weights_said(model: Vlm) -> str:
  """How much memory the model's parameters take, of all devices together."""
  kept, full = weight_bytes(model)
  said = f"weights of {kept / 1e6:,.1f} MB"
  kinds = ", ".join(formats(model))
  return f"{said} ({kinds}; {full / 1e6:,.1f} MB in {model.config.dtype})" if kinds else said
