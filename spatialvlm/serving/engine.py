"""Requests in batches of one shape each; what they share is computed once.

Images' features and prefixes stay in pools; a request's text is read once for all that is wanted of it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from spatialvlm import generation
from spatialvlm.serving import padding
from spatialvlm.serving.feature_store import FeatureStore, Place
from spatialvlm.serving.pool import SlotPool
from spatialvlm.serving.requests import Answer, EngineConfig, Generated, Letters, Request, Texts, buckets
from spatialvlm.serving.scorer import Drawn, Scorer
from spatialvlm.types import Batch, UserError

# Tiles that one call of the vision tower encodes: enough to keep a device busy, and one compiled shape only.
CHUNK, CHUNK_ON_CPU = 16, 4
# Batches of one shape that wait until the prefixes of the first have filled a batch.
PATIENCE = 4
# Where a generated answer pauses, in tokens. Most end before the first: a short cache is read faster, and the
# few that go on do so together, each behind its prompt and all that it has said so far.
PAUSES = (32, 256)


class Shape(NamedTuple):
  """What one compiled program reads.

  Attributes:
    prefix, text: tokens, padding included.
    tiles: of the image, padding included.
    room: for what follows the prompt.
    width: tokens of an option's text, padding included.
  """

  prefix: int
  tiles: int
  text: int
  room: int
  width: int


class Queue(NamedTuple):
  """What requests of one batch have in common.

  Attributes:
    stop: the tokens that end all of their answers.
    temperature, top_p: how these are drawn (`requests.Generated`).
  """

  shape: Shape
  stop: tuple[int, ...]
  temperature: float = 0.0
  top_p: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class _Tile:
  """A tile on its way to the device: its pixels, uint8 (S, S, 3), or its features (P, D).

  `priors`: beside pixels, what each prior says of its tokens, (P, C) by name.
  """

  place: Place
  row: np.ndarray
  priors: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class _Prefix:
  """A prefix that waits to be read: its tokens, and the slots of its images' tiles."""

  tokens: np.ndarray
  image_slot: np.ndarray
  image: Hashable | None
  slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Pending:
  """A request that waits for its batch.

  Attributes:
    key, slot: of its prefix in the pool.
    said: int32 (T,), what has been generated so far.
  """

  request: Request
  key: Hashable
  slot: int
  said: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))

  @property
  def text(self) -> np.ndarray:
    """What is read behind the prefix."""
    return np.concatenate([self.request.tokens[self.request.text_start :], self.said])


@dataclasses.dataclass(frozen=True, eq=False)
class _InFlight:
  """A batch on the device: the requests of its rows, and the results that are on their way.

  Attributes:
    finite: of each row, whether all logits behind its prompt are.
    limit: tokens that were generated at most.
  """

  shape: Shape
  items: list[_Pending]
  finite: Any
  letters: Any = None
  texts: Any = None
  generated: Any = None
  limit: int = 0


class Engine:
  """Groups requests into batches of one shape; keeps one batch in flight while the next is made."""

  def __init__(
    self,
    scorer: Scorer,
    config: EngineConfig,
    *,
    pad_id: int = 0,
    normal: np.ndarray | None = None,
    store: FeatureStore | None = None,
    on_note: Callable[[str], None] | None = None,
  ):
    """An engine with empty pools.

    Args:
      pad_id: token that fills batches; it changes no answer.
      normal: float32 (256, C), what the vision tower takes for each value of a pixel, for pictures of uint8
        tiles; None for pictures of normalised ones.
      store: keeps images' features on disk.
      on_note: called with a few words on what takes long at the moment, "" when that is over.
    """
    self._scorer, self._config, self._store = scorer, config, store
    self._pad_id, self._normal = pad_id, normal
    self._on_note, self._noted = on_note, ""
    shards = scorer.multiple
    self._batch = -(-config.batch_size // shards) * shards
    chunk = CHUNK_ON_CPU if jax.default_backend() == "cpu" else CHUNK
    self._chunk = -(-chunk // shards) * shards
    # A full batch of the largest images must always find room.
    slots = max(config.pool_tiles, self._batch * max(config.tiles))
    self._images = SlotPool(slots, self._chunk, self._encode, self._restore)
    self._prefixes: dict[tuple[int, int], SlotPool] = {}
    self._queues: dict[Queue, list[_Pending]] = collections.defaultdict(list)
    self._in_flight: collections.deque[_InFlight] = collections.deque()

  def has_image(self, key: Hashable) -> bool:
    """Whether an image's features are on the device, or about to be. Safe to ask from any thread."""
    return key in self._images

  def run(self, requests: Iterable[Request]) -> Iterator[list[Answer]]:
    """The answers to all requests, as they come; requests are drawn as there is room for them.

    Raises:
      UserError: a request does not fit the buckets, or its logits are not finite; it is named.
    """
    if self._in_flight or any(self._queues.values()):
      raise RuntimeError("an earlier run of this engine was left before its end; make a new engine")
    for request in requests:
      if request.bidirectional != self._scorer.bidirectional:
        raise ValueError(f"{request.name}: bidirectional={request.bidirectional}, unlike the model's prompts")
      queue = self._queue(request)
      while (pending := self._placed(request, queue.shape)) is None:
        if any(self._queues.values()):
          self._launch(max(self._queues, key=lambda q: len(self._queues[q])))
        else:
          yield self._land()
      self._queues[queue].append(pending)
      while (full := next(filter(self._due, list(self._queues)), None)) is not None:
        self._launch(full)
      while len(self._in_flight) > 1:
        yield self._land()
    while self._in_flight or any(self._queues.values()):
      for queue in sorted(q for q, waiting in self._queues.items() if waiting):
        self._launch(queue)
      while self._in_flight:
        yield self._land()

  def _due(self, queue: Queue) -> bool:
    """Whether a full batch waits, and its prefixes are read, or it has waited long enough for others.

    Prefixes are read in full batches too: launched at once, a batch would have them read with half a batch.
    """
    waiting = self._queues[queue]
    if len(waiting) < self._batch:
      return False
    slots = [pending.slot for pending in waiting[: self._batch]]
    return len(waiting) >= PATIENCE * self._batch or self._pool(queue.shape).ready(slots)

  def _queue(self, request: Request, said: int = 0) -> Queue:
    """Where a request waits of whose answer `said` tokens are known."""
    tiles, text = buckets(request, self._config)
    longest = max((len(text) for want in request.of(Texts) for text in want.texts), default=0)
    width = generation.bucket(longest, 4) if longest > 1 else longest
    generated = request.of(Generated)
    limit = max((want.limit for want in generated), default=0)
    pause = next((p for p in PAUSES if said < p < limit), limit)
    shape = Shape(
      prefix=generation.bucket(request.prefix, 16),
      tiles=tiles,
      text=text + said,
      room=max(pause - said, width),
      width=width,
    )
    first, *others = [want.stop for want in generated] or [()]
    stop = tuple(t for t in first if all(t in stop for stop in others))
    return Queue(shape, stop, *request.draw[:2])

  def _placed(self, request: Request, shape: Shape) -> _Pending | None:
    """The request with its prefix in the pool; None where waiting ones hold all of it."""
    pool = self._pool(shape)
    tokens = request.tokens[: request.prefix]
    key = request.image, tokens.tobytes()
    slots = pool.hold(key)
    if slots is None:
      image = self._image(request)
      slots = pool.place(key, [_Prefix(tokens, request.image_slot[: request.prefix], request.image, image)])
      if slots is None:
        if request.image is not None:
          self._images.release(request.image)
        return None
    return _Pending(dataclasses.replace(request, picture=None), key, slots[0])

  def _image(self, request: Request) -> tuple[int, ...]:
    if request.image is None:
      return ()
    slots = self._images.hold(request.image)
    if slots is None:
      picture = request.picture()
      known = picture.features is not None
      rows = picture.features if known else picture.tiles
      if len(rows) != request.tile_count:
        raise ValueError(f"{request.name}: {len(rows)} tiles, where its prompt has {request.tile_count}")
      said = lambda i: {name: values[i] for name, values in picture.priors.items()}
      items = [_Tile(Place(request.image, i, len(rows)), row, said(i)) for i, row in enumerate(rows)]
      slots = self._images.place(request.image, items, known)
      if slots is None:  # prefixes that wait to be read hold the rest
        for pool in self._prefixes.values():
          pool.flush()
        slots = self._images.place(request.image, items, known)
    return slots

  def _pool(self, shape: Shape) -> SlotPool:
    key = shape.prefix, shape.tiles
    if key not in self._prefixes:
      slots = max(self._config.pool_prefixes or 2 * self._batch, self._batch)
      self._prefixes[key] = SlotPool(slots, self._batch, lambda rows: self._read_prefixes(rows, *key))
    return self._prefixes[key]

  def _encode(self, tiles: Sequence[_Tile]) -> Any:
    priors = {
      name: padding.stacked([tile.priors[name] for tile in tiles], self._chunk) for name in tiles[0].priors
    }
    pixels = padding.stacked([tile.row for tile in tiles], self._chunk)
    rows = self._scorer.encode(pixels, self._normal, **({"priors": priors} if priors else {}))
    if self._store is not None:
      self._store.add([tile.place for tile in tiles], rows)
    return rows

  def _restore(self, tiles: Sequence[_Tile]) -> Any:
    return self._scorer.features(padding.stacked([tile.row for tile in tiles], self._chunk))

  def _read_prefixes(self, prefixes: Sequence[_Prefix], length: int, tiles: int) -> Any:
    tokens_BT, valid_BT = padding.texts([p.tokens for p in prefixes], self._batch, length, self._pad_id)
    slot_BT = np.full(tokens_BT.shape, -1, np.int32)
    index_BI = np.full((self._batch, tiles), -1, np.int32)
    for row, prefix in enumerate(prefixes):
      slot_BT[row, : len(prefix.tokens)] = prefix.image_slot
      index_BI[row, : len(prefix.slots)] = prefix.slots
    batch = Batch(tokens_BT=tokens_BT, valid_BT=valid_BT)
    if tiles:
      features = self._images.arrays([slot for prefix in prefixes for slot in prefix.slots])
      batch = dataclasses.replace(batch, features_NPD=features, tile_index_BI=index_BI, image_slot_BT=slot_BT)
    result = self._scorer.prefix(batch)
    for prefix in prefixes:
      if prefix.image is not None:
        self._images.release(prefix.image)
    return result

  def _launch(self, queue: Queue) -> None:
    shape, waiting = queue.shape, self._queues[queue]
    items, self._queues[queue] = waiting[: self._batch], waiting[self._batch :]
    self._note(shape, items)
    requests = [pending.request for pending in items]
    index_B = np.zeros(self._batch, np.int32)
    index_B[: len(items)] = [pending.slot for pending in items]
    prefixes = self._pool(shape).arrays([pending.slot for pending in items])
    texts = padding.texts([p.text for p in items], self._batch, shape.text, self._pad_id)
    read = self._scorer.read(prefixes, index_B, *texts, room=shape.room)
    batch = _InFlight(shape, items, read.finite_B)
    letters = [[(token,) for want in r.of(Letters) for token in want.tokens] for r in requests]
    if any(letters):
      tokens_BKT, valid_BKT = padding.options(letters, self._batch, 1)
      found = self._scorer.letters(read, tokens_BKT[..., 0], valid_BKT[..., 0])
      batch = dataclasses.replace(batch, letters=found)
    options = [[text for want in r.of(Texts) for text in want.texts] for r in requests]
    if any(options):
      found = self._scorer.texts(read, *padding.options(options, self._batch, shape.width))
      batch = dataclasses.replace(batch, texts=found)
    if any(r.of(Generated) for r in requests):
      rests = [self._most(pending.request) - len(pending.said) for pending in items]
      done_B = np.array([n <= 0 for n in rests] + [True] * (self._batch - len(items)))
      limit = min(max(rests), shape.room)
      drawn = self._drawn(queue, items)
      asked = (read, shape.room, limit, done_B, queue.stop, self._pad_id, *drawn)
      generated = self._scorer.generate(*asked)
      batch = dataclasses.replace(batch, generated=generated, limit=limit)
    else:
      for pending in items:
        self._pool(shape).release(pending.key)
    self._in_flight.append(batch)

  def _drawn(self, queue: Queue, items: Sequence[_Pending]) -> tuple[Drawn, ...]:
    """How the batch's tokens are drawn; nothing where they are not."""
    if not queue.temperature:
      return ()
    seed_B, said_B = np.zeros(self._batch, np.uint32), np.zeros(self._batch, np.int32)
    seed_B[: len(items)] = [pending.request.draw[2] for pending in items]
    said_B[: len(items)] = [len(pending.said) for pending in items]
    return (Drawn(queue.temperature, queue.top_p, seed_B, said_B),)

  def _note(self, shape: Shape, items: Sequence[_Pending]) -> None:
    """Long answers hold up a run: says so while they do."""
    said = [len(pending.said) for pending in items if len(pending.said)]
    words = ""
    if said:
      words = f"answers longer than {min(said)} tokens: {len(said)}, up to {max(said) + shape.room} tokens"
    if self._on_note is not None and words != self._noted:
      self._on_note(words)
    self._noted = words

  def _land(self) -> list[Answer]:
    batch = self._in_flight.popleft()
    finite = np.asarray(batch.finite)
    letters, texts, generated = (
      None if x is None else np.asarray(x) for x in (batch.letters, batch.texts, batch.generated)
    )
    found: list[Answer] = []
    for row, pending in enumerate(batch.items):
      request = pending.request
      if not finite[row]:
        raise _not_finite(request)
      for kind, values in ((Letters, letters), (Texts, texts)):
        start = 0
        for want in request.of(kind):
          count = len(want.tokens if kind is Letters else want.texts)
          found.append(Answer(want, logprobs=values[row, start : start + count]))
          start += count
      if generated is not None:
        found += self._generated(batch, pending, generated[row, : batch.limit])
    return found

  def _generated(self, batch: _InFlight, pending: _Pending, new_T: np.ndarray) -> list[Answer]:
    """The answers that are complete; a request with others waits for its next turn."""
    request, said = pending.request, np.concatenate([pending.said, new_T])
    found, rest = [], []
    for want in request.of(Generated):
      most = min(want.limit, self._most(request))
      tokens = said[:most]
      stops = np.flatnonzero(np.isin(tokens, want.stop))
      tokens = tokens[: stops[0]] if len(stops) else tokens
      if generation.BROKEN in tokens:
        raise _not_finite(request)
      if not len(stops) and len(tokens) < most:
        rest.append(want)
      else:
        stopped_by = int(said[stops[0]]) if len(stops) else -1
        found.append(Answer(want, tokens=tokens, ended=bool(len(stops)), stopped_by=stopped_by))
    if rest:
      request = dataclasses.replace(request, wanted=tuple(rest))
      queue = self._queue(request, len(said))
      self._queues[queue].append(dataclasses.replace(pending, request=request, said=said))
    else:
      self._pool(batch.shape).release(pending.key)
    return found

  def _most(self, request: Request) -> int:
    """Tokens that the longest answer to a request may have: its limit, or what the context leaves."""
    limit = max((want.limit for want in request.of(Generated)), default=0)
    return min(limit, max(self._scorer.max_length - len(request.tokens), 1))


def answers(scorer: Scorer, requests: Sequence[Request], *, pad_id: int = 0) -> list[Answer]:
  """The answers to a few requests, by an engine that is made for them; pictures are of normalised tiles.

  The answers to one request come in the order of what it wants (letters, texts, generated), those to several
  as they are ready. For many requests an `Engine` with settings of its own shares more and compiles less.

  Raises:
    UserError: logits are not finite.
  """
  texts = {generation.bucket(len(request.tokens) - request.text_start, 16) for request in requests}
  tiles = {generation.bucket(request.tile_count) for request in requests}
  config = EngineConfig(
    batch_size=len(requests), lengths=tuple(sorted(texts)), tiles=tuple(sorted(tiles)), pool_tiles=0
  )
  engine = Engine(scorer, config, pad_id=pad_id)
  return list(itertools.chain.from_iterable(engine.run(requests)))


def _not_finite(request: Request) -> UserError:
  return UserError(
    f"{request.name}: the logits are not finite; the model's numbers overflow: try dtype float32"
    " (--config.model.dtype=float32), or check its weights"
  )
