"""Rooms as a source of examples and questions, and as files."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spatialvlm.config import AugmentConfig, CVBenchConfig, RoomFilesConfig, RoomsConfig
from spatialvlm.data import room_files
from spatialvlm.data.augment.change import Augment
from spatialvlm.data.sources.registry import open_questions, open_source
from spatialvlm.types import LETTERS, UserError

SMALL = RoomsConfig(
  seed=5, image_size=96, size=12, tasks=dict(Depth=1.0, Relation=1.0, Height=1.0, Metric=1.0)
)


def changed(**fields) -> RoomsConfig:
  return RoomsConfig(**{**vars(SMALL), **fields})


def test_examples_are_the_questions_with_their_depth_and_facts():
  questions, examples = open_questions(SMALL), open_source(SMALL)
  assert len(questions) == len(examples) == 12
  for i in (0, 1, 2, 3):
    question, example = questions[i], examples[i]
    assert example.turns[0].answer == LETTERS[question.answer]
    assert example.turns[0].prompt == question.prompt and (example.images[0] == question.images[0]).all()
    assert example.dense["depth"].shape == (96, 96) and example.dense["depth"].max() > 1
    assert " m ahead" in example.facts() and example.geometry.asked == (question.asked,)
    assert example.geometry.instances().max() >= 1


@pytest.mark.parametrize("way", ["words", "reasons"])
def test_answers_in_words(way):
  questions, examples = open_questions(SMALL), open_source(changed(answers=way, false_answers=2))
  for i in range(8):
    question, turn = questions[i], examples[i].turns[0]
    right = question.choices[question.answer]
    assert right in turn.answer and "(A)" not in turn.prompt and turn.prompt.startswith(question.question)
    assert turn.answer.endswith(f"{right}.") == (way == "reasons")
    assert 1 <= len(turn.false) <= 2 and turn.answer not in turn.false
    assert all(any(c in wrong for c in question.choices) for wrong in turn.false)


def test_mixed_asks_every_kind_in_every_way():
  examples = open_source(changed(answers="mixed"))
  ways = {(e.task, "(A)" in e.turns[0].prompt, "briefly" in e.turns[0].prompt) for e in examples}
  assert len(ways) == 4 * 3


def test_what_is_for_training_is_refused_in_a_score():
  for fields, said in ((dict(answers="words"), "answers"), (dict(false_answers=1), "false_answers")):
    with pytest.raises(UserError, match=said):
      open_questions(changed(**fields))
  with pytest.raises(UserError, match="difficulty 2"):
    open_source(changed(difficulty=2.0))


def test_pictures_may_be_moved():
  examples = open_source(SMALL)
  augment = Augment(AugmentConfig(flip=1.0))
  for i in range(4):
    before, after = examples[i], augment(examples[i], i)
    if (before.images[0] != after.images[0]).any():
      assert np.allclose(after.dense["depth"], before.dense["depth"][:, ::-1])
      if before.task == "Relation" and before.geometry.asked[0].axis == "across":
        assert before.turns[0].prompt != after.turns[0].prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("rooms") / "out"
  counts = room_files.write(folder, FILES, lambda line: None)
  assert counts == {"Depth": 3, "Height": 3, "Metric": 3, "Relation": 3}
  return folder


FILES = RoomFilesConfig(source=SMALL, shard=5, sheet=7)


def test_files_are_read_back_as_the_questions(folder):
  names = sorted(path.name for path in folder.iterdir())
  shards = [f"train-{k:05d}-of-00003.parquet" for k in range(3)]
  assert names == ["README.md", "contact_sheet.png", "settings.json", *shards]
  read, asked = open_questions(CVBenchConfig(path=str(folder))), open_questions(SMALL)
  assert len(read) == 12
  for i in (0, 5, 11):
    for name in ("idx", "task", "question", "choices", "answer", "prompt", "bbox", "source_filename"):
      assert getattr(read[i], name) == getattr(asked[i], name), name
    assert (read[i].images[0] == asked[i].images[0]).all()
  assert open_source(CVBenchConfig(path=str(folder)))[3].turns[0].answer in "ABCD"


def test_depth_and_camera_stand_beside(folder):
  found = open_questions(SMALL).described(6)
  row = pq.read_table(folder / "train-00001-of-00003.parquet").slice(1, 1).to_pylist()[0]
  depth = np.asarray(Image.open(io.BytesIO(row["depth"]["bytes"])))
  assert depth.dtype == np.uint16
  kept = found.frame.depth <= 65.5
  assert np.abs(depth / 1000.0 - found.frame.depth)[kept].max() <= 0.0006
  assert np.allclose(np.reshape(row["pose"], (4, 4)), found.frame.pose)
  assert np.allclose(np.reshape(row["intrinsics"], (3, 3)), found.frame.intrinsics)
  assert (row["reason"], row["words"]) == (found.reason, found.words)


def test_an_interrupted_set_goes_on(folder):
  lost = folder / "train-00001-of-00003.parquet"
  whole, said = lost.read_bytes(), []
  lost.unlink()
  room_files.write(folder, FILES, said.append)
  assert lost.read_bytes() == whole
  assert [line.endswith("is there") for line in said] == [True, False, True]


def test_a_folder_of_something_else_is_refused(folder, tmp_path):
  before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
  with pytest.raises(UserError, match="other settings"):
    room_files.write(folder, RoomFilesConfig(source=changed(seed=6), shard=5, sheet=7))
  assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
  (tmp_path / "mine.txt").write_text("mine")
  with pytest.raises(UserError, match="is not empty"):
    room_files.write(tmp_path, FILES)
  for config, said in (
    (RoomFilesConfig(source=changed(size=0)), r"source\.size"),
    (RoomFilesConfig(source=SMALL, shard=0), "shard"),
    (RoomFilesConfig(source=SMALL, split="val"), "split"),
  ):
    with pytest.raises(UserError, match=said):
      room_files.write(tmp_path / "new", config)
    assert not (tmp_path / "new").exists()


def test_the_card_says_what_is_there(folder):
  card = (folder / "README.md").read_text()
  assert "| Metric | 3 |" in card and "difficulty 0.5" in card and "millimetres" in card
  assert Image.open(folder / "contact_sheet.png").size == (6 * 192, 2 * 192)
  assert json.loads((folder / "settings.json").read_text())["config"]["source"]["seed"] == 5
