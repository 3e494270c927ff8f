"""Intervals against their theory."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from spatialvlm.evaluation.scoring import statistics
from spatialvlm.types import UserError
from tests.evaluation.support import row


def interval(rows, name="plain", resamples=4000):
  correct = np.array([r.correct for r in rows])
  return statistics.intervals(rows, correct, resamples=resamples, seed=0)[name]


def half_width(pair):
  return (pair[1] - pair[0]) / 2


def test_independent_questions_have_the_binomial_interval():
  rows = [row(i, i % 10 < 7) for i in range(800)]
  low, high = interval(rows)
  assert half_width((low, high)) == pytest.approx(1.96 * np.sqrt(0.7 * 0.3 / 800), rel=0.06)
  assert (low + high) / 2 == pytest.approx(0.7, abs=0.005)


def test_questions_on_one_image_count_once():
  """The four questions on each of 200 images are right or wrong together: the interval is that of 200."""
  rows = [row(i, (i // 4) % 10 < 7, image=f"image {i // 4}") for i in range(800)]
  assert half_width(interval(rows)) == pytest.approx(1.96 * np.sqrt(0.7 * 0.3 / 200), rel=0.06)


def test_the_official_score_is_stratified():
  """The sources' weights are fixed, so its variance is the weighted sum of the sources' own."""
  rates = {"ADE20K": (100, 0.2), "COCO": (400, 0.5), "Omni3D": (300, 0.8)}
  rows = []
  for source, (n, rate) in rates.items():
    rows += [row(1000 * len(rows) + i, i < n * rate, source=source) for i in range(n)]
  weights = {"ADE20K": 0.25, "COCO": 0.25, "Omni3D": 0.5}
  deviation = np.sqrt(sum(weights[s] ** 2 * p * (1 - p) / n for s, (n, p) in rates.items()))
  assert half_width(interval(rows, "official")) == pytest.approx(1.96 * deviation, rel=0.06)
  # And the plain mean is drawn with the sources' sizes fixed, so it is narrower than one pooled binomial.
  within = np.sqrt(sum(n * p * (1 - p) for n, p in rates.values())) / 800
  assert half_width(interval(rows)) == pytest.approx(1.96 * within, rel=0.06)


def test_blocks_of_resamples_are_one_sample(monkeypatch):
  rows = [row(i, i % 3 > 0) for i in range(60)]
  monkeypatch.setattr(statistics, "BLOCK", 60 * 7)
  assert half_width(interval(rows)) == pytest.approx(1.96 * np.sqrt(2 / 9 / 60), rel=0.08)


def test_a_seed_fixes_the_interval():
  rows = [row(i, i % 3 > 0) for i in range(50)]
  assert interval(rows, resamples=50) == interval(rows, resamples=50)


def test_a_group_that_a_draw_may_miss():
  """Two of the twenty images: every eighth draw has neither, and says nothing."""
  rows = [*(row(i, task="Count", options=4) for i in range(2)), *(row(i, i % 2 > 0) for i in range(2, 20))]
  assert interval(rows, "task/Count") == (1.0, 1.0)


def test_one_image_says_nothing():
  rows = [row(i, True, image="one", task="Depth") for i in range(4)]
  rows += [row(10 + i, i > 1, image=f"{i}", task="Count") for i in range(8)]
  assert interval(rows, "task/Depth") == (0.0, 1.0)
  assert interval(rows, "task/Count") != (0.0, 1.0)
  change = statistics.paired(rows, rows)["task/Depth"]
  assert (change["low"], change["high"]) == (-1.0, 1.0)


def test_paired_difference():
  """100 questions turn right and 20 wrong of 400: the deviation of the mean of -1, 0 and +1."""
  before = [row(i, i < 100) for i in range(400)]
  after = [row(i, 20 <= i < 200) for i in range(400)]
  found = statistics.paired(before, after[::-1], resamples=4000)["plain"]
  assert (found["before"], found["after"], found["n"]) == (0.25, 0.45, 400)
  assert found["difference"] == pytest.approx(0.2)
  deviation = np.sqrt((120 / 400 - 0.2**2) / 400)
  assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * deviation, rel=0.06)


def test_a_run_against_itself_does_not_differ():
  rows = [row(i, i % 3 > 0) for i in range(30)]
  found = statistics.paired(rows, rows, resamples=50)["plain"]
  assert (found["difference"], found["low"], found["high"]) == (0, 0, 0)


def test_other_questions_are_refused():
  with pytest.raises(UserError, match="number 4 is in one of them only"):
    statistics.paired([row(i) for i in range(4)], [row(i) for i in range(5)])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 9), (14, 14), (700, 610), (2638, 0)])
def test_mcnemar_is_the_two_sided_binomial_test(gained, lost):
  before = np.array([False] * gained + [True] * lost + [True, False] * 7)
  after = np.array([True] * gained + [False] * lost + [True, False] * 7)
  found = statistics.mcnemar(before, after)
  # Twice the smaller tail, in integers of any size.
  differ = gained + lost
  tail = sum(math.comb(differ, k) for k in range(min(gained, lost) + 1))
  expected = min(1.0, 2 * tail / 2**differ)
  assert (found["gained"], found["lost"]) == (gained, lost)
  assert found["p"] == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_brute_force():
  """Of all ways in which 7 coins may fall, the share that is at least as lopsided as 1 to 6."""
  sums = np.array([sum(coins) for coins in itertools.product((0, 1), repeat=7)])
  found = statistics.mcnemar(np.array([True] + [False] * 6), np.array([False] + [True] * 6))
  assert found["p"] == pytest.approx(np.mean(np.abs(sums - 3.5) >= 2.5))


def test_interval_of_wilson():
  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: score without continuity correction.
  for right, count, low, high in (
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (1, 29, 0.0061, 0.1718),
  ):
    np.testing.assert_allclose(statistics.wilson(right, count), (low, high), atol=5e-5)
  np.testing.assert_allclose(statistics.wilson(0, 20), (0, 0.1611), atol=5e-5)
  assert statistics.wilson(10, 10)[1] == 1
  narrow, wide = (statistics.wilson(7, 10, level=level) for level in (0.5, 0.99))
  assert wide[0] < narrow[0] < 0.7 < narrow[1] < wide[1]


def test_holm():
  """Holm's rule as he states it: go up the ordered values while p <= level / (tests that are left)."""
  p_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
  found = statistics.holm(p_values)
  assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
  assert list(found) == list(p_values)
  rng = np.random.default_rng(0)
  for level in (0.01, 0.05, 0.2):
    some = {str(i): p for i, p in enumerate(rng.beta(0.3, 2, 8))}
    rejected, left = set(), 8
    for name, p in sorted(some.items(), key=lambda item: item[1]):
      if p > level / left:
        break
      rejected, left = rejected | {name}, left - 1
    assert {name for name, p in statistics.holm(some).items() if p <= level} == rejected
  assert statistics.holm({}) == {}


def test_minimum_detectable_has_its_power():
  """Of a normal estimate whose true value lies so far off, four in five exclude zero."""
  effect = statistics.minimum_detectable(0.013)
  assert effect == pytest.approx((scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)) * 0.013)
  drawn = np.random.default_rng(0).normal(effect, 0.013, 40_000)
  assert np.mean(np.abs(drawn) > 1.96 * 0.013) == pytest.approx(0.8, abs=0.01)


def test_paired_tests_and_their_correction():
  rows = [row(i, i % 2 > 0, task=("Depth", "Count")[i // 40], source="s") for i in range(80)]
  other = [row(i, i % 2 > 0 or i < 30, task=("Depth", "Count")[i // 40], source="s") for i in range(80)]
  found = statistics.paired(rows, other, resamples=2000)
  assert (found["task/Depth"]["gained"], found["task/Depth"]["lost"]) == (15, 0)
  assert found["task/Depth"]["p"] == pytest.approx(2 * 0.5**15)
  assert found["task/Depth"]["p_holm"] == pytest.approx(4 * 0.5**15)
  assert found["task/Count"]["p_holm"] == 1.0
  assert "p_holm" not in found["plain"] and found["plain"]["p"] == pytest.approx(2 * 0.5**15)
  # The difference is no plain mean over questions: there is nothing to count.
  assert "p" not in found["macro"]
  deviation = np.sqrt(15 / 80 * (1 - 15 / 80) / 80)
  assert found["plain"]["detectable"] == pytest.approx(2.8016 * deviation, rel=0.05)


def test_at_chance():
  def score(low, guessing):
    return {"score": low + 0.05, "low": low, "high": low + 0.1, "guessing": guessing}

  scores = {"plain": score(0.45, 0.42), "task/Depth": score(0.46, 0.5), "task/Count": score(0.01, 0.25)}
  assert statistics.at_chance(scores) == ["task/Depth", "task/Count"]
