"""Packed rows: every conversation once, in rows that hold it, a function of the batch alone."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from spatialvlm.config import LlavaConfig
from spatialvlm.data import batch as batches
from spatialvlm.data import packing, pipeline
from spatialvlm.data.sources import registry
from spatialvlm.mixture import ENDLESS
from spatialvlm.types import Example, Extra, Turn, UserError
from tests.data.fakes import FakeEncoded, FakeProcessor, FakeSource, config

LENGTHS = (64, 128, 256)


def draw(seed: int, count: int) -> list[packing.Size]:
  """Sizes of conversations with one picture, several, or none."""
  rng = np.random.default_rng(seed)
  tiles = rng.choice([0, 1, 1, 1, 4], count)
  return [packing.Size(int(rng.integers(4, 200)) + 10 * int(n), int(n)) for n in tiles]


@pytest.mark.parametrize("multiple", [1, 4])
def test_every_conversation_stands_once_in_a_row_that_holds_it(multiple):
  filled = []
  for seed in range(30):
    sizes = draw(seed, 1 + seed)
    found = packing.arrange(sizes, lengths=LENGTHS, tokens_per_tile=10, multiple=multiple)
    assert sorted(i for row in found.rows for i in row) == list(range(len(sizes)))
    for row in found.rows:
      assert sum(sizes[i].tokens for i in row) <= found.room.tokens in LENGTHS
      assert sum(sizes[i].tiles for i in row) <= found.room.tiles
    assert len(found.rows) <= found.count and found.count % multiple == 0
    assert found.count // multiple == packing.rounded(found.count // multiple)
    assert found == packing.arrange(sizes, lengths=LENGTHS, tokens_per_tile=10, multiple=multiple)
    filled.append(sum(size.tokens for size in sizes) / (found.count * found.room.tokens))
  assert multiple > 1 or np.mean(filled[8:]) > 0.75


def test_pictures_are_spread_over_rows():
  """Long conversations without pictures beside short ones with: tiles, too, should fill alike."""
  sizes = [packing.Size(60, 0)] * 4 + [packing.Size(20, 1)] * 12
  found = packing.arrange(sizes, lengths=(128,), tokens_per_tile=16)
  assert found.count == 4 and found.room.tiles == 3


def test_sizes_come_in_few_steps():
  assert [packing.rounded(n) for n in range(14)] == [0, 1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]


def conversation(letters: str, tiles: int = 0, prefix: int = 0, **extra) -> FakeEncoded:
  """One token a letter behind its images' tokens; the last one is learned."""
  tokens = np.array([1] * 2 * tiles + [ord(c) for c in letters], np.int32)
  return FakeEncoded(
    tokens=tokens,
    loss_mask=np.arange(len(tokens)) == len(tokens) - 1,
    image_slot=np.where(tokens == 1, np.arange(len(tokens)), -1).astype(np.int32),
    tiles=np.full((tiles, 2, 2, 3), ord(letters[0]), np.uint8),
    images=(1,) * tiles,
    prefix=prefix,
    extra=extra,
  )


def packed(encoded, multiple=1, **sizes):
  sizes = {"lengths": (8, 12), "tiles": (1, 2), "targets": 1, **sizes}
  rows, bucket, _ = batches.packed_of(encoded, **sizes, tokens_per_tile=2, multiple=multiple)
  return batches.collate(rows, **bucket._asdict(), pad_id=0, batch_size=len(encoded)), bucket


def test_a_row_counts_slots_tiles_and_targets_one_behind_the_other():
  depth = lambda n, v: Extra(np.full((n, 2), v, np.float32), "tile")
  rank = Extra(np.array([5], np.int32), "target")
  given = [
    conversation("abcd", 2, prefix=6, depth=depth(2, 1.0)),
    conversation("ef", 0, rank=rank),
    conversation("ghi", 1, prefix=3),
  ]
  batch, bucket = packed(given, lengths=(16,), targets=1)
  assert bucket == (16, 3, 4, 1)  # tokens, tiles, targets, rows
  assert "".join(map(chr, batch.tokens_BT[0])) == "\1\1\1\1abcd\1\1ghief\0"
  np.testing.assert_array_equal(batch.segment_BT[0], [0] * 8 + [1] * 5 + [2] * 3)
  np.testing.assert_array_equal(batch.image_slot_BT[0], [0, 1, 2, 3, *[-1] * 4, 4, 5, *[-1] * 6])
  np.testing.assert_array_equal(batch.mask_ar_BT[0], [False] * 6 + [True] * 2 + [False] * 3 + [True] * 5)
  np.testing.assert_array_equal(batch.target_index_BK[0], [7, 12, 14, -1])
  np.testing.assert_array_equal(batch.pixels_NHWC[:, 0, 0, 0], [ord("a"), ord("a"), ord("g")])
  np.testing.assert_array_equal(batch.extra["depth"].array[:, 0], [1, 1, np.nan])
  np.testing.assert_array_equal(batch.extra["rank"].array, [[-1, -1, 5, -1]])
  assert batch.valid_BT[0].sum() == 15


def test_what_is_said_of_a_whole_example_is_refused():
  given = [conversation("ab", reward=Extra(np.float32(1), "sample")), conversation("cd")]
  with pytest.raises(UserError, match=r"data\.packing: extra 'reward' is said of a whole example"):
    packed(given)


def test_what_does_not_fit_a_bucket_is_refused_as_without_packing():
  with pytest.raises(UserError, match="an example of 13 tokens does not fit the largest bucket, 12"):
    packed([conversation("a" * 13), conversation("b")])
  with pytest.raises(UserError, match="an example of 3 image tiles does not fit the largest bucket, 2"):
    packed([conversation("a", 3)])


def test_rows_grow_to_those_of_another_process():
  small, bucket = packed(
    [conversation("abcde", 1), conversation("fg", depth=Extra(np.zeros((0, 2)), "tile"))]
  )
  larger = batches.Bucket(12, 2, 4, 3)
  grown = batches.grow(small, larger, pad_id=0, tile_size=2)
  wanted, _ = packed([conversation("abcde", 1), conversation("fg")], lengths=(12,))
  assert batches.largest([bucket, larger]) == larger
  assert grown.tokens_BT.shape == (3, 12) and grown.pixels_NHWC.shape == (6, 2, 2, 3)
  np.testing.assert_array_equal(grown.segment_BT[0], wanted.segment_BT[0])
  np.testing.assert_array_equal(grown.valid_BT.sum(1), [9, 1, 1])
  np.testing.assert_array_equal(grown.example_mask_B, [True, False, False])
  np.testing.assert_array_equal(grown.target_index_BK[:, :2], [[6, 8], [-1, -1], [-1, -1]])
  assert grown.extra["depth"].array.shape == (6, 2)


class Chats(FakeSource):
  """Conversation i answers with i; its prompt is between one letter and ten."""

  def __getitem__(self, index):
    found = super().__getitem__(index)
    return dataclasses.replace(found, turns=(Turn("q" * (1 + index * 7 % 10), str(index)),))


@pytest.fixture
def chats(monkeypatch):
  monkeypatch.setitem(registry.KINDS, "llava", registry.Kind(examples=lambda c: Chats(c.size or ENDLESS)))
  return config(sources={"a": LlavaConfig(size=0, path="s")}, packing=True, lengths=(16, 32))


def said(batch) -> list[list[int]]:
  """The answers in each row, in order."""
  rows = []
  for tokens, segments, places in zip(batch.tokens_BT, batch.segment_BT, batch.target_index_BK, strict=True):
    parts = {}
    for t in places[places >= 0]:
      parts[segments[t]] = parts.get(segments[t], "") + chr(tokens[t])
    rows.append([int(parts[number]) for number in sorted(parts)])
  return rows


def test_a_packed_stream_holds_the_examples_of_the_plain_one_and_goes_on_where_it_was(chats):
  stream = pipeline.training_stream(chats, FakeProcessor(), 12)
  for number in range(3):
    batch, info = next(stream)
    rows = said(batch)
    assert sorted(itertools.chain(*rows)) == list(range(12 * number, 12 * number + 12)) and len(rows) < 12
    assert info.samples == 12 and len(rows) == info.bucket.rows
    assert info.tokens / batch.tokens_BT.size > 0.6
  state = json.loads(json.dumps(stream.get_state()))
  wanted = [next(stream)[0] for _ in range(3)]
  again = pipeline.training_stream(chats, FakeProcessor(), 12)
  again.set_state(state)
  for batch in wanted:
    found, _ = next(again)
    assert said(found) == said(batch)
    np.testing.assert_array_equal(found.tokens_BT, batch.tokens_BT)


def test_processes_pack_their_own_blocks_in_a_multiple_of_rows(chats):
  streams = [
    pipeline.training_stream(chats, FakeProcessor(), 24, process_index=p, process_count=2, multiple=8)
    for p in (0, 1)
  ]
  for process, stream in enumerate(streams):
    batch, info = next(stream)
    assert sorted(itertools.chain(*said(batch))) == list(range(12 * process, 12 * process + 12))
    assert info.bucket.rows % 4 == 0


def test_validation_is_packed_too_and_may_end_with_empty_shares(chats):
  settings = dataclasses.replace(chats, validation=chats.sources, validation_size=6)
  shares = [
    list(pipeline.validation_batches(settings, FakeProcessor(), 8, process_index=p, process_count=2))
    for p in (0, 1)
  ]
  assert [[i.samples for _, i in share] for share in shares] == [[4], [2]]
  empty = list(pipeline.validation_batches(
    dataclasses.replace(settings, validation_size=3), FakeProcessor(), 8, process_index=1, process_count=2
  ))  # fmt: skip
  ((batch, info),) = empty
  assert info.samples == 0 and batch.segment_BT is not None and not batch.example_mask_B.any()


def test_an_example_longer_than_the_longest_row_is_refused_by_name(chats, monkeypatch):
  long = lambda c: [Example((), (Turn("q" * 40, "1"),))]
  monkeypatch.setitem(registry.KINDS, "llava", registry.Kind(examples=long))
  with pytest.raises(UserError, match="'a', example 0: 41 tokens are more than the longest sequence of 32"):
    pipeline.training_stream(chats, FakeProcessor(), 2)
