"""Copies of a benchmark's pictures are found however they were saved; others are not."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from spatialvlm import mixture
from spatialvlm.evaluation import leaks
from spatialvlm.types import Example, Question
from spatialvlm.worlds.questions import SceneQuestions

SIZE = 12


@pytest.fixture(scope="module")
def pictures():
  """Rendered scenes: pictures that have much in common."""
  return _scenes(0)


def _scenes(seed):
  questions = SceneQuestions(seed, size=SIZE)
  return [questions[i].images[0] for i in range(SIZE)]


def question(idx, image, file=""):
  return Question(
    idx=idx, type="2D", task="Count", images=(image,), question="How many?", choices=("1", "2"), answer=0,
    prompt="", source="COCO", source_dataset="COCO", source_filename=file,
  )  # fmt: skip


def example(image, file=""):
  return Example(images=(image,), turns=(), id="x", files=(file,) if file else ())


def saved(image, size, quality=60, box=False):
  picture = Image.fromarray(image).resize(size)
  if box:
    ImageDraw.Draw(picture).rectangle([20, 30, 60, 70], outline=(255, 0, 0), width=2)
  buffer = io.BytesIO()
  picture.save(buffer, "JPEG", quality=quality)
  return np.asarray(Image.open(buffer).convert("RGB"))


def test_copies_are_found_and_others_are_not(pictures):
  benchmark = leaks.Benchmark([question(i, image) for i, image in enumerate(pictures)])
  assert len(benchmark) == SIZE
  copies = [
    example(pictures[0]),
    example(saved(pictures[1], (140, 140))),
    example(saved(pictures[2], (200, 150), box=True)),
    example(pictures[3][:, ::-1]),
    example(saved(pictures[4][:, ::-1], (64, 64))),
  ]
  found, looked = leaks.find(benchmark, {"mine": copies + [example(image) for image in _scenes(9)]})
  assert looked == {"mine": 5 + SIZE}
  assert [(leak.index, leak.questions) for leak in found] == [(i, (i,)) for i in range(5)]
  assert [leak.how for leak in found] == ["picture"] * 3 + ["mirrored picture"] * 2
  assert found[0].distance == 0 and found[3].distance == 0


def test_each_of_several_pictures_is_looked_for(pictures):
  both = dataclasses.replace(question(7, pictures[0]), images=(pictures[0], pictures[1]))
  both = dataclasses.replace(both, source_filename="000000397133.jpg,b.jpg")
  copies = [example(pictures[1], "x.jpg"), example(pictures[2], "b.jpg"), example(pictures[2], "c.jpg")]
  found, _ = leaks.find(leaks.Benchmark([both]), {"mine": copies})
  assert [(leak.index, leak.how) for leak in found] == [(0, "picture"), (1, "name")]
  assert all(leak.questions == (7,) for leak in found)


def test_names_are_found_and_held_apart_from_pictures(pictures):
  benchmark = leaks.Benchmark(
    [question(7, pictures[0], "000000397133.jpg"), question(8, pictures[0], "000000397133.jpg")]
  )
  copies = [
    example(pictures[0], "folder/COCO_val2014_000000397133.png"),
    example(pictures[1], "000000397133.jpg"),
    example(pictures[0], "renamed.jpg"),
    example(pictures[1], "other.jpg"),
  ]
  found, _ = leaks.find(benchmark, {"mine": copies})
  assert [leak.how for leak in found] == ["name and picture", "name", "picture"]
  assert all(leak.questions == (7, 8) for leak in found)
  assert found[1].distance is None
  counts = leaks.summary(found, {"mine": 4}, benchmark)
  assert counts["sources"]["mine"] == {
    "examples": 4, "name and picture": 1, "picture": 1, "mirrored picture": 0, "name": 1,
  }  # fmt: skip


def test_the_table_marks_sources_that_hold_pictures_and_names_the_first(pictures):
  benchmark = leaks.Benchmark([question(i, image) for i, image in enumerate(pictures)])
  found, looked = leaks.find(benchmark, {"mine": [example(p) for p in pictures[:3]], "other": []})
  table = leaks.table(leaks.summary(found, looked | {"other": 0}, benchmark), shown=2)
  heads = [c.text for c in table.columns]
  assert heads == ["", "examples", "name and picture", "picture", "mirrored picture", "name alone"]
  mine, other = table.rows
  assert [c.text for c in mine] == ["mine", "3", "0", "3", "0", "0"]
  assert mine[0].kind == mine[3].kind == "bad" and {c.kind for c in other} == {""}
  assert table.note.splitlines()[-1] == "and 1 more" and table.note.startswith("mine[0] ")


def test_an_even_picture_says_nothing():
  even = np.full((40, 60, 3), 127, np.uint8)
  assert leaks.perceptual_hash(even) is None
  benchmark = leaks.Benchmark([question(0, even)])
  assert leaks.find(benchmark, {"mine": [example(even)]})[0] == []


def test_the_mirror_hash_is_the_hash_of_the_mirrored_picture(pictures):
  plain, mirror = leaks.perceptual_hash(pictures[5])
  np.testing.assert_array_equal(mirror, leaks.perceptual_hash(pictures[5][:, ::-1])[0])
  assert np.bitwise_count(plain ^ mirror).sum() > leaks.NEAR


def test_a_source_without_an_end_needs_a_limit(pictures):
  class Endless(list):
    def __len__(self):
      return mixture.ENDLESS

  benchmark = leaks.Benchmark([question(0, pictures[0])])
  source = Endless([example(pictures[i]) for i in range(4)])
  with pytest.raises(ValueError, match="no end"):
    leaks.find(benchmark, {"mine": source})
  found, looked = leaks.find(benchmark, {"mine": source}, limit=3)
  assert looked == {"mine": 3} and len(found) == 1
