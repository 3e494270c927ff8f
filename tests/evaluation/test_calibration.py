"""Calibration against closed forms and brute force."""

import dataclasses

import numpy as np
import pytest

from spatialvlm.evaluation.scoring import calibration
from tests.evaluation.support import row


def with_probabilities(idx, probability, gold="A"):
  options = len(probability)
  return row(idx, options=options, gold=gold, logprobs=tuple(np.log(probability) - 5.0))


def test_probabilities_are_of_the_options_alone():
  np.testing.assert_allclose(
    calibration.probabilities(with_probabilities(0, [0.7, 0.2, 0.1])), [0.7, 0.2, 0.1]
  )


def test_a_model_that_knows_how_much_it_knows():
  """Of questions answered with 80 %, four in five are right: no error, and Brier's 2 p (1 - p)."""
  rows = [with_probabilities(i, [0.8, 0.2], gold="B" if i % 5 == 0 else "A") for i in range(50)]
  found = calibration.calibration(rows)
  assert found["ece"] == pytest.approx(0.0, abs=1e-12)
  assert found["brier"] == pytest.approx(2 * 0.8 * 0.2)
  assert found["brier_guessing"] == pytest.approx(0.5)
  (only,) = found["bins"]
  assert (only["n"], only["correct"], only["confidence"]) == (50, pytest.approx(0.8), pytest.approx(0.8))


def test_certainty_is_in_the_last_bin():
  found = calibration.calibration([with_probabilities(0, [1 - 1e-12, 1e-12], gold="B")])
  assert found["ece"] == pytest.approx(1.0) and found["brier"] == pytest.approx(2.0)
  assert found["bins"][0]["high"] == 1.0


def test_ece_and_brier_by_brute_force():
  rng = np.random.default_rng(0)
  rows, expected = [], 0.0
  for i in range(300):
    p = rng.dirichlet(np.ones(2 + i % 5))
    rows.append(with_probabilities(i, p, gold="ABCDEF"[rng.integers(len(p))]))
    truth = np.eye(len(p))["ABCDEF".index(rows[-1].gold)]
    expected += np.sum((p - truth) ** 2) / 300
  found = calibration.calibration(rows, bins=7)
  assert found["brier"] == pytest.approx(expected)
  error = 0.0
  for low in np.arange(7) / 7:
    inside = [
      (p.max(), "ABCDEF"[p.argmax()] == r.gold)
      for r in rows
      if low <= (p := calibration.probabilities(r)).max() < low + 1 / 7
    ]
    if inside:
      error += abs(np.sum([c - right for c, right in inside])) / 300
  assert found["ece"] == pytest.approx(error)
  assert sum(b["n"] for b in found["bins"]) == 300


def test_contextual_takes_off_what_the_model_says_blindly():
  """A lean towards A that has nothing to do with the picture goes; what the picture says remains."""
  rng = np.random.default_rng(1)
  rows, blind = [], []
  for i in range(40):
    gold = "AB"[i % 2]
    seen = np.array([1.0, -1.0]) * (1 if gold == "A" else -1)
    lean = np.array([3.0, 0.0]) + rng.normal(0, 0.2, 2)
    rows.append(row(i, gold=gold, logprobs=tuple(seen + lean)))
    blind.append(row(i, gold=gold, logprobs=tuple(lean)))
  right, changed = calibration.contextual(rows, blind[::-1])
  assert right.all() and changed == 20
  # A model that does not look has nothing left but its first option.
  right, _ = calibration.contextual(blind, blind)
  assert right.tolist() == [i % 2 == 0 for i in range(40)]


def test_contextual_needs_the_same_questions():
  with pytest.raises(ValueError, match="question 1 has no blind"):
    calibration.contextual([row(0), row(1)], [row(0)])
  with pytest.raises(ValueError, match="question 0 has no blind"):
    calibration.contextual([row(0)], [dataclasses.replace(row(0), choices=("x", "y"))])
