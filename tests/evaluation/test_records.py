"""The file of predictions."""

import dataclasses
import errno
import os

import numpy as np
import pytest

from spatialvlm.evaluation import records
from spatialvlm.types import UserError
from tests.evaluation import support


def test_round_trip(tmp_path):
  rows = [support.row(i, i % 2 > 0, filename="dir/ä.png", rules={"centre": "B"}) for i in range(5)]
  writer = records.Writer(tmp_path / "new")
  writer.write(rows[:2])
  writer.write(rows[2:])
  writer.close()
  assert records.read(tmp_path / "new") == rows
  assert records.read(tmp_path / "nothing") == []


def test_a_torn_line_is_passed_over_and_cut_by_who_writes_on(tmp_path):
  rows = [support.row(i) for i in range(3)]
  records.rewrite(tmp_path, rows)
  file = tmp_path / records.FILE
  whole = file.read_bytes()
  for size in range(len(whole) - 1, whole.rfind(b"\n", 0, -1), -7):
    file.write_bytes(whole[:size])
    assert records.read(tmp_path) == rows[:2]
    assert file.read_bytes() == whole[:size]
    records.Writer(tmp_path).close()
    assert file.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])


GOOD = support.row(1).to_json()


@pytest.mark.parametrize(
  "line",
  [
    "{}",
    "nonsense",
    '{"idx": 1, "logprobs": {}, "choices": []}',
    "[1]",
    "\0" * 40,
    GOOD.replace('"choice": "A"', '"choice": "C"'),
    GOOD.replace('"gold": "A"', '"gold": "C"'),
    GOOD.replace('"gold": "A"', '"gold": ""'),
    GOOD.replace('"correct": true', '"correct": false'),
    GOOD.replace("-3.0", "NaN"),
    GOOD.replace(', "B": -3.0', ""),
  ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
  assert line != GOOD
  records.rewrite(tmp_path, [support.row(0), support.row(2)])
  file = tmp_path / records.FILE
  first, last = file.read_text().splitlines()
  file.write_text(f"{first}\n{line}\n{last}\n")
  before = file.read_bytes()
  with pytest.raises(UserError, match=r"predictions.jsonl:2: not a prediction .*remove the line"):
    records.read(tmp_path)
  assert file.read_bytes() == before


def test_a_doubled_question_with_another_answer_is_refused(tmp_path):
  other = dataclasses.replace(support.row(0), question="Is it another one?")
  records.rewrite(tmp_path, [support.row(0), support.row(1), other])
  with pytest.raises(UserError, match=r"predictions.jsonl:3: question 0 stands twice, with diff"):
    records.read(tmp_path)


def test_choice_is_the_likeliest_letter_and_the_first_of_equals():
  (question,) = support.questions(count=1)
  assert records.predict(question, [-2.0, -1.0, -3.0, -1.0]).choice == "B"


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_numbers_must_be_finite(bad):
  (question,) = support.questions(count=1)
  with pytest.raises(UserError, match="question 100: the log-probabilities"):
    records.predict(question, [-1.0, bad, -1.0, -1.0])


def test_image_hash_is_of_pixels_and_shape():
  image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
  assert records.image_hash(image) == records.image_hash(image.copy())
  assert records.image_hash(image) != records.image_hash(image.reshape(4, 2, 3))
  assert records.image_hash(image) == records.image_hash(np.repeat(image, 2, axis=1)[:, ::2])
  other = image.copy()
  other[1, 3, 2] += 1
  assert records.image_hash(image) != records.image_hash(other)


def test_hashes_of_images_name_all_of_them_in_order():
  """Of one image it is the hash that runs of before kept."""
  one = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
  assert records.images_hash((one,)) == records.image_hash(one) == "0dcb9b79b8cbb06d"
  hashes = {
    records.images_hash(images) for images in ((one,), (one, one), (one, one[::-1]), (one[::-1], one))
  }
  assert len(hashes) == 4


def test_boxes_make_no_other_image():
  """Questions on one photo are one image to the intervals, though boxes are drawn in their pixels."""
  one, two = (
    dataclasses.replace(q, source_filename="photo.jpg", source_dataset="s") for q in support.questions()[:2]
  )
  assert records.image_name(one) == records.image_name(two)
  assert records.image_name(one) != records.image_name(dataclasses.replace(one, source_dataset="t"))
  unnamed = dataclasses.replace(one, source_filename="")
  assert records.image_name(unnamed) == records.image_hash(one.images[0])


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
  rows = [support.row(i) for i in range(3)]
  writer = records.Writer(tmp_path)
  writer.write(rows[:2])
  real = os.fsync

  def full(fd):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match="no space left"):
    writer.write(rows[2:])
  monkeypatch.setattr(os, "fsync", real)
  assert records.read(tmp_path)[:2] == rows[:2]
