"""The evaluation: questions through the serving engine, rows kept as they come, summed up at the end."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from spatialvlm import workdir
from spatialvlm.config import ScoreConfig
from spatialvlm.data.sources import registry
from spatialvlm.evaluation import records
from spatialvlm.evaluation.asking import asks, protocols
from spatialvlm.evaluation.asking.asks import Asker
from spatialvlm.evaluation.asking.controls import DONATED, OtherImages
from spatialvlm.evaluation.asking.protocols import Prompter
from spatialvlm.evaluation.records import SIGHTED, Key, Prediction
from spatialvlm.evaluation.scoring import baselines
from spatialvlm.evaluation.scoring.summary import summarize
from spatialvlm.serving.engine import Engine
from spatialvlm.serving.feature_store import open_store
from spatialvlm.serving.pictures import Pictures
from spatialvlm.serving.requests import Request
from spatialvlm.serving.scorer import Scorer
from spatialvlm.types import Question, UserError

SUMMARY_FILE = "summary.json"
# Threads that decode, cut and tokenise ahead of the device: one a core, where cores are few. The tiles of a
# question may hold 13 MB for each image it is shown with, so they are not far ahead.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
WORKERS = min(max(CORES, 2), 8)
# Questions that a thread takes at once, and blocks that the threads may be ahead.
BLOCK = 4
AHEAD = WORKERS + 1


@dataclasses.dataclass(frozen=True)
class Result:
  """What an evaluation found.

  Attributes:
    rows: predictions of the headline pass, in the order of the questions.
    summary: as in `summary.json`.
    all_rows: those of every pass, as in `predictions.jsonl`.
    notes: lines for the screen on how it went; none of them belongs to the results.
  """

  rows: tuple[Prediction, ...]
  summary: Mapping[str, Any]
  all_rows: tuple[Prediction, ...] = ()
  notes: tuple[str, ...] = ()

  @property
  def passes(self) -> dict[tuple[str, str], list[Prediction]]:
    """The rows of every pass by (protocol, condition), the headline among them."""
    return records.passes(self.all_rows)


def evaluate(
  questions: Sequence[Question],
  scorer: Scorer,
  prompter: Prompter,
  config: ScoreConfig,
  *,
  folder: pathlib.Path | None = None,
  on_progress: Callable[[int, int], None] | None = None,
  on_note: Callable[[str], None] | None = None,
) -> Result:
  """Asks multiple-choice questions, in every pass that the config names.

  A row's numbers do not depend on its neighbours or on their order: shapes are those of its own prompt.
  On several processes all of them score together, and the first writes.

  Args:
    questions: random access; `questions.ids`, where it exists, are their `idx`, so that those that are done
      need not be decoded again.
    folder: where `predictions.jsonl` grows and `summary.json` ends; what it holds already is continued. None
      keeps everything in memory. Its owner sees to it (`workdir.claim`) that it belongs to this model.
    on_progress: called with the questions done so far and all; of several passes, the share of their rows.
    on_note: called with a few words on what takes long at the moment, "" when that is over.

  Raises:
    UserError: an unknown protocol or control; a question stands twice, does not fit the buckets, or cannot be
      asked under a control; the folder's predictions are damaged, or of other questions or passes;
      numbers are not finite; the disk is full; `config.features` cannot be written.
  """
  protocols.check(config)
  count = min(len(questions), config.limit) if config.limit else len(questions)
  if not count:
    raise UserError("there are no questions to score; look at the data's path, tasks and size")
  rows = {row.key: row for row in _recorded(folder)}
  ids = getattr(questions, "ids", None)
  order: dict[int, int] = {} if ids is None else {i: int(idx) for i, idx in enumerate(ids[:count])}
  _refuse_foreign(rows.values(), order.values() if order else None, config)
  open_keys = _open_keys(rows, config)
  finished = {idx for idx, missing in open_keys.items() if not missing}
  todo = [i for i in range(count) if order.get(i) not in finished]
  if todo and DONATED & set(config.controls):
    todo = list(range(count))  # an image goes from question to question
  store = None
  if todo:
    identity = lambda: {"model": scorer.identity(), "images": prompter.identity()}
    store = open_store(config.features, identity, "score.features")
  engine = Engine(
    scorer,
    asks.engine_config(config),
    pad_id=prompter.pad_id,
    normal=prompter.normal,
    store=store,
    on_note=on_note,
  )
  pictures = Pictures(store, engine.has_image)
  writer = records.Writer(folder) if folder is not None and jax.process_index() == 0 else None
  work = _Work(questions, Asker(prompter, config, pictures), config, order, rows, open_keys)
  notes: tuple[str, ...] = ()
  try:
    for answers in engine.run(work.requests(todo, count)):
      item = [asks.row(answer, prompter.decode) for answer in answers]
      if writer is not None:
        writer.write(item)
      for row in item:
        rows[row.key] = row
        open_keys[row.idx].discard(row.key)
      if on_progress is not None:
        missing = sum(map(len, open_keys.values()))
        on_progress(len(open_keys) * len(rows) // (len(rows) + missing), count)
  finally:
    if store is not None:
      notes += (store.close(),)
    if writer is not None:
      writer.close()
  result = _in_order(rows, [order[i] for i in range(count)], config)
  summary = summarize(result, config)
  if writer is not None:
    records.rewrite(folder, result)
    workdir.write_json(folder / SUMMARY_FILE, summary)
  headline = records.passes(result)[config.protocols[0], SIGHTED]
  return Result(tuple(headline), summary, result, notes)


class _Work:
  """Reads questions and makes their requests, in threads but in order."""

  def __init__(
    self,
    questions: Sequence[Question],
    asker: Asker,
    config: ScoreConfig,
    order: dict[int, int],
    done: Collection[Key],
    open_keys: dict[int, set[Key]],
  ):
    """`order` (place -> idx) and `open_keys` (idx -> rows that are missing) are filled as questions come."""
    self._questions, self._asker, self._config = questions, asker, config
    self._order, self._done, self._open = order, done, open_keys

  def requests(self, todo: Sequence[int], count: int) -> Iterator[Request]:
    """The requests of the questions in these places whose rows are missing."""
    rest = set(todo)
    seen = {idx for i, idx in self._order.items() if i not in rest}
    blocks = [todo[i : i + BLOCK] for i in range(0, len(todo), BLOCK)]
    read = _ahead(lambda block: [(i, *self._hashed(q)) for i, q in self._read(block)], blocks)
    checked = self._checked(itertools.chain.from_iterable(read), seen)
    for requests in _ahead(self._asked, self._paired(checked)):
      yield from requests

  def _read(self, block: Sequence[int]) -> Iterator[tuple[int, Question]]:
    return zip(block, registry.read(self._questions, block), strict=True)

  def _hashed(self, question: Question) -> tuple[Question, str]:
    return question, records.images_hash(question.images)

  def _checked(
    self, items: Iterable[tuple[int, Question, str]], seen: set[int]
  ) -> Iterator[tuple[Question, str]]:
    for i, question, image in items:
      idx = int(question.idx)
      if idx in seen:
        raise UserError(f"question {idx} stands twice in the data; each idx must be there once")
      seen.add(idx)
      self._order[i] = idx
      missing = set(asks.keys_of_question(question, self._config)) - set(self._done)
      self._open[idx] = missing
      yield question, image

  def _paired(self, items: Iterable[tuple[Question, str]]) -> Iterator[tuple]:
    """(question, hash, missing rows, the question whose image it is shown with that image's hash)."""
    if not DONATED & set(self._config.controls):
      for question, image in items:
        yield question, image, self._missing(question), None
      return
    others, hashes = OtherImages(), {}
    for question, image in items:
      sighted = {key for key in self._missing(question) if key[1] not in DONATED}
      # Questions that wait for a later image are few: those on the first image of each task.
      hashes[int(question.idx)] = image
      yield question, image, sighted, None
      for asked, other in others(records.image_name(question), question):
        missing = {key for key in self._missing(asked) if key[1] in DONATED}
        donor = other, hashes[int(other.idx)]
        yield asked, hashes[int(asked.idx)], missing, donor
    others.close()

  def _missing(self, question: Question) -> set[Key]:
    return set(self._open[int(question.idx)])

  def _asked(self, item: tuple) -> list[Request]:
    question, image, missing, donor = item
    if not missing:
      return []
    return self._asker.requests(question, image, baselines.rule_letters(question), missing, donor)


def _open_keys(rows: Mapping[Key, Prediction], config: ScoreConfig) -> dict[int, set[Key]]:
  """The rows that are missing, by the `idx` of each question that has one already."""
  first: dict[int, Prediction] = {}
  for row in rows.values():
    first.setdefault(row.idx, row)
  return {idx: set(asks.keys_of_row(row, config)) - rows.keys() for idx, row in first.items()}


def _ahead(fn: Callable[[Any], Any], inputs: Iterable[Any]) -> Iterator[Any]:
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


def _in_order(
  rows: Mapping[Key, Prediction], order: Sequence[int], config: ScoreConfig
) -> tuple[Prediction, ...]:
  """The rows in the order of passes, questions and rotations."""
  _refuse_foreign(rows.values(), order, config)
  passes = _passes(config)
  place = {idx: i for i, idx in enumerate(order)}
  found = sorted(rows.values(), key=lambda r: (passes.index(r.key[:2]), place[r.idx], r.shift))
  return tuple(found)


def _refuse_foreign(rows: Collection[Prediction], known: Collection[int] | None, config: ScoreConfig) -> None:
  """Raises a UserError where kept rows are of other questions or passes.

  Args:
    known: the `idx` of all questions; None while they are not known.
  """
  foreign = {row.idx for row in rows} - set(known) if known is not None else ()
  if foreign:
    raise UserError(
      f"{records.FILE} holds question {min(foreign)}, which is not in the data; name another --workdir"
    )
  passes = _passes(config)
  strange = next((row.key for row in rows if row.key[:2] not in passes), None)
  if strange:
    raise UserError(
      f"{records.FILE} holds {strange[1]} answers of protocol {strange[0]!r}, for which these settings do not"
      " ask; name another --workdir"
    )


def _passes(config: ScoreConfig) -> list[tuple[str, str]]:
  headline = config.protocols[0]
  return [(protocol, SIGHTED) for protocol in config.protocols] + [(headline, c) for c in config.controls]
