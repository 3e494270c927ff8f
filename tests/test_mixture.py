"""Order of a mixture: exact shares, epochs, random access."""

from collections import Counter

import pytest

from spatialvlm.mixture import ENDLESS, Mixture
from spatialvlm.types import UserError


def mixture(lengths, weights, **kwargs):
  return Mixture(lengths, weights, **{"shuffle": True, "seed": 0, **kwargs})


def test_every_prefix_holds_the_weighted_share():
  weights = {"a": 0.7, "b": 0.1, "c": 0.2}
  m = mixture({"a": ENDLESS, "b": ENDLESS, "c": 7}, weights)
  seen = Counter()
  for n in range(1, 400):
    seen[m.names[m[n - 1].source]] += 1
    for name, weight in weights.items():
      assert abs(seen[name] - n * weight) < 2
    if n % 10 == 0:
      assert seen == {"a": n * 7 // 10, "b": n // 10, "c": n * 2 // 10}


def test_no_index_is_skipped_or_repeated():
  m = mixture({"a": ENDLESS, "b": ENDLESS}, {"a": 3.0, "b": 1.5})
  for source in (0, 1):
    indices = [m[n].index for n in range(300) if m[n].source == source]
    assert indices == list(range(len(indices)))
  assert m[10**12].index > 10**11


def test_each_epoch_is_another_permutation():
  m = mixture({"a": 50}, {"a": 1.0})
  epochs = [[m[e * 50 + i].index for i in range(50)] for e in range(3)]
  assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
  assert epochs[0] != list(range(50))
  assert m.epoch(75) == {"a": 1.5}


def test_order_depends_on_the_seed_and_the_name_only():
  order = lambda seed, name: [mixture({name: 40}, {name: 1.0}, seed=seed)[i].index for i in range(40)]
  assert order(0, "a") == order(0, "a")
  assert order(0, "a") != order(1, "a")
  assert order(0, "a") != order(0, "b")


def test_without_shuffle_the_order_is_kept():
  m = mixture({"a": 5}, {"a": 1.0}, shuffle=False)
  assert [m[i].index for i in range(7)] == [0, 1, 2, 3, 4, 0, 1]


def test_once_counts_positions_before_a_repetition():
  m = mixture({"a": 10, "b": 3}, {"a": 2.0, "b": 1.0}, shuffle=False)
  assert m.once() == 9
  places = [m[i] for i in range(m.once())]
  assert len(set(places)) == len(places)


@pytest.mark.parametrize(
  "lengths, weights, message",
  [
    ({}, {}, "no data source"),
    ({"a": 0}, {"a": 1.0}, "'a' holds no example"),
    ({"a": 4}, {"a": 0.0}, "weight 0"),
    ({"a": 4}, {"a": -1.0}, "'a': weight -1.0"),
    ({"a": 4}, {"a": float("nan")}, "weight nan"),
  ],
)
def test_bad_mixtures_are_refused(lengths, weights, message):
  with pytest.raises(UserError, match=message):
    mixture(lengths, weights)


def test_a_source_of_weight_zero_is_never_read():
  m = mixture({"a": 0, "b": 4}, {"a": 0.0, "b": 1.0})
  assert m.names == ("b",)
