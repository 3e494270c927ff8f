"""Questions across pictures: true in three dimensions; not to be had from the text, rules, or one picture."""

import concurrent.futures
import functools

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from spatialvlm.types import Question, UserError
from spatialvlm.worlds import shortcuts, viewpoints, world
from spatialvlm.worlds.view_questions import KINDS, ViewQuestions

SIZE, SEED = 48, 9
RGB = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def asked() -> list[Question]:
  """120 questions of each kind, their pictures not made."""
  sequence = ViewQuestions(SEED, image_size=SIZE)
  found = [sequence[i] for i in range(120 * len(KINDS))]
  assert sequence.read == len(found) and sequence.exhausted == 0
  return found


def of(asked, kind):
  return [q for q in asked if q.task == kind]


@functools.cache
def frames(number: int) -> list[world.Frame]:
  """A scene from all its cameras, rendered as of cameras of one's own."""
  lay = world.layouts(SEED, [number])
  cameras = viewpoints.cameras(lay, SEED, [number])
  poses = np.tile(np.eye(4, dtype=np.float32), (viewpoints.CAMERAS, 1, 1))
  poses[:, :3, :3], poses[:, :3, 3] = cameras.rotation[0], cameras.position[0]
  return world.seen_from(SEED, number, poses, float(cameras.focal[0, 0]), SIZE)


def shown(q: Question) -> list[world.Frame]:
  """The frames of a question's pictures, by what their keys say."""
  keys = [image.key.split("/") for image in q.images]
  assert len({key[2] for key in keys}) == 1 and len({key[3] for key in keys}) == len(keys)
  return [frames(int(key[2]))[int(key[3])] for key in keys]


def places(q: Question) -> tuple[int, int]:
  """The two images that the text names, in the order in which it does, from 0."""
  named = [int(word[0]) - 1 for word in q.question.split("image ")[1:]]
  first, second = dict.fromkeys(named)
  # Depth names the camera's image first, then that of the boxes.
  return (second, first) if q.task == "ViewDepth" else (first, second)


def boxed(image: np.ndarray, frame: world.Frame, color: str) -> world.SceneObject:
  """The object in the box of a colour, found in the pixels: the one whose outline has most of them."""

  def outline(o):
    drawn = np.zeros_like(image)
    world.draw_box(drawn, o.box, color)
    line = (drawn == RGB[color]).all(-1)
    return (image[line] == RGB[color]).all(-1).mean()

  best = max(frame.objects, key=outline)
  assert outline(best) > 0.5
  return best


def seen_at(frame: world.Frame, o: world.SceneObject) -> np.ndarray:
  """(3,) metres in the camera's axes, from the world's coordinates and the pose alone."""
  return np.linalg.inv(frame.pose.astype(np.float64))[:3] @ np.append(o.center, 1)


def truth(q: Question) -> str:
  pictures, images, (a, b) = shown(q), [image.make() for image in q.images], places(q)
  if q.task in ("ViewRelation", "ViewDepth"):
    pair = [boxed(images[a], pictures[a], color) for color in ("red", "blue")]
    there = [next(o for o in pictures[b].objects if o.index == one.index) for one in pair]
    at = [seen_at(pictures[b], o) for o in there]
    if q.task == "ViewRelation":
      x = [p[0] / p[2] for p in at]
      return "left" if x[0] < x[1] else "right"
    z, far = [p[2] for p in at], [np.linalg.norm(p) for p in at]
    depth = [np.median(pictures[b].depth[pictures[b].instance == o.index]) for o in there]
    assert np.argmin(z) == np.argmin(far) == np.argmin(depth) and max(z) / min(z) > 1.119
    return f"the object in the {('red', 'blue')[int(np.argmin(z))]} box"
  if q.task == "CameraMoved":
    poses = [pictures[n].pose.astype(np.float64) for n in (a, b)]
    there, back = (np.linalg.inv(poses[n])[:3] @ poses[1 - n][:, 3] for n in (0, 1))
    assert np.sign(there[0]) != np.sign(back[0]) and min(abs(there[0]), abs(back[0])) > 0.79
    return "right" if there[0] > 0 else "left"
  if q.task == "SameObject":
    first, second = boxed(images[a], pictures[a], "red"), boxed(images[b], pictures[b], "blue")
    assert first.name == second.name
    assert min([o.name for o in pictures[n].objects].count(first.name) for n in (a, b)) > 1
    return "yes" if first.index == second.index else "no"
  every = {o.index: o for n in (a, b) for o in pictures[n].objects}
  assert len({o.name for o in every.values()}) == len(every)
  assert all(any(o.clear for n in (a, b) for o in pictures[n].objects if o.index == k) for k in every)
  return str(len(every))


def test_answers_are_true_in_three_dimensions(asked):
  for kind in KINDS:
    for q in of(asked, kind)[:12]:
      assert q.choices[q.answer] == truth(q), (q.idx, q.question)


def test_what_a_question_shows(asked):
  assert [len(q.images) for q in of(asked, "ViewDepth")[:12:2]] == [2, 3, 4, 2, 3, 4]
  for q in asked[:60]:
    images = [image.make() for image in q.images]
    assert all(image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8 for image in images)
    first, second = places(q)
    drawn = [{c for c, rgb in RGB.items() if (image == rgb).all(-1).any()} for image in images]
    wanted = {
      "SameObject": ({"red"}, {"blue"}),
      "ViewRelation": (set(RGB), set()),
      "ViewDepth": (set(RGB), set()),
    }
    a, b = wanted.get(q.task, (set(), set()))
    assert drawn == [a if n == first else b if n == second else set() for n in range(len(images))]
    assert len(set(q.source_filenames)) == 1 and len(q.source_filenames) == len(images)
    for shot, frame in zip(q.shots, shown(q), strict=True):  # each picture says which camera took it
      np.testing.assert_allclose(shot.pose, frame.pose, atol=1e-6)
      np.testing.assert_allclose(shot.focal[0] * SIZE, frame.intrinsics[0, 0], rtol=1e-5)
    depth = q.images[0].depth()
    assert depth.dtype == np.float32 and np.abs(depth - shown(q)[0].depth).max() < 1e-3


def test_cameras_lie_all_around_and_give_nothing_away():
  lay = world.layouts(SEED, range(200))
  cameras = viewpoints.cameras(lay, SEED, range(200))
  forward, right = cameras.rotation[..., 2], cameras.rotation[..., 0]
  np.testing.assert_allclose(np.linalg.norm(forward, axis=-1), 1, rtol=1e-5)
  assert np.abs(right[..., 2]).max() < 1e-6 and (np.linalg.det(cameras.rotation) > 0.99).all()
  gap = cameras.position[:, None, :, :2] - lay.scene.center[:, : world.render.MAX_OBJECTS, None, :2]
  gap = np.linalg.norm(gap, axis=-1)[lay.present]
  assert gap.min() > 0.9
  # Whichever way the first camera looks, others stand to its left as often as to its right.
  side = ((cameras.position[:, 1] - cameras.position[:, 0]) * right[:, 0]).sum(-1) > 0
  octant = (np.arctan2(forward[:, 0, 1], forward[:, 0, 0]) // (np.pi / 2)).astype(int)
  assert abs(side.mean() - 0.5) < 0.08
  assert all(abs(side[octant == k].mean() - 0.5) < 0.2 for k in set(octant.tolist()))


def test_the_text_alone_is_guessing(asked):
  for kind, by_prior in shortcuts.prior_scores(asked).items():
    assert by_prior.pop("guessing") == 0.5
    assert max(by_prior.values()) < 0.53, (kind, by_prior)


def test_groups_share_their_text_and_a_picture_and_have_both_answers(asked):
  for kind in KINDS:
    for one, other in zip(of(asked, kind)[::2], of(asked, kind)[1::2], strict=True):
      assert one.prompt == other.prompt and {one.answer, other.answer} == {0, 1}
      pairs = [[q.images[n].key for n in places(q)] for q in (one, other)]
      alike = [first == second for first, second in zip(*pairs, strict=True)]
      assert any(alike) if kind == "TotalCount" else alike == [True, False]


def test_rules_are_guessing_one_by_one_and_together(asked):
  for kind in KINDS:
    right: dict[str, list[bool]] = {}
    for q in of(asked, kind):
      for rule, choice in q.rules.items():
        right.setdefault(rule, []).append(choice == q.answer)
    assert right and all(len(hits) == 120 and abs(np.mean(hits) - 0.5) < 0.05 for hits in right.values()), (
      kind
    )
    rows = [(tuple(q.rules.values()), q.answer) for q in of(asked, kind)]
    score = 0
    for fitted, tested in ((rows[::2], rows[1::2]), (rows[1::2], rows[::2])):
      votes: dict = {}
      for key, answer in fitted:
        votes[key] = votes.get(key, 0) + (1 if answer else -1)
      score += sum((votes.get(key, 0) > 0) == bool(answer) for key, answer in tested)
    assert score / len(rows) < 0.56, kind


def of_picture(q: Question, n: int) -> list[float]:
  """What one picture shows, in numbers: of all that is in it, and of what stands in its boxes."""
  frame = shown(q)[n]
  boxes = np.array([o.box for o in frame.objects], float) / SIZE
  middle, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
  depth = np.array([o.center_camera[2] for o in frame.objects])
  about = [len(boxes), *middle.mean(0), *np.median(middle, 0), *extent.mean(0), depth.mean(), depth.std()]
  about += [sum(o.clear for o in frame.objects), middle[depth.argmin(), 0], (frame.depth > 0).mean()]
  drawn = q.images[n].key.rsplit("/", 1)[1]
  for part in filter(None, drawn.split(",")):
    k = next(k for k, o in enumerate(frame.objects) if o.index == int(part[0]))
    about += [*boxes[k], depth[k]]
  return about


def learned(features: list[list[float]], answers: list[int]) -> float:
  """How often a model of these numbers and their products is right on what it was not fitted to."""
  model = make_pipeline(
    StandardScaler(), PolynomialFeatures(2, include_bias=False), LogisticRegression(C=0.01, max_iter=200)
  )
  return float(np.mean(cross_val_predict(model, np.array(features), answers, cv=5) == answers))


def test_one_picture_is_guessing_and_two_are_not(asked):
  for kind in KINDS:
    part = of(asked, kind)
    answers = [q.answer for q in part]
    if kind == "TotalCount":  # its options stand in a drawn order; what counts is which is meant
      answers = [int(q.choices[q.answer] == max(q.choices, key=int)) for q in part]
    one, two = ([of_picture(q, places(q)[n]) for q in part] for n in (0, 1))
    assert max(learned(one, answers), learned(two, answers)) < 0.62, kind
  part = of(asked, "ViewDepth")
  both = []
  for q in part:
    a, b = places(q)
    red, blue = (int(p[0]) for p in q.images[a].key.rsplit("/", 1)[1].split(","))
    depth = {o.index: o.center_camera[2] for o in shown(q)[b].objects}
    both.append([*of_picture(q, a), depth[red], depth[blue]])
  assert learned(both, [q.answer for q in part]) > 0.8  # the same model, with what the other picture shows


def test_any_order_any_thread_and_other_seeds(asked, monkeypatch):
  for cache in ("_POOLS", "_DRAWN", "_SEEN"):
    monkeypatch.setattr(viewpoints, cache, type(viewpoints._POOLS)())
  sequence = ViewQuestions(SEED, image_size=SIZE)
  order = np.random.default_rng(0).permutation(120)[:40]
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    for i, q in zip(order, threads.map(lambda i: sequence[int(i)], order), strict=True):
      assert q.prompt == asked[i].prompt and q.answer == asked[i].answer and q.rules == asked[i].rules
      assert [image.key for image in q.images] == [image.key for image in asked[i].images]
  np.testing.assert_array_equal(q.images[1].make(), asked[i].images[1].make())
  other = ViewQuestions(SEED + 1, image_size=SIZE)
  assert [other[i].prompt for i in range(20)] != [q.prompt for q in asked[:20]]


def test_kinds_sizes_and_numbers_of_pictures():
  some = ViewQuestions(SEED, {"SameObject": 3.0, "TotalCount": 1.0}, SIZE, 12, (3,))
  assert len(some) == len(list(some)) == 12 and {len(q.images) for q in some} == {3}
  assert [q.task for q in some].count("SameObject") == 9


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (dict(kinds={"Depth": 1.0}), "kind of question 'Depth' is unknown; did you mean 'ViewDepth'"),
    (dict(kinds={"ViewDepth": 0.0}), "weight 0.0"),
    (dict(views=(1,)), r"\[1\] pictures a question; name numbers of 2 to 4"),
    (dict(views=(2, 5)), r"\[2, 5\] pictures a question"),
    (dict(views=()), r"\[\] pictures"),
    (dict(size=-1), "size of -1"),
    (dict(seed=-1), "seed -1"),
    (dict(image_size=8), "image size 8"),
  ],
)
def test_bad_arguments(arguments, message):
  with pytest.raises(UserError, match=message):
    ViewQuestions(**({"seed": 0} | arguments))
