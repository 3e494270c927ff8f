"""From a RunConfig to a trained model in a workdir."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from spatialvlm import agreed, hub, loading, peft, priors
from spatialvlm import config as config_lib
from spatialvlm import workdir as workdir_lib
from spatialvlm.config import ModelConfig, RunConfig, check_dtype, read_json
from spatialvlm.core import axes
from spatialvlm.data import pipeline, tile_keys
from spatialvlm.data.sources.registry import Source
from spatialvlm.data.views import View
from spatialvlm.hub import pictures
from spatialvlm.processing.processor import Processor, load_processor
from spatialvlm.serving import usage
from spatialvlm.training import (
  export,
  frozen_vision,
  objectives,
  optim,
  phases,
  plots,
  start,
  taught,
  teachers,
  told,
)
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.training.checkpoint import VALIDATION
from spatialvlm.training.fit import Memory, Parts, fit
from spatialvlm.training.objectives.grpo import REFERENCE
from spatialvlm.training.scores import Scores
from spatialvlm.types import UserError, prior_array

SUMMARY_FILE = "summary.json"
# Rows of a source that are tried for one that can be read, where broken ones are left out.
_FIRST = 100


def train(
  config: RunConfig, workdir: pathlib.Path, handover: frozen_vision.Handover | None = None
) -> dict[str, Any]:
  """Trains as `config` says in `workdir`, or continues what was begun there; returns the summary.

  Afterwards the workdir holds config.json, environment.json, identity.json, metrics.jsonl, checkpoints,
  TensorBoard logs, loss.png, and, where the config asks for them, evaluations with scores.png, the PEFT
  folder `adapter`, the Hugging Face checkpoint `model`, and summary.json; and the adapter that it began with
  in `start`, where that was made of the data.

  Args:
    handover: features that stages of one run share, where it is one of several.

  Raises:
    UserError: anything in the config, data, weights or workdir that the user can mend.
  """
  config = dataclasses.replace(config, peft=peft.completed(config.peft))
  with workdir_lib.alone(workdir):
    return _train(config, workdir, handover)


def _train(
  config: RunConfig, workdir: pathlib.Path, handover: frozen_vision.Handover | None
) -> dict[str, Any]:
  check(config)
  known = workdir_lib.check(workdir, config)
  if known and (workdir / SUMMARY_FILE).exists():  # written last, so that all else is there
    claim(workdir, config)
    say(f"{workdir}: this run is finished; its results are there")
    return read_json(workdir / SUMMARY_FILE)
  mesh = axes.make_mesh(config.mesh)
  check_batch(config, mesh)
  plain = assembled(config.model)
  folder = hub.resolve(plain.path, plain.revision)
  loading.check_base(plain, folder, resumes=bool(config.peft.resume_from))
  if not config.model.encoders:  # parts that never were shown a picture together
    pictures.note(config.model.path, pictures.read(folder), plain.tiling)
  processor = load_processor(folder, **told.reads(config), **plain.tiling)
  terms = objectives.make_objectives(config.losses)
  objectives.read_vocabulary(terms, processor.token_ids)
  steps_phases = make_phases(config, terms)
  check_data(config, terms)
  dense = bool(objectives.extra_of(terms))
  asked = teachers.find(config, terms, hub.read_config(folder, dtype=config.model.dtype), processor)
  objectives.meet(terms, {name: teacher.other for name, teacher in asked.items()})
  teachers.check_phases(asked, steps_phases)
  meshes = teachers.meshes(asked, mesh)
  told.check(config, asked)
  own_eyes, stores = teachers.own_eyes(asked, terms), teachers.stores(config, asked)
  notes: list[str] = []
  memory = frozen_vision.memory_of(config.train)
  # Dense targets lie where pixels do: who reads them has all pictures made, and so has a teacher of its own,
  # or one whose logits go by pixels, or that is told their depth.
  made = dense or own_eyes or stores or teachers.told_depth(asked)
  in_memory = None if memory is None or made else memory.__contains__
  views = teachers.views(asked)
  streams = open_streams(config, processor, notes.append, shards_of(mesh), in_memory, views, stores)
  base = loading.load_base(config.model, mesh)
  memory_of_base = start.weights_said(base)
  others = teachers.load(asked, base, meshes)
  averaged = frozenset(name for name, teacher in asked.items() if teacher.averaged)
  model = start.build_model(config, mesh, workdir, base, first_batches(config, processor, mesh))
  peft.check_claims(model, priors.claims(model))
  heads = objectives.make_heads(terms, model.config, config.seed)
  trainable = peft.trainable_filter(model, config.peft)
  counts = peft.count_parameters(model, trainable)
  split = state_lib.Split(model, trainable, mesh, heads, others, meshes)
  objectives.check_reach(terms, [n for n in split.params if not state_lib.is_head(n)], model.config)
  numbers = lambda: {
    "dtype": config.model.dtype,
    "tiles": repr(processor.tiler),
    "pixels": hashlib.sha256(processor.normal.data).hexdigest(),
    **({"scan_layers": True} if config.model.scan_layers else {}),
  }
  vision = frozen_vision.make(config.train, split, terms, memory, numbers, handover, own_eyes)
  del base, model, heads, others
  rate = optim.schedule(config.optim, optim.span(config.optim, config.train.steps))
  tx = optim.make_optimizer(config.optim, rate, split.params)
  fresh = state_lib.init_state(split.params, tx, ema=bool(config.optim.ema), mesh=mesh)
  wanted = objectives.of_phases(terms)
  # The state holds copies; for training in full a second set of parameters would lie there for nothing.
  first, split.params = split.params if REFERENCE in wanted else {}, {}
  scores = Scores(config, split, processor, workdir)
  scores.check(config.train)

  # Only now, when all that can be wrong at the start has been seen: a claimed folder keeps its settings.
  continues = claim(workdir, config, asked)
  sizes = [math.prod(value.shape) for name, value in fresh.params.items() if state_lib.is_head(name)]
  beside = f" and {sum(sizes):,} of heads" if sizes else ""
  begins = "continues" if continues else "begins"
  say(
    f"{begins} in {workdir}: {counts[0]:,} of {counts[1]:,} parameters are trained "
    f"({counts[0] / counts[1]:.2%}){beside}, over {memory_of_base}, mesh {dict(mesh.shape)}"
  )
  for note in notes:
    say(note)
  start.keep(config, split, fresh, workdir)
  scores.before(fresh)
  train_step = step_lib.train_step_of(config, split, terms, averaged)
  parts = Parts(
    mesh=mesh,
    train_step=train_step,
    loss_step=step_lib.make_loss_step(split, terms, averaged),
    frozen=split.frozen,
    extra=objectives.extra_of(terms) | set(map(prior_array, config.priors)),
    vision=vision,
    prepares=phases.start(
      steps_phases,
      phases.PhaseParts(
        split, mesh, config.train.accumulation, config.train.batch_size, processor, wanted, first
      ),
    ),
    repeats=phases.repeats(steps_phases),
    stream=streams[0],
    validation=streams[1],
    evaluate=scores.during if config.train.evaluate_every else None,
    pad_id=processor.pad_id,
    tile_size=processor.layout.tile_size,
    view_tiles={name: view.processor.layout.tile_size for name, view in views.items()},
  )
  outcome = fit(config, parts, fresh, workdir, config_lib.to_dict(config))
  if vision is not None and vision.encoded + vision.reused:
    say(vision.close())
  if outcome.signal:
    step = int(outcome.state.step)
    say(f"stopped by signal {outcome.signal} at step {step}; the same command continues")
    return {"finished": False, "step": step, "signal": outcome.signal}
  parameters = {"trained": counts[0], "all": counts[1], "heads": sum(sizes)}
  return finish(config, split, terms, outcome, scores, folder, workdir, parameters)


def say_rows(memory: Memory) -> None:
  """What was read of each source: rows without a picture, and those that were left out."""
  for name, (read, blind) in sorted(memory.seen.items()):
    say(f"data source {name!r}: {read:,} rows read, {blind:,} of them without a picture")
  for name, found in sorted(memory.changes.items()):
    drawn = [change for change in found if f"{change} left" in found]
    if drawn:
      said = ", ".join(f"{found[f'{change} left']:,} of {found[change]:,} by {change}" for change in drawn)
      say(f"data source {name!r}: rows that augmentation left as they are: {said}")
  if memory.skipped:
    say(f"broken rows left out: {len(memory.skipped):,}; {SUMMARY_FILE} names them, the first:")
    say("\n".join(f"  {reason}" for reason in list(memory.skipped.values())[:3]))


def say(text: str) -> None:
  if jax.process_index() == 0:
    print(text, flush=True)


def open_streams(
  config: RunConfig,
  processor: Processor,
  on_note: Callable[[str], None],
  shards: int = 1,
  known: tile_keys.Known | None = None,
  views: Mapping[str, View] | None = None,
  stores: Mapping[str, taught.Store] | None = None,
) -> tuple[Iterator, Iterable | None]:
  """This process's share of the training stream and of the validation batches, for so many shards.

  Args:
    known: which features are kept, where pictures of which they are need not be made.
    views: what teachers read of the same examples; stores: what those say of them that are cached.
  """
  share = {"process_index": jax.process_index(), "process_count": jax.process_count(), "on_note": on_note}
  share |= {"keys": True, "known": known, "views": views}
  share["extras"] = functools.partial(taught.extras, stores) if stores else None
  size = config.train.batch_size
  read = phases.examples_read(phases.make_phases(config.phases), size)
  rows = shards * config.train.accumulation
  training = pipeline.training_stream(config.data, processor, read, seed=config.seed, multiple=rows, **share)
  return training, pipeline.validation_batches(config.data, processor, size, multiple=shards, **share)


def first_batches(config: RunConfig, processor: Processor, mesh: jax.sharding.Mesh) -> start.Batches:
  """The batches of the run's first steps, of a stream of their own, so that nothing is used up."""
  alone = dataclasses.replace(config, data=dataclasses.replace(config.data, validation={}, processes=0))
  stream = lambda: open_streams(alone, processor, lambda note: None, shards_of(mesh))[0]
  return start.batches(stream, mesh, config.peft.method)


def make_phases(config: RunConfig, terms: objectives.Terms) -> tuple[phases.Phase, ...]:
  """Raises a UserError where a phase does not go with the objectives, or with packed rows."""
  made = phases.make_phases(config.phases)
  given = {name for phase in made for name in phase.gives}
  for name, (_, objective) in terms.items():
    if missing := [array for array in objective.of_phases if array not in given]:
      kind = next(kind for kind, phase in phases.PHASES.items() if set(missing) <= set(phase.gives))
      raise UserError(
        f"config.losses.{name}: learns of {', '.join(missing)}, which no phase gives; add one:"
        f" --config.phases.{kind}.kind={kind}"
      )
  wrong = [objective.where for _, objective in terms.values() if objective.false_answers]
  for phase in made:
    phase.check(terms)
    if phase.answers and wrong:
      raise UserError(
        f"{wrong[0]}: {phase.where} puts sampled answers in the place of the data's, beside which no wrong"
        " ones stand; leave one of the two out"
      )
    if config.data.packing and not phase.packing:
      kind = config.phases[phase.where.rpartition(".")[2]].kind
      raise UserError(
        f"{phase.where}: a phase of kind {kind!r} takes a row for an example, and with data.packing a row"
        " holds several; set data.packing=false, or leave the phase out"
      )
  return made


def check_data(config: RunConfig, terms: objectives.Terms) -> None:
  """Raises a UserError where an objective needs what no training source gives, or where it cannot be read.

  The first example of each source is read, with `DataConfig.bad_rows` "skip" the first that can be; a source
  that has none but further on is refused with the others.
  """
  used = {name: source for name, source in config.data.sources.items() if source.weight}
  if objectives.extra_of(terms):
    skip = config.data.bad_rows == "skip"
    opened = {name: pipeline.open_source(source, defer=skip) for name, source in used.items()}
    objectives.check_data(terms, {name: _dense(source, skip) for name, source in opened.items()})
  wrong = objectives.false_settings(config.data.sources, "sources")
  held_out = objectives.false_settings(config.data.validation, "validation")
  objectives.check_false_answers(terms, wrong, held_out)
  wrong += held_out
  if wrong and (jax.process_count() > 1 or config.data.packing or peft.positions(config.peft)):
    raise UserError(
      f"{wrong[0]}: they stand in rows of one process, not packed, of a"
      " model without soft prompts; leave them out, or use another config.peft.method, or data.packing=false"
    )


def _dense(source: Source, skip: bool) -> Iterable[str]:
  for index in range(min(len(source), _FIRST)):
    try:
      return pipeline.read(source, [index])[0].dense
    except UserError:
      if not skip:
        raise
  return ()


def assembled(model: ModelConfig) -> ModelConfig:
  """The model with a plain path where it names encoders (`hub.assembled`); the first process writes it."""
  if model.encoders:
    agreed.from_first(lambda: bool(hub.assembled(model)))
  return hub.assembled(model)


def claim(
  workdir: pathlib.Path, config: RunConfig, asked: Mapping[str, teachers.Teacher] | None = None
) -> bool:
  """Makes the workdir, or finds it made; returns whether a run goes on there (`workdir.claim`).

  Args:
    asked: its teachers, whose weights must stay the same too; None of a finished run, which asks nobody.
  """

  def identity() -> dict[str, Any]:
    if asked is None:
      said = workdir / workdir_lib.IDENTITY_FILE
      others = read_json(said).get("teachers") if said.exists() else None
    else:
      others = {name: hashes for name, teacher in asked.items() if (hashes := teacher.identity())}
    return {"model": loading.identity(config.model)["model"], **({"teachers": others} if others else {})}

  return workdir_lib.claim(workdir, config, identity)


def check(config: RunConfig) -> None:
  """Raises a UserError for settings that cannot work, before anything is loaded or written."""
  check_dtype(config.model.dtype)
  train = config.train
  if train.steps < 1 or train.batch_size < 1 or train.accumulation < 1:
    raise UserError("config.train: steps, batch_size and accumulation must be at least 1")
  frozen_vision.check(train)
  if train.evaluate_every and config.eval is None:
    raise UserError(
      "config.train.evaluate_every: there are no questions to ask; set eval, e.g. eval.source.kind"
    )
  asks = config.eval
  if asks and (min(asks.during, asks.limit) < 0 or min(asks.batch_size, asks.bootstrap) < 1):
    raise UserError("config.eval: batch_size and bootstrap must be at least 1, during and limit at least 0")
  by_loss = train.best in (None, VALIDATION)
  if by_loss and (train.patience or train.best) and not (train.validate_every and config.data.validation):
    name = "best" if train.best else "patience"
    raise UserError(f"config.train.{name}: needs train.validate_every and data.validation")
  if not by_loss and not train.evaluate_every:
    raise UserError(
      f"config.train.best: {train.best!r} is a score, which needs train.evaluate_every and eval"
    )
  if not config.data.sources:
    raise UserError("config.data.sources: empty; name at least one source")
  terms = objectives.make_objectives(config.losses)
  made = make_phases(config, terms)
  phases.examples_read(made, train.batch_size)
  check_repeats(config, phases.repeats(made))
  if (
    train.validate_every
    and config.data.validation
    and not any(objective.validates for _, objective in terms.values())
  ):
    raise UserError(
      f"config.train.validate_every: of held-out data the losses ({', '.join(terms)}) say nothing; set it to"
      " 0, and ask questions with train.evaluate_every"
    )
  if config.data.packing and not peft.METHODS[config.peft.method].packing:
    raise UserError(
      f"config.data.packing: a soft prompt of method {config.peft.method!r} is read once a row, and a packed"
      " row holds several conversations; set data.packing=false"
    )


def check_repeats(config: RunConfig, repeats: int) -> None:
  """Raises a UserError where a run would end, or be saved, between steps that are taken with one batch."""
  train = config.train
  for name in ("steps", "checkpoint_every", "validate_every", "evaluate_every"):
    if getattr(train, name) % repeats:
      raise UserError(
        f"config.train.{name}: {getattr(train, name)} is not divided by the {repeats} steps that a phase has"
        " taken with each batch; use a multiple"
      )


def shards_of(mesh: jax.sharding.Mesh) -> int:
  """Into how many parts the rows of a batch are cut."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(config: RunConfig, mesh: jax.sharding.Mesh) -> None:
  """Every microbatch must fill every shard of the batch."""
  shards = shards_of(mesh)
  size, parts = config.train.batch_size, config.train.accumulation
  read = phases.examples_read(phases.make_phases(config.phases), size)
  if read % (shards * parts) and not size % (shards * parts):
    raise UserError(
      f"config.phases: {read} examples are read for a step, which {shards} shards (mesh data x fsdp) times "
      f"{parts} microbatches do not divide; use another share or another train.batch_size"
    )
  if size % (shards * parts):
    raise UserError(
      f"config.train.batch_size: {size} is not divided by {shards} shards (mesh data x fsdp) times "
      f"{parts} microbatches; use a multiple of {shards * parts}"
    )


def finish(
  config, split, terms, outcome, scores, source: pathlib.Path, workdir: pathlib.Path, parameters: Mapping
) -> dict[str, Any]:
  """After the last step: the parameters that count are scored and exported, and all is summed up."""
  state, memory = outcome.state, outcome.memory
  taken = {"step": memory.step_bytes, **usage.peaks()}
  best = {"by": config.train.best or VALIDATION, "value": memory.best, "step": memory.best_step}
  if jax.process_index() == 0:
    plots.loss_curve(workdir, best if config.train.best or memory.stopped else None)
  trainee = split.trainee(state_lib.weights(state), split.frozen)
  exported = export.export(config, trainee, terms, source, workdir)
  summary = {
    "finished": True,
    "step": int(state.step),
    "early_stop": memory.stopped,
    "best": best,
    "seconds": outcome.seconds,
    "compilations": outcome.compilations,
    "parameters": dict(parameters),
    "memory": taken,
    "exported": exported,
    "data": {
      name: {"rows": read, "without_picture": blind} for name, (read, blind) in sorted(memory.seen.items())
    },
    "augmented": {name: dict(sorted(found.items())) for name, found in sorted(memory.changes.items())},
    "skipped_rows": dict(sorted(memory.skipped.items())),
    "scores": scores.after(state),
  }
  if jax.process_index() == 0:
    workdir_lib.write_json(workdir / SUMMARY_FILE, summary)
  say_rows(memory)
  say(f"ends with the parameters of step {summary['step']}; results are in {workdir}")
  return summary
