import threading

import numpy as np
import pytest

from spatialvlm.types import UserError
from spatialvlm.worlds import layout, render, shifts, world

SIZE = 48


@pytest.fixture(scope="module")
def pool():
  return world.pool(1, range(512), SIZE)


def same(a: world.Frame, b: world.Frame) -> bool:
  arrays = all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("image", "depth", "instance", "pose"))
  return arrays and [(o.name, o.box) for o in a.objects] == [(o.name, o.box) for o in b.objects]


def test_a_number_is_always_the_same_scene():
  many = world.frames(3, range(20), SIZE)
  alone, mixed = world.frames(3, [7], SIZE)[0], world.frames(3, [19, 7, 0], SIZE)
  assert same(many[7], alone) and same(many[19], mixed[0]) and same(many[7], mixed[1])
  assert not same(many[7], many[8])
  assert not same(alone, world.frames(4, [7], SIZE)[0])
  assert world.frames(3, []) == []


def test_threads_get_the_same_scenes():
  wanted = world.frames(3, range(8), SIZE)
  got: dict[int, world.Frame] = {}

  def read(i):
    got[i] = world.frames(3, [i], SIZE)[0]

  threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert all(same(wanted[i], got[i]) for i in range(8))


def test_frames_describe_what_they_show():
  for frame in world.frames(2, range(16), SIZE):
    assert frame.image.dtype == np.uint8 and frame.image.shape == (SIZE, SIZE, 3)
    assert frame.depth.dtype == np.float32 and frame.instance.dtype == np.int32
    assert set(np.unique(frame.instance)) - {-1} == {o.index for o in frame.objects}
    assert (frame.instance[frame.depth == 0] == -1).all()
    for o in frame.objects:
      mask = frame.instance == o.index
      assert mask.sum() == o.visible_pixels and 0 < o.visible_fraction <= 1
      local = frame.pose[:3, :3].T @ (o.center - frame.pose[:3, 3])
      np.testing.assert_allclose(local, o.center_camera, rtol=1e-4, atol=1e-4)
      x, y, _ = frame.intrinsics @ (local / local[2])
      if o.clear and o.visible_fraction == 1:
        assert o.box[0] <= x <= o.box[2] and o.box[1] <= y <= o.box[3]
        # An object reaches neither nearer nor farther than its own radius around its centre.
        assert np.abs(frame.depth[mask] - local[2]).max() <= np.linalg.norm(o.size) / 2 + 1e-3
    names = [o.name for o in frame.objects]
    assert all(names.count(o.name) == 1 and o.clear for o in frame.named())


def test_a_scene_from_its_own_camera_is_its_frame():
  pool = world.pool(3, [5], SIZE)
  own = world.frame(pool, 0)
  aside = own.pose.copy()
  aside[:3, 3] += 0.5 * aside[:3, 0]
  found = world.seen_from(3, 5, [aside, own.pose], float(pool.layout.camera.focal[0]), SIZE)
  assert len(found) == 2 and same(found[1], own) and not same(found[0], own)
  # What stands in the world stays there; before the camera it moves.
  objects = {o.index: o for o in own.objects}
  both = [(o, objects[o.index]) for o in found[0].objects if o.index in objects]
  assert len(both) > 1
  for moved, there in both:
    np.testing.assert_array_equal(moved.center, there.center)
    np.testing.assert_allclose(moved.center_camera, there.center_camera - [0.5, 0, 0], atol=1e-4)
  assert world.seen_from(3, 5, [], 1.0, SIZE) == []


def test_three_to_eight_objects_and_most_of_them_clear(pool):
  present = pool.layout.present.sum(1)
  assert present.min() >= 3 and set(present) == set(range(3, 9))
  assert pool.clear.sum() / present.sum() > 0.85
  assert not pool.clear[~pool.layout.present].any()


def test_objects_stand_where_they_should(pool):
  scene, present = pool.layout.scene, pool.layout.present
  bottom = (scene.center[..., 2] - scene.half[..., 2])[:, : render.MAX_OBJECTS]
  stand = pool.layout.stand
  np.testing.assert_allclose(bottom[present & (stand == layout.STANDS.index("floor"))], 0, atol=1e-4)
  for name, column in (("pedestal", True), ("hanging", True), ("floor", False), ("shelf", False)):
    chosen = present & (stand == layout.STANDS.index(name))
    assert chosen.mean() > 0.02
    own = scene.active[:, render.MAX_OBJECTS : 2 * render.MAX_OBJECTS][chosen]
    assert (own == column).all()
  on = present & (stand == layout.STANDS.index("pedestal"))
  column_top = (scene.center + scene.half)[:, render.MAX_OBJECTS : 2 * render.MAX_OBJECTS, 2]
  np.testing.assert_allclose(column_top[on], bottom[on], atol=1e-3)


def test_objects_do_not_run_through_each_other(pool):
  """Upright cylinders around the objects: apart on the floor plan, or one above the other."""
  scene = pool.layout.scene
  n = render.MAX_OBJECTS
  center, half = scene.center[:, :n], scene.half[:, :n]
  girth = half[..., :2].min(-1)
  plan = np.linalg.norm(center[:, :, None, :2] - center[:, None, :, :2], axis=-1)
  both = pool.layout.present[:, :, None] & pool.layout.present[:, None] & ~np.eye(n, dtype=bool)
  assert (plan > girth[:, :, None] + girth[:, None])[both].all()


def test_size_and_color_know_nothing_of_the_class(pool):
  present, shape = pool.layout.present, pool.layout.shape
  size = np.log(pool.layout.scene.half[:, : render.MAX_OBJECTS].max(-1))
  means = [size[present & (shape == k)].mean() for k in range(4)]
  assert max(means) - min(means) < 0.12 < size[present].std()
  table = np.zeros((4, len(world.COLORS)))
  np.add.at(table, (shape[present], pool.layout.color[present]), 1)
  table /= table.sum()
  assert np.abs(table - 1 / table.size).max() < 0.02


def test_colors_stay_apart_under_light_and_shadow(pool):
  """Single pixels of objects, lit or dark, are told by the nearest of other scenes' pixels."""
  rng = np.random.default_rng(0)
  pixels, colors, scenes = [], [], []
  for b in range(256):
    image = world.paint(pool, b)
    for k in np.flatnonzero(pool.clear[b]):
      own = image[pool.rendering.surface[b] == k]
      pixels.extend(own[rng.integers(len(own), size=3)].astype(float))
      colors.extend([pool.layout.color[b, k]] * 3)
      scenes.extend([b] * 3)
  pixels, colors, first = np.array(pixels), np.array(colors), np.array(scenes) < 128
  distance = ((pixels[~first][:, None] - pixels[first][None]) ** 2).sum(-1)
  assert (colors[first][distance.argmin(1)] == colors[~first]).mean() > 0.995


def test_no_object_has_the_color_of_a_drawn_box():
  assert not set(world.COLORS) & set(world.BOX_COLORS)
  for albedo in np.array([color.albedo for color in shifts.PLAIN.colors]):
    for box in world.BOX_COLORS.values():
      cosine = albedo @ np.array(box) / np.linalg.norm(albedo) / np.linalg.norm(box)
      assert cosine < 0.92


def test_painting_in_other_colors_changes_objects_only(pool):
  colors = (pool.layout.color[0] + 1) % len(world.COLORS)
  before, after = world.paint(pool, 0), world.paint(pool, 0, colors)
  changed = (before != after).any(-1)
  objects = pool.rendering.surface[0] < render.MAX_OBJECTS
  assert changed[objects].mean() > 0.99 and not changed[~objects].any()


def test_zoom_shows_the_same_scene_at_another_size(pool):
  zoomed = world.zoom(pool, 3, 96)
  np.testing.assert_allclose(zoomed.rendering.box[0], 2 * pool.rendering.box[3], atol=3)
  np.testing.assert_array_equal(zoomed.center_camera[0], pool.center_camera[3])


@pytest.mark.parametrize(("size", "thick"), [(96, 1), (384, 3)])
def test_boxes_are_drawn_around_their_objects(size, thick):
  image = np.zeros((size, size, 3), np.uint8)
  world.draw_box(image, (20, 30, 40, 60), "green")
  drawn = image[..., 1] == 255
  assert not image[..., [0, 2]].any()
  assert not drawn[30:60, 20:40].any()
  assert drawn[30 - thick : 30, 20 - thick : 40 + thick].all()
  assert drawn[60 : 60 + thick, 20:40].all() and drawn[30:60, 40 : 40 + thick].all()
  assert drawn.sum() == (30 + 2 * thick) * (20 + 2 * thick) - 600


def test_boxes_at_the_border_stay_in_the_image():
  image = np.zeros((96, 96, 3), np.uint8)
  world.draw_box(image, (0.0, 0.0, 96.0, 96.0), "red")
  assert (image[0, :, 0] == 255).all() and (image[:, -1, 0] == 255).all() and image[1:-1, 1:-1].sum() == 0


@pytest.mark.parametrize(("seed", "numbers", "size"), [(-1, [0], 48), (0, [2**32], 48), (0, [0], 8)])
def test_what_cannot_be_rendered_is_refused(seed, numbers, size):
  with pytest.raises(UserError, match="outside"):
    world.frames(seed, numbers, size)
