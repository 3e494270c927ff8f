"""What is done to whose picture: sides in words, the table of tasks, and what stays as it is."""

import collections
import dataclasses
import pathlib
import re

import numpy as np
import pytest

from spatialvlm.config import AugmentConfig
from spatialvlm.data.augment import beforehand, legality, words
from spatialvlm.data.augment.change import Augment
from spatialvlm.types import Asked, Deferred, Example, Geometry, Turn, UserError


@pytest.mark.parametrize(
  ("text", "mirrored"),
  [
    ("(A) left\n(B) right", "(A) right\n(B) left"),
    ("top left", "top right"),
    (
      "Is the dog on the left or on the right of the cat?",
      "Is the dog on the right or on the left of the cat?",
    ),
    ("LEFT, right and Left", "RIGHT, left and Right"),
    ("the leftmost cup, on the right-hand side", "the rightmost cup, on the left-hand side"),
    (
      "It is to the left of the house that is right of the tree.",
      "It is to the right of the house that is left of the tree.",
    ),
    (
      "The cone is 3.2 m ahead, 0.53 m right, 0.20 m below.",
      "The cone is 3.2 m ahead, 0.53 m left, 0.20 m below.",
    ),
    ("bright uprights in the cleft", "bright uprights in the cleft"),
  ],
)
def test_sides_are_swapped_all_at_once(text, mirrored):
  assert words.unsure(text) == "" and words.swapped(text) == mirrored
  assert words.swapped(mirrored) == text


@pytest.mark.parametrize(
  "text",
  [
    "What is in his left hand?",
    "the man's right side",
    "Is the cup right next to the plate?",
    "How many are left?",
    "What is left of the cake?",
    "Take the right answer.",
    "He left the room.",
    "It is red, right?",
    "Does it turn clockwise?",
    "What does the sign say?",
    "Which word is written on the door?",
    "Is the car facing us?",
    "west of the river",
    "links vom Haus",
    "дом слева",
    "List them from left to right.",
  ],
)
def test_what_may_be_no_side_is_not_swapped(text):
  assert words.unsure(text)


def one(prompt="Which is nearer, the cup or the dog?", answer="the dog", task="Depth", **more):
  return Example((np.zeros((20, 30, 3), np.uint8),), (Turn(prompt, answer),), task=task, **more)


BOX = Geometry((Asked("Depth", ((4, 4, 9, 9), (15, 6, 20, 12))),))


@pytest.mark.parametrize(
  ("example", "change", "reason"),
  [
    (one(), "flip", ""),
    (one(), "zoom_out", ""),
    (one(), "crop", "task 'Depth' needs the boxes of what it names"),
    (one(geometry=BOX), "crop", ""),
    (one(geometry=BOX), "perspective", ""),
    (one(task=""), "flip", "no task and no geometry"),
    (one(task="name"), "flip", "nothing says what task 'name' asks"),
    (one(task="Ordinal"), "zoom_out", "nothing says what task 'Ordinal' asks"),
    (one("Is it near his left foot?"), "flip", "it says 'his left'"),
    (one("Is it near his left foot?", geometry=BOX), "crop", ""),
    (one("Which is in the top half?", geometry=BOX), "crop", "speaks of the picture's frame: 'top'"),
    (one("Where is it?", "[0.1, 0.2, 0.5, 0.6]"), "flip", r"says places in numbers: '\[0.1"),
    (one("Wo ist sie?", "oben", task="Relation"), "flip", "in no words that are known"),
    (
      one("Where?", "top, far", geometry=Geometry((Asked("far"),))),
      "perspective",
      "makes the answer to task",
    ),
    (one(dense={"depth": np.ones((20, 30), np.float32)}, geometry=BOX), "roll", ""),
    (
      one(dense={"depth": np.ones((20, 30), np.float32)}, geometry=BOX),
      "perspective",
      "target 'depth' after",
    ),
    (one(dense={"own": np.ones((20, 30), np.float32)}), "flip", "dense target 'own' after a flip"),
    (one(facts=lambda: "Her left shoe is red."), "flip", "its facts say 'Her left'"),
    (dataclasses.replace(one(), images=()), "flip", "no picture"),
    (dataclasses.replace(one(), images=one().images * 2), "flip", "2 pictures"),
    (
      one("List the cups from left to right.", "a, b", geometry=Geometry((Asked("describe"),))),
      "flip",
      "no plain list",
    ),
  ],
)
def test_what_cannot_be_known_is_not_done(example, change, reason):
  found = legality.obstacle(example, change)
  assert re.search(reason, found) if reason else not found
  config = AugmentConfig(
    **{change: 1.0 if change == "flip" else 0.4 if change in ("crop", "zoom_out") else 5.0}
  )
  new, outcome = Augment(config).changed(example, 0)
  assert outcome.wanted == (() if not example.images else (change,))
  if reason:
    assert new.turns == example.turns and new.dense is example.dense
    assert [name for name, _ in outcome.left] == ([change] if example.images else [])


def test_a_note_says_what_stays_as_it_is():
  examples = [one(), one("Is it in his right hand?"), one()]
  (note,) = beforehand.check_source("mine", examples, ("flip",))
  assert (
    note == "data source 'mine': augment.flip leaves 1 of 3 examples as they are: it says 'his right' (1)"
  )
  assert not beforehand.check_source("mine", [], ("flip",))
  with pytest.raises(
    UserError, match=r"'mine': config\.data\.augment\.crop: none of 3 examples .*needs the boxes"
  ):
    beforehand.check_source("mine", examples, ("crop",))


def test_sources_that_are_not_named_stay_as_they_are():
  config = AugmentConfig(flip=1.0, brightness=0.5, sources=("a",))
  example = one("Is it left of the cup?", "yes", task="Count")
  augment = Augment(config)
  assert augment(example, 0, "b") is example
  assert augment(example, 0, "a").turns[0].prompt == "Is it right of the cup?"


def test_a_picture_that_goes_by_a_name_is_not_changed():
  later = dataclasses.replace(one(), images=(Deferred((20, 30, 3), "key", lambda: None),))
  with pytest.raises(ValueError, match="go by the name"):
    Augment(AugmentConfig(flip=1.0))(later, 0)


def test_the_page_has_the_table():
  page = (pathlib.Path(__file__).parents[2] / "docs" / "geometry.md").read_text(encoding="utf-8")
  short = {"KEEP": "stays", "WORDS": "words", "REVERSED": "list", "NAMED": "boxes", "NEVER": "no"}
  rows = collections.defaultdict(list)
  for name, task in legality.TASKS.items():
    rows[tuple(short[getattr(task, change).name] for change in legality.CHANGES)].append(name)
  for verdicts, names in rows.items():
    assert f"| {', '.join(f'`{name}`' for name in names)} | {' | '.join(verdicts)} |" in page, names
