"""The inner loop: batches in, parameters out; interrupted and continued without a trace in the numbers."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from spatialvlm.config import RunConfig
from spatialvlm.data import batch as batch_lib
from spatialvlm.data.tile_keys import TILE_KEY
from spatialvlm.training import guards, optim
from spatialvlm.training import step as step_lib
from spatialvlm.training.checkpoint import VALIDATION, Checkpoints, cost
from spatialvlm.training.clock import Clock
from spatialvlm.training.frozen_vision import FrozenVision
from spatialvlm.training.metrics import SCORES, Metrics, Screen, scaled
from spatialvlm.training.phases import Prepare
from spatialvlm.training.state import Params, TrainState
from spatialvlm.training.tally import Tally, of_all_processes
from spatialvlm.types import Batch, UserError

# Steps that the host may run ahead of the devices: enough to hide its own work, few batches in memory.
AHEAD = 2
# The loss of every step is looked at, at the latest after so many steps.
CHECK_EVERY = 100

Evaluate = Callable[[TrainState], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Parts:
  """What the loop turns.

  Attributes:
    train_step, loss_step: functions of `step.train_step_of` and `step.make_loss_step`.
    frozen: the arrays that are not trained.
    extra: the arrays of `Batch.extra` that go to the devices; the others are left behind.
    vision: makes features of a batch's pixels, where the vision tower is frozen; None where it is not.
    prepares: what is done to a step's batch before it (`training.phases`), in order.
    repeats: steps that are taken with each batch, once it is prepared.
    stream: endless iterator of (Batch, BatchInfo) that a checkpoint can hold.
    validation: an iterable of the same, equal at every pass; None for no validation.
    evaluate: asks questions of a state's weights and returns the scores by name, of 1.
    pad_id, tile_size: of batches that grow to the bucket of another process; view_tiles: the tile sizes of
      their views, by name.
  """

  mesh: Mesh
  train_step: step_lib.StepFn
  loss_step: Callable
  frozen: Params
  stream: Iterator
  validation: Iterable | None = None
  evaluate: Evaluate | None = None
  extra: frozenset[str] = frozenset()
  vision: FrozenVision | None = None
  prepares: tuple[Prepare, ...] = ()
  repeats: int = 1
  pad_id: int = 0
  tile_size: int = 0
  view_tiles: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Prepared(NamedTuple):
  """A batch on the devices, as the step takes it; what is known of it; shares of its positions."""

  batch: Batch
  info: Any
  shares: dict[str, float]


class Counted(NamedTuple):
  """What a batch holds, over all processes."""

  samples: int
  tokens: int
  targets: int


@dataclasses.dataclass
class Memory(Tally):
  """What the loop remembers over an interruption, beside the state; it travels in the checkpoint as JSON.

  The rows that were read are those of all processes, up to the last checkpoint.

  Attributes:
    window: figures of the steps since the last row of metrics.
    best: the best measurement (`TrainConfig.best`), and `best_step` where it was first seen.
    waited: measurements since then.
    stopped: early stopping has ended the run.
    step_bytes: memory of the largest step so far, of one device, as it was compiled.
  """

  window: list[dict[str, float]] = dataclasses.field(default_factory=list)
  best: float | None = None
  best_step: int | None = None
  waited: int = 0
  stopped: bool = False
  step_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How the loop ended.

  Attributes:
    state: after the last step, or of the best one where `train.best` or early stopping asks for it.
    signal: the number of the signal that stopped it, else 0.
    seconds: of this process; compilations: of both programs.
  """

  state: TrainState
  memory: Memory
  signal: int
  seconds: float
  compilations: int


def fit(
  config: RunConfig, parts: Parts, state: TrainState, folder: pathlib.Path, settings: Mapping
) -> Outcome:
  """Trains until `config.train.steps`, an early stop or a signal; continues what `folder` holds.

  Raises:
    UserError: the loss is not finite (step and examples are named), memory or disk is exhausted, or an
      example is broken.
  """
  by = config.train.best or VALIDATION
  with contextlib.closing(Checkpoints(folder / "checkpoints", config.train.keep, by)) as checkpoints:
    memory = Memory()
    passed: list[str] = []
    if checkpoints.latest is not None:
      like = step_lib.abstract(state)
      # The fresh state must not lie beside the restored one: that would be the run's peak of memory.
      jax.tree.map(lambda x: x.delete(), state)
      state, said, passed = checkpoints.newest(like, parts.stream)
      memory = Memory(**said)
    start = int(state.step)
    metrics = Metrics(folder, config.log, step=start, name=config.name, settings=settings)
    with contextlib.closing(metrics), contextlib.closing(Screen(config.train.steps, start)) as screen:
      for text in passed:
        screen.say(f"{text}; step {start} is the newest that can be read")
      if 0 < start < config.train.steps:
        screen.say(f"continues at step {start}")
      loop = _Loop(config, parts, state, memory, checkpoints, metrics, screen)
      with guards.signals() as received, guards.memory_errors(config):
        try:
          loop.run(received)
        finally:
          # Whatever happened, a save that has begun is brought to its end.
          checkpoints.wait()
      state, compilations = loop.state, len(loop.programs) + len(loop.loss_programs)
      best = checkpoints.best if _ends_with_best(config) and not received.number else None
      if best is not None and best != int(state.step):
        found = checkpoints.restore_or_put_away(best, state)
        if isinstance(found, str):
          screen.say(f"{found}; takes the parameters of step {int(state.step)}, the newest, in its place")
        else:
          screen.say(f"takes the parameters of step {best}, the best by {_called(by)}")
          state = found
      return Outcome(state, memory, received.number, loop.clock.total(), compilations)


class _Loop:
  def __init__(self, config, parts, state, memory, checkpoints, metrics, screen):
    self.config, self.parts, self.state, self.memory = config, parts, state, memory
    self.checkpoints, self.metrics, self.screen = checkpoints, metrics, screen
    shardings = step_lib.state_shardings(state)
    self.programs = step_lib.Programs(
      parts.train_step,
      parts.mesh,
      donate=True,
      out_shardings=(shardings, None),
      given=(step_lib.everywhere(optim.span(config.optim, config.train.steps), parts.mesh),),
    )
    self.loss_programs = step_lib.Programs(parts.loss_step, parts.mesh, donate=False, out_shardings=None)
    # (step, figures on the devices, shares of positions, ids) of steps whose figures were not fetched yet
    self.pending: collections.deque = collections.deque()
    # what this process has read since the last save
    self.tally = Tally()
    self.clock = Clock()
    # The loss or score of the step at hand that tells the best.
    self.measured: float | None = None
    # The prepared batch, for further steps.
    self.prepared: Prepared | None = None

  def run(self, received: guards.Received) -> None:
    train, step = self.config.train, int(self.state.step)
    # What is done every so many steps, 0 for never, and after the last; in this order.
    hooks = (
      (CHECK_EVERY, lambda step: self.fetch()),
      (train.log_every, self.log),
      (train.validate_every, self.validate),
      (train.evaluate_every, self.evaluate),
    )
    while step < train.steps and not self.memory.stopped:
      if self.prepared is None:
        batch, info = next(self.parts.stream)
        batch, counted = self.agreed(batch, info)
        self.prepare(step, batch, info, counted)
      self.advance(step)
      step += 1
      between = step % self.parts.repeats > 0
      self.prepared = self.prepared if between else None
      self.measured = None
      self.screen.advance(step)
      last = step == train.steps
      for every, hook in hooks:
        if _due(step, every) or (last and every):
          hook(step)
      if self.memory.stopped and train.log_every and (self.pending or self.memory.window):
        self.log(step)
      # Between steps of one batch nothing is saved: the batch is in no checkpoint.
      stop = not between and received.now(step, train.log_every)
      if last or stop or self.memory.stopped or _due(step, train.checkpoint_every) or self.is_best(step):
        self.save()
      if stop:
        return

  def prepare(self, step: int, batch: Batch, info, counted: Counted) -> None:
    """Sends a batch to the devices and through the phases."""
    batch, flops = self.seen(batch)
    on_device = step_lib.to_devices(batch, self.parts.mesh, self.config.train.accumulation)
    for number, prepare in enumerate(self.parts.prepares):
      key = phase_key(self.config.seed, step, number)
      on_device = prepare(self.state, self.parts.frozen, on_device, info, key)
    positions = batch.tokens_BT.size * jax.process_count()
    shares = {"fill": counted.tokens / positions, "supervised": counted.targets / positions}
    self.prepared = Prepared(on_device, info, shares)
    self.tally.count(info)
    self.clock.read(counted.samples, counted.tokens, flops)

  def advance(self, step: int) -> None:
    """Sends one step to the devices, and waits for an earlier one so that the host stays near."""
    batch, info, shares = self.prepared
    program, fresh = self.programs.get(self.state, self.parts.frozen, batch)
    if fresh:
      self.announce(program, info)
    self.state, figures = program.run(self.state, self.parts.frozen, batch)
    self.pending.append((step + 1, figures, shares, info.ids))
    self.clock.count(program.flops)
    if len(self.pending) > AHEAD:
      jax.block_until_ready(self.pending[-1 - AHEAD][1])

  def agreed(self, batch: Batch, info) -> tuple[Batch, Counted]:
    """All processes take the largest of their buckets, since they run one program; unread arrays go."""
    counted = Counted(info.samples, info.tokens, info.targets)
    read = self.parts.extra | ({TILE_KEY} if self.parts.vision else frozenset())
    if unread := set(batch.extra) - read:
      batch = dataclasses.replace(batch, extra={k: v for k, v in batch.extra.items() if k not in unread})
    if jax.process_count() == 1:
      return batch, counted
    (largest, *sizes), counted = self.largest(info, counted)
    if read:
      kinds = multihost_utils.process_allgather(batch_lib.extra_kinds(batch))
      batch = batch_lib.with_extra(batch, kinds)
    grown = lambda batch, bucket, tile_size: batch_lib.grow(
      batch, bucket, pad_id=self.parts.pad_id, tile_size=tile_size
    )
    views = {
      name: grown(batch.views[name], size, self.parts.view_tiles[name])
      for name, size in zip(sorted(info.views), sizes, strict=True)
    }
    if largest != info.bucket:
      batch = grown(batch, largest, self.parts.tile_size)
    return dataclasses.replace(batch, views=views), counted

  def largest(self, info, own: Counted) -> tuple[list[batch_lib.Bucket], Counted]:
    """The buckets that hold those of all processes: of the batch, then of its views in the order of names.

    And what all of them have read together; in one message, as each step waits for it.
    """
    sizes = [info.bucket, *(info.views[name] for name in sorted(info.views))]
    gathered = multihost_utils.process_allgather(np.array([(*own, 0), *sizes], np.int32))
    counts, *columns = np.moveaxis(gathered, 1, 0)
    largest = [batch_lib.largest([batch_lib.Bucket(*map(int, b)) for b in column]) for column in columns]
    return largest, Counted(*map(int, counts.sum(0)[:3]))

  def seen(self, batch: Batch) -> tuple[Batch, float]:
    """The batch with features for its pixels, where the vision tower is frozen; FLOPs that they took."""
    if self.parts.vision is None:
      return batch, 0.0
    batch, seconds, flops = self.parts.vision(self.state, self.parts.frozen, batch)
    self.clock.pause(seconds)
    return batch, flops

  def announce(self, program: step_lib.Program, info) -> None:
    self.clock.pause(program.seconds)
    self.memory.step_bytes = max(self.memory.step_bytes, program.bytes)
    said = batch_lib.bucket_says(bool(info.bucket.rows))
    limit = (self.parts.mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    of = f" of {scaled(limit, 1024)}iB" if limit else ""
    self.screen.say(
      f"compiled the step for bucket {info.bucket} ({said}) in {program.seconds:.1f} s: "
      f"{scaled(program.flops)}FLOP, {scaled(program.bytes, 1024)}iB{of} per device"
    )

  def fetch(self) -> None:
    """Brings the figures of all steps so far to the host.

    Raises:
      UserError: one of them has a loss or gradient that is not finite.
    """
    for step, figures, shares, ids in self.pending:
      row = {name: float(value) for name, value in jax.device_get(figures).items()} | shares
      if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
        self.pending.clear()
        kept = self.checkpoints.latest
        where = (
          f"step {kept} is kept in {self.checkpoints.folder}" if kept else "no checkpoint was written yet"
        )
        raise UserError(
          f"step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}: not finite; examples "
          f"{', '.join(ids)}; {where}; lower optim.learning_rate, or look at these examples"
        )
      if self.config.train.log_every:
        self.memory.window.append(row)
    self.pending.clear()

  def log(self, step: int) -> None:
    """Writes the mean figures of the steps since the last row."""
    self.fetch()
    window, self.memory.window = self.memory.window, []
    row = {name: sum(w[name] for w in window) / len(window) for name in window[0]}
    row["learning_rate"] = window[-1].get("learning_rate", 0.0)
    row = {"step": step, **row, "samples": step * self.config.train.batch_size}
    row |= self.clock.rates() | {"compilations": len(self.programs) + len(self.loss_programs)}
    self.metrics.write(row)
    self.screen.report(row)

  def validate(self, step: int) -> None:
    if self.parts.validation is None:
      return
    started, parts, sums = time.perf_counter(), [], {}
    for batch, info in self.parts.validation:
      batch, _ = self.seen(self.agreed(batch, info)[0])
      on_device = step_lib.to_devices(batch, self.parts.mesh)
      program, _ = self.loss_programs.get(self.state, self.parts.frozen, on_device)
      parts.append(program.run(self.state, self.parts.frozen, on_device))
    for found in jax.device_get(parts):
      for name, (total, weight) in found.items():
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + float(total), before[1] + float(weight))
    means = {f"validation/{name}": value for name, value in step_lib.averages(sums, np).items()}
    loss = float(sum(w * means[f"validation/{n}/loss"] for n, w in self.term_weights().items()))
    self.metrics.write({"step": step, "validation/loss": loss, **{k: float(v) for k, v in means.items()}})
    self.screen.say(f"step {step}: validation loss {loss:.4f}")
    self.clock.pause(time.perf_counter() - started)
    self.remember(step, VALIDATION, loss)

  def term_weights(self) -> dict[str, float]:
    return {name: loss.weight for name, loss in self.config.losses.items() if loss.weight}

  def remember(self, step: int, by: str, measured: float) -> None:
    """The best so far, and, for early stopping, the measurements since then."""
    memory, train = self.memory, self.config.train
    if by != (train.best or VALIDATION):
      return
    self.measured = measured
    if memory.best is None or cost(measured, by) < cost(memory.best, by):
      memory.best, memory.best_step, memory.waited = measured, step, 0
      return
    memory.waited += 1
    if train.patience and memory.waited >= train.patience and step < train.steps:
      memory.stopped = True
      self.screen.say(f"step {step}: no better {_called(by)} since step {memory.best_step}; stops early")

  def is_best(self, step: int) -> bool:
    """A run that ends with the best parameters must have them on the disk."""
    return _ends_with_best(self.config) and self.memory.best_step == step

  def evaluate(self, step: int) -> None:
    if self.parts.evaluate is None:
      return
    self.fetch()  # a loss that is not finite says more than answers that are not
    started = time.perf_counter()
    scores = self.parts.evaluate(self.state)
    seconds = time.perf_counter() - started
    self.clock.pause(seconds)
    row = {f"{SCORES}{name}": score for name, score in scores.items()}
    self.metrics.write({"step": step, **row, "evaluation_seconds": seconds})
    best = self.config.train.best
    name = best if best in scores else "official" if "official" in scores else "plain"
    self.screen.say(f"step {step}: score {name} {100 * scores[name]:.1f} %, in {seconds:.1f} s")
    if best in scores:
      self.remember(step, best, scores[best])

  def save(self) -> None:
    """Never saves a step whose loss was not seen to be finite."""
    started = time.perf_counter()
    self.fetch()
    self.memory.add(of_all_processes(self.tally))
    self.tally = Tally()
    self.checkpoints.save(self.state, self.parts.stream, dataclasses.asdict(self.memory), self.measured)
    self.clock.pause(time.perf_counter() - started)


def phase_key(seed: int, step: int, number: int) -> jax.Array:
  """The key of a phase in a step, apart from those of the step's microbatches (`training.step`)."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), number)


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _ends_with_best(config: RunConfig) -> bool:
  return bool(config.train.best or config.train.patience)


def _called(by: str) -> str:
  return "validation loss" if by == VALIDATION else f"score {by}"
