"""Rows whose answers and options were written in many ways: what counts, and what is refused."""

import json
import warnings

import datasets
import pytest
from PIL import Image

from spatialvlm.config import HFConfig
from spatialvlm.data import pipeline
from spatialvlm.data.sources.cells import Answers
from spatialvlm.types import Note, Turn, UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def lines(tmp_path, *rows):
  Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
  rows = [
    row if isinstance(row, str) else json.dumps({"image": "a.png", "question": "Q?"} | row) for row in rows
  ]
  (tmp_path / "rows.jsonl").write_text("\n".join(rows))
  return str(tmp_path / "rows.jsonl")


def gold(path, **settings):
  """The text of each right option; training on the same rows must teach its letter."""
  config = HFConfig(path=path, **settings)
  questions, examples = pipeline.open_questions(config), pipeline.open_source(config)
  found = [(q.choices[q.answer], "ABCDEFGH"[q.answer]) for q in questions]
  assert [examples[i].turns[0].answer for i in range(len(examples))] == [letter for _, letter in found]
  return [text for text, _ in found]


def taught(path, **settings):
  examples = pipeline.open_source(HFConfig(path=path, **settings))
  return [examples[i].turns[0].answer for i in range(len(examples))]


def test_true_and_false_are_matched_to_yes_and_no(tmp_path):
  rows = [{"choices": ["Yes", "No"], "answer": answer} for answer in (True, False)]
  assert gold(lines(tmp_path, *rows)) == ["Yes", "No"]
  assert gold(lines(tmp_path, {"answer": True}), choices=("No.", "True.")) == ["True."]


def test_true_is_an_index_only_where_the_config_says_so(tmp_path):
  path = lines(tmp_path, {"choices": ["near", "far"], "answer": True})
  with pytest.raises(UserError, match=r"row 0, column 'answer': true names none of .*set answers='index'"):
    pipeline.open_questions(HFConfig(path=path))
  assert gold(path, answers="index") == ["far"]
  assert gold(lines(tmp_path, {"answer": False}), choices=("near", "far")) == ["near"]
  assert gold(lines(tmp_path, {"choices": ["Yes", "No"], "answer": True}), answers="index") == ["No"]


def test_the_name_of_a_class_counts_not_its_number(tmp_path):
  table = datasets.Dataset.from_dict(
    {"question": ["Q?"] * 2, "image": [Image.new("RGB", (3, 2))] * 2, "answer": [0, 1], "task": [1, 0]}
  )
  classes = datasets.ClassLabel(names=["no", "yes"])
  table = table.cast_column("image", datasets.Image()).cast_column("answer", classes)
  table.cast_column("task", datasets.ClassLabel(names=["near", "far"])).save_to_disk(tmp_path / "d")
  path = str(tmp_path / "d")
  assert gold(path, choices=("yes", "no")) == ["no", "yes"]
  assert taught(path) == ["no", "yes"]
  assert [q.task for q in pipeline.open_questions(HFConfig(path=path, choices=("yes", "no")))] == [
    "far",
    "near",
  ]
  question = HFConfig(path=path, templates={"question": "Is it {answer}?"}, choices=("yes", "no"))
  assert pipeline.open_questions(question)[0].question == "Is it no?"
  # Only he who asks for an index gets the number.
  assert gold(path, choices=("wrong", "right"), answers="index") == ["wrong", "right"]


def test_classes_deep_in_messages_and_in_files_of_text_are_names_too(tmp_path):
  text = datasets.Value("string")
  said = {"role": text, "content": datasets.ClassLabel(names=["no", "yes"])}
  talk = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "yes"}]
  features = datasets.Features({"messages": datasets.List(said)})
  datasets.Dataset.from_dict({"messages": [talk]}, features=features).to_parquet(tmp_path / "a.parquet")
  source = pipeline.open_source(HFConfig(path=str(tmp_path / "a.parquet")))
  assert source[0].turns == (Turn("no", "yes"),) and list(source.picture_counts(9)) == [0]
  folder = tmp_path / "d"
  folder.mkdir()
  (folder / "README.md").write_text(
    "---\ndataset_info:\n  features:\n  - {name: question, dtype: string}\n"
    "  - name: answer\n    dtype: {class_label: {names: {'0': 'no', '1': 'yes'}}}\n---\n"
  )
  for answer, read in (("1", "yes"), ('"yes"', "yes"), ('"0"', "no"), ("true", "true")):
    (folder / "train.jsonl").write_text(f'{{"question": "Q", "answer": {answer}}}')
    assert taught(str(folder)) == [read]
  (folder / "train.jsonl").write_text('{"question": "Q", "answer": 7}')
  with pytest.raises(UserError, match=r"train.jsonl:1, column 'answer': 7 is none of the classes no, yes"):
    taught(str(folder))
  (folder / "train.jsonl").unlink()
  (folder / "train.csv").write_text("question,answer\nQ,1\nQ,no\n")
  assert taught(str(folder)) == ["yes", "no"]


def test_short_floats_read_as_they_were_written(tmp_path):
  table = datasets.Dataset.from_dict(
    {"question": ["Q"] * 2, "answer": [1.1, 2.0], "choices": [[1.1, 2.0]] * 2}
  )
  short = datasets.Value("float32")
  table = table.cast_column("answer", short).cast_column("choices", datasets.List(short))
  table.to_parquet(tmp_path / "a.parquet")
  assert taught(str(tmp_path / "a.parquet"), columns={"choices": ""}) == ["1.1", "2.0"]
  assert (
    pipeline.open_source(HFConfig(path=str(tmp_path / "a.parquet")))[0]
    .turns[0]
    .prompt.endswith("(A) 1.1\n(B) 2.0")
  )


def test_a_folder_for_each_class_teaches_its_name(tmp_path):
  for name in ("cat", "dog"):
    (tmp_path / "d" / "train" / name).mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(tmp_path / "d" / "train" / name / "x.png")
  settings = dict(columns={"answer": "label"}, templates={"question": "What is it?"})
  assert taught(str(tmp_path / "d"), **settings) == ["cat", "dog"]


def test_options_that_are_numbers_leave_no_guess(tmp_path):
  for answers in ([2, 3], ["2", "3"]):
    path = lines(tmp_path, *({"choices": ["1", "2", "3", "4"], "answer": a} for a in answers))
    with pytest.raises(UserError, match=r"row 0.*the text of one and the index of another.*set `answers` to"):
      pipeline.open_questions(HFConfig(path=path))
    with pytest.raises(UserError, match="the text of one and the index of another"):
      pipeline.open_source(HFConfig(path=path))
    assert gold(path, answers="text") == ["2", "3"]
    assert gold(path, answers="index") == ["3", "4"]
    assert gold(path, answers="ordinal") == ["2", "3"]


@pytest.mark.parametrize("numbers", [(1, 0), ("1", "0"), (1.0, 0.0), ([1], [0])])
def test_1_and_0_for_yes_and_no_leave_no_guess(tmp_path, numbers):
  rows = [{"choices": ["Yes", "No"], "answer": number} for number in numbers]
  said = r"row 0, column 'answer': .*1.* may be the index of 'No' or mean the other.*answers='index'"
  for more in ([], [{"choices": ["Yes", "No"], "answer": "Yes"}]):
    with pytest.raises(UserError, match=said):
      gold(lines(tmp_path, *rows, *more))
  assert gold(lines(tmp_path, *rows), answers="index") == ["No", "Yes"]
  turned = [row | {"choices": ["No", "Yes"]} for row in rows]  # both readings say the same
  assert gold(lines(tmp_path, *turned)) == ["Yes", "No"]
  assert gold(lines(tmp_path, *rows, {"choices": ["a", "b", "c"], "answer": 2})) == ["No", "Yes", "c"]


def test_another_row_may_tell_how_all_are_written(tmp_path):
  count = {"choices": ["1", "2", "3", "4"], "answer": 2}
  assert gold(lines(tmp_path, count, {"choices": ["left", "right"], "answer": "left"})) == ["2", "left"]
  assert gold(lines(tmp_path, count, {"choices": ["5", "7"], "answer": 7})) == ["2", "7"]
  assert gold(lines(tmp_path, count, {"choices": ["left", "right"], "answer": 0})) == ["3", "left"]


def test_answers_that_may_count_from_1_are_said(tmp_path):
  rows = [{"choices": ["a cube", "a ball", "a cone"], "answer": answer} for answer in (1, 2, 1)]
  with pytest.warns(Note, match=r"none of the 3 answers that are numbers is 0.*set answers='ordinal'"):
    pipeline.open_questions(HFConfig(path=lines(tmp_path, *rows)))
  with pytest.warns(Note, match=r"none of the 2 answers that are numbers is 0"):
    assert gold(lines(tmp_path, *rows[:2], rows[0] | {"answer": "a cube"})) == ["a ball", "a cone", "a cube"]
  with pytest.raises(UserError, match=r"row 0.*3 is neither.*it may count from 1: answers='ordinal'"):
    pipeline.open_questions(HFConfig(path=lines(tmp_path, rows[0] | {"answer": 3})))
  assert gold(lines(tmp_path, *rows), answers="ordinal") == ["a cube", "a ball", "a cube"]
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert gold(lines(tmp_path, *rows, rows[0] | {"answer": 0}))[-1] == "a cube"


def test_what_stands_in_a_json_file_is_what_the_model_reads(tmp_path):
  options = ["2019-05-01", "2020-05-01"]
  path = lines(tmp_path, {"choices": options, "answer": options[1]})
  (question,) = pipeline.open_questions(HFConfig(path=path))
  assert question.prompt.endswith("(A) 2019-05-01\n(B) 2020-05-01") and question.answer == 1
  numbers = '"choices": [1.10, 1.2e3, 12345678901234567890123], "answer": 1.10'
  path = lines(tmp_path, f'{{"image": "a.png", "question": "Q?", {numbers}}}')
  (question,) = pipeline.open_questions(HFConfig(path=path))
  assert question.choices == ("1.10", "1.2e3", "12345678901234567890123") and question.answer == 0
  path = lines(tmp_path, *({"answer": a} for a in ("12:30", "007", True, None)))
  assert taught(path, size=3) == ["12:30", "007", "true"]
  with pytest.raises(UserError, match=r"row 3, column 'answer': the cell is empty"):
    taught(path)
  odd = ("-0", "Infinity", "9" * 5000)
  assert taught(lines(tmp_path, *(f'{{"question": "Q", "answer": {number}}}' for number in odd))) == [*odd]
  with pytest.raises(UserError, match=r"rows.jsonl:1: a text holds \\ud83d, half of a character"):
    taught(lines(tmp_path, {"answer": "\ud83d"}))
  assert taught(lines(tmp_path, {"answer": "\U0001f600"})) == ["\U0001f600"]
  # Rows of one file need not be of one type.
  assert taught(lines(tmp_path, {"answer": 3}, {"answer": "three"}, '{"question": "Q", "answer": 2.50}')) == [
    "3",
    "three",
    "2.50",
  ]
  filled = dict(templates={"question": "{price} on {day}?"})
  path = lines(tmp_path, '{"price": 4.00, "day": "2020-01-02", "answer": "a"}')
  assert pipeline.open_source(HFConfig(path=path, **filled))[0].turns[0].prompt == "4.00 on 2020-01-02?"


def test_metadata_of_a_folder_of_images_is_read_as_written(tmp_path):
  tmp_path = tmp_path / "d"
  tmp_path.mkdir()
  Image.new("RGB", (3, 2)).save(tmp_path / "x.png")
  (tmp_path / "metadata.jsonl").write_text(
    '{"file_name": "x.png", "question": "When?", "answer": "2019-05-01"}'
  )
  example = pipeline.open_source(HFConfig(path=str(tmp_path)))[0]
  assert example.turns == (Turn("When?", "2019-05-01"),) and example.files == ("x.png",)
  (tmp_path / "metadata.jsonl").unlink()
  (tmp_path / "metadata.csv").write_text("file_name,question,answer\nx.png,Which?,007\n")
  assert taught(str(tmp_path)) == ["007"]


def test_a_folder_of_csv_files_is_read_as_written(tmp_path):
  tmp_path = tmp_path / "d"
  tmp_path.mkdir()
  (tmp_path / "train.csv").write_text("question,answer\nWhich?,007\nWhen?,2019-05-01\nWhat?,None\n")
  assert taught(str(tmp_path)) == ["007", "2019-05-01", "None"]
  assert taught(str(tmp_path), split="train[1:]") == ["2019-05-01", "None"]


def test_a_column_of_times_is_no_text(tmp_path):
  table = datasets.Dataset.from_dict({"question": ["When?"], "answer": ["2019-05-01"]})
  table.cast_column("answer", datasets.Value("timestamp[s]")).to_parquet(tmp_path / "a.parquet")
  with pytest.raises(
    UserError, match=r"row 0, column 'answer': expected a text, got datetime.*a time; write it"
  ):
    taught(str(tmp_path / "a.parquet"))


def test_of_several_right_answers_the_first_is_taught_and_any_counts(tmp_path):
  assert taught(lines(tmp_path, {"answer": ["14", "fourteen"]})) == ["14"]
  choices = ["twelve", "14", "15"]
  assert gold(lines(tmp_path, {"choices": choices, "answer": ["fourteen", "14"]})) == ["14"]
  with pytest.raises(UserError, match=r"row 0.*names no single one of"):
    pipeline.open_questions(HFConfig(path=lines(tmp_path, {"choices": choices, "answer": ["14", "15"]})))


def test_options_may_be_the_text_of_a_list_or_stand_by_letters(tmp_path):
  written = [
    """['it is "left"', "the cat's"]""",
    '["it is \\"left\\"", "the cat\'s"]',
    {"A": 'it is "left"', "B": "the cat's", "C": None},
    {"label": ["B", "A"], "text": ["the cat's", 'it is "left"']},
  ]
  for options in written:
    (question,) = pipeline.open_questions(HFConfig(path=lines(tmp_path, {"choices": options, "answer": "B"})))
    assert question.choices == ('it is "left"', "the cat's") and question.answer == 1
  assert gold(lines(tmp_path, {"choices": "[1.10, 7]", "answer": "A"})) == ["1.10"]
  assert gold(lines(tmp_path, {"choices": "[1.10, '7',]", "answer": "A"})) == ["1.10"]
  table = datasets.Dataset.from_dict(
    {
      "question": ["Q?"],
      "image": [Image.new("RGB", (3, 2))],
      "options": [{"A": "x", "B": "y"}],
      "answer": ["y"],
    }
  )
  table.save_to_disk(tmp_path / "d")
  assert gold(str(tmp_path / "d"), columns={"choices": "options"}) == ["y"]


@pytest.mark.parametrize(
  "options",
  ["left, right", "[left, right]", {"A": "x", "C": "y"}, {"label": ["A", "A"], "text": ["x", "y"]}, 7],
)
def test_options_that_are_no_list_are_refused_by_name(tmp_path, options):
  path = lines(tmp_path, {"choices": options, "answer": "A"})
  with pytest.raises(
    UserError, match=r"row 0, column 'choices': expected 2 to 26 choices \(a list, the text"
  ):
    pipeline.open_questions(HFConfig(path=path))


def test_ids_that_are_lists_or_missing_are_ids_all_the_same(tmp_path):
  rows = [{"choices": ["a", "b"], "answer": "a", "id": name} for name in (["x", 1], None, None, {"k": 1})]
  assert gold(lines(tmp_path, *rows)) == ["a"] * 4
  with pytest.raises(UserError, match=r"row 4, column 'id': \['x', 1\] stands already in row 0"):
    gold(lines(tmp_path, *rows, rows[0]))


@pytest.mark.parametrize(
  ("answers", "choices", "expected"),
  [
    (["(B)", "a"], ["x", "y"], [1, 0]),
    (["y", "A"], ["x", "y"], [1, 0]),  # each row by what alone fits it
    ([1.0, 0.0], ["x", "y"], [1, 0]),  # as pandas writes whole numbers beside empty cells
    (["1", "0"], ["x", "y"], [1, 0]),
  ],
)
def test_readings_that_are_alone(answers, choices, expected):
  reader = Answers("", stated=False)
  reader.learn((answer, choices, str) for answer in answers)
  assert [reader.index(answer, choices, "here") for answer in answers] == expected


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv"])
def test_a_file_without_rows_is_said_to_be_one(tmp_path, name):
  (tmp_path / name).write_text("question,answer\n" if name == "e.csv" else "\n")
  for opened in (pipeline.open_source, pipeline.open_questions):
    with pytest.raises(UserError, match=f"{name}: holds no rows"):
      opened(HFConfig(path=str(tmp_path / name)))
