"""The text forest finds what is there to be found in texts, and nothing where there is nothing."""

import dataclasses
import sys

import numpy as np
import pytest

from spatialvlm.evaluation.scoring import baselines, forest
from spatialvlm.types import UserError
from tests.evaluation.support import row


def text_forest(rows, texts, seed=0):
  rows = [dataclasses.replace(row, question=text) for row, text in zip(rows, texts, strict=True)]
  return forest.text_forest(rows, seed, trees=15)


def test_it_finds_a_rule_that_no_other_prior_finds():
  """The thing asked about and the option together decide; letters and texts alone are even."""
  rng = np.random.default_rng(0)
  rows, texts = [], []
  for i in range(160):
    thing, options = ("tables", "chairs")[i % 2], [("1", "2"), ("2", "1")][rng.integers(2)]
    right = "1" if thing == "tables" else "2"
    rows.append(row(i, task="Count", source="COCO", choices=options, gold="AB"[options.index(right)]))
    texts.append(f"How many {thing} are in the image?")
  assert text_forest(rows, texts).mean() > 0.97
  assert baselines.majority_text(rows).mean() < 0.65
  assert baselines.majority_letter(rows).mean() < 0.65


def test_it_finds_the_value_of_a_number_among_its_rivals():
  """The middle one of three numbers, none of which stands twice."""
  rng = np.random.default_rng(0)
  rows = []
  for i in range(200):
    options = rng.permutation([3 * i + 1000, 3 * i + 1001, 3 * i + 1002])
    gold = "ABC"[int(np.flatnonzero(options == 3 * i + 1001)[0])]
    rows.append(row(i, task="Count", options=3, choices=tuple(map(str, options)), gold=gold))
  assert text_forest(rows, ["How many?"] * 200).mean() > 0.95


def test_it_knows_nothing_where_there_is_nothing():
  rng = np.random.default_rng(1)
  rows = [row(i, gold="AB"[rng.integers(2)], image=f"{i // 3}") for i in range(600)]
  assert text_forest(rows, [f"Which {i % 7}?" for i in range(600)]).mean() == pytest.approx(0.5, abs=0.07)


def test_it_does_not_see_its_own_image():
  """Each image has its own answer, which its four questions share: on other images that says nothing."""
  rng = np.random.default_rng(2)
  answers = rng.integers(2, size=60)
  rows = [row(i, gold="AB"[answers[i // 4]], image=f"{i // 4}") for i in range(240)]
  texts = [f"What of the {'abcdefghij'[i // 4 % 10]}{'abcdefghij'[i // 40]}?" for i in range(240)]
  assert text_forest(rows, texts).mean() == pytest.approx(0.5, abs=0.17)


def test_a_seed_fixes_it_and_names_do_not_depend_on_the_process():
  rows = [row(i, gold="AB"[i * 7 % 3 % 2], task=("Depth", "Count")[i % 2]) for i in range(60)]
  texts = [f"Is {i % 5}?" for i in range(60)]
  np.testing.assert_array_equal(text_forest(rows, texts, 3), text_forest(rows, texts, 3))
  assert forest._stable("Depth") == 593.0


def test_a_lone_question_is_guessed():
  np.testing.assert_allclose(text_forest([row(0, options=4)], ["?"]), [0.25])


def test_without_scikit_learn(monkeypatch):
  monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
  with pytest.raises(UserError, match=r"score\.text_forest needs scikit-learn"):
    text_forest([row(0)], ["?"])


def test_exact_balance_is_nothing_to_be_had():
  """Of four questions alike both letters are right twice: what is rarer among the others is right here."""
  rows = [row(i, gold="ABBA"[i % 4], source_dataset=f"{i // 4}") for i in range(80)]
  texts = [f"Which of {'abcdefghijklmnopqrst'[i // 4]}?" for i in range(80)]
  assert text_forest(rows, texts).mean() < 0.55
