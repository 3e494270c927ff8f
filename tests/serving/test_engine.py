"""The engine by itself: plain requests, against a model that reads every prompt and answer whole."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from spatialvlm import peft
from spatialvlm.config import PeftConfig
from spatialvlm.serving import engine
from spatialvlm.serving.engine import Engine
from spatialvlm.serving.requests import (
  EngineConfig,
  Generated,
  Letters,
  Picture,
  Request,
  Texts,
  prefix_length,
)
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.types import Batch, UserError
from tests.peft.support import moved
from tests.serving.conftest import IMAGE_ID

PER_TILE, LENGTH = 4, 96
CONFIG = EngineConfig(batch_size=4, lengths=(24,), tiles=(2,), pool_tiles=8)
NORMAL = np.repeat(np.linspace(-1, 1, 256, dtype=np.float32)[:, None], 3, axis=1)


def images(count, seed=0):
  """Tiles (I, 16, 16, 3) of images of one and of two tiles."""
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 256, (1 + i % 2, 16, 16, 3), dtype=np.uint8) for i in range(count)]


def request(number, tiles, *wanted, words=6, key=None, bidirectional=False, **fields):
  """A prompt of three tokens, the image's, and `words` more."""
  rng = np.random.default_rng(number)
  slots = np.arange(PER_TILE * (0 if tiles is None else len(tiles)))
  head = np.array([7, 8, 9]) if tiles is not None else rng.integers(10, 500, 3)
  tokens = np.concatenate([head, np.full(len(slots), IMAGE_ID), rng.integers(10, 500, words)])
  slot = np.concatenate([[-1] * 3, slots, [-1] * words]).astype(np.int32)
  return Request(
    tokens=tokens.astype(np.int32),
    image_slot=slot,
    prefix=prefix_length(slot, len(tokens) if bidirectional else 0),
    wanted=wanted,
    bidirectional=bidirectional,
    image=None if tiles is None else ("image", number if key is None else key),
    picture=None if tiles is None else lambda: Picture(tiles=tiles),
    tile_count=0 if tiles is None else len(tiles),
    **{"name": f"request {number}", **fields},
  )


class Plain:
  """Log-probabilities by one pass over the whole sequence, without a cache, a pool or a batch."""

  def __init__(self, vlm):
    graphdef, self.state = nnx.split(vlm)
    self.logits = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))

  def __call__(self, request, tiles, more=()):
    """(len(more) + 1, V): of every token behind the prompt."""
    length, whole = len(request.tokens), np.zeros(LENGTH, np.int32)
    whole[: length + len(more)] = [*request.tokens, *more]
    slot = np.full(LENGTH, -1, np.int32)
    slot[:length] = request.image_slot
    pixels = np.zeros((2, 16, 16, 3), np.float32)
    pixels[: len(tiles)] = NORMAL[tiles, np.arange(3)] if len(tiles) else 0
    mask_ar = np.arange(LENGTH) >= length * request.bidirectional
    batch = Batch(
      tokens_BT=whole[None],
      valid_BT=np.arange(LENGTH)[None] < length + len(more),
      pixels_NHWC=pixels,
      image_slot_BT=slot[None],
      mask_ar_BT=mask_ar[None],
    )
    logits = np.asarray(self.logits(self.state, batch))[0]
    return log_softmax(logits[length - 1 : length + len(more)].astype(np.float64), axis=-1)

  def texts(self, request, tiles, texts):
    return [self(request, tiles, text)[range(len(text)), text].sum() for text in texts]

  def greedy(self, request, tiles, limit, stop=()):
    said = []
    while len(said) < limit:
      said.append(int(np.argmax(self(request, tiles, said)[-1])))
      if said[-1] in stop:
        return said[:-1], True
    return said, False


def run(vlm, requests, config=CONFIG, scorer=None, **settings):
  """The answers by tag."""
  made = Engine(scorer or VlmScorer(vlm), config, normal=NORMAL, **settings)
  found = list(itertools.chain.from_iterable(made.run(iter(requests))))
  assert len({answer.tag for answer in found}) == len(found) == sum(len(r.wanted) for r in requests)
  return {answer.tag: answer for answer in found}


def mixed(shown, bidirectional=False):
  """(requests, tiles of each): all kinds of wishes, alone and together, on shared images and on none."""
  made, tiles = [], []
  options = ((11, 12, 13), (400,), (21, 22))
  for i in range(9):
    picture = None if i == 8 else i % len(shown)
    wanted = [
      Letters((30, 31, 32 + i), (i, "letters")),
      Texts(options, (i, "texts")),
      Generated(3 + i % 2, (), (i, "said")),
      Letters((77,), (i, "more letters")),
      Texts(((41, 42), (43,)), (i, "more texts")),
    ]
    wanted = wanted if i % 3 == 0 else wanted[i % 3 - 1 :: 2]
    found = None if picture is None else shown[picture]
    made.append(request(i, found, *wanted, words=4 + i, key=picture, bidirectional=bidirectional))
    tiles.append([] if found is None else found)
  return made, tiles


def check(plain, requests, tiles, answers):
  for asked, picture in zip(requests, tiles, strict=True):
    for want in asked.wanted:
      answer = answers[want.tag]
      assert answer.wanted is want
      if isinstance(want, Letters):
        assert answer.logprobs.dtype == np.float32
        expected = plain(asked, picture)[0][list(want.tokens)]
        np.testing.assert_allclose(answer.logprobs, expected, rtol=1e-4, atol=1e-4)
      elif isinstance(want, Texts):
        expected = plain.texts(asked, picture, want.texts)
        np.testing.assert_allclose(answer.logprobs, expected, rtol=1e-4, atol=1e-4)
      else:
        expected = plain.greedy(asked, picture, want.limit, want.stop)
        assert (answer.tokens.tolist(), answer.ended) == expected


def test_every_kind_is_what_the_plain_model_says(vlm):
  requests, tiles = mixed(images(3))
  check(Plain(vlm), requests, tiles, run(vlm, requests))


def test_prompts_of_a_prefix_lm(prefix_lm):
  requests, tiles = mixed(images(2), bidirectional=True)
  check(Plain(prefix_lm), requests, tiles, run(prefix_lm, requests))


@pytest.mark.parametrize(
  ("method", "options", "bidirectional"),
  [
    ("prompt", {"place": "after_image"}, False),
    ("prefix", {"init": "random"}, False),
    ("prompt", {"place": "start"}, True),
    ("prefix", {"init": "random"}, True),
  ],
)
def test_soft_prompts(vlm, prefix_lm, method, options, bidirectional):
  """Read once with what prompts share, and part of every answer."""
  graphdef, state = nnx.split(prefix_lm if bidirectional else vlm)
  base = nnx.merge(graphdef, jax.tree.map(jnp.asarray, state))
  config = PeftConfig(method, options={"tokens": 3, **options})
  soft = moved(peft.apply(base, config, peft.Given(lambda text: [20, 21, 22])), 0.5)
  requests, tiles = mixed(images(2), bidirectional=bidirectional)
  check(Plain(soft), requests[:5], tiles[:5], run(soft, requests[:5]))


def test_one_at_a_time_and_in_any_order_it_is_the_same(vlm):
  requests, _ = mixed(images(3))
  whole = run(vlm, requests)
  alone = run(vlm, requests, dataclasses.replace(CONFIG, batch_size=1, pool_prefixes=1))
  turned = run(vlm, requests[::-1])
  for tag, answer in whole.items():
    for other in (alone[tag], turned[tag]):
      if answer.logprobs is None:
        assert other.tokens.tolist() == answer.tokens.tolist()
      else:
        np.testing.assert_allclose(other.logprobs, answer.logprobs, rtol=1e-5, atol=1e-5)


class Counted(VlmScorer):
  def __init__(self, vlm):
    super().__init__(vlm)
    self.tiles = self.prefixes = self.texts_read = 0

  def encode(self, pixels_NHWC, normal=None):
    self.tiles += int(np.any(pixels_NHWC != 0, axis=(1, 2, 3)).sum())
    return super().encode(pixels_NHWC, normal)

  def prefix(self, batch):
    self.prefixes += int((batch.valid_BT.sum(1) > 1).sum())
    return super().prefix(batch)

  def read(self, prefixes, index_B, tokens_BT, valid_BT, room):
    self.texts_read += int((valid_BT.sum(1) > 1).sum())
    return super().read(prefixes, index_B, tokens_BT, valid_BT, room)


def test_what_is_shared_is_computed_once(vlm):
  """Twelve requests on three images, of one and two tiles; a picture is called for once."""
  shown, called = images(3), []
  requests = []
  for i in range(12):
    made = request(i, shown[i % 3], Letters((30, 31), i), Texts(((9, 8),), -1 - i), key=i % 3)
    picture = lambda tiles=shown[i % 3], key=i % 3: called.append(key) or Picture(tiles=tiles)
    requests.append(dataclasses.replace(made, picture=picture))
  scorer = Counted(vlm)
  run(vlm, requests, scorer=scorer)
  assert (scorer.tiles, scorer.prefixes, scorer.texts_read) == (4, 3, 12)
  assert sorted(called) == [0, 1, 2]


def test_a_small_pool_evicts_and_stays_right(vlm):
  shown = images(8)
  requests = [request(i, shown[i % 8], Letters((30, 31), i), key=i % 8) for i in range(16)]
  tight = dataclasses.replace(CONFIG, batch_size=2, pool_tiles=1, pool_prefixes=1)
  answers = run(vlm, requests, tight)
  check(Plain(vlm), requests, [shown[i % 8] for i in range(16)], answers)


def test_answers_end_where_each_wish_says(vlm, monkeypatch):
  """Wishes of one prompt with limits and stops of their own, past pauses, beside prompts with others."""
  monkeypatch.setattr(engine, "PAUSES", (2, 5))
  shown, plain = images(2), Plain(vlm)
  requests = []
  for i in range(4):
    bare = request(i, shown[i % 2], Generated(1), key=i % 2)
    said, _ = plain.greedy(bare, shown[i % 2], 12)
    stops = [(), (said[3],), (said[6], said[1]), (said[11], said[6])]
    wanted = [Generated(12 - 3 * (k == 3), stop, (i, k)) for k, stop in enumerate(stops)]
    wanted = wanted if i % 2 else wanted[i:][:1]
    requests.append(dataclasses.replace(bare, wanted=tuple(wanted)))
  notes = []
  answers = run(vlm, requests, on_note=notes.append)
  check(plain, requests, [shown[i % 2] for i in range(4)], answers)
  assert {answer.ended for answer in answers.values()} == {True, False}
  assert any(note.startswith("answers longer than 5 tokens") for note in notes)


def drawn_plainly(plain, asked, tiles, want):
  """What a want with a temperature above 0 says: each token by its own key, of the whole sequence."""
  said, key = [], jax.random.key(want.seed)
  while len(said) < want.limit:
    logprob_V = plain(asked, tiles, said)[-1] / want.temperature
    order = np.argsort(-logprob_V)
    before = np.cumsum(np.exp(log_softmax(logprob_V))[order])
    out = order[1:][before[:-1] >= want.top_p]
    logprob_V[out] = -np.inf
    said.append(int(jax.random.categorical(jax.random.fold_in(key, len(said)), logprob_V.astype(np.float32))))
    if said[-1] in want.stop:
      return said[:-1], True
  return said, False


@pytest.mark.slow
def test_drawn_answers_follow_from_the_prompt_and_their_seed(vlm, monkeypatch):
  """Groups of one prompt, past a pause, beside greedy ones: the same alone, in any order, of any batch."""
  monkeypatch.setattr(engine, "PAUSES", (2, 5))
  shown, plain = images(2), Plain(vlm)
  draws = [dict(temperature=1.5), dict(temperature=0.8, top_p=0.7), {}]
  requests, tiles = [], []
  for i in range(9):
    want = Generated(6, (17,), i, seed=2**32 - 1 - i, **draws[i % 3])
    requests.append(request(i % 2, shown[i % 2], want, key=i % 2))
    tiles.append(shown[i % 2])
  answers = run(vlm, requests)
  for asked, picture in zip(requests, tiles, strict=True):
    (want,) = asked.wanted
    said = drawn_plainly(plain, asked, picture, want) if want.temperature else plain.greedy(asked, picture, 6)
    assert (answers[want.tag].tokens.tolist(), answers[want.tag].ended) == said
  assert len({tuple(answers[i].tokens) for i in range(9)}) > 6
  alone = run(vlm, requests, dataclasses.replace(CONFIG, batch_size=1, pool_prefixes=1))
  turned = run(vlm, requests[::-1])
  for tag, answer in answers.items():
    assert alone[tag].tokens.tolist() == turned[tag].tokens.tolist() == answer.tokens.tolist()
  first = int(answers[0].tokens[3])
  (again,) = run(
    vlm, [dataclasses.replace(requests[0], wanted=(Generated(6, (first,), 0, 1.5, 1.0, 2**32 - 1),))]
  ).values()
  assert again.ended and again.stopped_by == first and answers[0].stopped_by == -1


def test_the_context_ends_an_answer(vlm):
  class Short(VlmScorer):
    def __init__(self, vlm):
      super().__init__(vlm)
      self.max_length = 20

  tiles = images(1)[0]
  asked = request(0, tiles, Generated(50, (), "a"), words=9)
  answer = run(vlm, [asked], scorer=Short(vlm))["a"]
  assert len(answer.tokens) == 20 - len(asked.tokens) == 4 and not answer.ended
  assert answer.tokens.tolist() == Plain(vlm).greedy(asked, tiles, 4)[0]


def test_tiles_may_come_normalised_and_features_known(vlm):
  tiles = images(2)[1]
  asked = request(0, tiles, Letters((30, 31, 32), "a"))
  expected = run(vlm, [asked])["a"].logprobs
  pixels = NORMAL[tiles, np.arange(3)]
  floats = dataclasses.replace(asked, picture=lambda: Picture(tiles=pixels))
  (answer,) = engine.answers(VlmScorer(vlm), [floats])
  np.testing.assert_allclose(answer.logprobs, expected, rtol=1e-5, atol=1e-6)
  features = np.asarray(vlm.encode_images(pixels))
  known, scorer = dataclasses.replace(asked, picture=lambda: Picture(features=features)), Counted(vlm)
  np.testing.assert_allclose(run(vlm, [known], scorer=scorer)["a"].logprobs, expected, rtol=1e-5, atol=1e-6)
  assert scorer.tiles == 0


def test_requests_that_cannot_be(vlm, prefix_lm):
  tiles = images(1)[0]
  letters = Letters((1,), 0)
  for wanted, words, message in (
    ((), 4, "nothing is wanted"),
    ((Texts(((1,), ())),), 4, "a text without tokens"),
    ((Generated(0),), 4, "less than one token"),
    ((letters,), 0, "a prefix of 7 of 7 tokens"),
    ((Generated(1, seed=1), Generated(1, seed=2)), 4, "drawn in several ways"),
    ((Generated(1, top_p=0.0),), 4, "top_p 0.0, seed 0: out of range"),
  ):
    with pytest.raises(ValueError, match=f"request 3: .*{message}"):
      request(3, tiles, *wanted, words=words)
  with pytest.raises(UserError, match=r"request 3: 30 tokens of text do not fit .* 24; raise serve\.lengths"):
    run(vlm, [request(3, tiles, letters, words=30)], dataclasses.replace(CONFIG, section="serve."))
  with pytest.raises(UserError, match=r"request 3: 3 image tiles do not fit .* 2; raise tiles"):
    run(vlm, [request(3, np.zeros((3, 16, 16, 3), np.uint8), letters)])
  with pytest.raises(ValueError, match="request 3: 1 tiles, where its prompt has 2"):
    run(vlm, [dataclasses.replace(request(3, images(2)[1], letters), picture=lambda: Picture(tiles=tiles))])
  with pytest.raises(ValueError, match="bidirectional=False, unlike the model's prompts"):
    run(prefix_lm, [request(3, tiles, letters)])


def test_numbers_that_break_are_named_and_end_the_run(vlm):
  sick = nnx.clone(vlm)
  nnx.update(sick, jax.tree.map(lambda x: np.full_like(x, np.nan), nnx.state(sick)))
  requests = [request(i, None, Letters((30, 31), i)) for i in range(2)]
  with pytest.raises(UserError, match=r"request 0: the logits are not finite; .*float32"):
    run(sick, requests)
  made = Engine(VlmScorer(vlm), dataclasses.replace(CONFIG, batch_size=1))
  next(made.run(iter(requests * 2)))
  with pytest.raises(RuntimeError, match="left before its end"):
    next(made.run(iter(requests)))
