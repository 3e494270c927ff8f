"""Rearranged scenes: a sentence that was true is false of each, what it does not speak of stays as it was."""

import dataclasses

import jax
import numpy as np
import pytest

from spatialvlm.types import UserError
from spatialvlm.worlds import layout, rearranged, skills, statements, targets, world
from tests.worlds.test_false_answers import holds

COUNT = 64
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pool():
  return world.pool(8, range(COUNT))


@pytest.fixture(scope="module")
def frames(pool):
  return [world.frame(pool, b) for b in range(COUNT)]


@pytest.fixture(scope="module")
def told(frames):
  """By scene, a true sentence and what it is about."""
  rng, found = np.random.default_rng(1), {}
  for b, frame in enumerate(frames):
    said = statements.statement(targets.show(frame, rng), rng)
    if said is not None:
      found[b] = rearranged.told(said[0].answer, frame)
  return found


def changed(pool, told, changes):
  """(name of the change, scene's number, what is told, the new layout) of all that can be made."""
  found = []
  for b, what in told.items():
    scene = jax.tree.map(lambda a, b=b: np.asarray(a[b]), pool.layout)
    for name, change in changes.items():
      new = change(scene, what, np.random.default_rng(b))
      if new is not None:
        found.append((name, b, what, new))
  return found


def test_each_change_does_what_it_says_and_nothing_else(pool, frames, told):
  pairs = {b: t for b, t in told.items() if not t.sentence.startswith("There")}
  made = changed(pool, pairs, rearranged.PAIR)
  made += changed(pool, {b: t for b, t in told.items() if b not in pairs}, rearranged.COUNT)
  names = [name for name, *_ in made]
  assert set(names) == {*rearranged.PAIR, *rearranged.COUNT} and names.count("depths") > 5
  new = world.rendered([layout_ for *_, layout_ in made])
  false = 0
  for n, (name, b, what, _) in enumerate(made):
    before, after = ({o.index: o for o in f.objects} for f in (frames[b], world.frame(new, n)))
    still = set(before) - set(what.named) - (set(what.others) if name == "one_more" else set())
    for k in still & set(after):
      assert after[k].name == before[k].name, name
      np.testing.assert_array_equal(after[k].center, before[k].center)
    a, c = what.named[0], what.named[-1]
    if name == "one_less":
      assert len(set(what.named) - set(after)) >= 1
    elif name in ("places", "depths") and {a, c} <= after.keys():
      assert (after[a].name, after[c].name) == (before[a].name, before[c].name)
      z = lambda o: float(o.center_camera[2])
      # A centre lies as high above what carries it as the thing is tall.
      slack = 0.35 if name == "places" else 1e-3
      assert z(after[a]) == pytest.approx(z(before[c]), abs=slack)
      assert z(after[c]) == pytest.approx(z(before[a]), abs=slack)
      if name == "depths":  # where they were in the picture, and as large
        spot = lambda o: o.center_camera[:2] / o.center_camera[2]
        np.testing.assert_allclose(spot(after[a]), spot(before[a]), atol=1e-3)
        assert max(after[a].size) / z(after[a]) == pytest.approx(max(before[a].size) / z(before[a]), rel=1e-3)
    elif name == "colors" and {a, c} <= after.keys():
      assert (after[a].color, after[c].color) == (before[c].color, before[a].color)
      assert (after[a].shape, after[c].shape) == (before[a].shape, before[c].shape)
    elif name == "repainted":
      assert sum(after[k].color != before[k].color for k in set(what.named) & set(after)) <= 1
    if statements.surely_false(what.sentence, world.frame(new, n)):
      false += 1
      assert not holds(what.sentence, world.frame(new, n)), (name, what)
  assert false > 0.6 * len(made)
  for frame, what in ((frames[b], t) for b, t in told.items()):
    assert holds(what.sentence, frame) and not statements.surely_false(what.sentence, frame)


def test_the_light_and_the_ground_stay(pool, told):
  scene = jax.tree.map(lambda a: np.asarray(a[0]), pool.layout)
  same = world.rendered([scene])
  np.testing.assert_array_equal(world.frame(same, 0).image, world.frame(pool, 0).image)
  b, what = next((b, t) for b, t in told.items() if not t.sentence.startswith("There"))
  scene = jax.tree.map(lambda a: np.asarray(a[b]), pool.layout)
  new = rearranged.places(scene, what, RNG)
  for name in ("light", "ambient", "floor", "texture", "tone", "yaw", "shape"):
    np.testing.assert_array_equal(getattr(new.scene, name), getattr(scene.scene, name))
  rest = [k for k in range(layout.render.MAX_PRIMITIVES) if k % 8 not in what.named or k >= 16]
  np.testing.assert_array_equal(new.scene.center[rest], scene.scene.center[rest])


def test_the_source_gives_pictures_of_which_its_sentence_is_false():
  tasks = {"statement": 3.0, "name": 1.0}
  plain = skills.SceneSkills(8, tasks, turns=2)
  source = skills.SceneSkills(8, tasks, turns=2, false_pictures=2)
  first, examples = plain.__getitems__(range(24)), source.__getitems__(range(24))
  counts = []
  for before, example in zip(first, examples, strict=True):
    assert before.turns == example.turns and not before.rearranged
    np.testing.assert_array_equal(before.images[0], example.images[0])
    if example.task != "statement":
      assert not example.rearranged
      continue
    counts.append(len(example.rearranged))
    colors = lambda image: {c for c, rgb in world.BOX_COLORS.items() if (image == rgb).all(-1).any()}
    for picture in example.rearranged:
      assert picture.dtype == np.uint8 and picture.shape == example.images[0].shape
      assert (picture != example.images[0]).any() and colors(picture) == colors(example.images[0])
  assert len(counts) > 10 and np.mean(counts) > 1.5 and max(counts) == 2
  again = source[5]
  for one, other in zip(again.rearranged, examples[5].rearranged, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    (dict(false_pictures=-1), "-1 false pictures"),
    (dict(false_pictures=1), 'put "statement" into tasks'),
    (dict(false_pictures=1, tasks={"statement": 1.0}, pictures=8), "set pictures to 0"),
  ],
)
def test_what_does_not_go_together(settings, says):
  with pytest.raises(UserError, match=says):
    skills.SceneSkills(8, **settings)


def test_a_name_that_is_not_in_sight_and_a_doubtful_number():
  frame = world.frames(8, [0])[0]
  a, b = frame.objects[:2]
  absent = next(
    f"{c} {s}"
    for c in world.COLORS
    for s in world.SHAPES
    if f"{c} {s}" not in {o.name for o in frame.objects}
  )
  assert statements.surely_false(f"The {absent} is left of the {b.name}.", frame)
  hidden = tuple(dataclasses.replace(o, clear=False) for o in frame.objects)
  doubtful = dataclasses.replace(frame, objects=hidden)
  assert not statements.surely_false(f"The {a.name} is left of the {b.name}.", doubtful)
  assert not statements.surely_false("There are 9 red objects.", doubtful)
