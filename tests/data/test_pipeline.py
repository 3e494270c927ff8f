"""The stream: deterministic, sharded, resumable, and its examples checked."""

import dataclasses
import json

import numpy as np
import pytest

from spatialvlm.config import LlavaConfig, SkillsConfig
from spatialvlm.data import pipeline
from spatialvlm.data.sources import registry
from spatialvlm.mixture import ENDLESS, Mixture
from spatialvlm.types import Example, Question, Turn, UserError
from tests.data.fakes import IMAGE, FakeProcessor, FakeSource, answer_of, config


@pytest.fixture(autouse=True)
def _sources(monkeypatch):
  opener = lambda c: FakeSource(c.size or ENDLESS, c.path)
  monkeypatch.setitem(registry.KINDS, "llava", registry.Kind(examples=opener))


def fake(size, path="s", **kwargs):
  return LlavaConfig(size=size, path=path, **kwargs)


def rows_of(stream, count):
  return [row for batch in answers(stream, count) for row in batch]


def answers(stream, count):
  out = []
  for _ in range(count):
    batch, _ = next(stream)
    out.append([answer_of(batch, row) for row in range(len(batch.tokens_BT))])
  return out


def test_an_endless_source_comes_in_order_and_a_finite_one_shuffled_each_epoch():
  stream = pipeline.training_stream(config(sources={"a": fake(0)}), FakeProcessor(), 4)
  assert answers(stream, 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
  stream = pipeline.training_stream(config(sources={"a": fake(6)}), FakeProcessor(), 3)
  first, second = rows_of(stream, 2), rows_of(stream, 2)
  assert sorted(first) == sorted(second) == list(range(6)) and first != second


def test_batches_may_cross_the_end_of_an_epoch_and_one_example_is_enough():
  stream = pipeline.training_stream(config(sources={"a": fake(5)}), FakeProcessor(), 3)
  rows = rows_of(stream, 5)
  assert [sorted(rows[i : i + 5]) for i in (0, 5, 10)] == [list(range(5))] * 3
  stream = pipeline.training_stream(config(sources={"a": fake(1)}), FakeProcessor(), 3)
  assert answers(stream, 2) == [[0, 0, 0]] * 2


def test_equal_configs_mix_alike_in_whatever_order_they_name_their_sources():
  sources = {"b": fake(0, "b", weight=2.0), "a": fake(7)}
  settings = [config(sources=order) for order in (sources, dict(reversed(sources.items())))]
  assert settings[0] == settings[1]
  found = [rows_of(pipeline.training_stream(s, FakeProcessor(), 3), 5) for s in settings]
  assert found[0] == found[1] and len(set(found[0])) > 7


def test_the_seed_of_the_run_changes_the_order():
  order = lambda seed: answers(
    pipeline.training_stream(config(sources={"a": fake(30)}), FakeProcessor(), 5, seed=seed), 6
  )
  assert order(0) == order(0) != order(1)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_restored_iterator_goes_on_in_mid_epoch(threads):
  settings = config(
    sources={"a": fake(7), "b": fake(0, "b", weight=2.0)}, workers=threads, prefetch=2 * threads
  )
  stream = pipeline.training_stream(settings, FakeProcessor(), 4)
  answers(stream, 3)
  state = json.loads(json.dumps(stream.get_state()))
  wanted = answers(stream, 4)
  again = pipeline.training_stream(settings, FakeProcessor(), 4)
  answers(again, 1)
  again.set_state(state)
  assert answers(again, 4) == wanted


def test_processes_hold_the_blocks_of_one_process():
  settings = config(sources={"a": fake(10), "b": fake(0, "b")})
  whole = answers(pipeline.training_stream(settings, FakeProcessor(), 4), 5)
  halves = [
    answers(pipeline.training_stream(settings, FakeProcessor(), 4, process_index=p, process_count=2), 5)
    for p in (0, 1)
  ]
  assert [a + b for a, b in zip(*halves, strict=True)] == whole
  with pytest.raises(UserError, match="not divided by 3"):
    pipeline.training_stream(settings, FakeProcessor(), 4, process_count=3)


def test_info_counts_what_the_batch_holds():
  settings = config(sources={"a": fake(10, weight=3.0), "b": fake(0, "b")})
  stream = pipeline.training_stream(settings, FakeProcessor(), 4)
  next(stream)
  batch, info = next(stream)
  assert info.sources == {"a": 3, "b": 1} and info.tasks == {"t": 4} and info.samples == 4
  assert info.epoch == {"a": pytest.approx(0.3)}
  assert info.tokens == batch.valid_BT.sum() and info.targets == (batch.target_index_BK >= 0).sum()
  assert info.bucket == (batch.tokens_BT.shape[1], 1, batch.target_index_BK.shape[1], 0)
  assert info.tiles == (batch.image_slot_BT.max(1) >= 0).sum()
  assert info.ids[3] == "b[1] (b1)"


def test_a_source_is_read_in_one_go_where_it_can():
  class Blocks(FakeSource):
    def __getitems__(self, indices):
      self.reads.append(list(indices))
      return [FakeSource.__getitem__(FakeSource(9), i) for i in indices]

  source = Blocks(9)
  assert [e.id for e in pipeline.read(source, [3, 1])] == ["s3", "s1"]
  assert source.reads == [[3, 1]]


def test_validation_ends_is_in_order_and_fills_the_last_batch():
  settings = config(validation={"v": fake(0)}, validation_size=6)
  batches = pipeline.validation_batches(settings, FakeProcessor(), 4)
  for _ in range(2):
    rows = [(b, i) for b, i in batches]
    assert [i.samples for _, i in rows] == [4, 2]
    assert [answer_of(rows[1][0], r) for r in (0, 1)] == [4, 5]
    np.testing.assert_array_equal(rows[1][0].example_mask_B, [True, True, False, False])
  second = pipeline.validation_batches(settings, FakeProcessor(), 4, process_index=1, process_count=2)
  assert [i.samples for _, i in second] == [2, 0]
  short = pipeline.validation_batches(config(validation={"v": fake(3)}), FakeProcessor(), 4)
  assert [i.samples for _, i in short] == [3]
  assert pipeline.validation_batches(config(), FakeProcessor(), 4) is None


def only(source):
  mixture = Mixture({"a": 1}, {"a": 1.0}, shuffle=False, seed=0)
  return pipeline.BatchSequence(pipeline.Mixed({"a": source(1)}, mixture), config(), FakeProcessor(), 1)


@pytest.mark.parametrize("most_bytes, reads", [(2**20, 2), (10, 6)])
def test_validation_batches_are_read_once_where_they_fit(most_bytes, reads):
  source = FakeSource(2)
  mixture = Mixture({"a": 2}, {"a": 1.0}, shuffle=False, seed=0)
  mixed = pipeline.Mixed({"a": source}, mixture, count=2)
  kept = pipeline.Kept(pipeline.BatchSequence(mixed, config(), FakeProcessor(), 1), most_bytes)
  next(iter(kept))
  source.reads.clear()
  passes = [[answer_of(batch, 0) for batch, _ in kept] for _ in range(3)]
  assert passes == [[0, 1]] * 3 and len(source.reads) == reads


class Broken(FakeProcessor):
  def __init__(self, spoil):
    self.spoil = spoil

  def encode(self, example):
    encoded = super().encode(example)
    self.spoil(encoded)
    return encoded


def _cut(e):
  e.tokens, e.loss_mask, e.image_slot = e.tokens[1:], e.loss_mask[1:], e.image_slot[1:]


def _unsupervised(e):
  e.loss_mask[:] = False


def _on_image(e):
  e.loss_mask[:] = True


def _two_stretches(e):
  e.tokens, e.image_slot = np.append(e.tokens, [65, 66]), np.append(e.image_slot, [-1, -1])
  e.loss_mask = np.append(e.loss_mask, [False, True])


def _slots_elsewhere(e):
  e.image_slot[:] = np.roll(e.image_slot, 1)


@pytest.mark.parametrize(
  "spoil, message",
  [
    (_cut, "1 image tokens for 1 tiles of 2"),
    (_unsupervised, "no token is supervised"),
    (_on_image, "loss would be taken on 2 image tokens"),
    (_slots_elsewhere, "no image tokens"),
    (_two_stretches, "loss lies on 2 stretches of the text, but there are 1 answers"),
  ],
)
def test_examples_that_would_train_wrongly_are_refused_by_name(spoil, message):
  """The first example before anything begins, any other one when its turn comes."""
  wanted = f"data source 'a', example 0 .id 's0'.: .*{message}"
  with pytest.raises(UserError, match=wanted):
    pipeline.training_stream(config(sources={"a": fake(0)}), Broken(spoil), 2)
  with pytest.raises(UserError, match=wanted):
    next(iter(pipeline.validation_batches(config(validation={"a": fake(0)}), Broken(spoil), 2)))


def test_an_example_longer_than_the_buckets_is_refused():
  class Long(FakeSource):
    def __getitem__(self, index):
      return Example(images=(), turns=(Turn("q" * 20, "1"),))

  sequence = only(Long)
  with pytest.raises(UserError, match="21 tokens are more than the longest sequence of 16"):
    sequence[0]


def test_the_text_may_not_hold_image_tokens_of_its_own():
  class Sly(FakeSource):
    def __getitem__(self, index):
      return Example(images=(), turns=(Turn("q" + chr(IMAGE), "1"),))

  sequence = only(Sly)
  with pytest.raises(UserError, match="1 image tokens for 0 tiles"):
    sequence[0]


@pytest.mark.parametrize(
  "setting", [{"lengths": ()}, {"lengths": (16, 8)}, {"tiles": (0, 1)}, {"targets": 0}, {"workers": -1}]
)
def test_settings_that_make_no_sense_are_refused(setting):
  (name,) = setting
  with pytest.raises(UserError, match=f"data.{name}: "):
    pipeline.training_stream(config(sources={"a": fake(0)}, **setting), FakeProcessor(), 1)


def test_a_kind_without_questions_is_refused():
  with pytest.raises(UserError, match="'skills' holds no questions"):
    pipeline.open_questions(SkillsConfig())


def test_a_question_is_answered_by_its_letter():
  image = np.zeros((2, 2, 3), np.uint8)
  question = Question(7, "2D", "Count", (image,), "How many?", ("1", "2"), 1, "How many? (A) 1 (B) 2", "COCO")
  example = pipeline.question_to_example(question)
  assert example.turns == (Turn("How many? (A) 1 (B) 2", "B"),)
  assert (example.task, example.source, example.id) == ("Count", "COCO", "7")
  assert example.files == ("",) and len(example.images) == 1
  two = dataclasses.replace(question, images=(image, image), source_filename="a.jpg,b.jpg")
  example = pipeline.question_to_example(two)
  assert example.files == ("a.jpg", "b.jpg") and len(example.images) == 2
