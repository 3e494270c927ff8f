"""Regions, their controls, and which image tokens show them."""

import dataclasses

import numpy as np
import pytest

from spatialvlm.causes import cases, regions
from spatialvlm.priors.prior import Tokens, windows
from spatialvlm.types import choice_prompt


@pytest.fixture(scope="module")
def some():
  return {
    task: cases.make(task, 5, 12, 96) for task in ("Depth", "LeftRight", "box", "side", "letters", "Count")
  }


def test_cases_are_what_their_pictures_show(some):
  for case in some["Depth"]:
    nearer = int(np.argmin(case.depths))
    assert case.choices[nearer] == case.choices[case.answer] or abs(np.diff(case.depths)) < 0.5
    assert choice_prompt(case.question, case.choices) == case.text
    for number, (x0, y0, x1, y1) in zip(case.named, case.boxes, strict=True):
      rows, columns = np.nonzero(case.instance == number)
      assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
  for case in some["LeftRight"]:
    a, b = ((box[0] + box[2]) / 2 for box in case.boxes)
    assert case.choices[case.answer] == ("left" if a < b else "right")
  assert all(case.image is None and len(case.choices) > 1 for case in some["letters"])
  assert all(len(case.named) == int(case.choices[case.answer]) for case in some["Count"])


def test_opposites_differ_in_one_thing(some):
  for case in some["box"]:
    assert case.choices[case.answer] != case.choices[case.opposite_answer]
    changed = (case.image != case.opposite).any(-1)
    frames = np.any([regions.rectangle(box, case.margin, (96, 96)) for box in case.boxes], axis=0)
    assert changed.any() and not (changed & ~frames).any()
    if all(min(box) > 0 and max(box) < 96 for box in case.boxes):  # else there is no room outside
      inner = np.any([regions.rectangle(box, 0, (96, 96)) for box in case.boxes], axis=0)
      assert not (changed & inner).any()
    color = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}[case.frames[0]]
    x0, y0, x1, _ = map(int, case.boxes[0])
    edge = case.image[y0 - 1, x0:x1] if y0 > 0 else case.image[y0, x0:x1]
    assert (edge == color).all()
  for case in some["side"]:
    np.testing.assert_array_equal(case.opposite, case.image[:, ::-1])
    middle = (case.boxes[0][0] + case.boxes[0][2]) / 2
    assert case.choices[case.answer] == ("left" if middle < 48 else "right")


def test_seeds_and_numbers_make_cases(some):
  again = cases.make("box", 5, 3, 96)
  np.testing.assert_array_equal(again[2].image, some["box"][2].image)
  assert cases.make("box", 6, 1, 96)[0].id != again[0].id


def test_controls_have_the_shape_of_what_they_control(some):
  for case in some["Depth"]:
    found = regions.of_case(case, 0)
    near = np.any([regions.rectangle(box, case.margin, (96, 96)) for box in case.boxes], axis=0)
    by = lambda kind, place, found=found: [r.mask for r in found if (r.kind, r.place) == (kind, place)]
    for place in range(2):
      (named,), (upper,), (lower,) = (by(kind, place) for kind in ("named", "upper", "lower"))
      assert upper.sum() == lower.sum() == max(round(named.sum() / 4), 1)
      assert not (upper & ~named).any() and np.nonzero(upper)[0].max() <= np.nonzero(lower)[0].max()
      for moved in by("moved", place):
        assert moved.sum() == named.sum() and not (moved & near).any()
        box = lambda m: tuple(np.ptp(axis) for axis in np.nonzero(m))
        assert box(moved) == box(named)
    others = [r.mask for r in found if r.kind == "other"]
    assert all(not np.isin(case.instance[m], case.named).any() for m in others)
    (rest,) = by("else", 0)
    assert (rest == ~near).all()


def test_places_are_the_same_each_time(some):
  case = some["Depth"][0]
  masks = [[r.mask for r in regions.of_case(case, seed)] for seed in (0, 0, 1)]
  np.testing.assert_array_equal(masks[0], masks[1])
  assert any((a != b).any() for a, b in zip(masks[0], masks[2], strict=True))


def test_cells_cover_a_picture_once():
  found = regions.cells((96, 90), 6)
  assert len(found) == 36 and (np.sum([r.mask for r in found], axis=0) == 1).all()


def test_tokens_that_show_a_region():
  one = Tokens(windows(0, 0), 8)
  mask = np.zeros((96, 96), bool)
  mask[12:24, 24:48] = True
  assert np.flatnonzero(regions.showing(mask, one)).tolist() == [10, 11]
  speck = np.zeros((96, 96), bool)
  speck[95, 95] = True
  assert np.flatnonzero(regions.showing(speck, one)).tolist() == [63]
  # A grid of 2 x 2 tiles and the global view: each shows its part.
  many = Tokens(windows(2, 2), 4)
  shares = regions.shares(mask, many).reshape(5, 4, 4)
  assert shares[0, 1, 2:].tolist() == [1, 1] and not shares[1:4].any()
  assert shares[4].sum() == pytest.approx(mask.mean() * 16)


def test_exchanged_tokens_swap_what_boxes_show():
  one = Tokens(windows(0, 0), 8)
  order = regions.exchanged((0, 0, 24, 24), (48, 48, 72, 72), 0, (96, 96), one)
  moved = np.flatnonzero(order != np.arange(64))
  assert sorted(moved) == [0, 1, 8, 9, 36, 37, 44, 45]
  assert order[0] == 36 and order[45] == 9 and (order[order] == np.arange(64)).all()


def test_greyed_pictures():
  image = np.random.default_rng(0).integers(0, 100, (8, 8, 3), dtype=np.uint8)
  mask = np.eye(8, dtype=bool)
  found = regions.greyed(image, mask)
  assert (found[mask] == 128).all() and (found[~mask] == image[~mask]).all()


def test_a_mask_with_no_place_has_no_control(some):
  case = dataclasses.replace(some["Depth"][0], boxes=((0, 0, 96, 96), (0, 0, 96, 96)))
  assert not [r for r in regions.of_case(case, 0) if r.kind == "moved"]
