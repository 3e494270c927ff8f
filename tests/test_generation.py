"""Decoding against a plain loop without a cache, sampling against the distribution it must follow."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spatialvlm import generation
from spatialvlm.core.axes import make_mesh
from spatialvlm.processing.arrays import batch_from_arrays
from spatialvlm.types import Batch, UserError
from tests import tiny_model

IMAGE, PAD, NEW = 60, 0, 6


@pytest.fixture(scope="module")
def vlm():
  return tiny_model.build()


def arrays(left: bool) -> dict[str, np.ndarray]:
  """Two images in one sample, one in the next, none in the last, padded on one side."""
  rng = np.random.default_rng(5)
  rows = [
    [1, *[IMAGE] * 4, 7, *[IMAGE] * 4, 9, 11, 12],
    [1, 5, *[IMAGE] * 4, 30, 31],
    [1, 2, 3],
  ]
  T = 13
  ids, mask = np.full((3, T), PAD), np.zeros((3, T), int)
  for i, row in enumerate(rows):
    place = slice(T - len(row), T) if left else slice(0, len(row))
    ids[i, place], mask[i, place] = row, 1
  pixels = rng.normal(size=(3, 2, 3, 16, 16)).astype(np.float32)
  pixels[1, 1], pixels[2] = 0, 0
  return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def batch_of(arrays, length=None) -> Batch:
  return batch_from_arrays(
    **arrays, image_token_id=IMAGE, vocab_size=64, tokens_of_tile=lambda h, w: h * w // 64, length=length
  )


def one(arrays, row) -> dict[str, np.ndarray]:
  kept = arrays["attention_mask"][row] == 1
  pixels = arrays["pixel_values"][row]
  pixels = pixels[pixels.any(axis=(1, 2, 3))]
  return {
    "input_ids": arrays["input_ids"][row][kept][None],
    "attention_mask": np.ones((1, kept.sum()), int),
    "pixel_values": pixels[None] if len(pixels) else None,
  }


@pytest.fixture(scope="module")
def without_cache(vlm):
  """Greedy decoding of one sample by whole forward passes, each over a longer text of one compiled length."""
  graphdef, state = nnx.split(vlm)
  forward = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))

  def decode(sample, count):
    ids, start = list(sample["input_ids"][0]), sample["input_ids"].shape[1]
    for _ in range(count):
      batch = batch_of({**sample, "input_ids": sample["input_ids"], "attention_mask": None}, length=32)
      tokens, valid = np.zeros((1, 32), np.int32), np.zeros((1, 32), bool)
      tokens[0, : len(ids)], valid[0, : len(ids)] = ids, True
      batch = dataclasses.replace(batch, tokens_BT=tokens, valid_BT=valid)
      ids.append(int(np.argmax(forward(state, batch)[0, len(ids) - 1])))
    return ids[start:]

  return decode


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_greedy_equals_decoding_without_a_cache(vlm, without_cache, left):
  given = arrays(left)
  together = generation.generate(vlm, batch_of(given), max_new_tokens=NEW, pad_id=PAD)
  assert together.shape == (3, NEW) and together.dtype == np.int32
  for row in range(3):
    assert together[row].tolist() == without_cache(one(given, row), NEW)
  assert len({tuple(row) for row in together.tolist()}) == 3


def test_a_batch_equals_its_samples_alone(vlm):
  given = arrays(left=False)
  together = generation.generate(vlm, batch_of(given), max_new_tokens=NEW, pad_id=PAD)
  alone = generation.generate(vlm, batch_of(one(given, 1), length=16), max_new_tokens=NEW, pad_id=PAD)
  np.testing.assert_array_equal(alone[0], together[1])


def test_stops_and_pads(vlm):
  batch = batch_of(arrays(left=True))
  free = generation.generate(vlm, batch, max_new_tokens=NEW, pad_id=63)
  stops = (int(free[0, 2]), int(free[1, 0]))
  stopped = generation.generate(vlm, batch, max_new_tokens=NEW, stop_ids=stops, pad_id=63)
  for row, whole in zip(stopped, free, strict=True):
    hits = np.flatnonzero(np.isin(whole, stops))
    end = hits[0] + 1 if len(hits) else NEW
    np.testing.assert_array_equal(row[:end], whole[:end])
    assert (row[end:] == 63).all()
  assert (stopped == 63).any()
  on = generation.generate(vlm, batch, max_new_tokens=NEW, stop_ids=stops, pad_id=63, stop=False)
  np.testing.assert_array_equal(on, free)


def test_rows_that_fill_a_batch_are_not_waited_for(vlm):
  batch = dataclasses.replace(batch_of(arrays(left=True)), example_mask_B=np.array([True, False, True]))
  free = generation.generate(vlm, batch_of(arrays(left=True)), max_new_tokens=NEW, pad_id=63)
  result = generation.generate(vlm, batch, max_new_tokens=NEW, pad_id=63)
  np.testing.assert_array_equal(result[[0, 2]], free[[0, 2]])
  assert (result[1] == 63).all()


def test_stream_gives_the_same_tokens(vlm):
  batch = batch_of(arrays(left=True))
  free = generation.generate(vlm, batch, max_new_tokens=NEW, pad_id=63)
  for kwargs in (
    {"stop_ids": (int(free[0, 1]), int(free[1, 2]), int(free[2, 0]))},
    {"temperature": 1.5, "top_p": 0.9, "seed": 3},
  ):
    whole = generation.generate(vlm, batch, max_new_tokens=NEW, pad_id=63, **kwargs)
    pieces = np.stack(list(generation.stream(vlm, batch, max_new_tokens=NEW, pad_id=63, **kwargs)), axis=1)
    np.testing.assert_array_equal(pieces, whole[:, : pieces.shape[1]])
    assert (whole[:, pieces.shape[1] :] == 63).all()


def test_sharded_model_decodes_the_same(vlm):
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  from spatialvlm.core.axes import shardings

  graphdef, state = nnx.split(vlm)
  sharded = nnx.merge(graphdef, jax.device_put(state, shardings(state, mesh)))
  batch = batch_of(arrays(left=True))
  expected = generation.generate(vlm, batch, max_new_tokens=3, pad_id=PAD)
  np.testing.assert_array_equal(
    generation.generate(sharded, batch, max_new_tokens=3, pad_id=PAD, mesh=mesh), expected
  )


def test_sampling_follows_the_distribution():
  """Two thousand draws of one token stay within five standard errors of the softmax at each temperature."""
  logits = np.array([2.0, 1.0, 0.0, -1.0, -4.0, 0.5], np.float32)
  draws = 2000
  choose = jax.jit(generation._choose, static_argnames=("sampled", "nucleus"))
  for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.8), (1.0, 0.01)):
    probs = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    order = np.argsort(-probs)
    kept = order[: int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1]
    expected = np.zeros(6)
    expected[kept] = probs[kept] / probs[kept].sum()
    tokens = choose(
      jnp.tile(logits, (draws, 1)), temperature, top_p, jax.random.key(1), sampled=True, nucleus=top_p < 1
    )
    observed = np.bincount(tokens, minlength=6) / draws
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(observed - expected) <= 5 * error + 1e-12).all(), (temperature, top_p, observed, expected)


def test_sampling_through_the_model(vlm):
  given = arrays(left=False)
  batch = batch_of(one(given, 2))
  graphdef, state = nnx.split(vlm)
  logits = np.asarray(jax.jit(lambda s, b: nnx.merge(graphdef, s)(b))(state, batch))[0, -1] / 2.0
  probs = np.exp(logits - logits.max())
  probs /= probs.sum()
  many = Batch(
    tokens_BT=np.repeat(batch.tokens_BT, 64, axis=0), valid_BT=np.repeat(batch.valid_BT, 64, axis=0)
  )
  counts = collections.Counter()
  for seed in range(12):
    draw = generation.generate(vlm, many, max_new_tokens=2, temperature=2.0, seed=seed)
    counts.update(draw[:, 0].tolist())
  total = 64 * 12
  for token in np.argsort(-probs)[:5]:
    error = np.sqrt(probs[token] * (1 - probs[token]) / total)
    assert abs(counts[int(token)] / total - probs[token]) < 5 * error
  again = [generation.generate(vlm, many, max_new_tokens=2, temperature=2.0, seed=s) for s in (0, 0, 1)]
  np.testing.assert_array_equal(again[0], again[1])
  assert (again[0] != again[2]).any()


def test_nothing_new_is_compiled_for_lengths_of_one_bucket(vlm):
  batch = batch_of(arrays(left=True), length=16)
  generation.generate(vlm, batch, max_new_tokens=9, pad_id=PAD)
  before = generation._decode._cache_size(), generation._prefill._cache_size()
  for count in (10, 13, 16):
    assert generation.generate(vlm, batch, max_new_tokens=count, pad_id=PAD).shape == (3, count)
  assert (generation._decode._cache_size(), generation._prefill._cache_size()) == before


def test_buckets():
  for least in (1, 16):
    sizes = [generation.bucket(n, least) for n in range(1, 5000)]
    assert all(n <= size <= max(n + least - 1, n * 1.125) for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
  assert len({generation.bucket(n, 16) for n in range(1, 8193)}) < 60


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ({"max_new_tokens": 4, "temperature": -1.0}, "temperature"),
    ({"max_new_tokens": 4, "temperature": float("nan")}, "temperature"),
    ({"max_new_tokens": 4, "top_p": 0.0}, "top_p"),
    ({"max_new_tokens": 500}, "13 tokens and 500 new ones exceed the model's context of 512"),
  ],
)
def test_wrong_arguments(vlm, kwargs, message):
  with pytest.raises(UserError, match=message):
    generation.generate(vlm, batch_of(arrays(left=True)), **kwargs)
