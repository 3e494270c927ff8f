"""Copies of CV-Bench's parquet that went through other tools."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spatialvlm.config import ScenesConfig
from spatialvlm.data.sources import registry
from spatialvlm.data.sources.cvbench import open_cvbench
from spatialvlm.data.sources.cvbench_files import write_cvbench
from spatialvlm.evaluation import records
from spatialvlm.evaluation.scoring import baselines
from spatialvlm.types import Note, Question, UserError, choice_prompt


def question(idx, text="How many?", **fields):
  image = np.full((4, 6, 3), idx, np.uint8)
  usual = dict(idx=idx, type="2D", task="Count", images=(image,), question=text, choices=("1", "2"), answer=1)
  usual |= dict(prompt=choice_prompt(text, ("1", "2")), source="ADE20K", target_class="bed")
  return Question(**usual | fields)


@pytest.fixture
def file(tmp_path):
  boxes = ((1.0, 2.0, 3.0, 4.0),)
  write_cvbench(tmp_path / "x.parquet", [question(0), question(1, target_size=400, bbox=boxes)])
  return tmp_path / "x.parquet"


def test_a_copy_that_pandas_wrote_is_the_same(file):
  before = list(open_cvbench(str(file)))
  frame = pd.read_parquet(file)
  frame["type"] = frame["type"].astype("category")
  frame.to_parquet(file)
  kinds = {field.name: str(field.type) for field in pq.read_schema(file)}
  assert kinds["target_size"] == "double" and kinds["type"].startswith("dictionary")
  after = list(open_cvbench(str(file)))
  for one, other in zip(before, after, strict=True):
    assert one.prompt == other.prompt and one.bbox == other.bbox and one.type == other.type == "2D"
    assert one.target_size == other.target_size and type(one.target_size) is type(other.target_size)
    np.testing.assert_array_equal(one.images[0], other.images[0])


@pytest.mark.parametrize("cells", [["small", "large"], [0.5, 1.5], None])
def test_a_column_that_no_score_reads_stops_nothing(file, cells):
  table = pq.read_table(file)
  place = table.column_names.index("target_size")
  table = (
    table.remove_column(place) if cells is None else table.set_column(place, "target_size", pa.array(cells))
  )
  pq.write_table(table, file)
  if cells == [0.5, 1.5]:
    assert [q.target_size for q in open_cvbench(str(file))] == [None, None]
    return
  with pytest.warns(Note, match="column 'target_size' is .*; no score needs it"):
    assert [q.target_size for q in open_cvbench(str(file))] == [None, None]


def changed(file, **columns):
  """The file with other cells, (values, type), in some columns, or without them (None)."""
  table = pq.read_table(file)
  for name, cells in columns.items():
    place = table.column_names.index(name)
    table = table.remove_column(place)
    table = table if cells is None else table.add_column(place, name, pa.array(*cells))
  pq.write_table(table, file)
  return str(file)


def test_without_names_of_files_a_picture_goes_by_its_pixels(tmp_path):
  asked = [question(i, source_filename="photo.jpg", filename="a.jpg") for i in (0, 1)]
  write_cvbench(tmp_path / "x.parquet", [*asked, dataclasses.replace(asked[1], idx=2)])
  before = [records.image_name(q) for q in open_cvbench(str(tmp_path / "x.parquet"))]
  assert len(set(before)) == 1
  path = changed(tmp_path / "x.parquet", source_filename=None, filename=None)
  with pytest.warns(Note) as notes:
    read = list(open_cvbench(path))
  said = [str(note.message) for note in notes]
  assert len(said) == 2 and "column 'filename' is missing; no score needs it" in said[0]
  assert "column 'source_filename' is missing; photos are told apart by their pixels" in said[1]
  names = [records.image_name(q) for q in read]
  assert names[0] != names[1] == names[2] and {q.filename for q in read} == {""}
  some = (["photo.jpg", None, "photo.jpg"], pa.string())
  write_cvbench(path, [*asked, dataclasses.replace(asked[1], idx=2)])
  with pytest.warns(Note, match=r"'source_filename' is empty in 1 of its rows, row 1 first; photos are told"):
    read = list(open_cvbench(changed(path, source_filename=some)))
  assert [q.source_filename for q in read] == ["photo.jpg", "", "photo.jpg"]


BOX = [[1.0, 2.0, 3.0, 4.0]]
AS_READ = (None, ((1.0, 2.0, 3.0, 4.0),))


@pytest.mark.parametrize(
  "kind",
  [
    pa.list_(pa.list_(pa.float64())),
    pa.list_(pa.list_(pa.int64())),
    pa.large_list(pa.list_(pa.float32(), 4)),
  ],
)
def test_boxes_in_other_forms_of_lists(file, kind):
  assert tuple(q.bbox for q in open_cvbench(changed(file, bbox=([None, BOX], kind)))) == AS_READ


def test_boxes_that_cannot_be_read_are_left_out_and_named(file):
  left_out = "the rules of two dimensions that read boxes are left out"
  with pytest.warns(Note, match=f"column 'bbox' is string, not list<list<float>>; {left_out}"):
    read = list(open_cvbench(changed(file, bbox=(["", str(BOX)], pa.string()))))
  assert [q.bbox for q in read] == [None, None]
  for cell in ([[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0, None]], [[1.0, 2.0, 3.0, float("nan")]], [None, *BOX]):
    broken = changed(file, bbox=([BOX, cell], pa.list_(pa.list_(pa.float64()))))
    with pytest.warns(Note, match=f"'bbox' holds no boxes .* in 1 of its rows, row 1 first; {left_out}"):
      assert tuple(q.bbox for q in open_cvbench(broken)) == AS_READ[::-1]
  with pytest.warns(Note, match=f"column 'bbox' is missing; {left_out}"):
    assert [q.bbox for q in open_cvbench(changed(file, bbox=None))] == [None, None]


def test_rules_say_nothing_without_boxes(tmp_path):
  scenes = registry.open_questions(ScenesConfig(size=8, tasks={"Depth": 1.0}))
  write_cvbench(tmp_path / "x.parquet", (scenes[i] for i in range(8)))
  assert all(map(baselines.rule_letters, open_cvbench(str(tmp_path / "x.parquet"))))
  one = ([BOX] * 8, pa.list_(pa.list_(pa.float32())))
  assert not any(map(baselines.rule_letters, open_cvbench(changed(tmp_path / "x.parquet", bbox=one))))
  with pytest.warns(Note, match="'bbox' is missing"):
    assert not any(map(baselines.rule_letters, open_cvbench(changed(tmp_path / "x.parquet", bbox=None))))


def test_marks_in_a_question_are_counted_before_the_first_answer(tmp_path):
  one, two = "Where is it in <image>?", "Is <image> like <image>?"
  write_cvbench(tmp_path / "one.parquet", [question(0), question(1, one)])
  assert open_cvbench(str(tmp_path / "one.parquet"))[1].question == one
  write_cvbench(tmp_path / "two.parquet", [question(0), question(1, two)])
  with pytest.raises(UserError, match=r"two.parquet, row 1, column 'prompt': 2 <image> marks for one image"):
    open_cvbench(str(tmp_path / "two.parquet"))
