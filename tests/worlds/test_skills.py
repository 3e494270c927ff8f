"""Skills are held against the scene itself: what a question says of an object is looked up in the frame."""

import numpy as np
import pytest

from spatialvlm.types import CHOOSE, UserError
from spatialvlm.worlds import skills, targets, world

COUNT = 48


@pytest.fixture(scope="module")
def frames():
  return world.frames(5, range(COUNT))


@pytest.fixture(scope="module")
def conversations():
  return skills.SceneSkills(5, turns=6).__getitems__(range(COUNT))


def boxes_drawn(before, after):
  """Colours of the boxes in a picture, from the pixels that differ from the scene without boxes."""
  changed = after[(before != after).any(-1)]
  return {name for name, rgb in world.BOX_COLORS.items() if (changed == rgb).all(-1).any()}


def test_same_example_whatever_is_read_with_it(conversations):
  again = skills.SceneSkills(5, turns=6)[7]
  assert again.turns == conversations[7].turns
  np.testing.assert_array_equal(again.images[0], conversations[7].images[0])
  for name, target in again.dense.items():
    np.testing.assert_array_equal(target, conversations[7].dense[name])


def test_another_seed_is_another_world(conversations):
  other = skills.SceneSkills(6, turns=6)[7]
  assert not np.array_equal(other.images[0], conversations[7].images[0])


def test_questions_of_a_conversation_differ(conversations):
  for example in conversations:
    prompts = [t.prompt for t in example.turns]
    assert len(set(prompts)) == len(prompts)
  assert np.mean([len(e.turns) for e in conversations]) > 3


def test_boxes_asked_about_are_drawn_and_hold_what_is_answered(frames, conversations):
  asked = 0
  for frame, example in zip(frames, conversations, strict=True):
    drawn = boxes_drawn(frame.image, example.images[0])
    for turn in example.turns:
      if not turn.prompt.startswith("What is in the") or CHOOSE in turn.prompt:
        continue
      color = turn.prompt.split()[4]
      assert color in drawn
      rows, columns = np.nonzero((example.images[0] == world.BOX_COLORS[color]).all(-1))
      inside = frame.instance[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
      named = {o.index: o.name for o in frame.objects}
      assert turn.answer in {named[i] for i in np.unique(inside) if i >= 0}
      asked += 1
  assert asked > 20


def test_where_agrees_with_the_mask(frames, conversations):
  asked = 0
  for frame, example in zip(frames, conversations, strict=True):
    for turn in example.turns:
      found = [o for o in frame.objects if turn.prompt == f"Where is the {o.name}?"]
      if not found:
        continue
      rows, columns = np.nonzero(frame.instance == found[0].index)
      middle = [(v.min() + v.max() + 1) / 2 / 96 for v in (rows, columns)]
      row, column = (
        words[int(3 * m)] for words, m in zip((targets.ROWS, targets.COLUMNS), middle, strict=True)
      )
      assert turn.answer == f"{row} {column}"
      asked += 1
  assert asked > 10


def test_present_is_balanced_and_true(frames):
  source = skills.SceneSkills(5, {"present": 1.0})
  answers = []
  for frame, example in zip(frames, source.__getitems__(range(COUNT)), strict=True):
    if example.task != "present":
      continue
    (turn,) = example.turns
    name = turn.prompt.removeprefix("Is there a ").removesuffix("?")
    assert (turn.answer == "yes") == (name in {o.name for o in frame.objects})
    answers.append(turn.answer == "yes")
  assert 0.25 < np.mean(answers) < 0.75


@pytest.mark.parametrize("task", ["choose", "letters"])
def test_letter_stands_before_the_answer(task):
  source = skills.SceneSkills(5, {task: 1.0})
  letters = []
  for example in source.__getitems__(range(COUNT)):
    (turn,) = example.turns
    options = dict(line[1:].split(") ") for line in turn.prompt.split("\n")[1:])
    assert turn.answer in options
    letters.append(turn.answer)
    if example.task == "letters":
      assert turn.prompt.startswith(f"The answer is {options[turn.answer]}. ")
    assert len(set(options.values())) == len(options) >= 2
  assert len(set(letters)) > 2
  assert bool(source[0].images) == (task == "choose")


def of_skill(name):
  """(frame's number, turn) of the pictures that answer a skill."""
  examples = skills.SceneSkills(5, {name: 1.0}).__getitems__(range(COUNT))
  return [(i, e.turns[0]) for i, e in enumerate(examples) if e.task == name]


def in_boxes(frame, example):
  """Box colour -> the object that it is drawn around, by where its pixels lie."""
  found = {}
  for color, rgb in world.BOX_COLORS.items():
    rows, columns = np.nonzero((example.images[0] == rgb).all(-1))
    if len(rows):
      box = np.array([columns.min() + 1, rows.min() + 1, columns.max(), rows.max()])
      found[color] = min(frame.named(), key=lambda o, box=box: np.abs(np.array(o.box) - box).sum())
  return found


def test_far_and_near_to_far_say_the_depths(frames):
  asked = of_skill("far")
  examples = skills.SceneSkills(5, {"far": 1.0}).__getitems__(range(COUNT))
  for i, turn in asked:
    depth = in_boxes(frames[i], examples[i])[turn.prompt.split()[4]].center_camera[2]
    edges = 2.5 * (9 / 2.5) ** (np.arange(1, 8) / 8)
    assert turn.answer == targets.DEPTH_WORDS[int((depth >= edges).sum())]
  ordered = of_skill("near_to_far")
  examples = skills.SceneSkills(5, {"near_to_far": 1.0}).__getitems__(range(COUNT))
  for i, turn in ordered:
    held = in_boxes(frames[i], examples[i])
    depths = [held[color].center_camera[2] for color in turn.answer.split(", ")]
    assert len(depths) == len(held) > 1 and (np.diff(np.log(depths)) > 0.11).all()
  assert len(asked) > 20 and len(ordered) > 10


def test_boxes_and_scene_say_of_each_object_what_the_single_questions_say(frames):
  examples = skills.SceneSkills(5, {"boxes": 1.0}).__getitems__(range(COUNT))
  for i, turn in (asked := of_skill("boxes")):
    held = in_boxes(frames[i], examples[i])
    said = dict(part.split(": ") for part in turn.answer.split("; "))
    assert list(said) == [color for color in targets.BOXES if color in held]
    for color, o in held.items():
      step = int((o.center_camera[2] >= 2.5 * (9 / 2.5) ** (np.arange(1, 8) / 8)).sum())
      assert said[color] == f"{o.name}, {thirds(frames[i], o)}, {targets.DEPTH_WORDS[step]}"
  for i, turn in (scenes := of_skill("scene")):
    places = [part.split(", ") for part in turn.answer.split("; ")]
    clear = [o for o in frames[i].objects if o.clear]
    assert sorted(places) == sorted([o.name, thirds(frames[i], o)] for o in clear)
    columns = [targets.COLUMNS.index(place.split()[1]) for _, place in places]
    assert columns == sorted(columns)
  assert len(asked) > 20 and len(scenes) > 20


def thirds(frame, o):
  """Of the picture, in which the middle of an object's pixels lies."""
  rows, columns = np.nonzero(frame.instance == o.index)
  row, column = (int(3 * (v.min() + v.max() + 1) / 2 / 96) for v in (rows, columns))
  return f"{targets.ROWS[row]} {targets.COLUMNS[column]}"


def test_how_many_and_any_count_what_is_there(frames):
  counted, sought = of_skill("how_many"), of_skill("any")
  for i, turn in counted:
    words = turn.prompt.removesuffix(" are there?").split()
    colors = [o.color for o in frames[i].objects]
    assert turn.answer == str(len(colors) if words[2] == "objects" else colors.count(words[2]))
  for i, turn in sought:
    words = turn.prompt.removesuffix("?").split()[3:]
    plurals = [f"{o.color} {o.shape}s" if len(words) == 2 else f"{o.shape}s" for o in frames[i].objects]
    assert turn.answer == ("yes" if " ".join(words) in plurals else "no")
  for i, _ in counted + sought:
    assert all(o.clear for o in frames[i].objects)
  assert {t.answer for _, t in sought} == {"yes", "no"} and len(counted) > 10


def test_none_of_the_four_kinds_is_asked(frames):
  """Not in the benchmark's words: of shapes nothing is counted, and no two things are compared by letter."""
  every = skills.SceneSkills(5, dict.fromkeys(skills.SKILLS, 1.0), turns=12).__getitems__(range(COUNT))
  assert {e.task for e in every} > {"name", "far"}
  for example in every:
    for turn in example.turns:
      assert not any(w in turn.prompt for w in ("closer", "located with respect", "istance", "in the image"))
      assert "How many" not in turn.prompt or turn.prompt.endswith("objects are there?")


def test_dense_targets_lie_on_the_objects(frames, conversations):
  for frame, example in zip(frames, conversations, strict=True):
    empty = frame.instance < 0
    assert tuple(example.dense) == (*targets.CLASSES, "depth")
    assert example.dense["depth"].dtype == np.float32
    np.testing.assert_array_equal(example.dense["depth"], frame.depth)
    for name in targets.CLASSES:
      target = example.dense[name]
      assert target.dtype == np.int8 and (target[~empty] >= 0).all()
      assert name == "depth_step" or (target[empty] == -1).all()
    for o in frame.objects:
      at = frame.instance == o.index
      assert (example.dense["color"][at] == world.COLORS.index(o.color)).all()
      assert (example.dense["shape"][at] == world.SHAPES.index(o.shape)).all()
    highlighted = np.unique(example.dense["box"][~empty])
    drawn = boxes_drawn(frame.image, example.images[0])
    assert {skills.BOXES[i] for i in highlighted if i < 3} == drawn
    near = [example.dense["depth_step"][frame.instance == o.index][0] for o in frame.objects]
    order = np.argsort([o.center_camera[2] for o in frame.objects])
    assert (np.diff(np.array(near)[order]) >= 0).all()


def test_depth_of_floor_and_furniture_is_given_away_from_objects(frames, conversations):
  for frame, example in zip(frames, conversations, strict=True):
    given = (example.dense["depth_step"] >= 0) & (frame.instance < 0)
    assert (frame.depth[given] > 0).all()
    steps = np.log(frame.depth[given] / 2.5) / np.log(9 / 2.5) * targets.DEPTH_STEPS
    np.testing.assert_array_equal(example.dense["depth_step"][given], np.clip(np.floor(steps), 0, 7))
    rows, columns = np.nonzero(frame.instance >= 0)
    for y, x in np.argwhere(given)[::97]:
      assert np.maximum(abs(rows - y), abs(columns - x)).min() > 6
    assert given.any()


def test_asked_gives_the_skill_only():
  examples = skills.asked(skills.SceneSkills(5, {"name": 1.0}), 70)
  assert len(examples) == 70 and {e.task for e in examples} == {"name"}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"tasks": {"colour": 1.0}}, "did you mean 'color'"),
    ({"tasks": {"name": 0.0}}, "not positive"),
    ({"turns": 0}, "one at least"),
  ],
)
def test_what_cannot_be_asked(arguments, message):
  with pytest.raises(UserError, match=message):
    skills.SceneSkills(0, **arguments)
