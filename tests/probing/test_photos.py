"""Photographs with known depth, read by probes of scenes."""

import numpy as np
import pytest
from PIL import Image

from spatialvlm.probing import photos
from spatialvlm.types import UserError
from tests.probing.support import numbers


def write_photo(folder, name="bike", kind="disparity", height=20, width=30):
  """Farther to the right, whatever the kind; a corner is not known."""
  folder.mkdir(exist_ok=True)
  colours = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
  Image.fromarray(colours).save(folder / f"{name}.png")
  far_HW = np.broadcast_to(np.linspace(1, 3, width), (height, width)).astype(np.float32).copy()
  map_HW = 1 / far_HW if kind == "disparity" else far_HW
  map_HW[: height // 4, : width // 4] = np.nan if kind == "disparity" else 0
  np.save(folder / f"{name}.{kind}.npy", map_HW)
  return folder


@pytest.mark.parametrize("kind", ["disparity", "depth"])
def test_the_truth_of_a_photograph(tmp_path, kind):
  found = photos.read(write_photo(tmp_path, kind=kind), 4)
  assert found.names == ("bike",) and found.images[0].shape == (20, 30, 3)
  depth = found.depth_NC.reshape(4, 4)
  assert np.isnan(depth[0, 0]) and np.isfinite(depth.reshape(-1)[1:]).all()
  assert (np.diff(depth[1:], axis=1) > 0).all()  # farther to the right
  assert photos.read("", 4).names == ()


def test_probes_of_scenes_order_a_photograph_that_they_can_read(tmp_path):
  """Features that say depth (with a scale of their own) and place; then the same backwards; then nothing."""
  worlds, shots = numbers(), photos.read(write_photo(tmp_path), 4)
  place_C2 = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(1, -1, 2) / 4
  where = lambda count: np.broadcast_to(place_C2, (count, 16, 2))
  scenes = np.concatenate([np.nan_to_num(worlds.depth_NC)[..., None], where(len(worlds.images))], -1)
  far = 7 * np.nan_to_num(shots.depth_NC, nan=-1.0)[..., None]
  score = lambda photo: photos.score(
    scenes.astype(np.float32), photo.astype(np.float32), worlds, shots, (1e-6, 1e-3)
  )
  seen = score(np.concatenate([far, where(1)], -1))["bike"]
  assert seen["cells"] == 15
  assert seen["depth"] > 0.95 and min(seen["across"], seen["down"]) > 0.95
  assert score(np.concatenate([-far, where(1)], -1))["bike"]["depth"] < -0.95
  blind = score(np.ones((1, 16, 3)))["bike"]
  assert blind["depth"] is None and blind["across"] is None
  assert abs(photos.lower_is_nearer(shots)["bike"]) < 0.3  # nearer to the left here, not below


@pytest.mark.parametrize("case", ["none", "no truth", "both", "size", "broken", "picture"])
def test_bad_folders_are_told(tmp_path, case):
  if case != "none":
    write_photo(tmp_path)
  truth = tmp_path / "bike.disparity.npy"
  if case == "no truth":
    truth.unlink()
  elif case == "both":
    np.save(tmp_path / "bike.depth.npy", np.ones((20, 30)))
  elif case == "size":
    np.save(truth, np.ones((30, 20)))
  elif case == "broken":
    truth.write_bytes(b"no array")
  elif case == "picture":
    (tmp_path / "bike.png").write_bytes(b"no picture")
  told = {
    "none": "no photographs",
    "no truth": "write one of them",
    "both": "remove one",
    "size": r"expected numbers of \(20, 30\)",
    "broken": "no array that can be read",
    "picture": "no picture that can be read",
  }[case]
  with pytest.raises(UserError, match=told):
    photos.read(tmp_path, 4)
