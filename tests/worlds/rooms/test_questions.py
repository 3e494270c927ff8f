"""Questions about rooms: true by the geometry and the pixels, blind-proof and shortcut-proof."""

import collections

import numpy as np
import pytest

from spatialvlm.types import UserError
from spatialvlm.worlds import shortcuts
from spatialvlm.worlds.rooms import frames
from spatialvlm.worlds.rooms.classes import CLASSES
from spatialvlm.worlds.rooms.questions import pairs
from spatialvlm.worlds.rooms.questions.sequence import Described, RoomQuestions
from spatialvlm.worlds.rooms.questions.table import TABLE

SIZE, COUNT = 96, 44 * 6


@pytest.fixture(scope="module")
def sequence() -> RoomQuestions:
  return RoomQuestions(11, image_size=SIZE)


@pytest.fixture(scope="module")
def asked(sequence) -> list[Described]:
  return [sequence.described(i) for i in range(COUNT)]


def roles(of: Described) -> list[frames.RoomObject]:
  """The things that a question names, found by the boxes that it says."""
  return [
    next(o for o in of.frame.objects if o.box == tuple(map(int, box))) for box in of.question.bbox or ()
  ]


def distance(of: Described, o: frames.RoomObject) -> float:
  """Least distance from the camera of what shows of a thing, out of the depth map and the map of things."""
  focal, size = of.frame.intrinsics[0, 0], SIZE
  rows, columns = np.nonzero(of.frame.instance == o.index)
  u, v = (columns + 0.5 - size / 2) / focal, (rows + 0.5 - size / 2) / focal
  return float((of.frame.depth[rows, columns] * np.sqrt(u**2 + v**2 + 1)).min())


def truth(of: Described) -> str:
  """The right option's text, from the frame alone."""
  task, choices = of.question.task, of.question.choices
  things = roles(of)
  if task == "Relation":
    (ax, ay), (bx, by) = ((o.box[0] + o.box[2], o.box[1] + o.box[3]) for o in things)
    return ("left" if ax < bx else "right") if "left" in choices else ("above" if ay < by else "below")
  if task == "Depth":
    return [o.shape for o in things][int(distance(of, things[0]) > distance(of, things[1]))]
  if task == "Distance":
    r, a, b = things
    far = [np.linalg.norm(o.center - r.center) for o in (a, b)]
    return [a.shape, b.shape][int(far[0] > far[1])]
  if task == "Facing":
    turn = float(frames.facing(np.array(things[0].yaw), things[0].center, of.frame.pose[:3, 3]))
    ways = ("towards the camera", "to the right", "away from the camera", "to the left")
    return ways[round(turn / 90) % 4]
  if task == "Size":
    return things[int(things[0].size[2] < things[1].size[2])].shape
  if task == "Height":
    return things[int(things[0].center[2] < things[1].center[2])].shape
  if task == "Occlusion":
    a, b = (o.index for o in things)
    return things[int(of.frame.seen.hides[a, b] > of.frame.seen.hides[b, a])].shape
  if task == "Reach":
    arm = float(of.question.question.split("arm of ")[1].split(" m")[0])
    first, second = (distance(of, o) <= arm for o in things)
    return (
      "both"
      if first and second
      else "neither"
      if not (first or second)
      else "only the " + things[second].shape
    )
  if task == "Metric":
    far = [np.linalg.norm(o.center_camera) for o in things]
    if len(things) == 2:
      far = [np.linalg.norm(things[0].center - things[1].center)]
    return min(choices, key=lambda c: abs(np.log(float(c.split()[0]) / far[0])))
  named = of.question.question.removeprefix("How many ").removesuffix(" are in the image?")
  kind = next(c for c in CLASSES if named.endswith(c.plural) and (task == "Count") == (named == c.plural))
  color = named.removesuffix(kind.plural).strip()
  return str(sum(o.shape == kind.name and color in ("", o.color) for o in of.frame.objects))


def test_every_kind_is_true_by_the_geometry(asked):
  seen = collections.Counter()
  for of in asked:
    question = of.question
    right, true = question.choices[question.answer], truth(of)
    # Options may say a colour before the class.
    bare, same = true.removeprefix("only the "), true.startswith("only") == right.startswith("only")
    assert right == true or (right.endswith(" " + bare) and same), (
      question.task, question.question, question.choices, right, true,
    )  # fmt: skip
    seen[question.task] += 1
  assert set(seen) == set(TABLE) and min(seen.values()) >= COUNT // len(TABLE) - 1


def test_what_hides_is_seen_to(asked):
  """The thing said to be hidden loses pixels to the other, and none the other way round."""
  for of in (of for of in asked if of.question.task == "Occlusion"):
    hidden, front = roles(of)
    if of.question.answer:
      hidden, front = front, hidden
    assert of.frame.seen.hides[front.index, hidden.index] > 0.05 * of.frame.seen.covered[hidden.index]
    assert of.frame.seen.hides[hidden.index, front.index] < 0.02 * of.frame.seen.covered[front.index] + 2


def test_groups_of_one_key_hold_every_answer_once(asked):
  """So that whoever knows the text, and each rule's opinion, is right exactly as often as guessing."""
  groups = collections.defaultdict(list)
  for of in asked:
    groups[of.key].append(of.question)
  whole = 0
  for questions in groups.values():
    texts = {(q.question, q.choices) for q in questions}
    assert len(texts) == 1
    if len(questions) == len(questions[0].choices):
      whole += 1
      assert sorted(q.answer for q in questions) == list(range(len(questions)))
  assert whole >= 0.8 * len(groups)


def test_no_rule_is_better_than_guessing(asked):
  for task in ("Depth", "Distance"):
    for rule, limit in (("lower edge", 0.0), ("bigger box", 0.0)):
      hits = [
        shortcuts.rule_choice(rule, of.question) == of.question.answer
        for of in asked
        if of.question.task == task
      ]
      assert abs(np.mean(hits) - 0.5) <= limit + 0.04, (task, rule, np.mean(hits))


def test_no_prior_of_the_text_is_better_than_guessing(asked):
  for task, scores in shortcuts.prior_scores([of.question for of in asked]).items():
    guessing = scores.pop("guessing")
    # Few questions a kind: what a group's first member teaches of its second is wrong more often than right.
    assert max(scores.values()) < guessing + 0.12, (task, scores)


def test_a_question_is_the_same_alone(asked):
  again = RoomQuestions(11, image_size=SIZE)
  for i in (17, 3):
    one, other = again[i], asked[i].question
    assert (one.question, one.choices, one.answer, one.bbox) == (
      other.question, other.choices, other.answer, other.bbox,
    )  # fmt: skip
    assert (one.images[0] == other.images[0]).all()


def test_rationales_say_the_answer(asked):
  for of in asked:
    assert of.reason.endswith(".") and of.reason[0].isupper() and of.words


def test_arms_are_told_apart():
  steps = np.diff(np.log(pairs.ARMS))
  assert (steps > 0.15).all()


@pytest.mark.parametrize(
  ("arguments", "said"),
  [(dict(kinds=["Deph"]), "Depth"), (dict(kinds={"Depth": 0}), "weight"), (dict(size=-1), "endless")],
)
def test_what_cannot_be_asked_is_told(arguments, said):
  with pytest.raises(UserError, match=said):
    RoomQuestions(0, image_size=SIZE, **arguments)
