"""Many questions about few pictures: true of them, balanced, the same in whatever order they are read."""

import collections
import re

import numpy as np
import pytest

from spatialvlm.config import ScenesConfig, SkillsConfig
from spatialvlm.data import pipeline
from spatialvlm.types import UserError
from spatialvlm.worlds import pools, shortcuts, skills, world
from spatialvlm.worlds.picture_questions import PictureQuestions
from spatialvlm.worlds.questions import KINDS

SIZE, PICTURES, COUNT = 48, 520, 2000


@pytest.fixture(scope="module")
def sequence():
  return PictureQuestions(11, {}, SIZE, pictures=PICTURES)


@pytest.fixture(scope="module")
def asked(sequence):
  return [sequence[i] for i in range(COUNT)]


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
  assert dict(told) == dict.fromkeys(KINDS, COUNT // 4)


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
      assert abs(letters[0] - letters[1]) <= 2


def test_each_block_of_pictures_has_its_turn_and_no_other_picture_is_shown(asked):
  assert {scene_of(q) for q in asked[:256]} <= set(range(256))
  assert {scene_of(q) for q in asked[256:512]} <= set(range(256, PICTURES))
  assert max(scene_of(q) for q in asked) >= 512
  assert {scene_of(q) for q in asked[512:768]} <= set(range(256))
  by_picture = collections.defaultdict(set)
  for question in asked:
    by_picture[scene_of(question)].add(question.images[0].tobytes())
  assert len(by_picture) > 0.8 * PICTURES and all(len(images) == 1 for images in by_picture.values())
  assert len({(scene_of(q), q.question) for q in asked}) > 2.5 * PICTURES


def test_the_same_whatever_was_read_before_and_without_rendering(asked, monkeypatch):
  fresh = PictureQuestions(11, {}, SIZE, pictures=PICTURES)
  (late,) = fresh.deferred([COUNT - 1])
  assert (late.prompt, late.answer) == (asked[-1].prompt, asked[-1].answer)
  fresh.deferred(range(600))
  with monkeypatch.context() as patch:
    patch.setattr(pools, "get", lambda *args: pytest.fail("rendered"))
    again = fresh.deferred(range(600, COUNT))
  assert [q.prompt for q in again] == [q.prompt for q in asked[600:]]
  picture = again[7].images[0]
  np.testing.assert_array_equal(picture.make(), asked[607].images[0])
  assert picture.shape == picture.make().shape
  keys = collections.defaultdict(set)
  for deferred, question in zip(again, asked[600:], strict=True):
    keys[deferred.images[0].key].add(question.images[0].tobytes())
  assert all(len(images) == 1 for images in keys.values())
  assert len({image for images in keys.values() for image in images}) == len(keys)


def test_large_pictures_are_the_scenes_looked_through_small_ones():
  large = PictureQuestions(11, {"Depth": 1.0}, 160, pictures=64)
  question, depth = large.with_depth(3)
  (frame,) = world.frames(11, [scene_of(question)], 160)
  np.testing.assert_allclose(depth, frame.depth, rtol=1e-6)
  assert question.images[0].shape == (160, 160, 3)


def test_few_pictures_that_lack_a_number_or_a_rule_are_asked_what_they_have():
  few = PictureQuestions(11, {}, 96, pictures=24)
  for question in few.deferred(range(200)):
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
  config = ScenesConfig(seed=3, image_size=64, pictures=64)
  source = pipeline.open_source(config)
  example = source[5]
  assert example.dense["depth"].shape == (64, 64) and example.images[0].dtype == np.uint8
  assert source.pictures == 64 and pipeline.open_source(SkillsConfig(pictures=8)).pictures == 8
  assert pipeline.open_source(ScenesConfig()).pictures == 0
  with pytest.raises(UserError, match="pictures: 64: questions that score a model"):
    pipeline.open_questions(config)
  for config in (ScenesConfig(pictures=-1), SkillsConfig(pictures=-1)):
    with pytest.raises(UserError, match="pictures"):
      pipeline.open_source(config)


def test_pictures_that_cannot_be_asked_a_kind_are_refused():
  with pytest.raises(UserError, match="none of 1 pictures of 24 pixels can be asked a question of kind Dist"):
    PictureQuestions(10, {"Distance": 1.0}, 24, pictures=1)[0]
