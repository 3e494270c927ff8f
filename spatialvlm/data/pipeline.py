"""From the config of the data to a stream of batches that can be stopped and continued anywhere (grain)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import grain
import numpy as np

from spatialvlm.config import DataConfig, SourceConfig, nearest
from spatialvlm.data import batch as batches
from spatialvlm.data.checks import check_encoded
from spatialvlm.data.mixture import ENDLESS, Mixture
from spatialvlm.types import Batch, Example, Question, Turn, UserError

if TYPE_CHECKING:
  from spatialvlm.data.processor import Processor


class Source(Protocol):
  """A random-access sequence of examples; `len` is `ENDLESS` where any index is good.

  A source that reads or renders better in blocks offers `__getitems__(indices) -> list[Example]`, the name
  that PyTorch and Hugging Face `datasets` have for it. Calls come from several threads.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


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


def question_to_example(question: Question) -> Example:
  """The training form of a question: its prompt as CV-Bench writes it, answered by the bare letter ("B").

  The letter is what the "native" protocol of `evaluation` scores, at the same place.
  """
  turn = Turn(prompt=question.prompt, answer=chr(ord("A") + question.answer))
  return Example(
    images=(question.image,),
    turns=(turn,),
    id=str(question.idx),
    task=question.task,
    source=question.source,
  )


class QuestionExamples:
  """A sequence of questions seen as a sequence of examples."""

  def __init__(self, questions: Sequence[Question]):
    self.questions = questions

  def __len__(self) -> int:
    return len(self.questions)

  def __getitem__(self, index: int) -> Example:
    return question_to_example(self.questions[index])

  def __getitems__(self, indices: Sequence[int]) -> list[Example]:
    return [question_to_example(q) for q in read(self.questions, indices)]


def read(source: Sequence, indices: Sequence[int]) -> list:
  """The items at `indices`, in their order; in one go where the source can."""
  if hasattr(source, "__getitems__"):
    return list(source.__getitems__(list(indices)))
  return [source[i] for i in indices]


def open_source(config: SourceConfig) -> Source:
  """Opens a source of examples.

  Raises:
    UserError: an unknown kind, or a source that cannot be read.
  """
  return _known(SOURCES, config.kind, "examples")(config)


def open_questions(config: SourceConfig) -> Sequence[Question]:
  """Opens a source of multiple-choice questions.

  Raises:
    UserError: a kind that holds no questions, or a source that cannot be read.
  """
  return _known(QUESTIONS, config.kind, "questions")(config)


def training_stream(
  config: DataConfig,
  processor: Processor,
  batch_size: int,
  *,
  process_index: int = 0,
  process_count: int = 1,
  seed: int = 0,
) -> grain.DatasetIterator[tuple[Batch, BatchInfo]]:
  """An endless, deterministic, prefetched iterator of (batch, info).

  Batch number g holds positions g * batch_size and following of the mixture, whatever the number of
  processes; process p has the p-th block of its rows. `get_state` is the number of the next batch, so a
  restored iterator goes on with exactly the same batches; Orbax saves and restores it as it is.

  Args:
    batch_size: examples of a batch over all processes.
    seed: of the run; together with `config.seed` it fixes the order.

  Raises:
    UserError: a source that cannot be opened, or a batch that the processes do not divide. While iterating:
      an example that is broken or too large, named.
  """
  opened = {name: open_source(source) for name, source in config.sources.items() if source.weight}
  stream = BatchSequence(
    opened,
    _mixture(config.sources, opened, shuffle=config.shuffle, seed=config.seed + seed),
    config,
    processor,
    batch_size,
    process_index=process_index,
    process_count=process_count,
  )
  return iter(_prefetched(stream, config))


def validation_batches(
  config: DataConfig,
  processor: Processor,
  batch_size: int,
  *,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset[tuple[Batch, BatchInfo]] | None:
  """The held-out stream: the same batches at every pass, in order; None where none is configured.

  It ends after `config.validation_size` examples, or where a source would repeat itself; the last batch is
  filled with rows of `example_mask_B` false.
  """
  if not config.validation:
    return None
  opened = {name: open_source(source) for name, source in config.validation.items() if source.weight}
  mixture = _mixture(config.validation, opened, shuffle=False, seed=config.seed)
  stream = BatchSequence(
    opened,
    mixture,
    config,
    processor,
    batch_size,
    process_index=process_index,
    process_count=process_count,
    count=min(config.validation_size, mixture.once()),
  )
  return _prefetched(stream, config)


class BatchSequence:
  """Random access to the batches of one process.

  Args:
    sources: by name.
    mixture: the order of their examples.
    count: examples over all processes; `ENDLESS` for a stream without an end.
  """

  def __init__(
    self,
    sources: Mapping[str, Source],
    mixture: Mixture,
    config: DataConfig,
    processor: Processor,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    count: int = ENDLESS,
  ):
    if batch_size < 1 or batch_size % process_count:
      raise UserError(
        f"a batch of {batch_size} is not divided by {process_count} processes; change batch_size"
      )
    self._sources = [sources[name] for name in mixture.names]
    self._mixture, self._config, self._processor = mixture, config, processor
    self._batch_size, self._rows = batch_size, batch_size // process_count
    self._process_index, self._count = process_index, count

  def __len__(self) -> int:
    return self._count if self._count == ENDLESS else -(-self._count // self._batch_size)

  def __getitem__(self, number: int) -> tuple[Batch, BatchInfo]:
    first = number * self._batch_size + self._process_index * self._rows
    positions = range(first, max(first, min(first + self._rows, self._count)))
    places = [self._mixture[p] for p in positions]
    names = [self._mixture.names[p.source] for p in places]
    examples = self._read(places)
    encoded = [self._encode(e, name, p.index) for e, name, p in zip(examples, names, places, strict=True)]
    config = self._config
    bucket = batches.Bucket(config.lengths[0], 0, config.targets)
    if encoded:
      bucket = batches.bucket_of(encoded, lengths=config.lengths, tiles=config.tiles, targets=config.targets)
    batch = batches.collate(encoded, **bucket._asdict(), pad_id=self._processor.pad_id, batch_size=self._rows)
    info = BatchInfo(
      bucket=bucket,
      samples=len(encoded),
      tokens=sum(len(e.tokens) for e in encoded),
      targets=sum(int(np.count_nonzero(e.loss_mask)) for e in encoded),
      tiles=sum(len(e.tiles) for e in encoded),
      sources=Counter(names),
      tasks=Counter(e.task for e in examples),
      epoch=self._mixture.epoch(number * self._batch_size),
      ids=tuple(_id(e, name, p.index) for e, name, p in zip(examples, names, places, strict=True)),
    )
    return batch, info

  def _read(self, places) -> list[Example]:
    """Reads each source's part in one go, and puts all in order again."""
    examples: list = [None] * len(places)
    for source in sorted({p.source for p in places}):
      rows = [row for row, p in enumerate(places) if p.source == source]
      for row, example in zip(
        rows, read(self._sources[source], [places[r].index for r in rows]), strict=True
      ):
        examples[row] = example
    return examples

  def _encode(self, example: Example, name: str, index: int):
    where = f"data source {name!r}, example {index}" + (f" (id {example.id!r})" if example.id else "")
    try:
      encoded = self._processor.encode(example)
      check_encoded(encoded, self._processor.layout, longest=self._config.lengths[-1])
    except UserError as error:
      raise UserError(f"{where}: {error}") from error
    return encoded


def _id(example: Example, source: str, index: int) -> str:
  return f"{source}[{index}]" + (f" ({example.id})" if example.id else "")


def _prefetched(stream: BatchSequence, config: DataConfig) -> grain.IterDataset:
  options = grain.ReadOptions(num_threads=config.workers, prefetch_buffer_size=config.prefetch)
  return grain.MapDataset.source(stream).to_iter_dataset(options)


def _mixture(configs: Mapping[str, SourceConfig], opened: Mapping[str, Source], **kwargs) -> Mixture:
  lengths = {name: len(opened[name]) if name in opened else 0 for name in configs}
  return Mixture(lengths, {name: config.weight for name, config in configs.items()}, **kwargs)


def _known(kinds: Mapping[str, Callable], kind: str, what: str) -> Callable:
  if kind not in kinds:
    raise UserError(f"data source kind {kind!r} holds no {what}; {nearest(kind, kinds)}")
  return kinds[kind]


def _skills(config: SourceConfig) -> Source:
  from spatialvlm.data.scenes.skills import SceneSkills

  return SceneSkills(config.seed, config.tasks, config.image_size)


def _scene_questions(config: SourceConfig) -> Sequence[Question]:
  from spatialvlm.data.scenes.questions import SceneQuestions

  return SceneQuestions(config.seed, config.tasks, config.image_size)


def _cvbench(config: SourceConfig) -> Sequence[Question]:
  from spatialvlm.data.cvbench import open_cvbench

  return open_cvbench(config.path, revision=config.revision, split=config.split, size=config.size)


def _llava(config: SourceConfig) -> Source:
  from spatialvlm.data.llava import Llava

  if not config.path:
    raise UserError("a source of kind 'llava' needs a `path`: a .json or .jsonl file")
  return Llava(config.path, config.image_root, config.size)


def _hub_examples(config: SourceConfig) -> Source:
  from spatialvlm.data.hub import HubExamples, open_dataset

  rows = open_dataset(config.path, split=config.split, revision=config.revision)
  return HubExamples(rows, config.columns, config.path, config.size)


def _hub_questions(config: SourceConfig) -> Sequence[Question]:
  from spatialvlm.data.hub import HubQuestions, open_dataset

  rows = open_dataset(config.path, split=config.split, revision=config.revision)
  return HubQuestions(rows, config.columns, config.path, config.size)


QUESTIONS: dict[str, Callable[[SourceConfig], Sequence[Question]]] = {
  "scenes": _scene_questions,
  "cvbench": _cvbench,
  "hf": _hub_questions,
}

SOURCES: dict[str, Callable[[SourceConfig], Source]] = {
  "scenes": lambda config: QuestionExamples(_scene_questions(config)),
  "skills": _skills,
  "cvbench": lambda config: QuestionExamples(_cvbench(config)),
  "llava": _llava,
  "hf": _hub_examples,
}
