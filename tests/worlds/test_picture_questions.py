"""Many questions about few pictures: true of them, balanced, the same in whatever order they are read."""

import collections
import dataclasses
import re

import numpy as np
import pytest

from spatialvlm.config import ScenesConfig, SkillsConfig
from spatialvlm.data import pipeline
from spatialvlm.types import UserError
from spatialvlm.worlds import pools, shortcuts, skills, world
from spatialvlm.worlds.picture_questions import PictureQuestions
from spatialvlm.worlds.plans import Found, Wish, plan
from spatialvlm.worlds.questions import KINDS

SIZE, PICTURES, TURNS = 48, 520, 4


@pytest.fixture(scope="module")
def talks():
  """Two rounds of conversations, their pictures drawn."""
  several = PictureQuestions(11, {}, SIZE, pictures=PICTURES, turns=TURNS)
  return [drawn(several[i]) for i in range(2 * PICTURES)]


@pytest.fixture(scope="module")
def asked(talks):
  return [question for talk in talks for question in talk]


def drawn(talk):
  image = talk[0].images[0].make()
  assert all(q.images[0].key == talk[0].images[0].key for q in talk)
  return [dataclasses.replace(q, images=(image,)) for q in talk]


@pytest.fixture(scope="module")
def frames():
  return world.frames(11, range(PICTURES), SIZE)


def scene_of(question) -> int:
  return int(question.source_filename.rsplit("_", 1)[1])


def test_answers_are_true_of_the_scenes(asked, frames):
  told = collections.Counter()
  for question in asked:
    frame = frames[scene_of(question)]
    said = question.choices[question.answer]
    if question.task == "Count":
      what = question.question.removeprefix("How many ").split(" are")[0].split()
      same = [
        o for o in frame.objects if world.PLURALS[o.shape] == what[-1] and o.color in (what[0], o.color)
      ]
      same = [o for o in same if len(what) == 1 or o.color == what[0]]
      assert int(said) == len(same)
      told["Count"] += 1
      continue
    by_box = {tuple(map(float, o.box)): o for o in frame.objects}
    objects = [by_box[box] for box in question.bbox]
    a, b = objects[-2:]
    if question.task == "Relation":
      vertical = "above" in question.choices
      low, high = ((o.box[1] + o.box[3], o.box[0] + o.box[2])[not vertical] for o in (a, b))
      assert said == (("left", "right"), ("above", "below"))[vertical][int(low > high)]
    elif question.task == "Depth":
      assert said == min(a, b, key=lambda o: o.center_camera[2]).name
    else:
      far = [float(np.linalg.norm(o.center_camera - objects[0].center_camera)) for o in (a, b)]
      assert said == (a, b)[int(far[0] > far[1])].name
    told[question.task] += 1
  wished = 2 * PICTURES * TURNS / 4
  assert all(0.6 * wished < told[kind] <= wished for kind in KINDS), told


def test_boxes_that_are_named_are_drawn_around_their_objects(asked, frames):
  named = 0
  for question in asked[:400]:
    frame = frames[scene_of(question)]
    for name, color in _named_boxes(question.question):
      (o,) = (o for o in frame.objects if o.name == name)
      plain = frame.image.copy()
      world.draw_box(plain, o.box, color)
      changed = (plain != frame.image).any(-1)
      hit = (question.images[0][changed] == world.BOX_COLORS[color]).all(-1).mean()
      assert hit > 0.5  # another box may run across
      named += 1
  assert named > 300


def _named_boxes(text):
  return re.findall(r"the (\w+ \w+) \((?:highlighted|annotated) by (?:a|the) (\w+) box\)", text)


def test_neither_answers_nor_rules_are_ahead(asked):
  for task, by_rule in shortcuts.rule_scores(asked).items():
    # Centre and saturation are left to the pictures.
    for rule in ("lower edge", "bigger box", "nearer in the image"):
      assert 0.46 < by_rule.get(rule, 0.5) < 0.54, (task, rule)
  for task in KINDS:
    letters = collections.Counter(q.answer for q in asked if q.task == task)
    if task != "Count":
      assert letters[0] / letters.total() == pytest.approx(0.5, abs=0.03), task


def test_each_round_goes_through_all_blocks_and_asks_no_question_twice_in_a_conversation(talks):
  shown = [scene_of(talk[0]) for talk in talks]
  for first in (0, PICTURES):
    assert set(shown[first : first + 256]) <= set(range(256))
    assert set(shown[first + 256 : first + PICTURES]) <= set(range(256, PICTURES))
  assert len(set(shown)) > 0.5 * PICTURES
  assert shown[:PICTURES] != shown[PICTURES:]
  images = collections.defaultdict(set)
  for talk in talks:
    assert 1 <= len(talk) <= TURNS and len({scene_of(q) for q in talk}) == 1
    assert len({(q.question, q.choices) for q in talk}) == len(talk)
    images[scene_of(talk[0])].add(talk[0].images[0].tobytes())
  assert all(len(found) == 1 for found in images.values())
  assert sum(map(len, talks)) > 0.75 * len(talks) * TURNS
  assert len({(scene_of(q), q.question) for talk in talks for q in talk}) > 0.5 * sum(map(len, talks))


def test_the_same_whatever_was_read_before_and_without_rendering(talks, monkeypatch):
  fresh = PictureQuestions(11, {}, SIZE, pictures=PICTURES, turns=TURNS)
  last = fresh[2 * PICTURES - 1]
  assert [(q.prompt, q.answer, q.choices) for q in last] == [
    (q.prompt, q.answer, q.choices) for q in talks[-1]
  ]
  fresh[0]
  with monkeypatch.context() as patch:
    patch.setattr(pools, "get", lambda *args: pytest.fail("rendered"))
    again = [fresh[i] for i in range(PICTURES, 2 * PICTURES)]
  assert [[q.prompt for q in talk] for talk in again] == [
    [q.prompt for q in talk] for talk in talks[PICTURES:]
  ]
  keys = collections.defaultdict(set)
  for deferred, talk in zip(again, talks[PICTURES:], strict=True):
    keys[deferred[0].images[0].key].add(talk[0].images[0].tobytes())
  assert all(len(images) == 1 for images in keys.values())
  assert len({image for images in keys.values() for image in images}) == len(keys)


def test_one_question_each_is_balanced_too():
  one = PictureQuestions(5, {"Depth": 1.0, "Distance": 1.0}, SIZE, pictures=256)
  asked = [drawn(one[i])[0] for i in range(1024)]
  assert all(len(one[i]) == 1 for i in range(32))
  for task, by_rule in shortcuts.rule_scores(asked).items():
    for rule in ("lower edge", "bigger box", "nearer in the image"):
      assert 0.42 < by_rule.get(rule, 0.5) < 0.58, (task, rule)


def test_large_pictures_are_the_scenes_looked_through_small_ones():
  large = PictureQuestions(11, {"Depth": 1.0}, 160, pictures=64)
  (question,) = large[3]
  (picture,) = question.images
  (frame,) = world.frames(11, [scene_of(question)], 160)
  np.testing.assert_allclose(picture.depth(), frame.depth, rtol=1e-6)
  assert picture.shape == picture.make().shape == (160, 160, 3)


def test_few_pictures_that_lack_a_number_or_a_rule_are_asked_what_they_have():
  few = PictureQuestions(11, {}, 96, pictures=24, turns=8)
  for question in (question for i in range(48) for question in few[i]):
    assert scene_of(question) < 24 and 0 <= question.answer < len(question.choices)
    assert len(set(question.choices)) == len(question.choices) >= 2


def test_skills_ask_other_things_about_the_same_pictures_in_each_round():
  plain, few = skills.SceneSkills(5, turns=2), skills.SceneSkills(5, turns=2, pictures=16)
  first, second = few.__getitems__(range(16)), few.__getitems__(range(16, 32))
  for a, b in zip(first, plain.__getitems__(range(16)), strict=True):
    assert a.turns == b.turns and np.array_equal(a.images[0], b.images[0])
  shown = [e.images[0].tobytes() for e in first]
  order = [shown.index(e.images[0].tobytes()) for e in second]
  assert sorted(order) == list(range(16)) and order != list(range(16))
  same = sum(e.turns == first[n].turns for e, n in zip(second, order, strict=True))
  assert same < 8
  assert few[20].turns == second[4].turns


def test_sources_of_few_pictures_are_for_training():
  config = ScenesConfig(seed=3, image_size=64, pictures=64, turns=2)
  source = pipeline.open_source(config)
  example = source[5]
  assert example.dense["depth"].shape == (64, 64) and example.images[0].dtype == np.uint8
  assert source.pictures == 64 and pipeline.open_source(SkillsConfig(pictures=8)).pictures == 8
  assert {len(source[i].turns) for i in range(16)} == {1, 2}
  assert not hasattr(pipeline.open_source(ScenesConfig()), "pictures")
  with pytest.raises(UserError, match="pictures: 64: is for training, and no part of a score"):
    pipeline.open_questions(config)
  with pytest.raises(UserError, match="turns: 2: several questions share a picture where pictures says"):
    pipeline.open_source(ScenesConfig(turns=2))
  with pytest.raises(UserError, match="a conversation of 0 turns"):
    pipeline.open_source(ScenesConfig(pictures=64, turns=0))
  for config in (ScenesConfig(pictures=-1), SkillsConfig(pictures=-1)):
    with pytest.raises(UserError, match="pictures"):
      pipeline.open_source(config)


def test_pictures_that_cannot_be_asked_a_kind_are_refused():
  with pytest.raises(UserError, match="none of 1 pictures of 24 pixels can be asked a question of kind Dist"):
    PictureQuestions(10, {"Distance": 1.0}, 24, pictures=1)[0]


def test_a_plan_stops_a_kind_where_it_would_lose_its_balance():
  """Cell 0 is answered by every picture, three times over, cell 1 by one picture alone."""
  rows = np.array([[picture, picture, 0] for picture in range(8) for _ in range(3)] + [[3, 0, 1]])
  found = {"Depth": Found(rows[:, -1], rows)}
  wishes = [Wish("Depth", number % 2) for number in range(32)]
  talks = plan(wishes, found, 8, 4, np.random.default_rng(0))
  assert len(talks) == 8 and all(1 <= len(talk) <= 4 for talk in talks)
  for talk in talks:
    assert len({placed.row for placed in talk}) == len(talk) and len({rows[p.row, 0] for p in talk}) == 1
  asked = [rows[placed.row, -1] for talk in talks for placed in talk]
  assert len(asked) >= 16 and abs(asked.count(0) - asked.count(1)) <= 1


def test_deferred_skills_ask_the_same_and_render_no_picture_twice(monkeypatch):
  few = skills.SceneSkills(5, turns=2, pictures=16)
  wanted = few.__getitems__(range(32))
  few.deferred(range(16))
  with monkeypatch.context() as patch:
    patch.setattr(world, "frames", lambda *args: pytest.fail("rendered"))
    found = few.deferred(range(16, 32))
  assert [e.turns for e in found] == [e.turns for e in wanted[16:]] and not found[0].dense
  np.testing.assert_array_equal(found[5].images[0].make(), wanted[21].images[0])
