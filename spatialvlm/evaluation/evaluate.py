"""The evaluation: questions through a scorer in bucketed batches, kept as they come, summed up at the end."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from spatialvlm import workdir
from spatialvlm.config import ScoreConfig
from spatialvlm.data import batch as batch_lib
from spatialvlm.data import sources
from spatialvlm.evaluation import baselines, cvbench, records, statistics
from spatialvlm.evaluation.protocols import Encoder, Prompt
from spatialvlm.evaluation.records import Prediction
from spatialvlm.evaluation.score import FeaturePool, Scorer
from spatialvlm.types import Question, UserError

SUMMARY_FILE = "summary.json"
# Threads that decode and tokenise ahead of the device, questions that they take at once, and blocks that they
# may be ahead. A question of 17 tiles of 512 pixels holds 53 MB until it is placed, so these are few.
WORKERS = 2
BLOCK = 4
AHEAD = 3
# Options of a batch; a question with more of them makes it double.
OPTIONS = 8


@dataclasses.dataclass(frozen=True)
class Result:
  """Predictions in the order of the questions, and their summary (as in `summary.json`)."""

  rows: tuple[Prediction, ...]
  summary: Mapping[str, Any]


def evaluate(
  questions: Sequence[Question],
  scorer: Scorer,
  encoder: Encoder,
  config: ScoreConfig,
  *,
  folder: pathlib.Path | None = None,
  on_progress: Callable[[int, int], None] | None = None,
) -> Result:
  """Scores multiple-choice questions.

  A question's numbers do not depend on its neighbours or on their order: shapes are those of its own bucket.
  On several processes all of them score together, and the first writes.

  Args:
    questions: random access; `questions.ids`, where it exists, are their `idx`, so that those that are done
      need not be decoded again.
    folder: where `predictions.jsonl` grows and `summary.json` ends; what it holds already is continued. None
      keeps everything in memory. Its owner sees to it (`workdir.claim`) that it belongs to this model.
    on_progress: called with the questions done so far and all.

  Raises:
    UserError: a question stands twice, or does not fit the buckets; the folder's predictions are damaged or
      of other questions; log-probabilities are not finite; the disk is full.
  """
  count = min(len(questions), config.limit) if config.limit else len(questions)
  if not count:
    raise UserError("there are no questions to score; look at the data's path, tasks and size")
  done = {row.idx: row for row in _recorded(folder)}
  ids = getattr(questions, "ids", None)
  known = [None] * count if ids is None else [int(i) for i in ids[:count]]
  todo = [i for i in range(count) if known[i] is None or known[i] not in done]
  writer = records.Writer(folder) if folder is not None and jax.process_index() == 0 else None
  engine = _Engine(scorer, encoder, config)
  rows = dict(done)
  order = dict(enumerate(known))
  try:
    for item in engine.run(_prepared(questions, encoder, todo, order, done)):
      if writer is not None:
        writer.write(item)
      rows.update((row.idx, row) for row in item)
      if on_progress is not None:
        on_progress(len(rows), count)
  finally:
    if writer is not None:
      writer.close()
  result = _in_order(rows, [order[i] for i in range(count)])
  summary = summarize(result, config)
  if writer is not None:
    records.rewrite(folder, result)
    workdir.write_json(folder / SUMMARY_FILE, summary)
  return Result(result, summary)


def summarize(rows: Sequence[Prediction], config: ScoreConfig) -> dict[str, Any]:
  """Every aggregation of these rows, with intervals, beside guessing and the other baselines.

  `scores[name]` holds score, low, high (95 %), n and guessing; names are `official`, `official/2D`,
  `official/3D` (where the formula applies: `official_note` says why not), `plain`, `type/...`, `task/...`,
  `source/...` and `source_dataset/...`. `baselines[baseline][name]` is that baseline's score.
  """
  table = cvbench.aggregation(rows)
  correct_N = np.array([row.correct for row in rows], float)
  values, counts = table.values(correct_N), table.counts()
  shortcuts = baselines.priors(rows, config.seed) | baselines.rules(rows)
  shortcuts = {name: table.values(right) for name, right in shortcuts.items()}
  spread = statistics.intervals(rows, correct_N, resamples=config.bootstrap, seed=config.seed)
  letters = records.LETTERS[: max(len(row.choices) for row in rows)]
  return {
    "protocol": config.protocol,
    "questions": len(rows),
    "images": len({row.image for row in rows}),
    "official_note": table.why_not_official,
    "scores": {
      name: {
        "score": value,
        "low": spread[name][0],
        "high": spread[name][1],
        "n": counts[name],
        "guessing": shortcuts["guessing"][name],
      }
      for name, value in values.items()
    },
    "baselines": shortcuts,
    "letters": {
      letter: {
        "gold": sum(row.gold == letter for row in rows),
        "chosen": sum(row.choice == letter for row in rows),
      }
      for letter in letters
    },
  }


@dataclasses.dataclass(frozen=True, eq=False)
class _Item:
  """A question on its way.

  Attributes:
    image: hash of its pixels, the key of its features.
    rules: see `Prediction`.
    slots: of its tiles, once they are placed.
  """

  question: Question
  image: str
  prompt: Prompt
  rules: Mapping[str, str]
  slots: tuple[int, ...] = ()


class _Engine:
  """Groups questions into batches of one bucket; keeps one batch on its way while the next is made."""

  def __init__(self, scorer: Scorer, encoder: Encoder, config: ScoreConfig):
    self._scorer, self._encoder, self._config = scorer, encoder, config
    self._batch_size = -(-config.batch_size // scorer.multiple) * scorer.multiple
    # A full batch of the largest bucket must always find room.
    self._pool = FeaturePool(scorer, max(config.pool_tiles, self._batch_size * max(config.tiles)))
    self._queues: dict[batch_lib.Bucket, list[_Item]] = collections.defaultdict(list)
    self._flying: collections.deque = collections.deque()

  def run(self, items: Iterator[_Item]) -> Iterator[list[Prediction]]:
    for item in items:
      encoded = item.prompt.encoded
      bucket = batch_lib.bucket_of(
        [encoded], lengths=self._config.lengths, tiles=self._config.tiles, targets=0
      )
      slots = None
      while slots is None:
        slots = self._pool.place(item.image, encoded.tiles)
        if slots is None:
          self._launch(max(self._queues, key=lambda b: len(self._queues[b])))
      self._queues[bucket].append(_placed(item, slots))
      if len(self._queues[bucket]) == self._batch_size:
        self._launch(bucket)
      while len(self._flying) > 1:
        yield self._land()
    for bucket in sorted(self._queues):
      if self._queues[bucket]:
        self._launch(bucket)
    while self._flying:
      yield self._land()

  def _launch(self, bucket: batch_lib.Bucket) -> None:
    items, self._queues[bucket] = self._queues[bucket], []
    batch = batch_lib.collate(
      [item.prompt.encoded for item in items],
      length=bucket.length,
      tiles=0,
      targets=0,
      pad_id=self._encoder.pad_id,
      batch_size=self._batch_size,
    )
    # Padding rows repeat no question: one token that nobody reads keeps attention's softmax defined.
    batch.valid_BT[len(items) :, 0] = True
    if bucket.tiles:
      index_BI = np.full((self._batch_size, bucket.tiles), -1, np.int32)
      for row, item in enumerate(items):
        index_BI[row, : len(item.slots)] = item.slots
      features = self._pool.features([slot for item in items for slot in item.slots])
      batch = dataclasses.replace(batch, features_NPD=features, tile_index_BI=index_BI)
    for item in items:
      self._pool.release(item.image)
    options = _options([item.prompt.option_ids for item in items], self._batch_size)
    self._flying.append((items, self._scorer(batch, *options)))

  def _land(self) -> list[Prediction]:
    items, logprob_BK = self._flying.popleft()
    found = np.asarray(logprob_BK)
    return [
      records.predict(item.question, found[row, : len(item.question.choices)], item.rules)
      for row, item in enumerate(items)
    ]


def _placed(item: _Item, slots: tuple[int, ...]) -> _Item:
  """The item without its pixels, which the pool has now."""
  encoded = item.prompt.encoded
  light = dataclasses.replace(encoded, tiles=encoded.tiles[:0])
  return dataclasses.replace(item, prompt=item.prompt._replace(encoded=light), slots=slots)


def _options(ids: Sequence[np.ndarray], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  width = OPTIONS
  while width < max(map(len, ids)):
    width *= 2
  ids_BK = np.zeros((batch_size, width), np.int32)
  mask_BK = np.zeros((batch_size, width), bool)
  for row, options in enumerate(ids):
    ids_BK[row, : len(options)] = options
    mask_BK[row, : len(options)] = True
  return ids_BK, mask_BK


def _prepared(
  questions: Sequence[Question],
  encoder: Encoder,
  todo: Sequence[int],
  order: dict[int, int],
  done: Mapping[int, Prediction],
) -> Iterator[_Item]:
  """Decodes and encodes in threads, in order; fills `order` with each place's `idx`; skips what is done."""

  def prepare(block: Sequence[int]) -> list[_Item | int]:
    found = sources.read(questions, block)
    return [int(q.idx) if int(q.idx) in done else _item(q, encoder) for q in found]

  rest = set(todo)
  seen = {idx for i, idx in order.items() if i not in rest}
  blocks = [todo[i : i + BLOCK] for i in range(0, len(todo), BLOCK)]
  for block, items in zip(blocks, _ahead(prepare, blocks), strict=True):
    for i, item in zip(block, items, strict=True):
      order[i] = item if isinstance(item, int) else int(item.question.idx)
      if order[i] in seen:
        raise UserError(f"question {order[i]} stands twice in the data; each idx must be there once")
      seen.add(order[i])
      if not isinstance(item, int):
        yield item


def _item(question: Question, encoder: Encoder) -> _Item:
  return _Item(
    question, records.image_hash(question.image), encoder(question), baselines.rule_letters(question)
  )


def _ahead(fn: Callable[[Any], Any], inputs: Sequence[Any]) -> Iterator[Any]:
  """`map(fn, inputs)` by a few threads, never more than `AHEAD` results in advance."""
  with concurrent.futures.ThreadPoolExecutor(WORKERS) as executor:
    rest = iter(inputs)
    waiting = collections.deque(executor.submit(fn, x) for x in itertools.islice(rest, AHEAD))
    try:
      while waiting:
        result = waiting.popleft().result()
        waiting.extend(executor.submit(fn, x) for x in itertools.islice(rest, 1))
        yield result
    finally:
      executor.shutdown(cancel_futures=True)


def _recorded(folder: pathlib.Path | None) -> list[Prediction]:
  """What an earlier start has scored: the first process reads it, and all know it."""
  if folder is None:
    return []
  rows = records.read(folder) if jax.process_index() == 0 else []
  if jax.process_count() == 1:
    return rows
  from jax.experimental import multihost_utils

  data = np.frombuffer("".join(row.to_json() + "\n" for row in rows).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
  padded = data if jax.process_index() == 0 else np.zeros(size, np.uint8)
  return records.parse(bytes(multihost_utils.broadcast_one_to_all(padded)), "predictions")


def _in_order(rows: Mapping[int, Prediction], order: Sequence[int]) -> tuple[Prediction, ...]:
  foreign = rows.keys() - set(order)
  if foreign:
    raise UserError(
      f"{records.FILE} holds question {min(foreign)}, which is not in the data; name another --workdir"
    )
  return tuple(rows[idx] for idx in order)
