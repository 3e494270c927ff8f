"""Rules from boxes that a data set lists in any order and either layout: the pixels decide."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from spatialvlm.evaluation.scoring import baselines, boxes
from spatialvlm.worlds.questions import SceneQuestions

COUNT = 12


@pytest.fixture(scope="module")
def scenes():
  questions = SceneQuestions(11, kinds={"Depth": 1.0, "Distance": 1.0}, image_size=192, size=COUNT)
  return [questions[i] for i in range(COUNT)]


def foreign(question, rng, sized, quality=80):
  """As another data set might have it: boxes shuffled, perhaps sizes instead of corners, saved as JPEG."""
  listed = [question.bbox[i] for i in rng.permutation(len(question.bbox))]
  if sized:
    listed = [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in listed]
  buffer = io.BytesIO()
  Image.fromarray(question.images[0]).save(buffer, "JPEG", quality=quality)
  image = np.asarray(Image.open(buffer).convert("RGB"))
  return dataclasses.replace(question, bbox=tuple(map(tuple, listed)), images=(image,), source="Omni3D")


@pytest.mark.parametrize("sized", [False, True])
def test_boxes_are_given_back_to_their_objects(scenes, sized):
  rng = np.random.default_rng(0)
  known = 0
  for question in scenes:
    found = boxes.named_boxes(foreign(question, rng, sized))
    if found is not None:
      known += 1
      np.testing.assert_allclose(list(found.values()), question.bbox, atol=1e-3)
  assert known > 0.75 * COUNT


def test_rules_say_the_same_as_where_boxes_are_known(scenes):
  rng = np.random.default_rng(0)
  for question in scenes:
    other = baselines.rule_letters(foreign(question, rng, True, quality=95))
    exact = ("lower edge", "bigger box", "nearer in the image", "centre")
    own = baselines.rule_letters(question)
    for rule in set(other) & set(exact):
      assert other[rule] == own[rule]
    assert not other or set(other) & set(exact) == set(own) & set(exact)


def test_what_the_pixels_do_not_show_is_not_said(scenes):
  question = dataclasses.replace(scenes[0], source="Omni3D")
  assert baselines.rule_letters(question)
  blank = np.full_like(question.images[0], 128)
  moved = tuple(tuple(v + 31 for v in box) for box in question.bbox)
  for changes in (
    dict(images=(blank,)),
    dict(bbox=moved),
    dict(bbox=None),
    dict(bbox=question.bbox[:1]),
    dict(task="Count"),
    dict(question="Which is nearer?"),
    dict(choices=("something", "else")),
    dict(choices=(*question.choices, "a third")),
  ):
    assert baselines.rule_letters(dataclasses.replace(question, **changes)) == {}, changes
