import concurrent.futures
import dataclasses
import functools

import numpy as np
import pytest

from spatialvlm.types import Question, UserError
from spatialvlm.worlds import pools, questions, shifts, world
from spatialvlm.worlds.questions import SceneQuestions

SIZE = 48
SEED = 9


@pytest.fixture(scope="module")
def asked() -> list[Question]:
  """400 questions: 100 of each kind."""
  sequence = SceneQuestions(SEED, image_size=SIZE)
  return [sequence[i] for i in range(400)]


def of(asked, kind):
  return [q for q in asked if q.task == kind]


@functools.cache
def block_of(seed: int, number: int) -> list[world.Frame]:
  return world.frames(seed, range(number * world.BLOCK, (number + 1) * world.BLOCK), SIZE)


def frame_of(q: Question) -> world.Frame:
  _, seed, number = q.source_filename.split("_")
  return block_of(int(seed), int(number) // world.BLOCK)[int(number) % world.BLOCK]


def objects_of(q: Question, frame: world.Frame) -> list[world.SceneObject]:
  """The objects asked about, found by their boxes; the picture may be painted in other colours."""
  by_box = {tuple(map(float, o.box)): o for o in frame.objects}
  return [by_box[box] for box in q.bbox]


def painted_color(q: Question, frame: world.Frame, o: world.SceneObject) -> str:
  """The colour word of an object, by most of its pixels in the question's own picture."""
  pixels = q.images[0][frame.instance == o.index].astype(float)
  pixels = pixels[~np.isin(pixels, (0, 255)).all(1)]  # a box may run across
  palette = np.array([color.albedo for color in shifts.PLAIN.colors])
  cosine = pixels @ (palette / np.linalg.norm(palette, axis=1, keepdims=True)).T
  grey = np.ptp(pixels, axis=1) < 0.15 * pixels.max(1)
  cosine[:, [world.COLORS.index(c) for c in ("white", "black")]] = 0
  words = np.array(world.COLORS)[cosine.argmax(1)]
  words[grey] = np.where(pixels[grey].mean(1) > 45, "white", "black")
  found, votes = np.unique(words, return_counts=True)
  return str(found[votes.argmax()])


def test_schema_and_templates(asked):
  for i, q in enumerate(asked[:100]):
    assert q.idx == i and q.images[0].shape == (SIZE, SIZE, 3) and q.images[0].dtype == np.uint8
    assert q.source == "Scenes" and 0 <= q.answer < len(q.choices) == len(set(q.choices))
    assert q.type == ("2D" if q.task in ("Count", "Relation") else "3D")
    options = "\n".join(f"({'ABCDEF'[k]}) {c}" for k, c in enumerate(q.choices))
    assert q.prompt == f"{q.question} Select from the following choices.\n{options}"
  count, relation, depth, distance = (of(asked, kind) for kind in questions.KINDS)
  assert all(len(q.choices) in (4, 5, 6) and q.bbox is None and q.target_class is None for q in count)
  assert all(q.question.startswith("How many ") and q.question.endswith("s are in the image?") for q in count)
  for q in relation:
    a, b = (f"the {name}" for name in names_in(q))
    mark = " (annotated by the red box)" if "annotated" in q.question else ""
    text = (
      f"Considering the relative positions of {a}{mark} and {b} in the image provided, where is {a} located"
    )
    assert q.question == f"{text} with respect to {b}?" and q.choices in (
      ("left", "right"),
      ("above", "below"),
    )
  for q in depth:
    a, b = q.choices
    text = "Which object is closer to the camera taking this photo"
    assert q.question == f"{text}, the {a} (highlighted by a red box) or the {b} (highlighted by a blue box)?"
  for q in distance:
    (r, *_), (a, b) = names_in(q), q.choices
    text = "Estimate the real-world distances between objects in this image. Which object is closer to"
    assert q.question == (
      f"{text} the {r} (highlighted by a red box), the {a} (highlighted by a blue box) or the {b} "
      "(highlighted by a green box)?"
    )


def names_in(q: Question) -> list[str]:
  words = [f"{c} {s}" for c in world.COLORS for s in world.SHAPES]
  return sorted({w for w in words if w in q.question}, key=q.question.index)


def test_boxes_are_in_the_pixels_exactly_where_the_text_says_so(asked):
  for q in asked[:200]:
    drawn = {c for c, rgb in world.BOX_COLORS.items() if (q.images[0] == rgb).all(-1).any()}
    said = {c for c in world.BOX_COLORS if f"{c} box" in q.question}
    assert drawn == said
    for color, box in zip(("red", "blue", "green"), q.bbox or (), strict=False):
      if color in said:
        x0, y0, x1, y1 = (int(v) for v in box)
        edge = q.images[0][max(y0 - 1, 0), x0:x1] if y0 else q.images[0][min(y1, SIZE - 1), x0:x1]
        # A box drawn later may hide a part of it.
        assert (edge == world.BOX_COLORS[color]).all(-1).mean() > 0.3


def test_what_is_named_is_what_is_shown(asked):
  """Every name, by shape in the world and by colour in the pixels, is in the picture once."""
  for q in [q for q in asked[:240] if q.bbox]:
    frame = frame_of(q)
    shown = objects_of(q, frame)
    assert [f"{painted_color(q, frame, o)} {o.shape}" for o in shown] == names_in(q)
    everything = [f"{painted_color(q, frame, o)} {o.shape}" for o in frame.objects if o.visible_pixels > 8]
    assert all(everything.count(name) == 1 for name in names_in(q))
    assert all(o.clear for o in shown) and q.target_class == names_in(q)[0]


def test_count_is_the_number_in_the_scene(asked):
  seen = set()
  for q in of(asked, "Count"):
    frame = frame_of(q)
    *color, plural = q.question.removeprefix("How many ").removesuffix(" are in the image?").split()
    shape = plural.removesuffix("s")
    found = [o for o in frame.objects if o.shape == shape]
    if color:
      found = [o for o in found if painted_color(q, frame, o) == color[0]]
    assert q.choices[q.answer] == str(len(found))
    assert all(o.clear for o in frame.objects)
    seen.add(len(found))
  assert seen == set(range(questions.MOST + 1))


def test_depth_distance_and_relation_from_three_dimensions(asked):
  """Recomputed from world coordinates, pose and intrinsics alone."""
  for q in [q for q in asked if q.bbox]:
    frame = frame_of(q)
    rotation, position = frame.pose[:3, :3].astype(np.float64), frame.pose[:3, 3]
    centers = [o.center.astype(np.float64) for o in objects_of(q, frame)]
    if q.task == "Depth":
      z = [(c - position) @ rotation[:, 2] for c in centers]
      distance = [np.linalg.norm(c - position) for c in centers]
      assert q.answer == np.argmin(z) == np.argmin(distance)
      assert max(z) / min(z) > 1.119 and max(distance) / min(distance) > 1.119
      medians = [np.median(frame.depth[frame.instance == o.index]) for o in objects_of(q, frame)]
      assert q.answer == np.argmin(medians)
    elif q.task == "Distance":
      gaps = [np.linalg.norm(c - centers[0]) for c in centers[1:]]
      assert q.answer == np.argmin(gaps)
      assert max(gaps) / min(gaps) > 1.199 and max(gaps) - min(gaps) > 0.249
    else:
      pixels = [frame.intrinsics @ (rotation.T @ (c - position)) for c in centers]
      axis = int("above" in q.choices)
      first, second = (p[axis] / p[2] for p in pixels)
      assert q.answer == int(first > second) and abs(first - second) > 0.03 * SIZE


def test_groups_share_their_text_and_hold_every_answer_once(asked):
  for kind in ("Relation", "Depth", "Distance"):
    for first, second in zip(of(asked, kind)[::2], of(asked, kind)[1::2], strict=True):
      assert first.choices == second.choices and {first.answer, second.answer} == {0, 1}
      if kind != "Distance":  # the reference's colour and shape are the scene's
        assert first.question == second.question
  rest = of(asked, "Count")[: 6 * sum(questions.OPTION_COUNTS)]
  while rest:
    group, rest = rest[: len(rest[0].choices)], rest[len(rest[0].choices) :]
    assert len({q.prompt for q in group}) == 1
    assert sorted(q.answer for q in group) == list(range(len(group)))


def equal(a: Question, b: Question) -> bool:
  plain = all(
    getattr(a, f.name) == getattr(b, f.name)
    for f in dataclasses.fields(Question)
    if f.name not in ("images", "shots")
  )
  (one,), (other,) = a.shots, b.shots
  shots = one.focal == other.focal and np.array_equal(one.pose, other.pose)
  return plain and shots and np.array_equal(a.images[0], b.images[0])


def test_any_order_and_any_number_of_threads(asked, monkeypatch):
  monkeypatch.setattr(pools, "_POOLS", fresh := pools.Pools())
  monkeypatch.setattr(pools, "get", fresh.get)
  sequence = SceneQuestions(SEED, image_size=SIZE)
  order = np.random.default_rng(0).permutation(400)[:80]
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    for i, q in zip(order, threads.map(lambda i: sequence[int(i)], order), strict=True):
      assert equal(q, asked[i])


def test_other_seeds_are_other_worlds(asked):
  other = SceneQuestions(SEED + 1, image_size=SIZE)
  assert not any(np.array_equal(other[i].images[0], asked[i].images[0]) for i in range(20))
  assert [other[i].question for i in range(20)] != [q.question for q in asked[:20]]


def test_kinds_and_weights():
  both = SceneQuestions(SEED, {"Depth": 1.0, "Count": 3.0}, SIZE)
  tasks = [both[i].task for i in range(40)]
  assert tasks.count("Count") == 30 and tasks.count("Depth") == 10
  assert {SceneQuestions(SEED, ["Distance"], SIZE)[i].task for i in range(4)} == {"Distance"}


def test_length():
  sequence = SceneQuestions(SEED, image_size=SIZE, size=10)
  assert len(sequence) == 10 and len(list(sequence)) == 10
  for bad in (-1, 10):
    with pytest.raises(IndexError):
      sequence[bad]
  assert len(SceneQuestions(SEED)) > 2**32


def test_shuffled_options_say_the_same(asked):
  shuffled = SceneQuestions(SEED, image_size=SIZE, shuffle_options=True)
  swapped = 0
  for i in range(120):
    q = shuffled[i]
    assert q.choices[q.answer] == asked[i].choices[asked[i].answer] and q.question == asked[i].question
    swapped += q.choices != asked[i].choices
  assert 30 < swapped < 60


def test_when_no_scene_fits_only_the_rules_are_given_up(monkeypatch):
  monkeypatch.setattr(questions, "ATTEMPTS", 2)
  sequence = SceneQuestions(SEED, ["Distance"], SIZE)
  for i in range(150):
    q = sequence[i]
    frame = frame_of(q)
    reference, *others = (o.center for o in objects_of(q, frame))
    assert q.answer == np.argmin([np.linalg.norm(o - reference) for o in others])
    names = [f"{painted_color(q, frame, o)} {o.shape}" for o in objects_of(q, frame)]
    assert names[1:] == list(q.choices)
  assert sequence.read == 150 and 0 < sequence.exhausted < 75


def test_large_pictures_are_rendered_only_when_chosen(monkeypatch):
  """Scenes are then chosen in small pictures: what was asked still holds in the large ones."""
  monkeypatch.setattr(questions, "LARGEST_POOL", 64)
  monkeypatch.setattr(questions, "POOL_SIZE", SIZE)
  sequence = SceneQuestions(SEED, image_size=96)
  for i in range(24):
    q = sequence[i]
    assert q.images[0].shape == (96, 96, 3)
    if q.task in ("Depth", "Distance"):
      one = world.zoom(world.pool(SEED, [int(q.source_filename.split("_")[2])], SIZE), 0, 96)
      by_box = {tuple(map(float, b)): k for k, b in enumerate(one.rendering.box[0])}
      shown = [one.center_camera[0, by_box[box]] for box in q.bbox]
      if q.task == "Depth":
        assert q.answer == np.argmin([c[2] for c in shown])
      else:
        assert q.answer == np.argmin([np.linalg.norm(c - shown[0]) for c in shown[1:]])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (dict(kinds=["Deph"]), "did you mean 'Depth'"),
    (dict(kinds={"Depth": 0.0}), "weight"),
    (dict(seed=-3), "seed -3"),
    (dict(image_size=4), "image size 4"),
    (dict(size=-1), "size of -1"),
  ],
)
def test_bad_arguments(arguments, message):
  with pytest.raises(UserError, match=message):
    SceneQuestions(**({"seed": 0} | arguments))
