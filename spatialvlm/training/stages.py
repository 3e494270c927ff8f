"""Several runs in one: each stage begins from the model of the one before, in a folder of its own."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from spatialvlm import hub, peft
from spatialvlm import workdir as workdir_lib
from spatialvlm.config import ModelConfig, PeftConfig, RunConfig
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.processing.processor import load_processor
from spatialvlm.training import frozen_vision, objectives, one_run, teachers, told
from spatialvlm.types import UserError

_PLAIN = re.compile(r"[A-Za-z0-9][\w-]*")


def train(config: RunConfig, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains as `one_run.train`; a run of several stages in `workdir/STAGE`, in the order of their names.

  The same command again skips the stages that are finished and continues the one that is not.

  Returns:
    The summary; of several stages the last one's, with those of all under `stages`.

  Raises:
    UserError: as `one_run.train`, of all stages before the first one begins where that can be told.
  """
  config = completed(config)
  if not config.stages:
    return one_run.train(config, workdir)
  with workdir_lib.alone(workdir):
    return _train(config, workdir)


def _train(config: RunConfig, workdir: pathlib.Path) -> dict[str, Any]:
  stages = split(config, workdir)
  known = workdir_lib.check(workdir, config)
  finished = (workdir / one_run.SUMMARY_FILE).exists()
  if not known:
    for name, stage in stages:
      one_run.check(stage)
      _check_model(stage, config.model, name)
    workdir_lib.claim(workdir, config)
  summaries: dict[str, Any] = {}
  handover = frozen_vision.Handover()
  for number, (name, stage) in enumerate(stages, 1):
    one_run.say(f"stage {number} of {len(stages)}: {name}")
    summaries[name] = summary = one_run.train(stage, workdir / name, handover)
    if not summary["finished"]:
      return {**summary, "stages": summaries}
  whole = {**summary, "stages": summaries}
  if jax.process_index() == 0 and not finished:
    workdir_lib.write_json(workdir / one_run.SUMMARY_FILE, whole)
  return whole


def completed(config: RunConfig) -> RunConfig:
  """A run with the defaults of its PEFT methods written out, so that config.json says all of it.

  Raises:
    UserError: an unknown method or option, or a value without sense.
  """
  stages = {
    name: stage if stage.peft is None else dataclasses.replace(stage, peft=_completed(stage.peft, name))
    for name, stage in config.stages.items()
  }
  return dataclasses.replace(config, peft=peft.completed(config.peft), stages=stages)


def _completed(settings: PeftConfig, stage: str) -> PeftConfig:
  return peft.completed(settings, f"config.stages.{stage}.peft")


def split(config: RunConfig, workdir: pathlib.Path) -> list[tuple[str, RunConfig]]:
  """The run of each stage, with its name.

  Raises:
    UserError: a name that is no folder's, or a stage that leaves no model to the next.
  """
  found = []
  for name, own in sorted(config.stages.items()):
    where = f"config.stages.{name}"
    if not _PLAIN.fullmatch(name):
      raise UserError(f"{where}: the name becomes a folder's; letters, digits, - and _ do")
    said = {f.name: getattr(own, f.name) for f in dataclasses.fields(own)}
    stage = dataclasses.replace(
      config, name=f"{config.name}-{name}", stages={}, **{k: v for k, v in said.items() if v is not None}
    )
    if found:
      before, run = found[-1]
      if config.model.quantize:
        raise UserError(
          f"{where}: begins from the merged model of the stage before, and model.quantize would round what"
          " that has learned; train in one stage, or go on from the adapter by peft.resume_from"
        )
      if not run.train.export:
        raise UserError(f"config.stages.{before}.train.export: the next stage begins from what it exports")
      if not peft.METHODS[run.peft.method].mergeable:
        raise UserError(
          f"config.stages.{before}.peft.method: the next stage begins from a merged model, and"
          f" {run.peft.method!r} cannot be merged"
        )
      stage = dataclasses.replace(stage, model=after(config.model, workdir / before / "model"))
    found.append((name, stage))
  return found


def after(model: ModelConfig, folder: pathlib.Path) -> ModelConfig:
  """The model that a run left in a folder, with the run's numbers and image settings."""
  computed = ("dtype", "attention", "scan_layers", "seed")
  shown = ("max_tiles", "longest_edge", "split_images", "enlarge", "pixels", "layout")
  return ModelConfig(path=str(folder), **{name: getattr(model, name) for name in (*computed, *shown)})


def _check_model(run: RunConfig, model: ModelConfig, stage: str) -> None:
  """Raises a UserError where a late stage fits not the model or the data: the first would run in vain."""
  terms = objectives.make_objectives(run.losses)
  built = one_run.assembled(model)
  folder = hub.resolve(built.path, built.revision)
  config = hub.read_config(folder, dtype=model.dtype)
  abstract = nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0)))
  try:
    peft.check_layers(abstract, run.peft)
    processor = load_processor(folder, **told.reads(run), **built.tiling)
    trained = _trained(config, run, processor.word_ids)
    if not run.priors:  # which are not among those names
      objectives.check_reach(terms, trained, config)
    if frozen_vision.for_certain(run.train):
      frozen_vision.apart(run.train, trained, terms)
    one_run.check_data(run, terms)
    asked = teachers.find(dataclasses.replace(run, model=model), terms, config, processor)
    objectives.meet(terms, {name: teacher.other for name, teacher in asked.items()})
    for _, objective in terms.values():
      objective.check(config)
    objectives.read_vocabulary(terms, processor.token_ids)
  except UserError as error:
    raise UserError(f"config.stages.{stage}: {error}") from None


def _trained(config: VlmConfig, run: RunConfig, words: Callable) -> list[str]:
  """Names of the parameters that a method trains, as `state.Split` has them; no array is made."""
  given = peft.Given(words)
  vlm = nnx.eval_shape(lambda: peft.apply(Vlm(config, rngs=nnx.Rngs(0)), run.peft, given))
  # Priors may be all that is trained.
  chosen = peft.Trained if run.priors else peft.trainable_filter(vlm, run.peft)
  _, trained, _ = nnx.split(vlm, chosen, ...)
  return [".".join(map(str, path)) for path, _ in trained.flat_state()]
