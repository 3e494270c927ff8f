"""Moved pictures: the answer is that of the scene as it is then seen, or the example stays as it was."""

import collections
import dataclasses
import json
import re

import numpy as np
import pytest

from spatialvlm.config import AugmentConfig, DataConfig, HFConfig, LlavaConfig, ScenesConfig, SkillsConfig
from spatialvlm.data import pipeline
from spatialvlm.data.augment import change, legality, move, words
from spatialvlm.data.augment.change import Augment
from spatialvlm.data.augment.warp import Warp, drawn
from spatialvlm.data.sources.registry import open_source, read
from spatialvlm.data.tile_keys import ONCE, TILE_KEY
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Asked, UserError
from spatialvlm.worlds import pools, skills, targets, world
from tests.data import seen_anew
from tests.launch import tiny

SIZE = 48
ALL = AugmentConfig(flip=0.5, crop=0.4, zoom_out=0.2, roll=12.0, perspective=6.0)
EACH = [ALL, *(AugmentConfig(**one) for one in (dict(flip=1.0), dict(crop=0.6), dict(zoom_out=0.5)))]
EACH += [AugmentConfig(roll=20.0), AugmentConfig(perspective=10.0)]


def scenes(count, seed=3):
  """Conversations of the kind `scenes`: the example, its scene's pool and place there, boxes that matter."""
  source = open_source(
    ScenesConfig(seed=seed, image_size=SIZE, pictures=max(64, count), turns=4, false_answers=2)
  )
  for example in read(source, range(count)):
    number = int(example.files[0].rpartition("_")[2])
    yield example, pools.get(seed, number // pools.SCENES, SIZE).pool, number % pools.SCENES, {}


def talks(count, seed=5):
  """The same of the kind `skills`, every skill."""
  every = dict.fromkeys(skills.SKILLS, 1.0)
  source = open_source(SkillsConfig(seed=seed, image_size=SIZE, turns=6, tasks=every, false_answers=3))
  for first in range(0, count, 64):
    numbers = range(first, min(first + 64, count))
    pool = world.pool(seed, numbers, SIZE)
    for b, example in enumerate(read(source, numbers)):
      rng = np.random.Generator(np.random.Philox(key=[seed, first + b]))
      boxes = targets.show(world.frame(pool, b), rng).boxes
      yield example, pool, b, {color: o.index for color, o in boxes.items()}


@pytest.fixture
def warps(monkeypatch):
  """The warps that examples were moved by."""
  kept, moved = [], change.moved
  monkeypatch.setattr(change, "moved", lambda example, warp: kept.append(warp) or moved(example, warp))
  return kept


@dataclasses.dataclass
class Found:
  """By task: questions in moved pictures, and those whose answer is not that of the scene."""

  asked: collections.Counter
  wrong: list

  @property
  def total(self):
    return self.asked.total()


def asked_again(examples, config, warps, seed=1):
  augment, found = Augment(config, seed), Found(collections.Counter(), [])
  for position, (example, pool, b, boxes) in enumerate(examples):
    warps.clear()
    new, outcome = augment.changed(example, position)
    assert (new is not example) or not warps
    if not warps:
      assert {name for name, _ in outcome.left} == set(outcome.wanted)
      continue
    view = seen_anew.look(pool, b, warps[0], boxes)
    for asked, turn in zip(example.geometry.asked, new.turns, strict=True):
      found.asked[asked.task] += 1
      said = {text: seen_anew.answer(view, turn.prompt, text) for text in (turn.answer, *turn.false)}
      if said[turn.answer] != turn.answer or any(said[text] == text for text in turn.false):
        found.wrong.append((position, asked.task, turn, said))
  return found


@pytest.mark.parametrize(("source", "least"), [(scenes, 120), (talks, 120)], ids=["scenes", "skills"])
def test_the_answer_is_that_of_the_scene_as_it_is_then_seen(source, least, warps):
  config = ALL if source is scenes else dataclasses.replace(ALL, perspective=0)
  found = asked_again(source(52), config, warps)
  assert found.total >= least and not found.wrong, found


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EACH)))
def test_ten_thousand_answers_are_those_of_the_scenes(number, warps):
  """1,700 questions of each of the six settings, all tasks among them."""
  config, asked = EACH[number], collections.Counter()
  sources = (scenes,) if config == AugmentConfig(perspective=config.perspective) else (scenes, talks)
  for seed in range(100, 200):
    for source in sources:
      here = config if source is scenes else dataclasses.replace(config, perspective=0)
      found = asked_again(source(128, seed=seed), here, warps, seed=seed)
      assert not found.wrong, found.wrong[:3]
      asked.update(found.asked)
    if asked.total() >= 1_700:
      break
  assert asked.total() >= 1_700, asked
  wished = {"Count", "Relation", "Depth", "Distance"} | (
    {*skills.SKILLS, "statement_aside"} if talks in sources else set()
  )
  assert set(asked) == wished, asked


@pytest.mark.parametrize(
  ("what", "wrong", "source"),
  [
    ((words, "swapped"), lambda text: text, scenes),
    ((words, "swapped"), lambda text: text.replace("left", "right"), scenes),
    ((words, "reversed_list"), lambda prompt, answer, count: words.swapped(answer), talks),
    ((legality, "holds"), lambda asked, warp: True, scenes),
    ((move, "asked_of"), lambda example: [Asked("letters")] * len(example.turns), talks),
  ],
  ids=["no swap", "one after the other", "list not turned", "no margins", "words as they were"],
)
def test_what_is_wrong_is_found(what, wrong, source, warps, monkeypatch):
  monkeypatch.setattr(*what, wrong)
  config = AugmentConfig(roll=40.0) if what[1] == "holds" else AugmentConfig(flip=1.0)
  found = asked_again(source(20), config, warps)
  assert len(found.wrong) > 0.04 * found.total > 0


def test_pixels_boxes_and_dense_targets_go_where_the_scene_is_seen(warps):
  augment = Augment(dataclasses.replace(ALL, perspective=0, roll=8.0), 2)
  compared = collections.Counter()
  for position, (example, pool, b, boxes) in enumerate(talks(24)):
    warps.clear()
    new = augment(example, position)
    if not warps:
      continue
    view = seen_anew.look(pool, b, warps[0], boxes)
    instance = new.geometry.instances()
    same = (instance == view.surface) & (instance >= 0)
    assert (instance == view.surface).mean() > 0.95
    for k in np.unique(instance[same]):
      o, at = view.objects[int(k)], same & (instance == k)
      x, y = o.middle
      for name, wanted in {
        "color": world.COLORS.index(o.color),
        "shape": world.SHAPES.index(o.shape),
        "depth_step": int(targets.depth_step(view.camera(o)[2])),
        "box": next((targets.BOXES.index(c) for c, n in boxes.items() if n == k), len(targets.BOXES)),
      }.items():
        assert (new.dense[name][at] == wanted).all(), name
      # A box that is half a pixel off may lie in the next third.
      for name, middle in (("column", x), ("row", y)):
        if min(abs(middle - SIZE / 3), abs(middle - 2 * SIZE / 3)) > 1.5:
          assert (new.dense[name][at] == min(int(3 * middle / SIZE), 2)).all(), name
          compared[name] += 1
    near = same & np.isfinite(new.dense["depth"])
    assert np.median(np.abs(new.dense["depth"] / np.where(near, view.depth, 1) - 1)[near]) < 0.02
    gone = instance != warps[0].map(np.zeros((SIZE, SIZE), np.int32)) - 1  # where the picture does not reach
    outside = warps[0].map(np.ones((SIZE, SIZE), np.float32))
    assert gone.shape == outside.shape and (new.dense["color"][np.isnan(outside)] == -1).all()
    assert np.isnan(new.dense["depth"][np.isnan(outside)]).all()
    for asked in new.geometry.asked:
      for box in asked.named:
        assert any(
          np.all(np.abs(np.subtract(box, o.box)) <= 4) or _inside(o.box, box) for o in view.objects.values()
        )
        compared["boxes"] += 1
  assert min(compared["column"], compared["row"], compared["boxes"]) > 20, compared


def _inside(small, large):
  return all(np.subtract(small, large)[:2] >= -1.5) and all(np.subtract(large, small)[2:] >= -1.5)


def test_depth_is_that_of_the_turned_camera(warps):
  augment, errors = Augment(AugmentConfig(perspective=12.0, flip=0.5, crop=0.2), 4), []
  for position, (example, pool, b, _) in enumerate(scenes(12)):
    warps.clear()
    new = augment(example, position)
    if not warps or warps[0].still:
      continue
    depth, view = new.dense["depth"], seen_anew.look(pool, b, warps[0])
    near = np.isfinite(depth) & (depth > 0) & (view.depth > 0)
    error = np.abs(depth[near] / view.depth[near] - 1)
    plain = np.abs(warps[0].map(example.dense["depth"])[near] / view.depth[near] - 1)
    assert np.percentile(error, 85) < 0.03  # between pixels
    errors.append((np.median(error), np.median(plain)))
  ours, unturned = np.mean(errors, 0)
  assert len(errors) > 4 and ours < 0.5 * unturned, errors


def test_the_picture_and_its_maps_move_alike():
  rng = np.random.default_rng(0)
  classes = np.kron(rng.integers(0, 3, (6, 6)), np.ones((8, 8), int)).astype(np.int8)
  colors = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)
  for number in range(6):
    most = dict(crop=0.4, zoom_out=0.3, roll=20.0, perspective=8.0)
    warp = drawn(rng, (48, 48), most, flip=number % 2 == 0)
    moved, pixels = warp.map(classes), warp.image(colors[classes])
    there = moved >= 0
    assert (pixels.argmax(-1) == moved)[there].mean() > 0.9
    back = warp.points(warp.seen_from_before())
    assert np.abs(back - np.stack(np.meshgrid(*2 * [np.arange(48) + 0.5]), -1)).max() < 1e-6
  # A map of other rows and columns lies over the same picture.
  wide = drawn(rng, (48, 96), dict(crop=0.3, roll=10.0), flip=True)
  coarse, fine = (np.arange(n * n, dtype=np.int32).reshape(n, n) // (n * n // 4) for n in (24, 96))
  moved, pixels = wide.map(coarse), wide.map(fine)[1::4, 1::4]
  assert moved.shape == (24, 24) and (moved == pixels).mean() > 0.9 and (moved == -1).any()
  mirror = Warp((48, 48), flip=True, focal=50.123)
  assert np.array_equal(mirror.map(classes), classes[:, ::-1])
  assert np.array_equal(mirror.image(colors[classes]), colors[classes][:, ::-1])
  low, high = mirror.box((3, 4, 10, 20))
  assert np.array_equal(low, [38, 4, 45, 20]) and np.array_equal(high, low)


def test_a_moved_box_holds_what_it_held_and_is_no_larger_than_it_must_be():
  rng = np.random.default_rng(1)
  for _ in range(200):
    warp = drawn(
      rng, (64, 64), dict(crop=0.5, zoom_out=0.3, roll=30.0, perspective=10.0), flip=rng.random() < 0.5
    )
    inner = rng.uniform(8, 56, (5, 2))
    box = (*inner.min(0), *inner.max(0))
    low, high = warp.box(box)
    moved = warp.points(inner)
    real = np.array([*moved.min(0), *moved.max(0)])
    assert (low - 1e-9 <= real).all() and (real <= high + 1e-9).all()


def test_what_is_set_beside_does_not_change_what_is_drawn(warps):
  example = next(scenes(1))[0]
  for position in range(9):
    Augment(AugmentConfig(zoom_out=0.3), 3)(example, position)
    Augment(AugmentConfig(zoom_out=0.3, brightness=0.4), 3)(example, position)
  for one_, other in zip(warps[::2], warps[1::2], strict=True):
    assert np.array_equal(one_.matrix, other.matrix)


def test_facts_are_mirrored_and_a_turned_camera_has_none():
  example = next(talks(1))[0]
  said = example.facts()
  mirror = move.moved(example, Warp((SIZE, SIZE), flip=True))
  assert mirror.facts() != said and words.swapped(mirror.facts()) == said
  assert move.moved(example, Warp((SIZE, SIZE), scale=1.2)).facts() == said
  turned = drawn(np.random.default_rng(0), (SIZE, SIZE), {"roll": 5.0})
  assert move.moved(example, turned).facts is None


@pytest.mark.parametrize("size", [96, 192])
def test_sources_say_the_boxes_of_what_they_name(size):
  """Where a question has a picture of its own, and where pictures are larger than those looked through."""
  kinds = open_source(ScenesConfig(seed=2, image_size=size))
  few = open_source(ScenesConfig(seed=2, image_size=size, pictures=64))
  for example in [*read(kinds, range(6)), *read(few, range(6))]:
    (asked,) = example.geometry.asked
    (turn,) = example.turns
    assert asked.task == example.task and 0.4 * size < example.geometry.focal < 2 * size
    if asked.task == "Count":
      options = dict(re.findall(r"\((\w)\) (\d+)", turn.prompt))
      assert int(options[turn.answer]) == len(asked.named)
    elif drawn_around := re.findall(r"by (?:a|the) (\w+) box", turn.prompt):
      for color, box in zip(drawn_around, asked.named, strict=False):
        plain = (example.images[0] == world.BOX_COLORS[color]).all(-1)
        y, x = np.nonzero(plain)
        reach = asked.margin + asked.slack
        assert (
          np.abs([x.min() - box[0], x.max() + 1 - box[2], y.min() - box[1], y.max() + 1 - box[3]]).max()
          <= reach
        )
  assert open_source(ScenesConfig(seed=2, image_size=192, pictures=64))[0].geometry.asked[0].slack > 1


def test_a_flip_of_data_that_names_no_geometry_is_one_line(tmp_path):
  processor = load_processor(tiny.write_model(tmp_path / "model"))
  source = LlavaConfig(path=str(tiny.write_data(tmp_path)))
  data = DataConfig(sources={"own": source}, lengths=(96,), tiles=(1,), workers=0)
  begin = lambda **change: pipeline.training_stream(
    dataclasses.replace(data, augment=AugmentConfig(**change)), processor, 4, on_note=print
  )
  with pytest.raises(
    UserError, match=r"^data source 'own': config\.data\.augment\.flip: none of 12 examples"
  ) as told:
    begin(flip=0.5)
  assert "no task and no geometry" in str(told.value) and "\n" not in str(told.value)
  with pytest.raises(UserError, match=r"augment\.sources: 'owm' is no source of the data; .*own"):
    begin(flip=0.5, sources=("owm",))
  begin(brightness=0.5)


def test_rows_may_say_the_boxes_of_what_they_name(tmp_path):
  asks = "Is the cup left of the dog?"
  talk = [{"from": "human", "value": asks}, {"from": "gpt", "value": "yes"}]
  row = {"image": "0.png", "task": "Relation", "conversations": talk}
  boxes = [[2, 3, 6, 8], [9, 4, 14, 9]]
  rows = [row | {"named_boxes": boxes}, row, row | {"task": "name", "named_boxes": boxes}]
  rows += [
    row | {"named_boxes": wrong} for wrong in ([[5, 3, 2, 8]], [[0.1, 0.2, 0.5, 0.6]], [[2, 3, 6, 18]])
  ]
  tiny.write_data(tmp_path)
  (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
  columns = {"question": "q", "answer": "a"}
  table = [{"image": r["image"], "task": r["task"], "q": asks, "a": "yes"} for r in rows]
  table = [t | {"named_boxes": r.get("named_boxes")} for t, r in zip(table, rows, strict=True)]
  (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, table)))
  own = open_source(LlavaConfig(path=str(tmp_path / "own.jsonl")))
  hf = open_source(HFConfig(path=str(tmp_path / "table.jsonl"), columns=columns))
  for source in (own, hf):
    said, silent, other = (source[i] for i in range(3))
    assert said.geometry.asked == (Asked("Relation", tuple(map(tuple, boxes))),)
    assert silent.geometry is None and other.geometry is None
    assert not legality.obstacle(said, "crop") and legality.obstacle(silent, "crop")
    with pytest.raises(UserError, match=r"named_boxes.*: expected boxes of four numbers, x0, y0, x1, y1"):
      source[3]
    for index in (4, 5):
      with pytest.raises(
        UserError, match=r"named_boxes.*: boxes in pixels of a picture of 16 x 16 are expected"
      ):
        source[index]
  moved = [Augment(AugmentConfig(crop=0.5), seed).changed(own[0], 0) for seed in range(9)]
  assert any(not outcome.left for _, outcome in moved)
  assert all(-3 <= v <= 19 for new, _ in moved for box in new.geometry.asked[0].named for v in box)


def stream(tmp_path, source, augment, on_note=lambda text: None, **more):
  processor = load_processor(tiny.write_model(tmp_path / "model", size=SIZE, patch=12))
  data = DataConfig(sources={"own": source}, lengths=(512,), tiles=(1,), workers=0, augment=augment)
  return pipeline.training_stream(data, processor, 6, keys=True, on_note=on_note, **more)


def test_a_stream_shows_moved_examples_counts_them_and_keeps_no_features(tmp_path):
  source = ScenesConfig(seed=3, image_size=SIZE, pictures=64, tasks={"Relation": 1.0})
  notes = []
  moved = stream(tmp_path, source, AugmentConfig(flip=0.5, crop=0.3), notes.append, known=lambda key: True)
  plain = stream(tmp_path, source, None)
  (batch, info), (first, as_it_is) = next(moved), next(plain)
  assert (batch.extra[TILE_KEY].array == ONCE).all() and (first.extra[TILE_KEY].array != ONCE).any()
  assert np.isfinite(batch.pixels_NHWC).all() and not np.array_equal(batch.pixels_NHWC, first.pixels_NHWC)
  assert info.changes["own"]["crop"] == 6 and 0 < info.changes["own"]["flip"] < 6
  assert not as_it_is.changes and not notes
  later = [next(moved)[1] for _ in range(3)]
  plains = [next(plain)[1] for _ in range(3)]
  turns = lambda infos: [turn for i in infos for talk in i.turns for turn in talk]
  pairs = list(zip(turns(later), turns(plains), strict=True))
  swapped = [a for a, b in pairs if a != b]
  assert swapped and all(words.swapped(a.prompt) == b.prompt for a, b in pairs if a != b)
  again = stream(tmp_path, source, AugmentConfig(flip=0.5, crop=0.3))
  assert np.array_equal(next(again)[0].pixels_NHWC, batch.pixels_NHWC)
