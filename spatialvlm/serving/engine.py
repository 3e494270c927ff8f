"""Prompts in batches of one shape each; what they share is computed once.

An image's features and its prefix stay in pools; a prompt's text is read once for all that is read off it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from spatialvlm import generation
from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation.asking import asks
from spatialvlm.evaluation.asking.asks import Reading, Stem
from spatialvlm.evaluation.asking.protocols import Prompter
from spatialvlm.evaluation.records import Prediction
from spatialvlm.serving.feature_store import FeatureStore, Place
from spatialvlm.serving.pool import SlotPool
from spatialvlm.serving.scorer import Scorer
from spatialvlm.types import Batch, UserError

# Tiles that one call of the vision tower encodes: enough to keep a device busy, and one compiled shape only.
CHUNK, CHUNK_ON_CPU = 16, 4
# Batches of one shape that wait until the prefixes of the first have filled a batch.
PATIENCE = 4
# Options of a batch; a question with more of them makes it double.
OPTIONS = 8
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


@dataclasses.dataclass(frozen=True, eq=False)
class _Tile:
  """A tile on its way to the device: its pixels, uint8 (S, S, 3), or its features (P, D)."""

  place: Place
  row: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Root:
  """A prefix that waits to be read: its tokens, and the slots of its image's tiles."""

  tokens: np.ndarray
  image_slot: np.ndarray
  shown: Hashable | None
  slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Waiting:
  """A prompt that waits for its batch, and what has been answered so far, int32 (T,)."""

  stem: Stem
  root: Hashable
  slot: int
  said: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))

  @property
  def text(self) -> np.ndarray:
    """What is read behind the prefix."""
    return np.concatenate([self.stem.tokens[self.stem.cut :], self.said])


@dataclasses.dataclass(frozen=True, eq=False)
class _Flight:
  """A batch on the device: what each of its rows is, and the results that are on their way.

  Attributes:
    limit: tokens that were generated at most.
  """

  shape: Shape
  items: list[_Waiting]
  finite: Any
  letters: Any = None
  texts: Any = None
  generated: Any = None
  limit: int = 0


class Engine:
  """Groups prompts into batches of one shape; keeps one batch on its way while the next is made."""

  def __init__(
    self,
    scorer: Scorer,
    prompter: Prompter,
    config: ScoreConfig,
    store: FeatureStore | None = None,
    on_note: Callable[[str], None] | None = None,
  ):
    self._scorer, self._prompter, self._config, self._store = scorer, prompter, config, store
    self._on_note, self._noted = on_note, ""
    shards = scorer.multiple
    self._batch = -(-config.batch_size // shards) * shards
    chunk = CHUNK_ON_CPU if jax.default_backend() == "cpu" else CHUNK
    self._chunk = -(-chunk // shards) * shards
    # A full batch of the largest images must always find room.
    slots = max(config.pool_tiles, self._batch * max(config.tiles))
    self._images = SlotPool(slots, self._chunk, self._encode, self._restore)
    self._prefixes: dict[tuple[int, int], SlotPool] = {}
    self._queues: dict[Shape, list[_Waiting]] = collections.defaultdict(list)
    self._flying: collections.deque[_Flight] = collections.deque()

  def has_image(self, key: Hashable) -> bool:
    """Whether an image's features are on the device, or about to be. Safe to ask from any thread."""
    return key in self._images

  def run(self, stems: Iterator[Stem]) -> Iterator[list[Prediction]]:
    """The rows of all readings, as they come."""
    for stem in stems:
      shape = self._shape(stem)
      while (item := self._placed(stem, shape)) is None:
        if any(self._queues.values()):
          self._launch(max(self._queues, key=lambda s: len(self._queues[s])))
        else:
          yield self._land()
      self._queues[shape].append(item)
      while (full := next(filter(self._due, list(self._queues)), None)) is not None:
        self._launch(full)
      while len(self._flying) > 1:
        yield self._land()
    while self._flying or any(self._queues.values()):
      for shape in sorted(s for s, queue in self._queues.items() if queue):
        self._launch(shape)
      while self._flying:
        yield self._land()

  def _due(self, shape: Shape) -> bool:
    """Whether a full batch waits, and its prefixes are read, or it has waited long enough for others.

    Prefixes are read in full batches too: launched at once, a batch would have them read with half a batch.
    """
    queue = self._queues[shape]
    if len(queue) < self._batch:
      return False
    slots = [item.slot for item in queue[: self._batch]]
    return len(queue) >= PATIENCE * self._batch or self._pool(shape).ready(slots)

  def _shape(self, stem: Stem, said: int = 0) -> Shape:
    """The shape in which a prompt is read of which `said` tokens of the answer are known."""
    text, tiles = len(stem.tokens) - stem.cut, stem.tile_count
    longest = max((len(a) for r in stem.readings for a in r.answers), default=0)
    width = generation.bucket(longest, 4) if longest > 1 else longest
    limit = max(r.limit for r in stem.readings)
    pause = next((p for p in PAUSES if said < p < limit), limit)
    # Behind a bidirectional prompt stand its last token and what the answer begins with: few.
    lengths = (generation.bucket(text, 4),) if stem.bidirectional else self._config.lengths
    return Shape(
      prefix=generation.bucket(stem.prefix, 16),
      tiles=_smallest(self._config.tiles, tiles, "image tiles", "tiles", stem) if tiles else 0,
      text=_smallest(lengths, text, "tokens", "lengths", stem) + said,
      room=max(pause - said, width),
      width=width,
    )

  def _placed(self, stem: Stem, shape: Shape) -> _Waiting | None:
    """The prompt with its prefix in the pool; None where waiting prompts hold all of it."""
    pool = self._pool(shape)
    prefix = stem.tokens[: stem.prefix]
    root = (stem.shown, prefix.tobytes())
    slots = pool.hold(root)
    if slots is None:
      image = self._image(stem)
      slots = pool.place(root, [_Root(prefix, stem.image_slot[: stem.prefix], stem.shown, image)])
      if slots is None:
        if stem.shown is not None:
          self._images.release(stem.shown)
        return None
    return _Waiting(dataclasses.replace(stem, picture=None), root, slots[0])

  def _image(self, stem: Stem) -> tuple[int, ...]:
    if stem.shown is None:
      return ()
    slots = self._images.hold(stem.shown)
    if slots is None:
      picture = stem.picture()
      known = picture.features is not None
      rows = picture.features if known else picture.tiles
      items = [_Tile(Place(stem.shown, i, len(rows)), row) for i, row in enumerate(rows)]
      slots = self._images.place(stem.shown, items, known)
      if slots is None:  # prefixes that wait to be read hold the rest
        for pool in self._prefixes.values():
          pool.flush()
        slots = self._images.place(stem.shown, items, known)
    return slots

  def _pool(self, shape: Shape) -> SlotPool:
    key = shape.prefix, shape.tiles
    if key not in self._prefixes:
      slots = max(self._config.pool_prefixes or 2 * self._batch, self._batch)
      self._prefixes[key] = SlotPool(slots, self._batch, lambda roots: self._read_prefixes(roots, *key))
    return self._prefixes[key]

  def _encode(self, tiles: Sequence[_Tile]) -> Any:
    rows = self._scorer.encode(self._stacked(tiles), self._prompter.normal)
    if self._store is not None:
      self._store.add([tile.place for tile in tiles], rows)
    return rows

  def _restore(self, tiles: Sequence[_Tile]) -> Any:
    return self._scorer.features(self._stacked(tiles))

  def _stacked(self, tiles: Sequence[_Tile]) -> np.ndarray:
    """Rows of tiles, padded to a chunk by zeros."""
    first = tiles[0].row
    rows = np.zeros((self._chunk, *first.shape), first.dtype)
    rows[: len(tiles)] = [tile.row for tile in tiles]
    return rows

  def _read_prefixes(self, roots: Sequence[_Root], length: int, tiles: int) -> Any:
    tokens_BT, valid_BT = self._texts([r.tokens for r in roots], length)
    slot_BT = np.full(tokens_BT.shape, -1, np.int32)
    index_BI = np.full((self._batch, tiles), -1, np.int32)
    for row, root in enumerate(roots):
      slot_BT[row, : len(root.tokens)] = root.image_slot
      index_BI[row, : len(root.slots)] = root.slots
    batch = Batch(tokens_BT=tokens_BT, valid_BT=valid_BT)
    if tiles:
      features = self._images.arrays([slot for root in roots for slot in root.slots])
      batch = dataclasses.replace(batch, features_NPD=features, tile_index_BI=index_BI, image_slot_BT=slot_BT)
    result = self._scorer.prefix(batch)
    for root in roots:
      if root.shown is not None:
        self._images.release(root.shown)
    return result

  def _texts(self, rows: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token rows padded on the right to a full batch: tokens_BT and valid_BT."""
    tokens_BT = np.full((self._batch, length), self._prompter.pad_id, np.int32)
    valid_BT = np.zeros((self._batch, length), bool)
    for row, tokens in enumerate(rows):
      tokens_BT[row, : len(tokens)] = tokens
      valid_BT[row, : len(tokens)] = True
    # Padding rows repeat no prompt: one token that nobody reads keeps attention's softmax defined.
    valid_BT[len(rows) :, 0] = True
    return tokens_BT, valid_BT

  def _launch(self, shape: Shape) -> None:
    queue = self._queues[shape]
    items, self._queues[shape] = queue[: self._batch], queue[self._batch :]
    self._note(shape, items)
    stems = [item.stem for item in items]
    index_B = np.zeros(self._batch, np.int32)
    index_B[: len(items)] = [item.slot for item in items]
    prefixes = self._pool(shape).arrays([item.slot for item in items])
    texts = self._texts([item.text for item in items], shape.text)
    read = self._scorer.read(prefixes, index_B, *texts, room=shape.room)
    kinds = {reading.kind for stem in stems for reading in stem.readings}
    flight = _Flight(shape, items, read.finite_B)
    if "letters" in kinds:
      flight = dataclasses.replace(flight, letters=self._scorer.letters(read, *self._letters(stems)))
    if "texts" in kinds:
      options = self._options(stems, shape.width)
      flight = dataclasses.replace(flight, texts=self._scorer.texts(read, *options))
    if "generated" in kinds:
      rests = [self._most(item.stem) - len(item.said) for item in items]
      done_B = np.array([n <= 0 for n in rests] + [True] * (self._batch - len(items)))
      limit = min(max(rests), shape.room)
      generated = self._scorer.generate(
        read, shape.room, limit, done_B, self._prompter.stop_ids, self._prompter.pad_id
      )
      flight = dataclasses.replace(flight, generated=generated, limit=limit)
    else:
      for item in items:
        self._pool(shape).release(item.root)
    self._flying.append(flight)

  def _note(self, shape: Shape, items: Sequence[_Waiting]) -> None:
    """Long answers hold up a run: says so while they do."""
    said = [len(item.said) for item in items if len(item.said)]
    words = ""
    if said:
      words = f"answers longer than {min(said)} tokens: {len(said)}, up to {max(said) + shape.room} tokens"
    if self._on_note is not None and words != self._noted:
      self._on_note(words)
    self._noted = words

  def _letters(self, stems: Sequence[Stem]) -> tuple[np.ndarray, np.ndarray]:
    readings = [_of_kind(stem, "letters") for stem in stems]
    ids_BK = np.zeros((self._batch, _options(readings)), np.int32)
    mask_BK = np.zeros(ids_BK.shape, bool)
    for row, reading in enumerate(readings):
      if reading is not None:
        ids_BK[row, : len(reading.letters)] = reading.letters
        mask_BK[row, : len(reading.letters)] = True
    return ids_BK, mask_BK

  def _options(self, stems: Sequence[Stem], width: int) -> tuple[np.ndarray, np.ndarray]:
    readings = [_of_kind(stem, "texts") for stem in stems]
    tokens_BKT = np.zeros((self._batch, _options(readings), width), np.int32)
    valid_BKT = np.zeros(tokens_BKT.shape, bool)
    for row, reading in enumerate(readings):
      for k, answer in enumerate(reading.answers if reading is not None else ()):
        tokens_BKT[row, k, : len(answer)] = answer
        valid_BKT[row, k, : len(answer)] = True
    return tokens_BKT, valid_BKT

  def _land(self) -> list[Prediction]:
    flight = self._flying.popleft()
    finite = np.asarray(flight.finite)
    letters, texts, generated = (
      None if x is None else np.asarray(x) for x in (flight.letters, flight.texts, flight.generated)
    )
    found: list[Prediction] = []
    for row, item in enumerate(flight.items):
      stem = item.stem
      for reading in stem.readings:
        if reading.kind != "generated":
          values = letters if reading.kind == "letters" else texts
          found.append(asks.row(stem, reading, logprobs=values[row]))
      if not finite[row]:
        raise _not_finite(stem)
      if generated is not None:
        found += self._answers(flight, item, generated[row, : flight.limit])
    return found

  def _answers(self, flight: _Flight, item: _Waiting, new_T: np.ndarray) -> list[Prediction]:
    """The rows of answers that are complete; a prompt with others waits for its next turn."""
    stem, said = item.stem, np.concatenate([item.said, new_T])
    found, rest = [], []
    for reading in stem.readings:
      if reading.kind != "generated":
        continue
      most = min(reading.limit, self._most(stem))
      tokens = said[:most]
      stops = np.flatnonzero(np.isin(tokens, self._prompter.stop_ids))
      tokens = tokens[: stops[0]] if len(stops) else tokens
      if generation.BROKEN in tokens:
        raise _not_finite(stem)
      if not len(stops) and len(tokens) < most:
        rest.append(reading)
      else:
        output = self._prompter.decode(tokens)
        found.append(asks.row(stem, reading, output=output, ended=bool(len(stops))))
    if rest:
      stem = dataclasses.replace(stem, readings=tuple(rest))
      self._queues[self._shape(stem, len(said))].append(dataclasses.replace(item, stem=stem, said=said))
    else:
      self._pool(flight.shape).release(item.root)
    return found

  def _most(self, stem: Stem) -> int:
    """Tokens that the longest answer to a prompt may have: its limit, or what the context leaves."""
    limit = max(reading.limit for reading in stem.readings)
    return min(limit, max(self._scorer.max_length - len(stem.tokens), 1))


def _not_finite(stem: Stem) -> UserError:
  return UserError(
    f"question {stem.question.idx}: the logits are not finite; the model's numbers overflow: try"
    " --config.model.dtype=float32, or check its weights"
  )


def _of_kind(stem: Stem, kind: str) -> Reading | None:
  return next((reading for reading in stem.readings if reading.kind == kind), None)


def _options(readings: Sequence[Reading | None]) -> int:
  width = OPTIONS
  while width < max(len(r.choices) for r in readings if r is not None):
    width *= 2
  return width


def _smallest(sizes: Sequence[int], needed: int, what: str, setting: str, stem: Stem) -> int:
  for size in sizes:
    if size >= needed:
      return size
  raise UserError(
    f"question {stem.question.idx}: {needed} {what} does not fit the largest bucket, {max(sizes)}; raise "
    f"score.{setting}, or lower model.max_tiles or model.longest_edge"
  )
