"""Questions about posed pictures with depth: answers are those of the depth, and the rule is balanced."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

from spatialvlm.config import PosedConfig
from spatialvlm.data.sources import registry
from spatialvlm.fields import field as field_lib
from spatialvlm.fields import fit, grid, written
from spatialvlm.fields.posed import transforms
from spatialvlm.mixture import ENDLESS
from spatialvlm.types import Note, UserError
from tests.fields import support

SIZE = 48


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Three grey pictures: depth falls towards the bottom, towards the top, to the left."""
  folder = tmp_path_factory.mktemp("posed")
  cams = support.ring(3, size=(SIZE, SIZE))
  ramp = np.linspace(2, 6, SIZE) * np.ones((SIZE, 1))
  for kind in ("renders", "depth"):
    (folder / kind).mkdir()
  frames = []
  for n, depth in enumerate((ramp.T[::-1], ramp.T, ramp)):
    (folder / f"renders/{n}.png").write_bytes(written.png(np.full((SIZE, SIZE, 3), 120, np.uint8)))
    (folder / f"depth/{n}.png").write_bytes(written.png(written.millimetres(depth)))
    frames.append({"file_path": f"renders/{n}.png", "depth_path": f"depth/{n}.png"})
  transforms.write(folder / "transforms.json", cams, frames, written.MILLIMETRES)
  return folder


def middle(image, color):
  """Row and column of the middle of what is inside of a drawn box."""
  rows, columns = np.nonzero((image == color).all(-1))
  return (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2


def test_the_nearer_place_is_the_answer(place):
  config = PosedConfig(path=str(place), seed=3, depth_size=SIZE)
  questions, examples = registry.open_questions(config), registry.open_source(config)
  assert len(questions) == len(examples) == ENDLESS
  lower, answers = [], []
  for n in range(40):
    question, example = questions[n], examples[n]
    depth = example.dense["depth"]
    assert depth.shape == (SIZE, SIZE) and question.prompt == example.turns[0].prompt
    np.testing.assert_array_equal(question.images[0], example.images[0])
    (r0, c0), (r1, c1) = (middle(question.images[0], c) for c in ((255, 0, 0), (0, 0, 255)))
    red, blue = depth[round(r0), round(c0)], depth[round(r1), round(c1)]
    assert max(red, blue) > 1.1 * min(red, blue)
    assert question.answer == int(blue < red) and example.turns[0].answer == "AB"[question.answer]
    answers.append(question.answer)
    lower.append((r1 > r0) == (blue < red))
  assert sum(answers) == sum(lower) == 20
  again = registry.open_questions(config)
  np.testing.assert_array_equal(again[17].images[0], questions[17].images[0])
  assert len(registry.open_questions(PosedConfig(path=str(place), size=12))) == 12
  smaller = registry.open_source(PosedConfig(path=str(place), seed=3, depth_size=16))[0].dense["depth"]
  np.testing.assert_array_equal(smaller, examples[0].dense["depth"][1::3, 1::3])
  assert not registry.open_source(PosedConfig(path=str(place), depth_size=0))[0].dense


def test_how_far_a_place_is(place):
  config = PosedConfig(path=str(place), seed=3, depth_size=SIZE, ask="Metres")
  examples, said = registry.open_source(config), []
  assert len(examples) == ENDLESS
  for n in range(30):
    (turn,) = examples[n].turns
    assert turn.prompt == "How far ahead is the place in the red box? Answer in meters."
    row, column = middle(examples[n].images[0], (255, 0, 0))
    said.append(float(turn.answer.removesuffix(" m")))
    assert said[-1] == pytest.approx(examples[n].dense["depth"][round(row), round(column)], rel=0.06)
    (x0, y0, x1, y1) = examples[n].geometry.asked[0].named[0]
    assert (y0 + y1) / 2 == pytest.approx(row, abs=1) and (x0 + x1) / 2 == pytest.approx(column, abs=1)
  assert min(said) < 3 and max(said) > 5
  np.testing.assert_array_equal(registry.open_source(config)[7].images[0], examples[7].images[0])
  with pytest.raises(UserError, match="Metres has no options"):
    registry.open_questions(config)


def test_what_a_field_says_of_the_pictures(place, tmp_path):
  space = grid.Space((0.0, 0.0, 0.0), 4.0, 0.5, 20.0, 6.0)
  field = field_lib.Field(fit.start(support.TINY).params, support.TINY, space)
  field.save(tmp_path / "field.safetensors")
  config = PosedConfig(
    path=str(place), depth_size=0, field=str(tmp_path / "field.safetensors"), field_size=12
  )
  examples = registry.open_source(dataclasses.replace(config, ask="Metres"))
  maps = {e.files[0]: e.dense["field"] for e in map(examples.__getitem__, range(24))}
  assert len(maps) == 3 and {m.shape for m in maps.values()} == {(12, 12, grid.DESCRIPTORS)}
  every = np.concatenate([m.reshape(-1, grid.DESCRIPTORS) for m in maps.values()])
  np.testing.assert_allclose(every.mean(0), 0, atol=1e-3)
  np.testing.assert_allclose(every.std(0), 1, atol=1e-3)
  assert "field" in registry.open_source(config)[0].dense
  with pytest.raises(UserError, match="cannot be read"):
    registry.open_source(dataclasses.replace(config, field=str(tmp_path / "none.safetensors")))
  with pytest.raises(UserError, match="field_size: 0 cells"):
    registry.open_source(dataclasses.replace(config, field_size=0))


def test_folders_that_hold_no_such_places(place, tmp_path):
  with pytest.raises(UserError, match="posed: path: is missing"):
    registry.open_source(PosedConfig())
  with pytest.raises(UserError, match="set a lower margin"):
    registry.open_source(PosedConfig(path=str(place), margin=5.0))
  about = json.loads((place / "transforms.json").read_text())
  for frame in about["frames"]:
    del frame["depth_path"]
    frame["file_path"] = str(place / frame["file_path"])
  (tmp_path / "transforms.json").write_text(json.dumps(about))
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Note)
    with pytest.raises(UserError, match="no picture has depth"):
      registry.open_source(PosedConfig(path=str(tmp_path)))
