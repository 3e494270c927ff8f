"""The evaluation as a whole: exact numbers in any batch, images encoded once, stops that cost nothing."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from spatialvlm.config import MeshConfig, ScoreConfig
from spatialvlm.core.axes import make_mesh
from spatialvlm.data.batch import collate
from spatialvlm.evaluation import records
from spatialvlm.evaluation.evaluate import evaluate
from spatialvlm.serving import scorer
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.types import UserError
from tests.evaluation import support

CONFIG = ScoreConfig(batch_size=4, lengths=(96, 128), tiles=(3, 5), pool_tiles=40, bootstrap=20)
# Fewer shapes to compile where a real model scores.
REAL = dataclasses.replace(CONFIG, tiles=(5,))


class WithIds(list):
  ids = property(lambda self: [q.idx for q in self])


@pytest.fixture(scope="module")
def prompter(tmp_path_factory):
  return support.prompter(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def vlm(prompter):
  return support.model(prompter._processor.image_id)


@pytest.fixture(scope="module")
def scored(vlm, prompter):
  return evaluate(support.questions(), VlmScorer(vlm), prompter, REAL).rows


class Counting:
  """A scorer that counts what it is asked, and may be stopped after some batches.

  Its answers follow from the pixels and tokens alone, as a model's do.
  """

  multiple = 1
  max_length = 512
  bidirectional = False
  # How often a long answer says " no" before it comes to its letter.
  longest = 30

  def __init__(self, stop_after=None, bad=False):
    self.tiles, self.prefixes, self.rows, self.batches = 0, 0, 0, 0
    self.said, self.weights = 0, "counted"
    self.words = {}  # the tokens of a few
    self.stop_after, self.bad = stop_after, bad

  def encode(self, pixels_NHWC, normal):
    self.tiles += int(np.any(pixels_NHWC != 0, axis=(1, 2, 3)).sum())
    return np.mean(normal[pixels_NHWC, np.arange(3)], axis=(1, 2), keepdims=False)[:, None, :]

  def features(self, features_NPD):
    return features_NPD

  def identity(self):
    return {"weights": self.weights}

  def prefix(self, batch):
    self.prefixes += int((batch.valid_BT.sum(1) > 1).sum())
    sum_B = np.where(batch.valid_BT, batch.tokens_BT, 0).sum(1).astype(np.float32)
    if batch.features_NPD is not None:
      features = np.asarray(batch.features_NPD)[np.maximum(batch.tile_index_BI, 0), 0].sum(-1)
      sum_B += np.where(batch.tile_index_BI >= 0, features, 0).sum(1)
    return sum_B

  def read(self, prefixes, index_B, tokens_BT, valid_BT, room):
    if self.batches == self.stop_after:
      raise KeyboardInterrupt
    self.batches += 1
    self.rows += int((valid_BT.sum(1) > 1).sum())
    # The answer so far, which `generate` goes on with, does not change what it began with.
    last_B = valid_BT.sum(1)
    no = self.words.get(" no", ())
    said_B = np.array([_trailing(row[:n], no) for row, n in zip(tokens_BT, last_B, strict=True)])
    self.said += int(said_B.sum())
    places_T = np.arange(tokens_BT.shape[1])
    prompt_BT = valid_BT & (places_T < (last_B - said_B)[:, None])
    sum_B = np.asarray(prefixes)[index_B] + np.where(prompt_BT, tokens_BT * places_T, 0).sum(1)
    return scorer.Read(sum_B, np.ones(len(sum_B), bool), said_B)

  def letters(self, read, ids_BK, mask_BK):
    score_BK = -np.abs(np.sin(ids_BK + read.logits_BV[:, None])).astype(np.float32)
    return np.where(mask_BK, np.nan if self.bad else score_BK, -np.inf)

  def texts(self, read, tokens_BKT, valid_BKT):
    return self.letters(read, (tokens_BKT * valid_BKT).sum(2), valid_BKT.any(2))

  def generate(self, read, room, limit, done_B, stop_ids, pad_id):
    """`(B)`, or another letter, and an end; now and then an answer that is longer than the first room.

    What was said already is not said again.
    """
    letter_B = np.abs(read.logits_BV).astype(int) % 5
    long_B = np.abs(read.logits_BV).astype(int) % 7 == 0
    new_BT = np.full((len(done_B), room), pad_id, np.int32)
    for row in np.flatnonzero(~done_B):
      words = [
        *self.words[" no"] * self.longest * int(long_B[row]),
        *self.words[f"({'ABCDE'[letter_B[row]]})"],
        stop_ids[0],
      ]
      words = words[read.cache[row] :][: min(room, limit)]
      new_BT[row, : len(words)] = words
    return new_BT


def _trailing(tokens, word):
  """How many tokens of `word` stand at the end."""
  others = np.flatnonzero(~np.isin(tokens, word))
  return len(tokens) - (others[-1] + 1 if len(others) else 0)


def test_logprobs_are_those_of_the_plain_model(vlm, prompter, scored):
  graphdef, state = nnx.split(vlm)
  plain = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
  for question, row in zip(support.questions(), scored, strict=True):
    encoded, letters = prompter(question)
    batch = collate([encoded], length=230, tiles=5, targets=0, pad_id=prompter.pad_id, batch_size=1)
    logits = np.asarray(plain(state, batch))[0, len(encoded.tokens) - 1]
    np.testing.assert_allclose(row.logprobs, log_softmax(logits)[letters], rtol=1e-5, atol=1e-5)
    assert row.choice == "ABCDEF"[np.argmax(logits[letters])]
    assert row.correct == (row.choice == row.gold) and row.gold == "ABCDEF"[question.answer]
  assert len({row.logprobs[0] for row in scored}) == len(scored)


def test_batch_of_n_equals_batch_of_1(vlm, prompter, scored):
  single = evaluate(
    support.questions(), VlmScorer(vlm), prompter, dataclasses.replace(REAL, batch_size=1)
  ).rows
  for a, b in zip(scored, single, strict=True):
    np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=1e-5, atol=1e-6)
    assert (a.idx, a.choice) == (b.idx, b.choice)


def test_order_does_not_matter(vlm, prompter, scored):
  shuffled = support.questions()
  np.random.default_rng(1).shuffle(shuffled)
  again = evaluate(shuffled, VlmScorer(vlm), prompter, REAL).rows
  assert [row.idx for row in again] == [q.idx for q in shuffled]
  for row in again:
    (same,) = [r for r in scored if r.idx == row.idx]
    np.testing.assert_allclose(row.logprobs, same.logprobs, rtol=1e-6, atol=1e-6)


def test_a_mesh_gives_the_scores_of_one_device(vlm, prompter, scored):
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  config = dataclasses.replace(REAL, batch_size=3)  # rounded up to the four shards of a batch
  meshed = evaluate(support.questions(), VlmScorer(vlm, mesh), prompter, config).rows
  for a, b in zip(scored, meshed, strict=True):
    np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=1e-5, atol=1e-5)


def test_models_of_one_structure_share_compiled_programs(prompter, scored):
  """Before and after training nothing is compiled anew."""
  programs = lambda: [
    f._cache_size() for f in (scorer._encode, scorer._prefix, scorer._read, scorer._letters)
  ]
  before = programs()
  other = support.model(prompter._processor.image_id, seed=1)
  rows = evaluate(support.questions(), VlmScorer(other), prompter, REAL).rows
  assert programs() == before and min(before) > 0
  assert not np.allclose(rows[0].logprobs, scored[0].logprobs, atol=1e-3)


def test_repeated_images_are_encoded_once(prompter):
  questions = support.questions(count=20, images=5)
  distinct = sum(len(prompter(q).encoded.tiles) for q in questions[:5])
  scorer = Counting()
  evaluate(questions, scorer, prompter, CONFIG)
  assert scorer.rows == 20
  assert scorer.tiles == distinct and scorer.prefixes == 5


def test_boxes_make_no_other_photo_of_the_same(prompter):
  """CV-Bench draws boxes into photos: of three questions two are on one photo, with other boxes."""
  first, *_ = support.questions()
  asked = [
    dataclasses.replace(first, idx=i, images=(first.images[0] + i,), source_dataset="d", source_filename=name)
    for i, name in enumerate(("a.jpg", "a.jpg", "b.jpg"))
  ]
  assert len({records.image_hash(q.images[0]) for q in asked}) == 3
  config = dataclasses.replace(CONFIG, controls=("other_image",))
  found = evaluate(asked, Counting(), prompter, config).passes["native", "other_image"]
  assert {row.idx: row.image_shown for row in found} == {0: "d/b.jpg", 1: "d/b.jpg", 2: "d/a.jpg"}


def test_a_full_pool_evicts_and_stays_right(prompter):
  questions = support.questions(count=20, images=20)
  tight, scorer = dataclasses.replace(CONFIG, pool_tiles=1, pool_prefixes=1, batch_size=2), Counting()
  wide = evaluate(questions, Counting(), prompter, CONFIG).rows
  assert evaluate(questions, scorer, prompter, tight).rows == wide
  assert scorer.tiles == sum(len(prompter(q).encoded.tiles) for q in questions)
  assert scorer.prefixes == 20


@pytest.mark.parametrize("ids", [False, True])
def test_a_stopped_run_continues(prompter, tmp_path, ids):
  questions = (WithIds if ids else list)(support.questions(count=20))
  whole = evaluate(questions, Counting(), prompter, CONFIG, folder=tmp_path / "whole")
  folder = tmp_path / "stopped"
  with pytest.raises(KeyboardInterrupt):
    evaluate(questions, Counting(stop_after=3), prompter, CONFIG, folder=folder)
  file = folder / records.FILE
  kept = file.read_text().splitlines()
  assert 4 <= len(kept) < 20 and not (folder / "summary.json").exists()
  file.write_text("\n".join(kept) + '\n{"idx": 100, "ty')  # torn by a kill
  scorer = Counting()
  done = []
  again = evaluate(
    questions, scorer, prompter, CONFIG, folder=folder, on_progress=lambda n, total: done.append((n, total))
  )
  assert scorer.rows == 20 - len(kept)
  assert done[-1] == (20, 20) and done[0][0] > len(kept)
  assert again.rows == whole.rows
  for name in (records.FILE, "summary.json"):
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  finished = Counting()
  assert evaluate(questions, finished, prompter, CONFIG, folder=folder).rows == whole.rows
  assert finished.rows == 0


def test_files_say_all_of_a_question(prompter, tmp_path):
  questions = support.questions(count=8)
  result = evaluate(questions, Counting(), prompter, CONFIG, folder=tmp_path)
  lines = [json.loads(line) for line in (tmp_path / records.FILE).read_text().splitlines()]
  assert [line["idx"] for line in lines] == [q.idx for q in questions]
  for line, question in zip(lines, questions, strict=True):
    assert line["task"] == question.task and line["source"] == question.source
    assert line["gold"] == "ABCDEF"[question.answer]
    assert list(line["logprobs"]) == list("ABCDEF"[: len(question.choices)])
    assert line["choice"] == max(line["logprobs"], key=line["logprobs"].get)
    assert line["correct"] == (line["choice"] == line["gold"])
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary == json.loads(json.dumps(result.summary))
  right = [line["correct"] for line in lines]
  assert summary["scores"]["plain"]["score"] == pytest.approx(np.mean(right))
  assert summary["scores"]["plain"]["n"] == 8 and summary["questions"] == 8
  chosen = {k: v["chosen"] for k, v in summary["letters"].items()}
  assert chosen == {k: sum(line["choice"] == k for line in lines) for k in chosen}


def test_limit(prompter):
  rows = evaluate(support.questions(), Counting(), prompter, dataclasses.replace(CONFIG, limit=3)).rows
  assert [row.idx for row in rows] == [100, 103, 106]


def test_bad_input(prompter, tmp_path):
  questions = support.questions()
  with pytest.raises(UserError, match="no questions"):
    evaluate([], Counting(), prompter, CONFIG)
  with pytest.raises(UserError, match="question 100 stands twice"):
    evaluate([*questions, questions[0]], Counting(), prompter, CONFIG)
  with pytest.raises(UserError, match=r"question 1\d\d: the log-probabilities"):
    evaluate(questions, Counting(bad=True), prompter, CONFIG, folder=tmp_path / "nan")
  with pytest.raises(UserError, match="47 tokens of text do not fit the largest bucket, 16"):
    evaluate(questions, Counting(), prompter, dataclasses.replace(CONFIG, lengths=(16,)))
  evaluate(questions, Counting(), prompter, CONFIG, folder=tmp_path / "run")
  with pytest.raises(UserError, match=r"holds question \d+, which is not in the data"):
    evaluate(questions[:-2], Counting(), prompter, CONFIG, folder=tmp_path / "run")
  # Known before anything is scored, where the data says its questions and in any case of the passes.
  rows = (tmp_path / "run" / records.FILE).read_text().splitlines(keepends=True)
  (tmp_path / "run" / records.FILE).write_text("".join(rows[5:]))
  some, scorer = WithIds(questions[:-2]), Counting()
  with pytest.raises(UserError, match=r"holds question 127, which is not in the data"):
    evaluate(some, scorer, prompter, CONFIG, folder=tmp_path / "run")
  other = dataclasses.replace(CONFIG, protocols=("options",))
  with pytest.raises(UserError, match="holds sighted answers of protocol 'native', for which these settings"):
    evaluate(questions, scorer, prompter, other, folder=tmp_path / "run")
  assert scorer.tiles == scorer.rows == 0
