"""The table of kinds: what a config names is what is opened."""

import dataclasses
import importlib
import typing

import numpy as np
import pytest

from spatialvlm.config import ScenesConfig, SkillsConfig, SourceConfig
from spatialvlm.data.sources import registry
from spatialvlm.data.sources.registry import open_questions, open_source
from spatialvlm.mixture import ENDLESS
from spatialvlm.types import UserError
from spatialvlm.worlds import world

CONFIGS = {cls().kind: cls for cls in typing.get_args(SourceConfig)}


def test_every_kind_of_config_has_its_openers_and_the_table_no_other():
  assert registry.KINDS.keys() == CONFIGS.keys()
  for name, kind in registry.KINDS.items():
    module = importlib.import_module(f"spatialvlm.data.sources.{name}")
    assert [hasattr(module, what) for what in kind._fields] == [opener is not None for opener in kind]


def test_rendered_kinds_read_their_settings():
  scenes = ScenesConfig(tasks={"Count": 1.0}, seed=3, size=5, image_size=32)
  questions, examples = open_questions(scenes), open_source(scenes)
  assert len(questions) == len(examples) == 5 and questions[4].task == examples[4].task == "Count"
  assert questions[0].images[0].shape == (32, 32, 3)
  one, five = (open_source(SkillsConfig(tasks={"letters": 1.0}, turns=n, seed=3)) for n in (1, 5))
  assert len(one) == ENDLESS and one[0].task == "letters"
  assert len(one[0].turns) == 1 < max(len(five[i].turns) for i in range(4))


@pytest.mark.parametrize(
  "source",
  [
    ScenesConfig(tasks={"Relation": 0.75, "Count": 0.25}, image_size=32),
    SkillsConfig(tasks={"letters": 0.5, "color": 0.5}, image_size=32),
  ],
  ids=lambda source: source.kind,
)
def test_equal_configs_draw_alike_in_whatever_order_they_name_their_tasks(source):
  backwards = dataclasses.replace(source, tasks=dict(reversed(source.tasks.items())))
  assert source == backwards
  tasks = [[open_source(config)[i].task for i in range(12)] for config in (source, backwards)]
  assert tasks[0] == tasks[1] and len(set(tasks[0])) == 2


def test_a_kind_that_holds_no_questions_says_which_do():
  with pytest.raises(
    UserError, match="kind 'llava' holds no questions; known: cvbench, hf, posed, rgbd, rooms, scenes"
  ):
    open_questions(CONFIGS["llava"]())


def test_questions_are_of_no_mixture():
  with pytest.raises(UserError, match=r"weight: 0\.5: questions come from one source alone"):
    open_questions(ScenesConfig(weight=0.5))


@pytest.mark.parametrize("size", [64, 160])
def test_scene_examples_bring_their_pictures_depth_in_metres(size):
  """Depth belongs to the very scene that is shown: rendered anew by its number it is the same to the bit."""
  config = ScenesConfig(seed=3, image_size=size)
  examples, questions = open_source(config), open_questions(config)
  for index in (0, 5):
    example, question = examples[index], questions[index]
    np.testing.assert_array_equal(example.images[0], question.images[0])
    number = int(question.source_filename.rsplit("_", 1)[1])
    (frame,) = world.frames(3, [number], size)
    depth = example.dense["depth"]
    assert depth.dtype == np.float32 and depth.shape == (size, size)
    np.testing.assert_allclose(depth, frame.depth, rtol=1e-6)
    assert 0.5 < depth[depth > 0].min() < depth.max() <= 60
  assert [e.dense.keys() for e in registry.read(examples, [1, 2])] == [{"depth"}] * 2
