"""Scenes in words: every object that can be seen, with its place and its box."""

import itertools
import re

import numpy as np
import pytest

from spatialvlm.config import ScenesConfig, SkillsConfig
from spatialvlm.data.sources.registry import open_source
from spatialvlm.worlds import facts, world

SENTENCE = re.compile(
  r"The (\w+ \w+)(?: in the (\w+) box)? is ([\d.]+) m ahead, ([\d.]+) m (left|right),"
  r" ([\d.]+) m (above|below)\."
)


def read(text):
  """(name, box, centre) of each sentence; all of the text must be such sentences."""
  found = SENTENCE.findall(text)
  assert SENTENCE.sub("", text).strip() == "" and found
  signs = {"left": -1, "right": 1, "above": -1, "below": 1}
  return [
    (name, box, np.array([signs[side] * float(x), signs[height] * float(y), float(z)]))
    for name, box, z, x, side, y, height in found
  ]


def test_all_that_is_seen_stands_where_it_is():
  (frame,) = world.frames(3, [5])
  first = frame.objects[0]
  told = read(facts.of_frame(frame, {"blue": first}))
  assert sorted(name for name, *_ in told) == sorted(o.name for o in frame.objects)
  assert [name for name, box, _ in told if box] == [first.name] and "blue" in {box for _, box, _ in told}
  for name, _, center in told:
    near = [np.abs(o.center_camera - center).max() for o in frame.objects if o.name == name]
    assert min(near) <= 0.0051
  sideways = [center[0] / center[2] for *_, center in told]
  assert all(b - a > -0.02 for a, b in itertools.pairwise(sideways))


@pytest.mark.parametrize(
  "config",
  [
    ScenesConfig(seed=1, tasks={"Depth": 1.0}),
    ScenesConfig(seed=1, tasks={"Depth": 1.0}, pictures=64),
  ],
  ids=["a picture each", "few pictures"],
)
def test_they_answer_questions_of_depth(config):
  """The nearer of the two boxes, by the words alone."""
  source = open_source(config)
  for index in range(8):
    example = source[index]
    turn = example.turns[0]
    depth = {box: center[2] for _, box, center in read(example.facts()) if box}
    boxes = re.findall(r"highlighted by a (\w+) box", turn.prompt)
    nearer = min(boxes, key=depth.get)
    right = dict(re.findall(r"\((\w)\) ([\w ]+)", turn.prompt))[turn.answer]
    (name,) = [name for name, box, _ in read(example.facts()) if box == nearer]
    assert right == name


def test_skills_tell_of_their_boxes_and_text_alone_says_nothing():
  example = open_source(SkillsConfig(seed=1, tasks={"name": 1.0}))[0]
  box = re.search(r"in the (\w+) box", example.turns[0].prompt).group(1)
  assert [name for name, b, _ in read(example.facts()) if b == box] == [example.turns[0].answer]
  assert open_source(SkillsConfig(seed=1, tasks={"letters": 1.0}))[0].facts is None
