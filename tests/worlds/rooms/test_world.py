"""Rooms: what is drawn is what is said to be there, held against a plain caster and the pixels."""

import dataclasses

import numpy as np
import pytest

from spatialvlm.types import UserError
from spatialvlm.worlds.rooms import frames, layout, scene
from spatialvlm.worlds.rooms.camera import RIGS
from spatialvlm.worlds.rooms.classes import CLASSES, MAX_PARTS, placed
from spatialvlm.worlds.rooms.dial import MAX_THINGS

SIZE = 96


@pytest.fixture(scope="module")
def shown() -> list[frames.RoomFrame]:
  return frames.frames(7, range(12), SIZE)


def cast(one: layout.Layout, size: int, rows: np.ndarray, columns: np.ndarray):
  """Depth and thing of each ray, one solid after the other, in float64: the same geometry by a plain loop."""
  s = scene.build(one)
  v = ((rows + 0.5) / size - 0.5) / one.camera.focal
  u = ((columns + 0.5) / size - 0.5) / one.camera.focal
  rays = np.stack([u, v, np.ones_like(u)], 1)
  depth, thing, met = np.full(len(u), np.inf), np.full(len(u), -1), np.zeros((len(u), MAX_THINGS), bool)
  for k in np.flatnonzero(s.radius):
    o, d = s.origin[k].astype(float), rays @ s.turn[k].T.astype(float)
    kxy, kzz, kz, k0 = s.quadric[k].astype(float)
    # Walk along the ray in the solid's cube: inside where all four conditions hold.
    near, far = (s.center[k, 2] - s.radius[k], s.center[k, 2] + s.radius[k])
    t = np.linspace(max(near, 0.05), max(far, 0.06), 900)
    p = o + t[:, None, None] * d
    inside = (np.abs(p) <= 1).all(-1)
    inside &= kxy * (p[..., 0] ** 2 + p[..., 1] ** 2) + kzz * p[..., 2] ** 2 + kz * p[..., 2] + k0 <= 0
    hit, first = inside.any(0), t[inside.argmax(0)]
    met[hit, s.owner[k]] = True
    closer = hit & (first < depth)
    depth[closer], thing[closer] = first[closer], s.owner[k]
  return depth, thing, met


def test_pixels_are_those_of_a_plain_caster(shown):
  rng = np.random.default_rng(0)
  wrong = looked = 0
  for frame in shown[:6]:
    rows, columns = rng.integers(0, SIZE, (2, 100))
    depth, thing, _ = cast(frame.layout, SIZE, rows, columns)
    seen = frame.instance[rows, columns]
    wrong += (seen != thing).sum()
    looked += len(rows)
    same = (seen == thing) & (thing >= 0)
    assert np.allclose(frame.depth[rows, columns][same], depth[same], rtol=1e-3, atol=1e-3)
  # What is thinner than a step of the walk, or a pixel's edge, may differ.
  assert looked == 600 and wrong < 0.02 * looked


def test_what_is_known_of_objects_is_what_the_pixels_say(shown):
  for frame in shown:
    for o in frame.objects:
      mask = frame.instance == o.index
      rows, columns = np.nonzero(mask)
      assert o.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
      assert o.visible_pixels == mask.sum() > 0
      assert 0 < o.visible_fraction <= 1
    assert not set(np.unique(frame.instance)) - {-1} - {o.index for o in frame.objects}


def test_covered_is_what_a_thing_alone_would_show(shown):
  """Each of some things that are hidden in part, drawn in an empty room."""
  hidden = [(f, o) for f in shown for o in f.objects if 0.2 < o.visible_fraction < 0.9][:4]
  assert len(hidden) >= 3
  for frame, o in hidden:
    alone = dataclasses.replace(frame.layout, things=(frame.layout.things[o.index],))
    drawn = frames.measure([alone], SIZE, 0.5)
    assert drawn.seen.visible[0, 0] == frame.seen.covered[o.index]
    assert frame.seen.hides[:, o.index].sum() == frame.seen.covered[o.index]


def test_depth_of_the_floor_follows_from_the_camera(shown):
  frame = next(f for f in shown if not f.layout.outdoors)
  camera = frame.layout.camera
  rows, columns = np.nonzero(frame.instance < 0)
  u = ((columns + 0.5) / SIZE - 0.5) / camera.focal
  v = ((rows + 0.5) / SIZE - 0.5) / camera.focal
  points = camera.position + frame.depth[rows, columns][:, None] * (
    np.stack([u, v, np.ones_like(u)], 1) @ camera.rotation.T
  )
  x0, x1, y0, y1, high = frame.layout.bounds
  off = np.min(
    [
      abs(points[:, 0] - x0), abs(points[:, 0] - x1), abs(points[:, 1] - y0), abs(points[:, 1] - y1),
      abs(points[:, 2]), abs(points[:, 2] - high),
    ],
    0,
  )  # fmt: skip
  assert off.max() < 5e-3


def test_a_scene_is_the_same_alone_and_in_other_colours(shown):
  alone = frames.frames(7, [5], SIZE)[0]
  assert (alone.image == shown[5].image).all() and (alone.depth == shown[5].depth).all()
  one = shown[5].layout
  other = frames.paint(one.painted([(t.color + 1) % 10 for t in one.things]), SIZE, frames.dial(0.5))
  assert (other.depth == alone.depth).all() and (other.instance == alone.instance).all()
  assert (other.image != alone.image).any()


def test_more_difficult_is_more_crowded():
  count = lambda d: np.mean([len(one.things) for one in frames.draw(3, range(60), d)])
  assert count(0.0) + 3 < count(0.5) + 1 < count(1.0)


def test_things_stand_on_what_carries_them_and_run_into_nothing():
  for one in frames.draw(5, range(80), 0.7):
    for i, thing in enumerate(one.things):
      if thing.support >= 0:
        base = one.things[thing.support]
        top = CLASSES[base.kind].top
        assert thing.foot[2] == pytest.approx(base.foot[2] + top[0] * base.size[2])
        assert abs(thing.foot[0] - base.foot[0]) <= base.reach[0] + 1e-6
      elif thing.support == layout.FLOOR:
        assert thing.foot[2] == 0
      x0, x1, y0, y1, high = one.bounds
      assert (
        x0 < thing.foot[0] < x1 and y0 < thing.foot[1] < y1 and thing.foot[2] + thing.size[2] < high + 0.01
      )
      for other in one.things[:i]:
        if other is one.things[thing.support] or thing.support < 0 <= other.support:
          continue
        apart = np.abs(thing.center - other.center)
        both = [(*t.reach, t.size[2] / 2) for t in (thing, other)]
        if thing.support >= 0 and CLASSES[one.things[thing.support].kind].name in (
          "chair",
          "sofa",
          "bed",
          "bench",
        ):
          continue
        assert (apart > np.add(*both) - 1e-6).any()


def test_the_table_of_classes():
  names = [of.name for of in CLASSES]
  assert len(names) == len(set(names)) >= 30
  for of in CLASSES:
    assert 1 <= len(of.parts) <= MAX_PARTS, of.name
    assert all(0.02 <= low <= high <= 12 for low, high in of.size), of.name
    assert of.places and of.plural != of.name
  for place in ("floor", "top", "wall", "ceiling", "air", "outdoors", "outdoors_air"):
    assert placed(place), place
  assert {rig.like for rig in RIGS} == {"Hypersim", "SUN RGB-D", "ADE20K", "COCO", "nuScenes"}


@pytest.mark.parametrize(
  ("seed", "size", "difficulty", "said"),
  [(-1, 96, 0.5, "seed"), (0, 8, 0.5, "image size"), (0, 96, 1.5, "difficulty")],
)
def test_what_is_out_of_range_is_told(seed, size, difficulty, said):
  with pytest.raises(UserError, match=said):
    frames.frames(seed, [0], size, difficulty)


def test_facing_is_as_seen():
  position = np.zeros(3)
  ahead = np.array([3.0, 0.0, 0.0])  # the camera looks along x; its right is -y
  turn = lambda yaw: float(frames.facing(np.array(yaw), ahead, position))
  assert turn(np.pi) == pytest.approx(0)
  assert turn(-np.pi / 2) == pytest.approx(90)
  assert turn(np.pi / 2) == pytest.approx(-90)
  assert abs(turn(0.0)) == pytest.approx(180)
