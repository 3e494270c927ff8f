"""What priors say of tokens: against loops, the renderer, in moved pictures, and what lacks."""

import dataclasses

import numpy as np
import pytest

from spatialvlm import shots as shot_lib
from spatialvlm.config import AugmentConfig, PriorConfig, ScenesConfig
from spatialvlm.data.augment.change import Augment
from spatialvlm.data.augment.move import moved
from spatialvlm.data.augment.warp import drawn
from spatialvlm.data.sources.registry import open_source
from spatialvlm.priors import PRIORS, Reader, make_priors, reader_of
from spatialvlm.processing.mtmd import MtmdCrops, MtmdGrid
from spatialvlm.processing.processor import load_processor
from spatialvlm.processing.tilers import CropTiler
from spatialvlm.processing.tiling import prior_reader
from spatialvlm.types import Example, Shot, Turn, UserError, prior_array
from spatialvlm.worlds import world
from tests.tiny_processor import write_processor

SIDE = 96
# Tokens of three pixels, whose middle is that of a pixel.
FINE = (SIDE // 3) ** 2


def turned(yaw, place):
  """A camera (4, 4) turned about its vertical axis, somewhere."""
  pose = np.eye(4)
  pose[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
  pose[:3, 3] = place
  return pose


@pytest.fixture(scope="module")
def frame():
  return world.frames(5, [3], SIDE)[0]


def said(kind, shots, grids=((0, 0),), tokens=16, **kwargs):
  return Reader({"it": PriorConfig(kind, kwargs=kwargs)}, tokens)(shots, grids)["it"]


def test_rays_are_those_of_loops():
  """Two cameras, the second picture in two tiles and its global view: line by line, point by point."""
  shots = (
    Shot(focal=(1.1, 0.9), middle=(0.5, 0.4), pose=turned(0.3, [1, 2, 3])),
    Shot(focal=(0.8, 0.8), middle=(0.6, 0.5), pose=turned(-0.5, [2, 2, 1])),
  )
  found = said("rays", shots, ((0, 0), (1, 2)))
  assert found.shape == (1 + 3, 16, 6) and found.dtype == np.float32
  tiles = [(0, 0, 0, 1, 1), (1, 0, 0, 0.5, 1), (1, 0.5, 0, 1, 1), (1, 0, 0, 1, 1)]
  back = np.linalg.inv(shots[0].pose)
  for tile, (picture, x0, y0, x1, y1) in enumerate(tiles):
    shot = shots[picture]
    for token in range(16):
      x, y = x0 + (x1 - x0) * (token % 4 + 0.5) / 4, y0 + (y1 - y0) * (token // 4 + 0.5) / 4
      ray = [(x - shot.middle[0]) / shot.focal[0], (y - shot.middle[1]) / shot.focal[1], 1, 0]
      d = (back @ shot.pose @ ray)[:3]
      d /= np.linalg.norm(d)
      o = (back @ shot.pose)[:3, 3]
      np.testing.assert_allclose(found[tile, token], [*d, *np.cross(o, d)], atol=1e-6)
      # Any point of the ray gives the same moment: that is what makes it the line's.
      np.testing.assert_allclose(np.cross(o + 7 * d, d), found[tile, token, 3:], atol=1e-5)
  np.testing.assert_array_equal(said("rays", shots[:1])[..., 3:], 0)


def test_positions_and_normals_of_the_floor(frame):
  """What the renderer says is floor lies at height 0, and its normal points up."""
  shot = world.shot_of(frame)
  placed = said("positions", [shot], tokens=FINE, frame="world", cells=1)[0]
  x, y = np.meshgrid((np.arange(SIDE // 3) + 0.5) / (SIDE // 3), (np.arange(SIDE // 3) + 0.5) / (SIDE // 3))
  floor = shot_lib.at(np.where(frame.depth > 0, frame.instance, -2), x, y).ravel() == -1
  low = np.abs(placed[:, 2]) < 0.02
  assert floor.sum() > 200 and (low & floor).sum() > 0.7 * floor.sum()  # the rest is furniture
  here = said("positions", [shot], tokens=FINE, cells=1)[0]
  away = np.linalg.norm(here, axis=-1)
  known = np.isfinite(away)
  camera = np.array([0, 0, frame.pose[2, 3]])
  np.testing.assert_allclose(np.linalg.norm(placed - camera, axis=-1)[known], away[known], rtol=1e-4)
  normals = shot_lib.normals_of(shot) @ frame.pose[:3, :3].T
  up = normals[..., 2].reshape(SIDE // 3, 3, SIDE // 3, 3)[:, 1, :, 1].ravel()[low & floor]
  assert np.nanmean(up > 0.98) > 0.9


def test_two_views_speak_of_one_space(frame):
  """What the second picture shows lies, in the first camera's axes, where the first picture shows it."""
  step = turned(0.2, [0.4, 0, -0.3])
  first, second = world.seen_from(5, 3, [frame.pose, frame.pose @ step], frame.intrinsics[0, 0] / SIDE, SIDE)
  shots = tuple(map(world.shot_of, (first, second)))
  both = said("positions", shots, ((0, 0),) * 2, tokens=FINE, cells=1)
  x, y, z = both[1].T.astype(np.float64)
  (fx, fy), (cx, cy) = shots[0].focal, shots[0].middle
  u, v = fx * x / z + cx, fy * y / z + cy
  seen = (z > 0.1) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
  there = shot_lib.at(first.depth, u[seen], v[seen])
  alike = np.abs(there - z[seen]) < 0.03 * z[seen]
  assert seen.sum() > 300 and alike.mean() > 0.8  # the rest is hidden behind something, or at an edge
  apart = said("positions", (shots[0], shots[0]), ((0, 0),) * 2, tokens=FINE, cells=1)
  np.testing.assert_allclose(apart[1], apart[0], atol=1e-4)


def test_maps_are_looked_up_in_their_tiles(frame):
  shot = world.shot_of(frame)
  found = said("depth_map", [shot], ((2, 2),), tokens=4, cells=6)
  assert found.shape == (5, 4, 36)
  first = np.where(frame.depth > 0, frame.depth, np.nan)[:48, :48]  # the upper left tile, pixel by pixel: 4
  np.testing.assert_array_equal(found[0, 0].reshape(6, 6), first[2:24:4, 2:24:4])
  normals = said("normal_map", [shot], ((2, 2),), tokens=4, cells=6)
  whole = shot_lib.normals_of(shot)[:48, :48]
  np.testing.assert_array_equal(normals[0, 0].reshape(6, 6, 3), whole[2:24:4, 2:24:4])


def test_normals_of_a_tilted_plane():
  """z = 2 / (1 - 0.5 u): its normal is (0.5, 0, -1) in length."""
  u = ((np.arange(32) + 0.5) / 32 - 0.5) / 1.0
  depth = np.tile(2 / (1 - 0.5 * u), (32, 1)).astype(np.float32)
  found = shot_lib.normals_of(Shot(focal=(1.0, 1.0), depth=lambda: depth))
  np.testing.assert_allclose(
    found[1:-1, 1:-1], np.broadcast_to(np.array([0.5, 0, -1]) / 1.25**0.5, (30, 30, 3)), atol=1e-3
  )


@pytest.mark.parametrize("seed", [0, 1])
def test_moved_pictures_take_their_shots_along(seed):
  """Where a moved pixel comes from, there stood what it shows: mirrored, turned, through another lens."""
  example = open_source(ScenesConfig(seed=3, image_size=SIDE, tasks={"Depth": 1.0}))[seed]
  most = {"crop": 0.4, "roll": 20.0, "perspective": 10.0}
  warp = drawn(np.random.default_rng(seed), (SIDE, SIDE), most, focal=example.geometry.focal, flip=bool(seed))
  (before,), (after,) = example.shots, moved(example, warp).shots
  y, x = (np.indices((SIDE, SIDE)) + 0.5) / SIDE
  was = warp.seen_from_before() / SIDE
  inside = ((was > 0) & (was < 1)).all(-1) & (shot_lib.at(before.depth(), was[..., 0], was[..., 1]) > 0)
  point = lambda shot, x, y: shot_lib.rays(shot, x, y) * shot_lib.at(shot.depth(), x, y)[..., None]
  there = point(before, was[..., 0], was[..., 1]) * [-1 if warp.flip else 1, 1, 1] @ warp.turn.T
  apart = np.linalg.norm(point(after, x, y) - there, axis=-1)[inside] / np.linalg.norm(there, axis=-1)[inside]
  assert inside.mean() > 0.5 and np.nanmedian(apart) < 0.005
  # The places in the (mirrored) world stay.
  mirror = np.diag([-1.0 if warp.flip else 1.0, 1, 1, 1])
  home = lambda pose, p: p @ pose[:3, :3].T + pose[:3, 3]
  np.testing.assert_allclose(
    home(after.pose, there),
    home(before.pose, point(before, was[..., 0], was[..., 1])) * np.diag(mirror)[:3],
    atol=1e-4,
  )
  want = (
    shot_lib.at(shot_lib.normals_of(before), was[..., 0], was[..., 1]) * np.diag(mirror)[:3] @ warp.turn.T
  )
  np.testing.assert_allclose(after.normals()[inside], want[inside], atol=1e-5)


def test_a_camera_that_no_warp_was_drawn_for_is_not_known_any_more():
  example = open_source(ScenesConfig(seed=3, image_size=SIDE))[0]
  (shot,) = example.shots
  other = dataclasses.replace(example, shots=(dataclasses.replace(shot, middle=(0.4, 0.5)),))
  warp = drawn(np.random.default_rng(0), (SIDE, SIDE), {"roll": 20.0}, focal=example.geometry.focal)
  assert moved(other, warp).shots[0].focal is None
  assert moved(example, warp).shots[0].focal == shot.focal


def test_augmented_streams_say_what_they_show():
  """A mirrored example's depth is mirrored, and so is what priors say of it."""
  example = open_source(ScenesConfig(seed=3, image_size=SIDE, tasks={"Depth": 1.0}))[0]
  shown = Augment(AugmentConfig(flip=1.0))(example, 0)
  plain, flipped = (said("depth_map", e.shots, tokens=FINE, cells=1)[0, :, 0] for e in (example, shown))
  np.testing.assert_array_equal(flipped.reshape(32, 32), plain.reshape(32, 32)[:, ::-1])
  depth = shown.dense["depth"][1::3, 1::3]
  np.testing.assert_array_equal(flipped.reshape(32, 32), np.where(depth > 0, depth, np.nan))


@pytest.mark.parametrize(
  ("kind", "shots", "grids", "lacks"),
  [
    ("rays", (), 1, "focal length"),
    ("rays", (Shot(focal=(1, 1)), Shot(focal=(1, 1))), 2, "pose of picture 1"),
    ("depth_map", (Shot(focal=(1, 1)),), 1, "a map of depth"),
    ("positions", (Shot(depth=lambda: np.ones((2, 2))),), 1, "focal length"),
    ("normal_map", (Shot(depth=lambda: np.ones((2, 2))),), 1, "normals"),
  ],
)
def test_what_lacks_is_refused_by_name_or_left_out(kind, shots, grids, lacks):
  with pytest.raises(UserError, match=f"prior 'it' needs .*{lacks}"):
    said(kind, shots, ((0, 0),) * grids)
  allowed = Reader({"it": PriorConfig(kind, missing="without")}, 16)(shots, ((0, 0),) * grids)["it"]
  assert allowed.shape[0] == grids and np.isnan(allowed).all()


def test_blind_readers_say_nothing(frame):
  reader = Reader({kind: PriorConfig(kind) for kind in PRIORS}, 16)
  found = reader([world.shot_of(frame)], [(0, 0)], blind=True)
  assert found.keys() == PRIORS.keys() and all(np.isnan(v).all() for v in found.values())
  assert all(v.shape == (0, 16, v.shape[2]) for v in reader((), []).values())


@pytest.mark.parametrize(
  ("configs", "says"),
  [
    ({"a": PriorConfig("ray")}, "config.priors.a.kind: unknown 'ray'; did you mean 'rays'"),
    ({"A": PriorConfig("rays")}, "config.priors.A: the name"),
    ({"a": PriorConfig("rays", kwargs={"cells": 2})}, "config.priors.a.kwargs.cells: unknown key"),
    ({"a": PriorConfig("depth_map", kwargs={"cells": 0})}, "config.priors.a.kwargs: cells must be"),
    ({"a": PriorConfig("positions", kwargs={"frame": "room"})}, "'room' is not one of 'first', 'world'"),
  ],
)
def test_configs_that_cannot_work(configs, says):
  with pytest.raises(UserError, match=says.replace("(", r"\(")):
    make_priors(configs)


def test_tokens_that_are_no_square():
  with pytest.raises(UserError, match="8 image tokens of a tile are no square"):
    Reader({"a": PriorConfig("rays")}, 8)


def test_a_processor_brings_them_with_the_tiles_it_cuts(tmp_path, frame):
  """Two pictures of several tiles; a prompt without any; and pictures that would give themselves away."""
  configs = {"it": PriorConfig("depth_map", kwargs={"cells": 2})}
  processor = load_processor(write_processor(tmp_path, longest_edge=32), priors=reader_of(configs))
  shot = world.shot_of(frame)
  wide = np.zeros((16, 40, 3), np.uint8)
  example = Example((frame.image, wide), (Turn("cone", "A"),), shots=(shot, shot))
  encoded = processor.encode(example)
  extra = encoded.extra[prior_array("it")]
  grids = [processor.tiler.grid(*image.shape[:2]) for image in example.images]
  assert extra.axis == "tile" and len(extra.array) == len(encoded.tiles) == sum(encoded.images) > 2
  np.testing.assert_array_equal(extra.array, processor.priors(example.shots, grids)["it"])
  text = processor.encode(Example((), (Turn("cone", "A"),)))
  assert len(text.extra[prior_array("it")].array) == 0
  assert not processor.with_priors(None).encode(example).extra
  one = dataclasses.replace(example, images=example.images[:1], shots=(shot,), rearranged=(frame.image,))
  with pytest.raises(UserError, match="rearranged pictures bring no shots"):
    processor.encode(one)
  with pytest.raises(UserError, match="1 shots of 2 pictures"):
    processor.encode(dataclasses.replace(example, shots=(shot,)))


def test_tiles_in_borders_are_refused():
  """llama.cpp lays InternVL's pictures into borders; its SmolVLM stretches them, as all others do."""
  make = reader_of({"it": PriorConfig("rays")})
  with pytest.raises(UserError, match="nobody knows what a tile shows"):
    prior_reader(make, MtmdCrops(tile_size=16), 4)
  for tiler in (MtmdGrid(tile_size=16, longest_edge=32), CropTiler(tile_size=16)):
    assert prior_reader(make, tiler, 4).priors.keys() == {"it"}
  assert prior_reader(None, MtmdCrops(tile_size=16), 4) is None
