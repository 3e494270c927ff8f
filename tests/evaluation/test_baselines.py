"""Priors that never see the answer they predict, and rules of two dimensions."""

import dataclasses

import numpy as np
import pytest

from spatialvlm.evaluation.scoring import baselines
from spatialvlm.worlds import shortcuts
from spatialvlm.worlds.questions import SceneQuestions
from tests.evaluation.support import row


def test_guessing():
  rows = [row(0), row(1, options=4), row(2, options=5)]
  np.testing.assert_allclose(baselines.priors(rows)["guessing"], [0.5, 0.25, 0.2])


def test_majority_letter_finds_a_bias():
  rows = [row(i, gold="B" if i % 5 else "A") for i in range(100)]
  assert baselines.majority_letter(rows).mean() == pytest.approx(0.8)


def test_majority_letter_is_of_the_task_and_the_number_of_options():
  rows = [row(i, gold="A", task="Depth") for i in range(20)]
  rows += [row(20 + i, gold="B", task="Relation") for i in range(20)]
  rows += [row(40 + i, gold="D", task="Count", options=4) for i in range(20)]
  rows += [row(60 + i, gold="F", task="Count", options=6) for i in range(20)]
  assert baselines.majority_letter(rows).mean() == 1.0


def test_a_prior_does_not_see_its_own_image():
  """Every image has its own answer text; fitted on the rest there is nothing to know, so it guesses."""
  rows = [row(i, image=f"{i // 4}", choices=(f"own {i // 4}", f"other {i // 4}")) for i in range(40)]
  np.testing.assert_allclose(baselines.majority_text(rows), 0.5)


def test_majority_text():
  """Texts go by how often they are the answer, not by their place."""
  rows = []
  for i in range(60):
    gold = "AB"[i % 2]
    choices = ("sofa", "lamp") if gold == "A" else ("lamp", "sofa")
    rows.append(row(i, gold=gold, choices=choices))
  assert baselines.majority_text(rows).mean() == 1.0
  # By then nearly even letters say little, and never everything.
  assert baselines.majority_letter(rows).mean() < 0.65


def test_majority_text_is_of_task_and_source():
  rows = [row(i, source="COCO", gold="A", choices=("1", "2")) for i in range(20)]
  rows += [row(20 + i, source="ADE20K", gold="B", choices=("1", "2")) for i in range(20)]
  assert baselines.majority_text(rows).mean() == 1.0


def test_folds_keep_images_together_and_are_even():
  rows = [row(i, image=f"{i % 50}") for i in range(200)]
  fold = baselines.folds(rows, seed=3)
  assert all(len({int(fold[i]) for i in range(k, 200, 50)}) == 1 for k in range(50))
  assert np.bincount(fold).tolist() == [40] * 5
  assert not np.array_equal(fold, baselines.folds(rows, seed=4))


def test_a_lone_question_is_guessed():
  assert baselines.majority_letter([row(0, options=4)])[0] == 0.25


def test_a_rule_is_right_or_wrong_and_guesses_where_it_is_silent():
  rows = [row(0, rules={"bigger box": "A"}), row(1, gold="B", rules={"bigger box": "A"}), row(2, options=4)]
  np.testing.assert_allclose(baselines.rules(rows)["bigger box"], [1, 0, 0.25])


def test_a_rule_has_the_better_reading_of_each_axis():
  """A rule may stand for left or for right: here it is always wrong on one axis, and right on the other."""
  fields = dict(task="Relation", rules={"centre": "A"})
  rows = [row(i, gold="B", choices=("left", "right"), **fields) for i in range(4)]
  rows += [row(4 + i, gold="A", choices=("below", "above"), **fields) for i in range(4)]
  assert baselines.rules(rows)["centre"].mean() == 1.0
  # Not so in Depth, where "the bigger box is nearer" has one reading.
  rows = [row(i, gold="B", rules={"bigger box": "A"}) for i in range(4)]
  assert baselines.rules(rows)["bigger box"].mean() == 0.0


def test_rules_know_rendered_scenes_alone():
  questions = SceneQuestions(seed=3, size=8)
  for question in questions:
    letters = baselines.rule_letters(question)
    assert set(letters) == {r for r in shortcuts.RULES if shortcuts.rule_choice(r, question) is not None}
    assert bool(letters) == (question.task != "Count")
    # Of other pictures only what is drawn into them is known.
    undrawn = dict(source="COCO", images=(np.full_like(question.images[0], 90),))
    assert not baselines.rule_letters(dataclasses.replace(question, **undrawn))
