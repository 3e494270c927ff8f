"""5,000 fresh questions answered without sight, and by rules that know two dimensions only."""

import dataclasses

import numpy as np
import pytest

from spatialvlm.types import Question
from spatialvlm.worlds import shortcuts
from spatialvlm.worlds.questions import KINDS, SceneQuestions

COUNT = 5000


@pytest.fixture(scope="module")
def sequence() -> SceneQuestions:
  return SceneQuestions(seed=20_261_122, image_size=48)


@pytest.fixture(scope="module")
def asked(sequence) -> list[Question]:
  return [sequence[i] for i in range(COUNT)]


def test_no_prior_of_the_text_is_better_than_guessing(asked):
  scores = shortcuts.prior_scores(asked)
  assert set(scores) == set(KINDS)
  for task, by_prior in scores.items():
    guessing = by_prior.pop("guessing")
    assert guessing == pytest.approx(0.2 if task == "Count" else 0.5, abs=1e-3)
    assert max(by_prior.values()) < guessing + 0.03, (task, by_prior)


def test_no_prior_is_better_on_halves_drawn_at_random(asked):
  rng = np.random.default_rng(0)
  for task in KINDS:
    of_task = [q for q in asked if q.task == task]
    order = rng.permutation(len(of_task))
    first, second = ([of_task[i] for i in order[k::2]] for k in (0, 1))
    for prior in shortcuts.PRIORS:
      score = shortcuts.prior_score(prior, first, second)
      assert score < shortcuts.guessing(second) + 0.03, (task, prior)


def test_no_rule_of_two_dimensions_is_better_than_guessing(asked):
  scores = shortcuts.rule_scores(asked)
  assert set(scores) == {"Relation left/right", "Relation above/below", "Depth", "Distance"}
  assert set(scores["Distance"]) == set(shortcuts.RULES)
  assert (
    set(scores["Depth"])
    == set(scores["Relation left/right"])
    == set(shortcuts.RULES) - {"nearer in the image"}
  )
  for task, by_rule in scores.items():
    for rule, score in by_rule.items():
      assert abs(score - 0.5) < 0.05, (task, rule, score)


def test_no_two_rules_together_are_better_than_guessing(asked):
  """The best answer for every combination of opinions, fitted on one half and tested on the other."""
  for task in ("Depth", "Distance"):
    rows = [
      (
        tuple(shortcuts.rule_choice(rule, q) for rule in shortcuts.RULES if rule != "most saturated"),
        q.answer,
      )
      for q in asked
      if q.task == task
    ]
    half = len(rows) // 2
    for fitted, tested in ((rows[:half], rows[half:]), (rows[half:], rows[:half])):
      votes: dict = {}
      for key, answer in fitted:
        votes[key] = votes.get(key, 0) + (1 if answer else -1)
      score = np.mean([(votes.get(key, 0) > 0) == bool(answer) for key, answer in tested])
      assert score < 0.55, task


def test_few_questions_find_no_scene(sequence, asked):
  assert sequence.read == COUNT and sequence.exhausted < 0.01 * COUNT


def test_letters_are_balanced(asked):
  for task in KINDS:
    answers = np.bincount([q.answer for q in asked if q.task == task])
    assert answers[:2].max() - answers[:2].min() <= 1


def question(**fields) -> Question:
  base = Question(
    idx=0,
    type="3D",
    task="Depth",
    images=(np.zeros((96, 96, 3), np.uint8),),
    question="..., the cyan cone (highlighted by a red box) or the white block (highlighted by a blue box)?",
    choices=("cyan cone", "white block"),
    answer=0,
    prompt="",
    source="Scenes",
    bbox=((10, 10, 20, 20), (40, 40, 60, 60)),
  )
  return dataclasses.replace(base, **fields)


def test_rules_take_what_they_say():
  q = question()
  q.images[0][10:20, 10:20] = (10, 200, 200)
  taken = {rule: shortcuts.rule_choice(rule, q) for rule in shortcuts.RULES}
  assert taken == {
    "lower edge": 1,
    "bigger box": 1,
    "nearer in the image": None,
    "centre": 1,
    "most saturated": 0,
  }
  turned = question(choices=("white block", "cyan cone"))
  assert shortcuts.rule_choice("lower edge", turned) == 0
  near = question(task="Distance", bbox=((0, 0, 8, 8), (10, 10, 20, 20), (40, 40, 60, 60)))
  assert shortcuts.rule_choice("nearer in the image", near) == 0


def test_a_world_on_one_floor_is_caught():
  """The measure itself: where the lower edge always tells the answer, its score says so."""
  naive = [question(answer=1) for _ in range(10)]
  assert shortcuts.rule_scores(naive)["Depth"]["lower edge"] == 1.0
  told = [
    question(answer=k % 2, choices=("cyan cone", "white block")[:: 1 - 2 * (k % 2)]) for k in range(100)
  ]
  assert shortcuts.prior_scores(told)["Depth"]["option text"] == 1.0
