"""Hugging Face data sets, from disk."""

import datasets
import numpy as np
import pytest
from PIL import Image

from spatialvlm.config import HFConfig
from spatialvlm.data import pipeline
from spatialvlm.types import Turn, UserError


def picture(value):
  return Image.fromarray(np.full((3, 2, 3), value, np.uint8))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def mcq(tmp_path):
  rows = datasets.Dataset.from_dict(
    {
      "picture": [picture(1), picture(2), picture(3)],
      "ask": ["Which?", "Which?", "How many?"],
      "options": [["left", "right"], ["left", "right"], ["1", "2", "3"]],
      "answer": ["right", "(A)", "c"],
    },
    features=datasets.Features(
      {
        "picture": datasets.Image(),
        "ask": datasets.Value("string"),
        "options": datasets.List(datasets.Value("string")),
        "answer": datasets.Value("string"),
      }
    ),
  )
  rows.save_to_disk(tmp_path / "mcq")
  columns = {"image": "picture", "question": "ask", "choices": "options"}
  return HFConfig(path=str(tmp_path / "mcq"), columns=columns)


def test_a_saved_folder_gives_lettered_questions(mcq):
  source = pipeline.open_source(mcq)
  assert [source[i].turns[0].answer for i in range(3)] == ["B", "A", "C"]
  assert source[2].turns[0].prompt.endswith("choices.\n(A) 1\n(B) 2\n(C) 3")
  assert [e.images[0][0, 0, 0] for e in pipeline.read(source, [2, 0])] == [3, 1]
  questions = pipeline.open_questions(mcq)
  assert questions[2].answer == 2 and questions[2].choices == ("1", "2", "3") and questions[0].idx == 0
  np.testing.assert_array_equal(questions[1].images[0], np.full((3, 2, 3), 2))


def test_conversations_with_several_images_and_splits(tmp_path):
  rows = datasets.Dataset.from_dict(
    {
      "images": [[picture(1), picture(2)], []],
      "texts": [[{"user": "Q", "assistant": "A"}], [{"user": "P", "assistant": "B"}]],
    },
    features=datasets.Features(
      {
        "images": datasets.List(datasets.Image()),
        "texts": datasets.List({"user": datasets.Value("string"), "assistant": datasets.Value("string")}),
      }
    ),
  )
  datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "talk")
  source = pipeline.open_source(HFConfig(path=str(tmp_path / "talk")))
  assert [image[0, 0, 0] for image in source[0].images] == [1, 2] and source[1].images == ()
  assert source[1].turns == (Turn("P", "B"),)
  assert len(pipeline.open_source(HFConfig(path=str(tmp_path / "talk"), size=1))) == 1
  with pytest.raises(UserError, match="no split 'tset'; known: train"):
    pipeline.open_source(HFConfig(path=str(tmp_path / "talk"), split="tset"))


def test_a_parquet_file_and_an_image_folder(tmp_path):
  rows = datasets.Dataset.from_dict({"question": ["How many?"], "answer": [3], "image": [picture(5)]})
  rows = rows.cast_column("image", datasets.Image())
  rows.to_parquet(tmp_path / "a.parquet")
  example = pipeline.open_source(HFConfig(path=str(tmp_path / "a.parquet")))[0]
  assert example.turns == (Turn("How many?", "3"),) and example.images[0][0, 0, 0] == 5
  folder = tmp_path / "folder"
  folder.mkdir()
  picture(9).save(folder / "x.png")
  (folder / "metadata.jsonl").write_text('{"file_name": "x.png", "question": "What?", "answer": "Grey."}\n')
  example = pipeline.open_source(HFConfig(path=str(folder)))[0]
  assert example.turns == (Turn("What?", "Grey."),) and example.images[0][0, 0, 0] == 9


def save(tmp_path, **columns):
  datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "d")
  return dict(kind="hf", path=str(tmp_path / "d"))


def test_mappings_that_do_not_hold_are_refused(tmp_path, mcq):
  config = save(tmp_path, question=["Q"], reply=["A"])
  with pytest.raises(UserError, match=r"no column serves as messages.*there are question, reply"):
    pipeline.open_source(HFConfig(**config))
  with pytest.raises(UserError, match=r"columns.answer='repli': no such column; did you mean 'reply'"):
    pipeline.open_source(HFConfig(**config, columns={"answer": "repli"}))
  with pytest.raises(UserError, match=r"columns.anser: not a name of ours; did you mean 'answer'"):
    pipeline.open_source(HFConfig(**config, columns={"anser": "reply"}))
  with pytest.raises(UserError, match="no column serves as choices, answer"):
    pipeline.open_questions(HFConfig(**config))


@pytest.mark.parametrize(
  "columns, message",
  [
    (dict(question=["Q"], choices=[["a", "b"]], answer=["z"]), "row 0, column 'answer': 'z' is neither"),
    (dict(question=["Q"], choices=[["a", "b"]], answer=[2]), "row 0, column 'answer': 2 is neither"),
    (
      dict(question=["Q"], choices=[["a"]], answer=["a"]),
      "row 0, column 'choices': expected 2 to 26 choices",
    ),
    (dict(question=["Q"], answer=[""]), "row 0, column 'answer': the cell is empty"),
    (dict(question=["Q"], answer=["a"], image=[3]), "row 0, column 'image': expected an image"),
    (
      dict(question=["Q"], answer=["a"], image=["/gone.png"]),
      "row 0, column 'image': no such image file",
    ),
  ],
)
def test_broken_rows_are_named(tmp_path, columns, message):
  """When the data set is opened, or where that is wanted, when they are read."""
  config = HFConfig(**save(tmp_path, **{name: cells * 2 for name, cells in columns.items()}))
  with pytest.raises(UserError, match=message):
    pipeline.open_source(config)
  source = pipeline.open_source(config, defer=True)
  with pytest.raises(UserError, match=message.replace("row 0", "row 1")):
    source[1]


def test_corrupt_images_are_named(tmp_path):
  config = save(tmp_path, question=["Q"], answer=["A"], image=[b"junk"])
  with pytest.raises(UserError, match="row 0, column 'image', image 0: cannot be read as an image"):
    pipeline.open_source(HFConfig(**config))[0]


def test_what_cannot_be_opened_is_one_line(tmp_path):
  with pytest.raises(UserError, match="needs a `path`"):
    pipeline.open_source(HFConfig())
  with pytest.raises(UserError, match="'someone/nothing', split 'train': cannot be opened") as error:
    pipeline.open_source(HFConfig(path="someone/nothing"))
  assert "\n" not in str(error.value)
  (tmp_path / "x.bin").write_bytes(b"1")
  with pytest.raises(UserError, match="expected a file of"):
    pipeline.open_source(HFConfig(path=str(tmp_path / "x.bin")))
