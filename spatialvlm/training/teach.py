"""Fills the caches of a run's teachers: asks each of them once about every example that the run will read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spatialvlm import hub, loading
from spatialvlm.config import RunConfig
from spatialvlm.core import axes
from spatialvlm.data import batch as batch_lib
from spatialvlm.data import pipeline, views
from spatialvlm.models.outputs import Wants
from spatialvlm.processing.processor import Encoded, Processor, load_processor
from spatialvlm.training import objectives, one_run, phases, taught, teachers
from spatialvlm.training import step as step_lib
from spatialvlm.training.objectives.distil import before_targets
from spatialvlm.types import Batch, UserError

# Examples of one file.
SHARD = 512
# Positions of a row whose logits lie in memory at once.
_CHUNK = 8


def teach(config: RunConfig, say: Callable[[str], None]) -> dict[str, int]:
  """Adds to the cache of each teacher what it lacks; returns how many examples were asked about, by teacher.

  Files that are damaged are deleted, and made anew. What is there already is kept, so that the same command
  goes on where it was interrupted.

  Args:
    say: takes lines for the user.

  Raises:
    UserError: as `one_run.train` before its first step; several processes, stages, or no teacher that has a
      cache.
  """
  if jax.process_count() > 1:
    raise UserError("teach: several processes cannot fill one cache; start it as one")
  if config.stages:
    raise UserError("config.stages: a cache is filled for a run of one stage; give that stage's settings")
  one_run.check(config)
  mesh = axes.make_mesh(config.mesh)
  plain = one_run.assembled(config.model)
  folder = hub.resolve(plain.path, plain.revision)
  loading.check_base(plain, folder, resumes=bool(config.peft.resume_from))
  processor = load_processor(folder, **plain.tiling)
  terms = objectives.make_objectives(config.losses)
  found = teachers.find(config, terms, hub.read_config(folder, dtype=config.model.dtype), processor)
  objectives.meet(terms, {name: teacher.other for name, teacher in found.items()})
  cached = {name: teacher for name, teacher in found.items() if teacher.config.cache is not None}
  if not cached:
    raise UserError("config.teachers: none has a cache; set config.teachers.NAME.cache to a folder")
  meshes = teachers.meshes(cached, mesh)
  counts = {}
  for name, teacher in cached.items():
    store = teachers.store(config, name, teacher)
    for text in store.drop_damaged():
      say(text)
    say(f"{store.folder}: {len(store):,} examples are there")
    counts[name] = _fill(config, name, teacher, store, processor, meshes[name], say)
  return counts


def _fill(
  config: RunConfig,
  name: str,
  teacher: teachers.Teacher,
  store: taught.Store,
  processor: Processor,
  mesh: Mesh,
  say: Callable[[str], None],
) -> int:
  """Asks one teacher."""
  data = dataclasses.replace(pipeline.suited(config.data, processor), packing=False)
  own = {name: teacher.view} if teacher.view else {}
  size = one_run.shards_of(mesh) * max(1, config.train.batch_size // one_run.shards_of(mesh))
  ask = None
  asked, waiting, made = 0, {}, {}

  def answer() -> None:
    nonlocal ask, asked
    if ask is None:  # not before something is missing: the model may be large
      model = teacher.found.load(mesh) if teacher.found else loading.load_base(config.model, mesh)
      ask = _asker(model, teacher.numbers["vocabulary"], teacher.config.top, mesh)
    rows = list(waiting.values())
    batch = _batch(rows, data, processor, own, size)
    ids_BKN, logits_BKN = ask(batch.view(name))
    for row, (key, encoded) in enumerate(waiting.items()):
      k = int(np.count_nonzero(encoded.loss_mask))
      made[key] = taught.Taught(ids_BKN[row, :k], logits_BKN[row, :k])
    asked += len(rows)
    waiting.clear()
    if len(made) >= SHARD:
      store.add(made)
      made.clear()
      say(f"{store.folder}: {len(store):,} examples")

  for sample, encoded in _examples(config, data, processor, own):
    key = store.key(sample, encoded)
    if key in store or key in made or key in waiting:
      continue
    waiting[key] = encoded
    if len(waiting) == size:
      answer()
  if waiting:
    answer()
  store.add(made)
  say(f"{store.folder}: {len(store):,} examples, {asked:,} of them new")
  return asked


def _examples(
  config: RunConfig, data: Any, processor: Processor, own: Mapping[str, views.View]
) -> Iterator[tuple[pipeline.Sample, Encoded]]:
  """What the run will read: its training examples, each row of a source once, and those of its validation."""
  read = phases.examples_read(phases.make_phases(config.phases), config.train.batch_size)
  training = pipeline.training_mixture(data, config.seed)
  validation = pipeline.validation_mixture(data) if config.train.validate_every else None
  for mixed, count in ((training, config.train.steps * read), (validation, validation and validation.count)):
    seen = set()
    for position in range(count or 0):
      place = mixed.mixture[position]
      if (place.source, place.index) in seen:
        continue
      seen.add((place.source, place.index))
      samples, encoded, _ = pipeline.read_good(mixed, [position], processor, data, views=own)
      yield from zip(samples, encoded, strict=True)


def _batch(
  rows: list[Encoded], data: Any, processor: Processor, own: Mapping[str, views.View], size: int
) -> Batch:
  """A batch of at most `size` examples, with the teacher's view of them."""
  rows, bucket, _ = pipeline.batch_rows(rows, data, processor)
  batch = batch_lib.collate(
    rows, **bucket._asdict(), pad_id=processor.pad_id, batch_size=size, normal=processor.normal
  )
  made, _ = views.collated(rows, own, data, bucket, size)
  return dataclasses.replace(batch, views=made, extra={})


def _asker(
  model: nnx.Module, vocabulary: int, top: int, mesh: Mesh
) -> Callable[[Batch], tuple[np.ndarray, np.ndarray]]:
  """Ids and logits (B, K, top) of a batch's targets, likeliest first."""
  graph, state = nnx.split(model)

  @jax.jit
  def likeliest(state, batch: Batch):
    vlm = nnx.merge(graph, state)
    hidden_BKD = before_targets(vlm.read(batch, Wants(hidden=True)).hidden, batch.target_index_BK)
    B, K, D = hidden_BKD.shape
    count = -(-K // _CHUNK)
    hidden_BKD = jnp.pad(hidden_BKD, [(0, 0), (0, count * _CHUNK - K), (0, 0)])

    def part(hidden_BkD):
      logits_BkV = vlm.unembed(hidden_BkD)[..., :vocabulary]
      logits_BkN, ids_BkN = jax.lax.top_k(jax.nn.log_softmax(logits_BkV), min(top, vocabulary))
      return ids_BkN, logits_BkN

    parts = jax.lax.map(part, jnp.moveaxis(hidden_BKD.reshape(B, count, _CHUNK, D), 1, 0))
    return [jnp.moveaxis(x, 0, 1).reshape(B, count * _CHUNK, -1)[:, :K] for x in parts]

  def ask(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    plain = dataclasses.replace(batch, views={}, extra={})
    with jax.set_mesh(mesh):
      return tuple(jax.device_get(likeliest(state, step_lib.to_devices(plain, mesh))))

  return ask
