"""Depth of a picture through the public door; its errors beside constants; the drawing and the command."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import spatialvlm
from spatialvlm.depth import picture, predict, run, scores
from spatialvlm.training.objectives import DenseDepth, DepthProbe, heads
from spatialvlm.training.objectives.dense_depth import DenseDepthSettings
from spatialvlm.types import UserError
from spatialvlm.worlds import world
from tests.launch import command

BASE = Path(__file__).parents[2] / "checkpoints/smolvlm-tiny"


@pytest.fixture(scope="module")
def vlm():
  return spatialvlm.load_vlm(BASE)


@pytest.fixture(scope="module")
def head(vlm, tmp_path_factory):
  """Of a run that never was: a head whose map is not flat."""
  objective = DenseDepth(DenseDepthSettings(width=8, upsample=2))
  module = objective.head(vlm.model.config, nnx.Rngs(0))
  kernel = np.random.default_rng(0).normal(size=module.out.kernel.shape)
  module.out.kernel.set_raw_value(jnp.asarray(0.3 * kernel, jnp.float32))
  folder = tmp_path_factory.mktemp("heads")
  heads.save_head(folder, "depth", module, objective, str(BASE))
  return folder / "depth.json"


def test_a_picture_has_depth_at_its_own_size(vlm, head, tmp_path):
  image = world.frames(3, [0], 96)[0].image
  found = vlm.depth(image, head)
  assert found.shape == (96, 96) and found.dtype == np.float32 and (found > 0).all() and found.std() > 0
  Image.fromarray(image).resize((40, 24)).save(tmp_path / "small.png")
  assert vlm.depth(str(tmp_path / "small.png"), head).shape == (24, 40)


def test_what_is_no_head_of_whole_pictures_is_refused(vlm, head, tmp_path):
  with pytest.raises(UserError, match="no such head"):
    vlm.depth(np.zeros((8, 8, 3), np.uint8), tmp_path / "none.json")
  probe = DepthProbe()
  heads.save_head(tmp_path, "probe", probe.head(vlm.model.config, nnx.Rngs(0)), probe, str(BASE))
  with pytest.raises(UserError, match="says no depth of whole pictures"):
    vlm.depth(np.zeros((8, 8, 3), np.uint8), tmp_path / "probe.json")


def test_depths_up_to_a_factor_are_not_taken_for_metres(vlm, head, tmp_path):
  predict.check_metric(head, vlm.model.config)
  objective = DenseDepth(DenseDepthSettings(width=8, upsample=2, metric=False))
  heads.save_head(tmp_path, "free", objective.head(vlm.model.config, nnx.Rngs(0)), objective, str(BASE))
  with pytest.raises(UserError, match="metres up to a factor"):
    predict.check_metric(tmp_path / "free.json", vlm.model.config)


def test_errors_beside_constants():
  """Two places: a near one that is always at 2 m, and one at 4 m or 6 m; sky and the far say nothing."""
  others = np.array([[[2.0, 4.0, 0.0]], [[2.0, 6.0, 50.0]]])
  truth = np.array([[[2.0, 4.0, 0.0]], [[2.0, 6.0, 11.0]]])
  found = truth * 1.1
  errors = scores.errors(found, truth, others, farthest=10.0)
  np.testing.assert_allclose(errors["model"], (0.1, np.sqrt(np.mean([0.04, 0.16, 0.04, 0.36])), 1.0))
  np.testing.assert_allclose(errors["by place"], ((0.25 + 1 / 6) / 4, np.sqrt(2 / 4), 0.75))
  np.testing.assert_allclose(errors["one depth"][0], (0.5 + 0.25 + 0.5 + 0.5) / 4)


def test_scenes_are_measured_and_drawn(tmp_path):
  """Whoever knows the truth has no error; the drawing is a picture."""
  frames = {frame.image.tobytes(): frame.depth for frame in world.frames(9, range(3), 96)}
  truth = lambda image: np.where(frames[image.tobytes()] > 0, frames[image.tobytes()], 1.0)
  errors, rows = run.measure(truth, seed=9, count=3, image_size=96, farthest=10.0, shown=2)
  assert errors["model"] == (0, 0, 1) and errors["by place"][0] > 0.05 and len(rows) == 2
  out = tmp_path / "depth.png"
  picture.draw(rows, out)
  drawn = np.asarray(Image.open(out).convert("RGB"))
  assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50
  picture.draw([row._replace(truth=None) for row in rows], out)
  assert Image.open(out).size[1] < len(drawn)


def test_the_command_says_what_is_missing(capfd):
  done = command.run(capfd, "depth")
  assert done.code == 2 and "--model is missing" in done.err and len(done.err.splitlines()) == 1
  done = command.run(capfd, "depth", f"--model={BASE}", "--count=0")
  assert done.code == 2 and "--count must be at least 1" in done.err
