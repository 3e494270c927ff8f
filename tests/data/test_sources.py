"""Opening sources: settings that a kind does not know are refused."""

import numpy as np
import pytest

from spatialvlm.config import SourceConfig
from spatialvlm.data.sources import registry
from spatialvlm.data.sources.registry import open_questions, open_source
from spatialvlm.types import UserError
from spatialvlm.worlds import world


@pytest.mark.parametrize(
  "setting", [{"turns": 2}, {"columns": {"image": "x"}}, {"image_root": "x"}, {"tasks": {"Count": 1.0}}]
)
def test_settings_that_a_kind_passes_over_are_refused(setting):
  (name,) = setting
  for open_ in (open_source, open_questions):
    with pytest.raises(UserError, match=f"kind 'cvbench' heeds no `{name}`"):
      open_(SourceConfig(kind="cvbench", path="x.parquet", **setting))


@pytest.mark.parametrize("size", [64, 160])
def test_scene_examples_bring_their_pictures_depth_in_metres(size):
  """Depth belongs to the very scene that is shown: rendered anew by its number it is the same to the bit."""
  config = SourceConfig(kind="scenes", seed=3, image_size=size)
  examples, questions = open_source(config), open_questions(config)
  for index in (0, 5):
    example, question = examples[index], questions[index]
    np.testing.assert_array_equal(example.images[0], question.image)
    number = int(question.source_filename.rsplit("_", 1)[1])
    (frame,) = world.frames(3, [number], size)
    depth = example.dense["depth"]
    assert depth.dtype == np.float32 and depth.shape == (size, size)
    np.testing.assert_allclose(depth, frame.depth, rtol=1e-6)
    assert 0.5 < depth[depth > 0].min() < depth.max() <= 60
  assert [e.dense.keys() for e in registry.read(examples, [1, 2])] == [{"depth"}] * 2
