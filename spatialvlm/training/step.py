"""One optimizer step as a pure function, and its compiled programs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatialvlm.config import RunConfig
from spatialvlm.core import axes
from spatialvlm.peft import seed_dropout
from spatialvlm.training import flops, optim
from spatialvlm.training.objectives import Models, Terms, asks_of, wants_of
from spatialvlm.training.state import Params, Split, TrainState, is_head, weights
from spatialvlm.types import Batch

StepFn = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def train_step_of(
  config: RunConfig, split: Split, terms: Terms, averaged: frozenset[str] = frozenset()
) -> StepFn:
  """The step of a run's config, `(state, frozen, batch, span) -> (state, metrics)`.

  A run takes it and a plan compiles it. `span` is that of the run's schedule (`optim.span`), (2,) float32: an
  argument, so that runs of other lengths share their programs; left out, it is compiled in. What is not
  named here is `make_train_step`'s.
  """

  def step(state: TrainState, frozen: Params, batch: Batch, span: jax.Array | None = None):
    rate = optim.schedule(
      config.optim, optim.span(config.optim, config.train.steps) if span is None else span
    )
    own = make_train_step(
      split,
      optim.make_optimizer(config.optim, rate, state.params),
      terms,
      seed=config.seed,
      accumulation=config.train.accumulation,
      clip_norm=config.optim.clip_norm,
      ema=config.optim.ema,
      averaged=averaged,
      rate=rate,
    )
    return own(state, frozen, batch)

  return step


def make_train_step(
  split: Split,
  tx: optax.GradientTransformation,
  terms: Terms,
  *,
  seed: int = 0,
  accumulation: int = 1,
  clip_norm: float = 0.0,
  ema: float = 0.0,
  averaged: frozenset[str] = frozenset(),
  rate: Callable[[Any], jax.Array] | None = None,
) -> StepFn:
  """A function `(state, frozen, batch) -> (state, metrics)`, ready for `jax.jit`.

  Every field of `batch` has a leading axis of `accumulation` where that is more than one.

  Args:
    terms: weighted objectives by name; each is divided by its own weight over the whole step.
    clip_norm: largest global norm of the gradient, 0 for no limit. The heads together have a norm of their
      own, so that a head which only looks on takes nothing from the model's steps.
    ema: decay of the moving average; it starts lower, min(ema, (1 + t) / (10 + t)), so that the first
      parameters are soon forgotten.
    averaged: names of models that terms ask and that are this average, as it stands before the step.
    rate: the learning rate of a step, for the metrics.
  """

  terms_of = _terms_of(split, terms, averaged)

  def objective(params, frozen, batch, key, totals, average):
    found = terms_of(params, frozen, batch, key, average)
    totals = totals or {name: weight for name, (_, weight, _) in found.items()}
    value, sums = jnp.float32(0), {}
    for name, (total, weight, metrics) in found.items():
      # A step without any target of a term must not divide by zero.
      value += terms[name][0] * total / jnp.maximum(totals[name], 1e-6)
      sums[f"{name}/loss"] = (total, weight)
      sums |= {f"{name}/{key}": pair for key, pair in metrics.items()}
    return value, jax.lax.stop_gradient(sums)

  gradient = jax.value_and_grad(objective, has_aux=True)

  def accumulated(params, frozen, batches, key, average):
    parts = jnp.arange(accumulation)

    def weigh(totals, part):
      batch, i = part
      found = terms_of(params, frozen, batch, jax.random.fold_in(key, i), average)
      return {name: totals[name] + found[name][1] for name in terms}, None

    # Weights depend on the batch alone, so the compiler drops all of the model from this first pass.
    totals, _ = jax.lax.scan(weigh, {name: jnp.float32(0) for name in terms}, (batches, parts))

    def add(carry, part):
      batch, i = part
      (value, sums), grads = gradient(params, frozen, batch, jax.random.fold_in(key, i), totals, average)
      return jax.tree.map(jnp.add, carry, ((value, sums), grads)), None

    first = jax.tree.map(lambda x: x[0], batches)
    shapes = jax.eval_shape(gradient, params, frozen, first, key, totals, average)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (batches, parts))[0]

  def step(state: TrainState, frozen: Params, batch: Batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if accumulation > 1:
      (value, sums), grads = accumulated(state.params, frozen, batch, key, state.ema)
    else:
      key = jax.random.fold_in(key, 0)
      (value, sums), grads = gradient(state.params, frozen, batch, key, None, state.ema)
    norm = optax.global_norm(grads)
    if clip_norm:
      grads = _clipped(grads, clip_norm)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "grad_norm": norm} | averages(sums)
    if rate is not None:
      metrics["learning_rate"] = rate(state.step)
    return TrainState(state.step + 1, params, opt_state, _averaged(state, params, ema)), metrics

  return step


def make_loss_step(
  split: Split, terms: Terms, averaged: frozenset[str] = frozenset()
) -> Callable[[TrainState, Params, Batch], dict[str, tuple]]:
  """A function `(state, frozen, batch) -> {name: (sum, weight)}` without dropout, of `state.weights`."""
  terms_of = _terms_of(split, terms, averaged)

  def step(state: TrainState, frozen: Params, batch: Batch):
    found = terms_of(weights(state), frozen, batch, jax.random.key(0), state.ema, dropout=False)
    sums = {}
    for name, (total, weight, metrics) in found.items():
      sums[f"{name}/loss"] = (total, weight)
      sums |= {f"{name}/{key}": pair for key, pair in metrics.items()}
    return sums

  return step


def _terms_of(split: Split, terms: Terms, averaged: frozenset[str]) -> Callable[..., dict[str, tuple]]:
  """`(params, frozen, batch, key, average, dropout=True) -> {name: (sum, weight, metrics)}`, of one pass a
  model."""
  wants, asks = wants_of(terms), asks_of(terms)

  def terms_of(params, frozen, batch, key, average, dropout=True):
    trainee = split.trainee(params, frozen)
    vlm = seed_dropout(trainee.vlm, key) if dropout else trainee.vlm
    outputs = vlm.read(batch, wants)
    others = dict(trainee.others) | {name: split.model(average, frozen) for name in sorted(averaged)}
    ask = lambda name: jax.lax.stop_gradient(others[name].read(batch.view(name), asks[name]))
    asked = {name: ask(name) for name in sorted(asks)}
    shown = lambda name: Models(vlm, trainee.heads.get(name), others, asked)
    return {name: objective(outputs, shown(name), batch, key) for name, (_, objective) in terms.items()}

  return terms_of


def averages(sums: Mapping[str, tuple[Any, Any]], np=jnp) -> dict[str, Any]:
  """(sum, weight) -> mean, and its root where the name ends in `rmse`; without any weight the mean is 0."""
  means = {name: total / np.maximum(weight, 1e-6) for name, (total, weight) in sums.items()}
  return {name: np.sqrt(mean) if name.endswith("rmse") else mean for name, mean in means.items()}


def _clipped(grads: Params, clip_norm: float) -> Params:
  """Gradients scaled so that those of the model, and those of all heads, have at most this norm."""
  out = {}
  for heads in (False, True):
    part = {name: g for name, g in grads.items() if is_head(name) == heads}
    if part:
      scale = jnp.minimum(1.0, clip_norm / (optax.global_norm(part) + 1e-12))
      out |= {name: g * scale for name, g in part.items()}
  return {name: out[name] for name in grads}


def _averaged(state: TrainState, params: Params, ema: float) -> Params:
  if not ema:
    return state.ema
  count = state.step.astype(jnp.float32)
  decay = jnp.minimum(ema, (1 + count) / (10 + count))
  return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.ema, params)


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled shape of a step.

  Attributes:
    flops: of the matrix products of the whole step, over all devices, as `training.flops` counts them.
    bytes: memory of one device: arguments, results that reuse none of them, and temporaries.
    seconds: that compilation took.
  """

  run: Callable
  flops: float
  bytes: int
  seconds: float


class Programs:
  """Compiles a step once per batch shape, ahead of time, and counts what it compiles."""

  def __init__(
    self, function: Callable, mesh: Mesh, *, donate: bool, out_shardings: Any, given: tuple[Any, ...] = ()
  ):
    """`given`: further arguments of the function, the same at every call; `everywhere` puts them in place."""
    self._given = given
    self._jit = jax.jit(function, donate_argnums=(0,) if donate else (), out_shardings=out_shardings)
    self._mesh = mesh
    self._made: dict[Any, Program] = {}

  def __len__(self) -> int:
    return len(self._made)

  def get(self, state: TrainState, frozen: Params, batch: Batch) -> tuple[Program, bool]:
    """The program for `batch`'s shape, and whether it was just compiled."""
    shape = tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch)), jax.tree.structure(batch)
    if shape in self._made:
      return self._made[shape], False
    started = time.perf_counter()
    with jax.set_mesh(self._mesh):
      traced = self.traced(state, frozen, batch)
      compiled = traced.lower().compile()
    seconds = time.perf_counter() - started
    counted = flops.count(traced.jaxpr)
    run = (lambda *args: compiled(*args, *self._given)) if self._given else compiled
    self._made[shape] = Program(run, counted, program_bytes(compiled), seconds)
    return self._made[shape], True

  def traced(self, state: TrainState, frozen: Params, batch: Batch) -> jax.stages.Traced:
    """The step as it would be compiled for these arrays, or for what describes them."""
    with jax.set_mesh(self._mesh):
      return self._jit.trace(state, frozen, batch, *self._given)


def state_shardings(state: TrainState) -> TrainState:
  """Pinned as the outputs of a step: left to the compiler, step 2 would compile again."""
  return jax.tree.map(lambda x: x.sharding, state)


def abstract(state: TrainState) -> TrainState:
  """Shapes, types and shardings of a state, without its arrays."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def everywhere(array: Any, mesh: Mesh) -> jax.Array:
  """A small array as every device has it whole."""
  return jax.device_put(array, NamedSharding(mesh, PartitionSpec()))


def batch_sharding(mesh: Mesh, accumulation: int = 1) -> NamedSharding:
  """Where every array of a step's batch lies; several microbatches stand before what is sharded."""
  sharding = axes.batch_sharding(mesh)
  return NamedSharding(mesh, PartitionSpec(None, *sharding.spec)) if accumulation > 1 else sharding


def to_devices(batch: Any, mesh: Mesh, accumulation: int = 1) -> Any:
  """Puts this process's rows of a batch on the mesh, cut into microbatches where there are several.

  So it does with any tree of arrays whose first axis counts a batch's rows.
  With several processes each gives its own rows, and the result is one global array.
  """
  sharding = batch_sharding(mesh, accumulation)
  if accumulation > 1:
    cut = lambda x: x.reshape(accumulation, x.shape[0] // accumulation, *x.shape[1:])
    batch = jax.tree.map(cut, batch)
  if jax.process_count() > 1:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
  return jax.device_put(batch, sharding)


def program_bytes(compiled) -> int:
  """Memory of one device while a compiled program runs, as `Program.bytes`; 0 where nobody says."""
  memory = compiled.memory_analysis()
  if memory is None:
    return 0
  return int(
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
