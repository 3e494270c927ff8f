"""Rewards: each kind on answers of each form, and that `exact` is what the evaluation scores."""

import json
import pathlib

import pytest

from spatialvlm.training.rewards import REWARDS, RewardSettings, Said, make_rewards, quantity
from spatialvlm.types import UserError, choice_prompt

COUNT = choice_prompt("How many cones are in the image?", ["3", "2", "7"])
DEPTH = choice_prompt("Which is closer?", ["red cone", "blue box"])


def value(kind, prompt, answer, output, *, ended=True, length=2, limit=16, **kwargs):
  ((_, reward),) = make_rewards({kind: RewardSettings(kwargs=kwargs)}, "rewards").values()
  return reward(Said(prompt, answer, output, ended, length, limit))


@pytest.mark.parametrize(
  ("kind", "prompt", "answer", "output", "expected"),
  [
    ("exact", DEPTH, "A", " A", 1),
    ("exact", DEPTH, "A", "B", 0),
    ("exact", DEPTH, "A", "C", 0),
    ("exact", DEPTH, "(A)", "The answer is A", 1),
    ("exact", DEPTH, "red cone", "A", 1),
    ("exact", "What is it?", "red cone", " red cone ", 1),
    ("exact", "What is it?", "red cone", "red cones", 0),
    ("exact", "How many?", "3", "3.0", 1),
    ("exact", "How many?", "3", "three", 0),
    ("count", COUNT, "A", "B", 1 - 1 / 3),
    ("count", COUNT, "B", "C", 0),
    ("count", COUNT, "A", "none", 0),
    ("count", DEPTH, "A", "A", None),
    ("count", "How many?", "4", "5", 0.75),
    ("count", "How many?", "0", "1", 0),
    ("count", "How many?", "4", "4 m", 0),
    ("count", "How far?", "4 m", "4", None),
    ("distance", "How far?", "2 m", "2 m", 1),
    ("distance", "How far?", "2 m", "200 cm", 1),
    ("distance", "How far?", "2 m", "2.1", 0.9),
    ("distance", "How far?", "2 m", "1.6 metres.", 0.6),
    ("distance", "How far?", "2 m", "3.1 m", 0),
    ("distance", "How far?", "2 m", "It is 200 cm away.", 1),
    ("distance", "How far?", "2 m", "2 to 3 m", 0),
    ("distance", "How far?", "2 m", "2 apples", 0),
    ("distance", "How far?", "2 m", "", 0),
    ("distance", "How many?", "2", "2", None),
    ("distance", "How far?", "0 m", "0 m", None),
    ("format", DEPTH, "A", "(B).", 1),
    ("format", DEPTH, "A", "C", 0),
    ("format", DEPTH, "A", "It is B", 0),
    ("format", "How far?", "2 m", "three", 0),
    ("format", "How far?", "2 m", "9 m", 1),
    ("format", "What?", "red cone", "blue box", 1),
    ("format", "What?", "red cone", " ", 0),
  ],
)
def test_what_an_answer_is_worth(kind, prompt, answer, output, expected):
  found = value(kind, prompt, answer, output)
  assert found == (expected if expected is None else pytest.approx(expected))


def test_settings():
  assert value("distance", "How far?", "2", "200 cm", unit="m") == 1
  assert value("format", DEPTH, "A", "<b>A</b>", pattern="<b>.*</b>") == 1
  assert value("format", DEPTH, "A", "A", ended=False) == 0
  lengths = [value("overlong", "", "", "", length=n, limit=10, buffer=4) for n in (3, 6, 7, 10)]
  assert lengths == [0, 0, -0.25, -1] and value("overlong", "", "", "", ended=False) == -1
  assert quantity("-1.5 Feet.") == (-1.5, "feet") and quantity("about 3") is None
  for kind, kwargs, message in (
    ("distance", {"unit": "metr"}, "'metr' is no unit of length; did you mean 'metre'"),
    ("overlong", {"buffer": 0}, "0 tokens; use 1 or more"),
    ("exact", {"ruel": "vsi"}, "kwargs.ruel: unknown key; did you mean 'rule'"),
  ):
    with pytest.raises(UserError, match=message):
      value(kind, "", "", "", **kwargs)
  assert all(reward.__doc__ for reward in REWARDS.values())


@pytest.mark.parametrize("rule", ["lmms_eval", "vlmevalkit", "cambrian"])
def test_exact_is_the_score(rule):
  """The recorded answers of the published harnesses: the reward is 1 where the harness counts them right."""
  path = pathlib.Path(__file__).parents[1] / "data" / "extraction_cases.json"
  for case in json.loads(path.read_text())["cases"]:
    prompt = choice_prompt(case["question"], case["choices"])
    found = value("exact", prompt, case["answer"], case["output"], rule=rule)
    assert found == case[f"{rule}_score"], case["output"]
