"""Spoken distances: what is read as a length, how near it is, and what guesses without a picture reach."""

import math

import numpy as np
import pytest

from spatialvlm.config import RgbdConfig
from spatialvlm.data.sources.registry import open_questions, open_source
from spatialvlm.evaluation import skill_scores, spoken
from spatialvlm.evaluation.asking.lengths import metres
from spatialvlm.evaluation.scoring import distances
from spatialvlm.types import UserError
from spatialvlm.worlds import skills, world
from tests.data.test_rgbd import write_pairs


@pytest.mark.parametrize(
  ("text", "length"),
  [
    ("2.4 m", 2.4),
    (" 240 cm ", 2.4),
    ("2.4 meters.", 2.4),
    ("2.4m", 2.4),
    (".5 metres", 0.5),
    ("8 ft", 2.4384),
    ("0 m", 0.0),
    ("It is 2.4 meters away.", 2.4),
    ("About 2.4 m", 2.4),
    ("The lamp is 240 cm ahead.", 2.4),
    ("94 in", 94 * 0.0254),
    ("2.4", None),
    ("It is 2.4 away.", None),
    ("2.4 in front", None),
    ("-2.4 m", None),
    ("It is -2.4 m away.", None),
    ("2 to 3 m", None),
    ("2-3 m", None),
    ("2 m 40 cm", None),
    ("2,4 m", None),
    ("It is 2,4 m.", None),
    ("1,200 mm", None),
    ("less than 2 m", None),
    ("between 2 and 3 meters", None),
    ("2.4 m/s", None),
    ("2.4 m\u00b2", None),
    ("2.4 apples", None),
    ("near", None),
    ("", None),
  ],
)
def test_a_length_is_read_where_it_can_be_read_in_one_way(text, length):
  assert metres(text) == (length if length is None else pytest.approx(length))


def test_a_bare_number_has_the_unit_that_is_given():
  assert metres("2.4", "m") == 2.4 and metres("240", "cm") == pytest.approx(2.4)
  assert metres("2.4 cm", "m") == pytest.approx(0.024)
  assert metres("2 apples", "m") is None and metres("There are 2.", "m") is None


def test_errors_are_those_of_the_formulas():
  found = distances.score([2.0, 2.2, 5.0, None, 1.0], [2.0, 2.0, 4.0, 3.0, 4.0])
  assert (found.count, found.unread) == (5, 1)
  low, high = found.abs_rel[1:]
  assert found.abs_rel[0] == pytest.approx((0 + 0.1 + 0.25 + 1 + 0.75) / 5) and low < 0.42 < high
  assert {name: share[0] for name, share in found.within.items()} == {"1.25": 0.4, "10 %": 0.4, "25 %": 0.6}
  assert all(low < share < high for share, low, high in found.within.values())


def test_guesses_know_others_and_no_picture():
  places = np.array([[0.1, 0.1], [0.1, 0.2], [0.9, 0.9], [1.0, 0.8]])
  found = distances.guesses([1.0, 3.0, 5.0, 9.0], places, np.array([[0.0, 0.0], [0.99, 0.99], [0.1, 0.9]]))
  assert found == {"one distance": [4.0] * 3, "by place": [2.0, 7.0, 4.0]}


@pytest.fixture(scope="module")
def asked():
  return skills.asked(skills.SceneSkills(5, {"metres": 1.0}), 160)


def test_scenes_are_asked_near_and_far(asked):
  """The answer is the depth of the object's middle; nobody can say one distance and be near often."""
  frames = {f"5/{n}": frame for n, frame in enumerate(world.frames(5, range(40)))}
  said = [metres(example.turns[0].answer) for example in asked]
  for example, length in zip(asked, said, strict=True):
    turn = example.turns[0]
    assert turn.prompt.startswith("How far ahead is the ") and turn.prompt.endswith("? Answer in meters.")
    if example.id in frames:
      (o,) = [o for o in frames[example.id].named() if o.name in turn.prompt]
      assert length == pytest.approx(o.center_camera[2], abs=0.0501)
      assert example.geometry.asked[0].named == (o.box,)
  steps = np.histogram(np.log(said), np.log([2.5, 3.44, 4.74, 6.54, 9.0]))[0] / len(said)
  assert steps.min() > 0.1, steps
  for name, guess in distances.guesses(
    said[:80], *(skill_scores._places(p) for p in (asked[:80], asked[80:]))
  ).items():
    found = distances.score(guess, said[80:])
    assert found.abs_rel[0] > (0.25 if name == "one distance" else 0.12), (name, found)


def test_the_model_stands_beside_the_guesses(asked):
  given = [example.turns[0].answer for example in asked[:20]]
  given[0], given[1] = "far", f"It is {100 * metres(given[1]):.0f} cm away."
  found = skill_scores.score_distances(given, asked[:20], asked[20:])
  assert list(found) == ["model", "one distance", "by place"]
  assert found["model"].unread == 1 and found["model"].abs_rel[0] == pytest.approx(1 / 20, abs=1e-9)
  rows = skill_scores.distance_table(found).rows
  assert [row[0].text for row in rows] == ["model", "one distance", "by place"]
  assert rows[0][-1].text == "1 of 20" and rows[0][2].text.startswith("95.0 (")


def test_photographs_are_asked_too(tmp_path):
  frames = world.frames(5, range(6), 96)
  folder = write_pairs(tmp_path, frames)
  examples = open_source(RgbdConfig(path=str(folder), tasks={"Metres": 1.0}, depth_size=0))
  assert {e.task for e in examples} == {"Metres"}
  for example in examples:
    frame = frames[int(example.files[0].split("/")[1].split(".")[0])]
    (o,) = [o for o in frame.objects if o.name in example.turns[0].prompt]
    surface = np.median(frame.depth[frame.instance == o.index])
    assert metres(example.turns[0].answer) == pytest.approx(surface, abs=0.0511)
  mixed = open_source(RgbdConfig(path=str(folder), tasks={"Metres": 1.0, "Depth": 1.0}))
  assert {e.task for e in mixed} == {"Metres", "Depth"} and "depth" in mixed[0].dense
  with pytest.raises(UserError, match="Metres has no options"):
    open_questions(RgbdConfig(path=str(folder), tasks={"Metres": 1.0}))
  own, others = spoken.of_photographs(str(folder), "pairs", 5)
  assert len(own) <= 5 and not {e.files[0] for e in own} & {e.files[0] for e in others}
  near = skill_scores.score_distances([e.turns[0].answer for e in own], own, others)
  assert near["model"].abs_rel[0] < 1e-9 and math.isfinite(near["by place"].abs_rel[0])
