"""Shifted worlds: each differs in its one thing, what is asked there is true, and the plain one stays."""

import dataclasses

import jax
import numpy as np
import pytest

from spatialvlm.config import ScenesConfig
from spatialvlm.data.sources import scenes
from spatialvlm.types import UserError
from spatialvlm.worlds import render, shifts, shortcuts, world
from spatialvlm.worlds.questions import SceneQuestions
from tests.worlds import analytic

pytestmark = pytest.mark.slow  # `make oracle` runs them

SIZE, SEED = 48, 1
# What of a look may change under a shift, where it is more than the field itself.
SURFACES = {"colors", "shades", "texture", "floor", "slanting", "dark", "warm"}
NAMES = tuple(shifts.SHIFTS)
# Of the first plain scenes of seed 1 at 48 pixels.
PRESENT = [7, 7, 8, 7, 5, 5, 6, 7, 6, 8, 4, 5]
FIRST_COLORS = ["white", "cyan", "purple", "purple", "black", "black", "yellow", "white"]
FIRST_SHAPES = ["sphere", "cone", "sphere", "sphere", "block", "cone", "cylinder", "sphere"]
POSITIONS = [[0.677, 2.040, 2.821], [-1.912, 0.631, 1.638], [2.412, 0.345, 3.116]]
MEANS = [108.1, 147.6, 139.2, 147.5, 124.3, 176.4, 149.6, 158.4]


@pytest.fixture(scope="module")
def pools():
  """Thirty-two scenes in every look."""
  return {name: world.pool(SEED, range(32), SIZE, shifts.look(name)) for name in ("", *NAMES)}


def of(pool, b):
  return jax.tree.map(lambda a: a[b], pool.layout)


def test_each_shift_is_one_thing_and_outside_of_what_training_draws():
  plain, differs = shifts.PLAIN, set()
  for name, look in shifts.SHIFTS.items():
    changed = {f.name for f in dataclasses.fields(look) if getattr(look, f.name) != getattr(plain, f.name)}
    changed -= {"differs"}
    assert changed in ({"patterned", "speckled"}, {"floors", "tiled"}) or len(changed) == 1, name
    for field in changed & {"pitch", "roll", "view", "tilt", "ambient"}:
      (low, high), (least, most) = getattr(look, field), getattr(plain, field)
      assert high < least or low > most, name
    assert len(look.forms) == len(plain.forms) and len(look.colors) == len(plain.colors)
    assert look.differs not in differs and not differs.add(look.differs)
  assert not {*shifts.SHIFTS["shapes"].shape_words} & {*plain.words}
  assert not {*shifts.SHIFTS["colors"].color_words} & {*plain.words}
  for name in ("colors", "shades", "floor"):
    field = "floors" if name == "floor" else "colors"
    there = {getattr(c, "albedo", c) for c in getattr(plain, field)}
    assert not there & {getattr(c, "albedo", c) for c in getattr(shifts.SHIFTS[name], field)}
  for old, new in zip(plain.forms[1:], shifts.SHIFTS["proportions"].forms[1:], strict=True):
    assert new.word == old.word and new.height[0] / new.width[1] > old.height[1] / old.width[0]


def test_the_plain_world_is_what_it_was(pools):
  """What stood in these scenes when the shipped models were trained."""
  lay = pools[""].layout
  assert lay.present.sum(1)[:12].tolist() == PRESENT
  assert [world.COLORS[c] for c in lay.color[:8, 0]] == FIRST_COLORS
  assert [world.SHAPES[s] for s in lay.shape[:8, 0]] == FIRST_SHAPES
  np.testing.assert_allclose(lay.camera.position[:3], POSITIONS, atol=1e-3)
  np.testing.assert_array_equal(lay.shape, lay.scene.shape[:, : render.MAX_OBJECTS])
  means = [world.paint(pools[""], b).mean() for b in range(8)]
  np.testing.assert_allclose(means, MEANS, atol=0.3)


@pytest.mark.parametrize("name", NAMES)
def test_depth_and_surfaces_are_those_of_an_analytic_caster(pools, name):
  pool = pools[name]
  wrong = total = 0
  for b in range(6):
    depth, surface = analytic.cast(of(pool, b), SIZE)
    same = surface == pool.rendering.surface[b]
    wrong, total = wrong + (~same).sum(), total + same.size
    seen = same & (surface != render.SKY)
    np.testing.assert_allclose(pool.rendering.depth[b][seen], depth[seen], rtol=2e-4)
  assert wrong / total < 2e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_shift_changes_its_own_thing_alone(pools, name):
  plain, shifted = pools[""], pools[name]
  same = lambda get: np.array_equal(get(plain), get(shifted))
  assert same(lambda p: p.rendering.depth) == same(lambda p: p.rendering.box) == (name in SURFACES)
  assert same(lambda p: p.layout.camera.rotation) == (name not in ("high", "low", "roll"))
  assert same(lambda p: p.layout.camera.focal) == (name not in ("wide", "narrow"))
  assert same(lambda p: p.layout.scene.light) == (name != "slanting")
  assert same(lambda p: p.layout.color) and same(lambda p: p.layout.shape)
  for b in range(4):
    before, after = world.paint(plain, b), world.paint(shifted, b)
    assert (before != after).mean() > 0.02
    changed = (before != after).any(-1)[plain.rendering.surface[b] >= render.MAX_OBJECTS]
    if name in ("colors", "shades", "texture"):
      assert not changed.any()


def test_the_camera_does_what_its_shift_says(pools):
  forward = lambda name: pools[name].layout.camera.rotation[:, :, 2]
  angles = {n: np.degrees(np.arcsin(-forward(n)[:, 2])) for n in ("", "high", "low", "roll")}
  assert angles[""].min() >= 10 and angles[""].max() <= 44
  assert angles["high"].min() + 1e-3 >= 50 and angles["low"].max() <= 6 + 1e-3
  np.testing.assert_allclose(angles["roll"], angles[""], atol=1e-2)
  rotation = pools["roll"].layout.camera.rotation
  np.testing.assert_allclose(
    np.einsum("bij,bik->bjk", rotation, rotation), np.broadcast_to(np.eye(3), (32, 3, 3)), atol=1e-5
  )
  np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
  roll = np.degrees(np.arcsin(rotation[:, 2, 0] / np.cos(np.radians(angles["roll"]))))
  assert (
    (np.abs(roll) > 12 - 1e-2).all() and (np.abs(roll) < 24 + 1e-2).all() and 0.2 < (roll > 0).mean() < 0.8
  )


def test_grain_stays_with_the_surface_and_leaves_the_names_readable(pools):
  """Two sizes of one scene have the same grains; no surface becomes lighter, none darker than it may."""
  small = pools["texture"]
  large = world.zoom(small, 3, 2 * SIZE)
  ratio = lambda pool, b, plain, c: world.paint(pool, b).astype(float) / np.maximum(world.paint(plain, c), 1)
  bare = dataclasses.replace(small, look=shifts.PLAIN)
  found = ratio(small, 3, bare, 3)[small.rendering.surface[3] < render.MAX_OBJECTS]
  assert found.min() > 0.4 and found.max() < 1.1 and found.std() > 0.05
  bare = dataclasses.replace(large, look=shifts.PLAIN)
  both = ratio(large, 0, bare, 0)[::2, ::2]
  inside = (small.rendering.surface[3] == large.rendering.surface[0][::2, ::2]) & (
    small.rendering.surface[3] < render.MAX_OBJECTS
  )
  before = ratio(small, 3, dataclasses.replace(small, look=shifts.PLAIN), 3)
  assert np.corrcoef(before[inside].ravel(), both[inside].ravel())[0, 1] > 0.5


@pytest.mark.parametrize("name", ["", *(n for n in NAMES if n in SURFACES)])
def test_colors_stay_apart(pools, name):
  """Single pixels of objects are told by the nearest of other scenes' pixels."""
  pool, rng = pools[name], np.random.default_rng(0)
  pixels, colors, scenes_ = [], [], []
  for b in range(32):
    for k in np.flatnonzero(pool.clear[b]):
      for c in range(len(pool.look.colors)):
        image = world.paint(pool, b, np.full(render.MAX_OBJECTS, c))
        own = image[pool.rendering.surface[b] == k]
        pixels.extend(own[rng.integers(len(own), size=2)].astype(float))
        colors.extend([c] * 2)
        scenes_.extend([b] * 2)
  pixels, colors, first = np.array(pixels), np.array(colors), np.array(scenes_) < 16
  distance = ((pixels[~first][:, None] - pixels[first][None]) ** 2).sum(-1)
  assert (colors[first][distance.argmin(1)] == colors[~first]).mean() > 0.98


def test_no_object_has_the_color_of_a_drawn_box():
  for look in shifts.SHIFTS.values():
    for color in look.colors:
      albedo = np.array(color.albedo) * look.lamp
      for box in world.BOX_COLORS.values():
        assert albedo @ np.array(box) / np.linalg.norm(albedo) / np.linalg.norm(box) < 0.92, color.word


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_true_and_no_rule_is_rewarded(name):
  """Every answer against the scene's geometry, and every rule near a coin."""
  asked = SceneQuestions(SEED, image_size=SIZE, shift=name)
  found = [asked[i] for i in range(160)]
  numbers = sorted({int(q.source_filename.split("_")[2]) for q in found})
  frames = dict(zip(numbers, world.frames(SEED, numbers, SIZE, shifts.look(name)), strict=True))
  for q in found:
    assert q.source_filename.endswith(name) and q.source == "Scenes"
    frame = frames[int(q.source_filename.split("_")[2])]
    if q.task == "Count":
      plural = q.question.removesuffix(" are in the image?").split()[-1]
      things = [o for o in frame.objects if f"{o.shape}s" == plural]
      if len(q.question.split()) == 7:  # no colour
        assert q.choices[q.answer] == str(len(things))
      assert int(q.choices[q.answer]) <= len(things)
      continue
    by_box = {tuple(map(float, o.box)): o for o in frame.objects}
    shown = [by_box[box] for box in q.bbox]
    assert all(o.clear for o in shown)
    if q.task == "Relation":
      axis = 1 if "above" in q.choices else 0
      middle = [o.box[axis] + o.box[axis + 2] for o in shown]
      assert q.choices[q.answer] == (("left", "right"), ("above", "below"))[axis][int(middle[0] > middle[1])]
    elif q.task == "Depth":
      assert q.answer == np.argmin([o.center_camera[2] for o in shown])
    else:
      assert q.answer == np.argmin([np.linalg.norm(o.center - shown[0].center) for o in shown[1:]])
  assert asked.exhausted < 16
  # Guessing by the text: each text has every answer as often.
  texts = {}
  for q in found[: len(found) // 2]:
    if q.task != "Count":
      texts.setdefault((q.task, q.question), []).append(q.answer)
  pairs = [sorted(answers) for answers in texts.values() if len(answers) == 2]
  assert len(pairs) > 10 and all(pair == [0, 1] for pair in pairs)
  for task, rules in shortcuts.rule_scores(found).items():
    for rule, score in rules.items():
      if rule != "most saturated" and not task.startswith("Relation"):
        assert abs(score - 0.5) < 0.27, (task, rule, score)


def test_where_only_the_picture_changes_the_question_is_the_same():
  plain = SceneQuestions(SEED, image_size=SIZE)
  for name in ("texture", "dark", "warm", "shades", "slanting", "floor"):
    shifted = SceneQuestions(SEED, image_size=SIZE, shift=name)
    for i in range(8):
      a, b = plain[i], shifted[i]
      assert (a.prompt, a.answer, a.bbox) == (b.prompt, b.answer, b.bbox)
      assert (a.images[0] != b.images[0]).any()


def test_number_i_is_always_the_same_question():
  ahead = SceneQuestions(SEED, image_size=SIZE, shift="shapes")
  later = SceneQuestions(SEED, image_size=SIZE, shift="shapes")
  want, got = [ahead[i] for i in (3, 4, 5)], [later[i] for i in (5, 3, 4)]
  for q, other in zip(want, (got[1], got[2], got[0]), strict=True):
    assert q.prompt == other.prompt and np.array_equal(q.images[0], other.images[0])
  assert set(ahead.new_words) == {w for f in shifts.SHIFTS["shapes"].forms for w in (f.word, f.plural)}
  assert SceneQuestions(SEED).new_words == () == SceneQuestions(SEED, shift="roll").new_words


def test_what_cannot_be_shifted_is_refused():
  with pytest.raises(UserError, match=r"'rol' is unknown; did you mean 'roll'"):
    scenes.questions(ScenesConfig(shift="rol"))
  for more in ({}, dict(pictures=64, turns=2)):
    with pytest.raises(UserError, match="no shift any more"):
      scenes.examples(ScenesConfig(shift="roll", **more))
