"""Controls change what they name and nothing else, and answers come back under their own letters."""

import dataclasses

import numpy as np
import pytest

from spatialvlm.evaluation.asking import controls
from spatialvlm.types import UserError, choice_prompt
from tests.evaluation import support


def question(**fields):
  values = dict(task="Relation", question="Where is the lamp?", choices=("left", "right"), answer=0)
  values |= fields
  prompt = choice_prompt(values["question"], values["choices"])
  return dataclasses.replace(support.questions(1)[0], **({"prompt": prompt} | values))


@pytest.mark.parametrize("count", [2, 5])
def test_rotated_options_and_their_letters(count):
  texts = tuple(f"option {i}" for i in range(count))
  asked = question(choices=texts, answer=count - 1)
  for shift in range(count):
    turned = controls.rotated(asked, shift)
    assert turned.prompt == choice_prompt(asked.question, texts[shift:] + texts[:shift])
    assert turned.choices[turned.answer] == texts[count - 1]
    for i, letter in enumerate("ABCDE"[:count]):
      original = controls.unrotated(letter, shift, count)
      assert turned.choices[i] == texts["ABCDE".index(original)]
      assert controls.displayed(original, shift, count) == letter
    assert controls.rotated(turned, -shift % count).prompt == asked.prompt
  assert controls.unrotated("", 1, count) == controls.displayed("", 1, count) == ""
  assert list(controls.shifts("circular", count)) == list(range(1, count))


def test_a_prompt_without_its_options_cannot_be_rotated():
  with pytest.raises(UserError, match="question 100: its prompt does not list its options"):
    controls.rotated(question(prompt="Left or right?"), 1)


@pytest.mark.parametrize(
  ("fields", "expected"),
  [
    ({}, "B"),
    (dict(answer=1), "A"),
    (dict(choices=("to the Left of it", "to the Right of it")), "B"),
    (dict(choices=("above", "below")), "A"),
    (dict(choices=("left", "above")), None),
    (dict(question="What is on the left side?"), None),
    (dict(task="Depth", choices=("lamp", "desk"), answer=1), "B"),
    (dict(task="Depth", choices=("left lamp", "desk"), answer=1), None),
    (dict(task="Count", choices=("3", "4", "5"), answer=2), "C"),
  ],
)
def test_what_must_follow_from_a_mirrored_image(fields, expected):
  asked = question(**fields)
  mirrored = controls.flipped(asked)
  if expected is None:
    assert mirrored is None
    return
  assert "ABC"[mirrored.answer] == expected
  np.testing.assert_array_equal(mirrored.images[0], asked.images[0][:, ::-1])
  assert (mirrored.prompt, mirrored.choices) == (asked.prompt, asked.choices)
  assert controls.flipped(mirrored).answer == asked.answer


def test_grey_has_the_size_and_nothing_else():
  image = support.questions(1)[0].images[0]
  assert controls.grey(image).shape == image.shape and set(controls.grey(image).flat) == {128}


def test_other_images_are_near_and_of_the_same_task():
  names = ["a", "a", "b", "b", "c", "x", "a", "y", "d"]
  tasks = ["Depth"] * 5 + ["Count"] + ["Depth"] + ["Count"] + ["Depth"]
  others, found = controls.OtherImages(), {}
  asked = [question(idx=i, task=task) for i, task in enumerate(tasks)]
  asked = [dataclasses.replace(q, idx=i) for i, q in enumerate(asked)]
  for name, q in zip(names, asked, strict=True):
    for one, other in others(name, q):
      assert one.idx not in found
      found[one.idx] = other.idx
  others.close()
  assert found.keys() == set(range(9))
  for i, j in found.items():
    assert tasks[i] == tasks[j] and names[i] != names[j]
  assert found == {0: 2, 1: 2, 2: 1, 3: 1, 4: 3, 5: 7, 6: 4, 7: 5, 8: 6}


def test_a_task_on_one_image_has_no_other():
  others = controls.OtherImages()
  assert not list(others("a", question(task="Depth"))) and not list(others("a", question(task="Depth")))
  with pytest.raises(UserError, match="no other image among the questions of task 'Depth'"):
    others.close()
