"""Intervals against their theory."""

import numpy as np
import pytest

from spatialvlm.evaluation import statistics
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
  rows = [row(0, task="Count", options=4), *(row(i, i % 2 > 0) for i in range(1, 20))]
  assert interval(rows, "task/Count") == (1.0, 1.0)


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
