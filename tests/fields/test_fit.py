import dataclasses

import jax
import numpy as np
import pytest

from spatialvlm.fields import field as field_lib
from spatialvlm.fields import fit, grid, metrics, report, run
from spatialvlm.fields.posed.cameras import directions
from spatialvlm.types import UserError
from tests.fields import support


@pytest.fixture(scope="module")
def parts():
  views = support.ball()
  fitted, held = [v for v in views if not v.heldout], [v for v in views if v.heldout]
  return fitted, held, run._space(support.TINY, fitted)


@pytest.fixture(scope="module")
def kept(parts, tmp_path_factory):
  """The states of a whole fit, by their steps, on disk."""
  fitted, _, space = parts
  folder = tmp_path_factory.mktemp("states")
  keep = lambda state: fit.save(folder / f"{int(state.step)}.safetensors", state)
  state = fit.run(support.TINY, space, fitted, fit.start(support.TINY), keep, say=lambda text: None)
  return folder, state


def test_held_out_views_are_learned(parts, kept):
  """Seed 0: better than the mean colour in every resample of the views, and than a constant depth."""
  fitted, held, space = parts
  field = field_lib.Field(kept[1].params, support.TINY, space)
  found = report.measured(held, [field.render(v.camera) for v in held], fitted, 0)
  colour = np.array(found["psnr"][report.FIELD]["each"]) - found["psnr"][report.CONSTANT]["each"]
  assert metrics.interval(colour, 0)["low"] > 3.0
  assert found["psnr"][report.FIELD]["gain"]["low"] > 1.0  # over the nearest fitted view
  error = {name: one["mean"] for name, one in found["abs_rel"].items()}
  assert error["field, median"] < 0.6 * error[report.CONSTANT]
  # A field before its fit is not.
  fresh = field_lib.Field(fit.start(support.TINY).params, support.TINY, space)
  before = report.measured(held, [fresh.render(v.camera) for v in held], fitted, 0)
  assert before["psnr"][report.FIELD]["mean"] < found["psnr"][report.CONSTANT]["mean"]


def test_a_point_is_described_alike_from_every_side(parts, kept):
  """Of the ball's analytic surface: two cameras that see one point find one descriptor there."""
  _, _, space = parts
  field = field_lib.Field(kept[1].params, support.TINY, space)
  seen = {}
  for n, view in enumerate(support.ball(8)):
    found = field.described(view.camera, view.depth, 16)
    assert found.shape == (16, 16, grid.DESCRIPTORS) and found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found).any(-1), view.depth == 0)
    points = view.camera.pose[:3, 3] + directions(view.camera) * view.depth.reshape(-1, 1)
    for point, said in zip(points, found.reshape(-1, grid.DESCRIPTORS), strict=True):
      if not np.isnan(said[0]):
        seen.setdefault(tuple(np.rint(point * 8).astype(int)), []).append((n, said))
  several = [cell for cell in seen.values() if len({n for n, _ in cell}) > 1]
  within = np.mean([np.var([said for _, said in cell], axis=0).mean() for cell in several])
  whole = np.var([said for cell in seen.values() for _, said in cell], axis=0).mean()
  assert len(several) > 40 and within < 0.25 * whole
  coarse = field.described(view.camera, view.depth, 4)
  np.testing.assert_array_equal(coarse, found[2::4, 2::4])


def test_continued_is_uninterrupted_to_the_bit(parts, kept, tmp_path):
  fitted, _, space = parts
  folder, whole = kept
  state = fit.restore(folder / "100.safetensors", fit.start(support.TINY))
  assert int(state.step) == 100
  seen = []

  def show(done, total):
    if done == 120:
      raise KeyboardInterrupt

  keep = lambda state: (seen.append(int(state.step)), fit.save(tmp_path / "state", state))
  with pytest.raises(KeyboardInterrupt):
    fit.run(support.TINY, space, fitted, state, keep, show)
  assert seen == [120]
  state = fit.restore(tmp_path / "state", fit.start(support.TINY))
  state = fit.run(support.TINY, space, fitted, state, keep, say=lambda text: None)
  assert seen == [120, 150]
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_step_is_compiled_once(parts):
  fitted, _, space = parts
  step, pixels = fit.make_step(support.TINY, space), fit.bank(fitted)
  state, _ = step(fit.start(support.TINY), pixels)
  step(state, pixels)
  assert step._cache_size() == 1


def test_a_saved_field_renders_the_same(parts, kept, tmp_path):
  _, held, space = parts
  field = field_lib.Field(kept[1].params, support.TINY, space)
  field.save(tmp_path / "field.safetensors")
  back = field_lib.load(tmp_path / "field.safetensors")
  assert back.config == support.TINY and back.space == space
  a, b = field.render(held[0].camera), back.render(held[0].camera)
  np.testing.assert_array_equal(a.image, b.image)
  np.testing.assert_array_equal(a.depth, b.depth)


def test_files_that_are_no_states(kept, tmp_path):
  file = kept[0] / "50.safetensors"
  like = fit.start(support.TINY)
  cut = tmp_path / "cut"
  cut.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(UserError, match="damaged"):
    fit.restore(cut, like)
  with pytest.raises(UserError, match="other tensors"):
    fit.restore(file, fit.start(dataclasses.replace(support.TINY, width=8)))
  with pytest.raises(UserError, match="says nothing of a field"):
    field_lib.load(file)


def test_pixels_of_views_of_any_size_have_their_rays():
  views = support.views()[:3]
  small = views[1].camera.smaller(2)
  views[1] = dataclasses.replace(views[1], camera=small, image=views[1].image[::2, ::2], depth=None)
  pixels = fit.bank(views)
  assert len(pixels.colour) == 256 + 64 + 256
  origins, ahead = fit._rays(pixels, np.arange(len(pixels.colour)))
  np.testing.assert_allclose(ahead, np.concatenate([directions(v.camera) for v in views]), atol=1e-5)
  np.testing.assert_allclose(origins[256], small.pose[:3, 3], rtol=1e-6)
  np.testing.assert_array_equal(pixels.depth[256:320], 0)


@pytest.mark.slow
def test_known_depth_teaches_depth(parts, kept):
  """Seed 0: held-out depth is better where the fitted views' depth was learned from, at the same steps."""
  fitted, held, space = parts
  error = []
  for config, state in ((support.TINY, kept[1]), (dataclasses.replace(support.TINY, depth_weight=0.1), None)):
    if state is None:
      state = fit.run(config, space, fitted, fit.start(config), lambda state: None, say=lambda text: None)
    seen = [field_lib.Field(state.params, config, space).render(v.camera) for v in held]
    error.append(report.measured(held, seen, fitted, 0)["abs_rel"]["field, median"]["mean"])
  assert error[1] < 0.95 * error[0]
