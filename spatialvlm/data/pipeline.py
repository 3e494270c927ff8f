"""From the config of the data to a stream of batches that can be stopped and continued anywhere (grain)."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grain
import jax
import numpy as np

from spatialvlm.config import DataConfig, NoiseConfig, SourceConfig
from spatialvlm.data import batch as batches
from spatialvlm.data import elsewhere, leave_out, noise
from spatialvlm.data.augment import beforehand
from spatialvlm.data.augment.change import Augment, Recorded
from spatialvlm.data.samples import Mixed, Sample, encode, read_good
from spatialvlm.data.sources.lettered import question_to_example
from spatialvlm.data.sources.registry import open_questions, open_source, read
from spatialvlm.data.tile_keys import Known, with_keys
from spatialvlm.data.views import View, collated
from spatialvlm.mixture import ENDLESS, Mixture
from spatialvlm.types import Batch, Extra, Note, Turn, UserError

if TYPE_CHECKING:
  from spatialvlm.processing.processor import Encoded, Processor

__all__ = [
  "BatchInfo",
  "BatchSequence",
  "Kept",
  "Mixed",
  "Sample",
  "encode",
  "open_mixed",
  "open_questions",
  "open_source",
  "question_to_example",
  "read",
  "read_good",
  "suited",
  "training_mixture",
  "training_stream",
  "validation_batches",
  "validation_mixture",
]


# Further arrays of an example, by their names in `Batch.extra`.
Extras = Callable[[Sample, "Encoded"], Mapping[str, Extra]]


@dataclasses.dataclass(frozen=True)
class BatchInfo:
  """What a batch is made of.

  Attributes:
    bucket: its shape. Processes of one run may differ: see `batch.largest` and `batch.grow`.
    samples: examples of this process, padding not counted.
    tokens: valid positions.
    targets: supervised positions.
    tiles: image tiles, padding not counted.
    sources: examples by source.
    tasks: examples by task.
    epoch: by source with an end, how often it was seen before this batch.
    ids: which examples: `source[index]`, and the source's own id in parentheses where it has one.
    blind: examples without a picture, by source.
    skipped: what stood in these places and was left out (`DataConfig.bad_rows`): by source[index], why.
    turns: the conversations as they are shown, in the order of `ids`, which is that of the rows where these
      hold one each.
    changes: by source, the examples that each change of place was drawn for, by its setting ("flip"), and
      those of them that stayed as they are ("flip left").
    views: the buckets of the batch's views, by name.
  """

  bucket: batches.Bucket
  samples: int
  tokens: int
  targets: int
  tiles: int
  sources: Mapping[str, int]
  tasks: Mapping[str, int]
  epoch: Mapping[str, float]
  ids: tuple[str, ...]
  blind: Mapping[str, int] = dataclasses.field(default_factory=dict)
  skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
  turns: tuple[tuple[Turn, ...], ...] = ()
  changes: Mapping[str, Counter] = dataclasses.field(default_factory=dict)
  views: Mapping[str, batches.Bucket] = dataclasses.field(default_factory=dict)


def suited(config: DataConfig, processor: Processor) -> DataConfig:
  """The data as a model's prompts can hold them: one question a picture where there is one turn alone.

  That is said of sources that make their own `turns`: a conversation of somebody's data is not cut.
  """
  if not processor.bidirectional:
    return config
  one = lambda source: dataclasses.replace(source, turns=1) if hasattr(source, "turns") else source
  named = lambda sources: {name: one(source) for name, source in sources.items()}
  return dataclasses.replace(config, sources=named(config.sources), validation=named(config.validation))


def training_mixture(config: DataConfig, seed: int = 0) -> Mixed:
  """The endless stream of examples. `seed` is the run's; with `config.seed` it fixes the order.

  Raises:
    UserError: as `open_mixed`, or settings that make no sense, such as buckets that do not ascend.
  """
  _check(config)
  if config.noise:
    noise.check(config.noise, config.sources)
  more = {"defer": config.bad_rows == "skip", "without": config.leave_out, "wrong": config.noise}
  return open_mixed(config.sources, shuffle=config.shuffle, seed=config.seed + seed, **more)


def validation_mixture(config: DataConfig) -> Mixed | None:
  """The held-out examples: `config.validation_size` of them, or as many as come before one is repeated."""
  if not config.validation:
    return None
  _check(config)
  mixed = open_mixed(config.validation, shuffle=False, seed=config.seed, defer=config.bad_rows == "skip")
  mixed.count = min(config.validation_size, mixed.mixture.once())
  return mixed


def open_mixed(
  configs: Mapping[str, SourceConfig],
  *,
  shuffle: bool,
  seed: int,
  defer: bool = False,
  without: str = "",
  wrong: NoiseConfig | None = None,
) -> Mixed:
  """Opens the sources that have a weight; `defer` as `registry.open_source` has it.

  Args:
    without: file of rows that are left out (`leave_out.kept`).
    wrong: which answers are made wrong; None for none.

  Raises:
    UserError: a source cannot be opened (named), or they make no mixture.
  """
  opened, configs = {}, dict(sorted(configs.items()))  # equal configs mix alike, in whatever order
  for name, config in configs.items():
    if config.weight:
      try:
        opened[name] = open_source(config, defer=defer)
      except UserError as error:
        raise UserError(f"data source {name!r}: {error}") from error
  kept = leave_out.kept(without, configs, opened) if without else {}
  lengths = {name: len(kept.get(name, opened[name])) if name in opened else 0 for name in configs}
  weights = {name: config.weight for name, config in configs.items()}
  shards = {name: source.shards for name, source in opened.items() if hasattr(source, "shards")}
  shards |= {name: shards[name].without(rows) for name, rows in kept.items() if name in shards}
  opened = noise.noisy(opened, wrong)
  mixture = Mixture(lengths, weights, shuffle=shuffle, seed=seed, shards=shards)
  return Mixed(opened, mixture, kept=kept)


def training_stream(
  config: DataConfig,
  processor: Processor,
  batch_size: int,
  *,
  process_index: int = 0,
  process_count: int = 1,
  seed: int = 0,
  keys: bool = False,
  known: Known | None = None,
  multiple: int = 1,
  on_note: Callable[[str], None] | None = None,
  views: Mapping[str, View] | None = None,
  extras: Extras | None = None,
) -> grain.DatasetIterator[tuple[Batch, BatchInfo]]:
  """An endless, deterministic, prefetched iterator of (batch, info).

  Batch number g holds positions g * batch_size and following of the mixture, whatever the number of
  processes; process p has the p-th block of its rows. With `config.packing` it holds the same examples in
  fewer rows, of which the number may differ from batch to batch. `get_state` is the number of the next batch,
  so a restored iterator goes on with exactly the same batches; Orbax saves and restores it as it is.

  Args:
    batch_size: examples of a batch over all processes.
    seed: of the run; together with `config.seed` it fixes the order.
    keys: whether batches name their tiles (`data.tile_keys`), for a cache of features.
    known: with `keys`, what such a cache has for good: sources that can defer their pictures then make those
      alone that it has not, and no dense targets.
    multiple: the rows of all processes of a packed batch are one of its multiples: the shards of a mesh times
      the microbatches of a step.
    on_note: called with what the user should know of each source; None for a `types.Note`.
    views: what other models read of the same examples (`Batch.views`), by their names.
    extras: gives further arrays of an example, by their names in `Batch.extra`.

  Raises:
    UserError: a source that cannot be opened, or a batch that the processes do not divide; the first example
      is broken or too large; a change (`config.augment`) that no example of a source can be shown with. While
      iterating: another one, named.
  """
  config = suited(config, processor)
  augment = Augment(config.augment, config.seed + seed) if config.augment else None
  # Of pictures that are changed nothing can be kept, so that all are made.
  known = None if augment else known
  mixed = training_mixture(config, seed)
  mixed.say_pictures(on_note)
  for line in noise.said(config.noise, config.sources):
    (on_note or (lambda text: warnings.warn(Note(text), stacklevel=3)))(line)
  if augment:
    _check_augment(augment, mixed, config, on_note)
  # What no example of the data can fit, as `lengths` below a model's image tokens, is said before all else.
  samples, encoded, _ = read_good(mixed, [0], processor, config, views=views)
  if extras:
    list(map(extras, samples, encoded))
  shares = {"process_index": process_index, "process_count": process_count}
  shares |= {"keys": keys, "known": known, "multiple": multiple, "views": views, "extras": extras}
  if config.processes:
    # Which features are kept changes as the run goes, and here alone.
    parts = {"config": config, "processor": processor, "batch_size": batch_size, "seed": seed}
    parts |= {name: share for name, share in shares.items() if name != "known"}
    length = len(BatchSequence(mixed, config, processor, batch_size, **shares))
    made = elsewhere.Elsewhere(config.processes, length, training_sequence, parts)
    return iter(_prefetched(made, config, config.processes))
  shares["augment"] = augment
  return iter(_prefetched(BatchSequence(mixed, config, processor, batch_size, **shares), config))


def training_sequence(
  config: DataConfig, processor: Processor, batch_size: int, seed: int, **shares: Any
) -> BatchSequence:
  """The batches of `training_stream` by number, in a process of their own."""
  augment = Augment(config.augment, config.seed + seed) if config.augment else None
  mixed = training_mixture(config, seed)
  return BatchSequence(mixed, config, processor, batch_size, augment=augment, **shares)


def validation_batches(
  config: DataConfig,
  processor: Processor,
  batch_size: int,
  *,
  process_index: int = 0,
  process_count: int = 1,
  keys: bool = False,
  known: Known | None = None,
  multiple: int = 1,
  on_note: Callable[[str], None] | None = None,
  views: Mapping[str, View] | None = None,
  extras: Extras | None = None,
) -> Iterable[tuple[Batch, BatchInfo]] | None:
  """The held-out stream: the same batches at every pass, in order; None where none is configured.

  It ends as `validation_mixture` says; the last batch is filled with rows of `example_mask_B` false. Batches
  of up to 256 MB in all are kept after the first pass; they are not to be written to. `keys`, `known`,
  `multiple`, `on_note`, `views` and `extras` as in `training_stream`.
  """
  config = suited(config, processor)
  mixed = validation_mixture(config)
  if mixed is None:
    return None
  mixed.say_pictures(on_note)
  shares = {"process_index": process_index, "process_count": process_count}
  shares |= {"keys": keys, "known": known, "multiple": multiple, "views": views, "extras": extras}
  return Kept(_prefetched(BatchSequence(mixed, config, processor, batch_size, **shares), config))


class Kept:
  """Batches that are iterated over again and again: kept in memory from the first full pass, if they fit."""

  def __init__(self, batches_: Iterable[tuple[Batch, BatchInfo]], most_bytes: int = 256 * 2**20):
    self._batches, self._most = batches_, most_bytes
    self._kept: list[tuple[Batch, BatchInfo]] | None = None

  def __iter__(self) -> Iterator[tuple[Batch, BatchInfo]]:
    if self._kept is not None:
      yield from self._kept
      return
    kept, size = [], 0
    for item in self._batches:
      size += sum(leaf.nbytes for leaf in jax.tree.leaves(item[0]))
      if size <= self._most:
        kept.append(item)
      else:
        kept.clear()
      yield item
    if size <= self._most:
      self._kept = kept


class BatchSequence:
  """Random access to the batches of one process."""

  def __init__(
    self,
    mixed: Mixed,
    config: DataConfig,
    processor: Processor,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    keys: bool = False,
    known: Known | None = None,
    multiple: int = 1,
    views: Mapping[str, View] | None = None,
    extras: Extras | None = None,
    augment: Augment | None = None,
  ):
    if batch_size < 1 or batch_size % process_count:
      raise UserError(
        f"a batch of {batch_size} is not divided by {process_count} processes; change batch_size"
      )
    self._mixed, self._config, self._processor = mixed, config, processor
    self._batch_size, self._rows = batch_size, batch_size // process_count
    self._process_index, self._keys, self._known = process_index, keys, known
    self._multiple = max(1, multiple // process_count)
    self._views, self._extras = dict(sorted((views or {}).items())), extras
    self._augment = augment

  def __len__(self) -> int:
    count = self._mixed.count
    return count if count == ENDLESS else -(-count // self._batch_size)

  def __getitem__(self, number: int) -> tuple[Batch, BatchInfo]:
    if not 0 <= number < len(self):
      raise IndexError(number)
    first = number * self._batch_size + self._process_index * self._rows
    positions = range(first, max(first, min(first + self._rows, self._mixed.count)))
    recorded = self._augment and Recorded(self._augment)
    samples, encoded, skipped = read_good(
      self._mixed,
      positions,
      self._processor,
      self._config,
      known=self._known if self._keys else None,
      views=self._views,
      augment=recorded,
    )
    shown = [recorded.shown[p] for p in positions] if recorded else [s.example for s in samples]
    if self._extras:
      encoded = [
        dataclasses.replace(e, extra={**e.extra, **self._extras(s, e)})
        for e, s in zip(encoded, samples, strict=True)
      ]
    if self._keys:
      again = lambda sample: self._augment is None and self._mixed.again(sample.source)
      cut = lambda s: {"pictures": (*s.example.images, *s.example.rearranged), "tiler": self._processor.tiler}
      pairs = zip(encoded, samples, strict=True)
      encoded = [with_keys(e, s.keys, again=again(s), **cut(s)) for e, s in pairs]
    rows, bucket, _ = batch_rows(encoded, self._config, self._processor, self._multiple)
    batch = batches.collate(
      rows,
      **bucket._asdict(),
      pad_id=self._processor.pad_id,
      batch_size=self._rows,
      normal=self._processor.normal,
    )
    views, sizes = collated(rows, self._views, self._config, bucket, self._rows)
    info = BatchInfo(
      bucket=bucket,
      samples=len(encoded),
      tokens=sum(len(e.tokens) for e in encoded),
      targets=sum(int(np.count_nonzero(e.loss_mask)) for e in encoded),
      tiles=sum(len(e.tiles) for e in encoded),
      sources=Counter(s.source for s in samples),
      tasks=Counter(s.example.task for s in samples),
      epoch=self._mixed.mixture.epoch(number * self._batch_size),
      ids=tuple(s.id for s in samples),
      blind=Counter(s.source for s in samples if not s.example.images),
      skipped=skipped,
      turns=tuple(example.turns for example in shown),
      changes=recorded.counts() if recorded else {},
      views=sizes,
    )
    return dataclasses.replace(batch, views=views), info


def batch_rows(
  encoded: Sequence[Encoded], config: DataConfig, processor: Processor, multiple: int = 1
) -> tuple[Sequence[Encoded], batches.Bucket, tuple[tuple[int, ...], ...]]:
  """The rows of a batch of these examples, packed where the config says so; its bucket; and, of each row that
  is not empty, the numbers of its examples.

  Raises:
    UserError: an example is larger than the largest bucket.
  """
  sizes = {"lengths": config.lengths, "tiles": config.tiles, "targets": config.targets}
  if not encoded:
    return [], batches.Bucket(config.lengths[0], 0, config.targets, multiple if config.packing else 0), ()
  if not config.packing:
    return encoded, batches.bucket_of(encoded, **sizes), tuple((i,) for i in range(len(encoded)))
  of_tile = processor.layout.tokens_per_tile
  return batches.packed_of(encoded, **sizes, tokens_per_tile=of_tile, multiple=multiple)


def _check_augment(
  augment: Augment, mixed: Mixed, config: DataConfig, on_note: Callable[[str], None] | None
) -> None:
  """Says what changes of place leave as it is, before anything is read.

  Raises:
    UserError: one that no example of a source can be shown with.
  """
  augment.check(config.sources)
  for name, source in config.sources.items():
    if augment.of(name) and getattr(source, "false_pictures", 0):
      raise UserError(
        f"config.data.sources.{name}.false_pictures: not beside config.data.augment, which would tell them"
        " from the right one; name other sources in config.data.augment.sources"
      )
  on_note = on_note or (lambda text: warnings.warn(Note(text), stacklevel=4))
  for name in mixed.mixture.names if augment.moves else ():
    if augment.of(name):
      examples = mixed.first(name, beforehand.LOOKED_AT)
      for note in beforehand.check_source(name, examples, augment.moves):
        on_note(note)


def _check(config: DataConfig) -> None:
  for name in ("lengths", "tiles"):
    sizes = getattr(config, name)
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
      raise UserError(f"data.{name}: buckets must be positive and ascend, got {sizes}")
  for name, least in (
    ("targets", 1),
    ("workers", 0),
    ("processes", 0),
    ("prefetch", 0),
    ("validation_size", 1),
  ):
    if getattr(config, name) < least:
      raise UserError(f"data.{name}: {getattr(config, name)} is less than {least}")


def _prefetched(
  stream: BatchSequence | elsewhere.Elsewhere, config: DataConfig, processes: int = 0
) -> grain.IterDataset:
  # A thread waits for each process.
  threads, ahead = (
    (processes, max(processes, config.prefetch)) if processes else (config.workers, config.prefetch)
  )
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
  return grain.MapDataset.source(stream).to_iter_dataset(options)
