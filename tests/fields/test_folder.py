"""Posed pictures in folders: both layouts say the same, and what is not understood is one line."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from spatialvlm.config import FolderViewsConfig
from spatialvlm.fields import metrics, written
from spatialvlm.fields.posed import cameras, folder, transforms
from spatialvlm.types import Note, UserError
from tests.fields import support


def read(path, **settings):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Note)
    return folder.read(FolderViewsConfig(path=str(path), **settings))


@pytest.fixture
def place(tmp_path):
  support.pictures(tmp_path / "images")
  return tmp_path


def test_both_layouts_give_the_same_cameras_and_pixels(tmp_path):
  cams = support.ring()
  for name in ("ngp", "colmap"):
    pixels = support.pictures(tmp_path / name / "images")
  a = read(support.as_transforms(tmp_path / "ngp", cams))
  b = read(support.as_colmap(tmp_path / "colmap", cams))
  assert len(a) == len(b) == 5
  for one, other, camera, image in zip(a, b, cams, pixels, strict=True):
    np.testing.assert_allclose(one.camera.pose, camera.pose, atol=1e-12)
    np.testing.assert_allclose(other.camera.pose, camera.pose, atol=1e-9)
    assert one.camera.focal == other.camera.focal == camera.focal
    assert one.camera.middle == other.camera.middle == camera.middle
    np.testing.assert_array_equal(one.image, image)
    np.testing.assert_array_equal(other.image, image)
    assert one.name == other.name and one.depth is None


def test_angles_endings_and_splits_as_nerf_synthetic_has_them(tmp_path):
  cams = support.ring()

  def synthetic(about):
    frames = [
      f | {"file_path": "./" + f["file_path"].removesuffix(".png"), "rotation": 0.1} for f in about["frames"]
    ]
    return {"camera_angle_x": 0.7, "frames": frames}

  support.pictures(tmp_path / "images")
  support.as_transforms(tmp_path, cams, synthetic)
  (tmp_path / "transforms.json").rename(tmp_path / "transforms_train.json")
  about = json.loads((tmp_path / "transforms_train.json").read_text())
  (tmp_path / "transforms_test.json").write_text(json.dumps(about | {"frames": about["frames"][:2]}))
  found = read(tmp_path)
  assert [v.heldout for v in found] == [False] * 5 + [True] * 2
  focal = 0.5 * 6 / np.tan(0.35)
  assert found[0].camera.focal == pytest.approx((focal, focal)) and found[0].camera.middle == (3, 2)
  assert not any(v.heldout for v in read(tmp_path / "transforms_train.json"))


def test_transparent_pictures_lie_on_the_ground_that_is_said(place):
  pixels = np.zeros((4, 6, 4), np.uint8)
  pixels[:2] = (255, 0, 0, 255)
  pixels[2:] = (255, 0, 0, 51)
  Image.fromarray(pixels).save(place / "images" / "a.png")
  support.as_transforms(place, support.ring())
  config = FolderViewsConfig(path=str(place))
  white, black = folder.read(config)[0].image, folder.read(config, black=True)[0].image
  assert (white[0, 0] == (255, 0, 0)).all() and (white[3, 0] == (255, 204, 204)).all()
  assert (black[3, 0] == (51, 0, 0)).all()


def test_smaller_pictures_have_smaller_cameras_and_metres_are_metres(place):
  support.as_transforms(place, support.ring())
  whole, small = read(place)[0], read(place, scale=2, metres=3.0)[0]
  assert small.camera.size == (3, 2) and small.camera.focal == (7.25 / 2, 6.5 / 2)
  np.testing.assert_allclose(small.camera.pose[:3, 3], 3 * whole.camera.pose[:3, 3])
  np.testing.assert_allclose(small.image[0, 0], whole.image[:2, :2].mean((0, 1)), atol=0.5)


def test_what_is_written_is_read_again(tmp_path):
  cams = support.ring(3)
  rng = np.random.default_rng(0)
  depth = rng.uniform(0.5, 70, (3, 4, 6)).astype(np.float32)
  depth[:, 0, 0] = 0
  for kind in ("renders", "depth"):
    (tmp_path / kind).mkdir()
  frames = []
  for n in range(3):
    image = rng.integers(0, 255, (4, 6, 3)).astype(np.uint8)
    (tmp_path / f"renders/{n}.png").write_bytes(written.png(image))
    (tmp_path / f"depth/{n}.png").write_bytes(written.png(written.millimetres(depth[n])))
    frames.append({"file_path": f"renders/{n}.png", "depth_path": f"depth/{n}.png", "kind": "new"})
  transforms.write(tmp_path / "transforms.json", cams, frames, written.MILLIMETRES)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = folder.read(FolderViewsConfig(path=str(tmp_path)))
  for view, camera, true in zip(found, cams, depth, strict=True):
    np.testing.assert_allclose(view.camera.pose, camera.pose, atol=1e-12)
    assert view.camera.focal == camera.focal and view.camera.middle == camera.middle
    np.testing.assert_allclose(view.depth, np.where(true < 65.5355, true, 0), atol=6e-4)
  twice = read(tmp_path, metres=2.0)[0]
  np.testing.assert_allclose(twice.depth, 2 * found[0].depth, rtol=1e-6)


def frame(change):
  """Changes the third frame."""

  def changed(about):
    about["frames"][2] = change(about["frames"][2])
    return about

  return changed


BAD = {
  "a view without a pose": (frame(lambda f: {"file_path": f["file_path"]}), r"frame 2 .*without a pose"),
  "missing pictures": (
    frame(lambda f: f | {"file_path": "images/z.png"}),
    r"1 of 5 pictures are missing: .*z\.png",
  ),
  "no frames": (lambda about: about | {"frames": []}, "no list of frames"),
  "distortion": (lambda about: about | {"k1": 0.1}, r"k1=0\.1: lens distortion"),
  "fisheye": (lambda about: about | {"camera_model": "OPENCV_FISHEYE"}, "camera_model=OPENCV_FISHEYE"),
  "masks": (frame(lambda f: f | {"mask_path": "m.png"}), "mask_path: masks are not read"),
  "motion": (frame(lambda f: f | {"time": 0.5}), "time: a scene that moves"),
  "no focal length": (
    lambda about: {k: v for k, v in about.items() if k not in ("fl_x", "fl_y")},
    "neither fl_x nor",
  ),
  "two focal lengths": (lambda about: about | {"camera_angle_x": 2.0}, "leave one out"),
  "another size": (lambda about: about | {"w": 12}, r"6 x 4 pixels, but its camera has 12 x 4"),
  "mirrored": (
    frame(lambda f: f | {"transform_matrix": (np.array(f["transform_matrix"]) * [-1, 1, 1, 1]).tolist()}),
    "mirrored",
  ),
  "scaled": (
    frame(lambda f: f | {"transform_matrix": (np.array(f["transform_matrix"]) * 2).tolist()}),
    "holds no rotation",
  ),
  "words": (frame(lambda f: f | {"transform_matrix": "none"}), "no 4 x 4 numbers"),
  "depth of no unit": (frame(lambda f: f | {"depth_path": "images/a.png"}), "no integer_depth_scale"),
  "depth of 8 bits": (
    lambda about: frame(lambda f: f | {"depth_path": "images/a.png"})(about | {"integer_depth_scale": 0.1}),
    "grey PNGs of 16 bits",
  ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_transforms_json_is_one_line(place, case):
  change, message = BAD[case]
  support.as_transforms(place, support.ring(), change)
  with pytest.raises(UserError, match=message) as refused:
    read(place)
  assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
  ("model", "message"),
  [
    ("OPENCV 6 4 7 7 3 2 0 0 0 0", "camera model OPENCV is not understood .*SIMPLE_PINHOLE, PINHOLE"),
    ("SIMPLE_RADIAL 6 4 7 3 2 0.1", "camera model SIMPLE_RADIAL"),
    ("PINHOLE 6 4 7 3 2", "PINHOLE has 4 parameters, got 3"),
    ("PINHOLE six 4 7 7 3 2", "CAMERA_ID MODEL WIDTH HEIGHT"),
    ("PINHOLE 8 4 7 7 3 2", "6 x 4 pixels, but its camera has 8 x 4"),
  ],
)
def test_a_bad_camera_of_colmap_is_one_line(place, model, message):
  with pytest.raises(UserError, match=message):
    read(support.as_colmap(place, support.ring(), model))


def test_simple_pinhole_has_one_focal_length(place):
  found = read(support.as_colmap(place, support.ring(), "SIMPLE_PINHOLE 6 4 7.5 3 2"))
  assert found[0].camera.focal == (7.5, 7.5) and found[0].camera.middle == (3, 2)


def test_folders_that_hold_no_poses(place):
  with pytest.raises(UserError, match="5 pictures without poses"):
    read(place)
  with pytest.raises(UserError, match="no such folder"):
    read(place / "nowhere")
  (place / "sparse").mkdir()
  (place / "sparse" / "images.bin").write_bytes(b"")
  with pytest.raises(UserError, match="model_converter --output_type TXT"):
    read(place)
  (place / "sparse" / "images.bin").unlink()
  support.as_colmap(place, support.ring())
  support.as_transforms(place, support.ring())
  with pytest.raises(UserError, match=r"name the file that is meant"):
    read(place)
  assert len(read(place / "transforms.json")) == len(read(place / "sparse" / "0" / "images.txt")) == 5
  (place / "images" / "b.png").write_bytes(b"none")
  with pytest.raises(UserError, match=r"b\.png: no picture that can be read"):
    read(place / "transforms.json")


def test_what_is_not_read_is_said(place):
  support.as_transforms(place, support.ring(), lambda about: about | {"colour_space": "srgb"})
  with pytest.warns(Note, match="not read: colour_space"):
    folder.read(FolderViewsConfig(path=str(place)))
  with pytest.warns(Note, match="unit of length means nothing"):
    folder.read(FolderViewsConfig(path=str(support.as_colmap(place, support.ring()) / "sparse/0/images.txt")))


def test_pictures_that_colmap_found_no_pose_of_are_named(place):
  support.as_colmap(place, support.ring())
  for name in ("lost", "turned"):
    Image.new("RGB", (6, 4)).save(place / "images" / f"{name}.png")
  with pytest.warns(Note, match=r"2 of 7 pictures are views without a pose \(lost.png, turned.png\)"):
    assert len(folder.read(FolderViewsConfig(path=str(place)))) == 5


def test_measures():
  truth = np.full((4, 4), 2.0, np.float32)
  truth[0] = 0
  depth = np.where(np.arange(4) < 2, 2.2, 0) * np.ones((4, 1))
  assert metrics.abs_rel(depth, truth) == pytest.approx((0.1 + 1) / 2)
  assert metrics.abs_rel(depth, np.zeros((4, 4))) is None
  image = np.zeros((4, 4, 3), np.uint8)
  assert metrics.psnr(image, image + np.uint8(51)) == pytest.approx(-20 * np.log10(0.2))
  near = metrics.nearest(support.views()[3].camera, support.views()[:3] + support.views()[4:])
  assert near is not support.views()[3]
  assert metrics.nearest(near.camera, support.views()) is near
  assert isinstance(near.camera, cameras.Camera)
