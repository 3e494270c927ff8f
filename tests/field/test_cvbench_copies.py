"""Copies of CV-Bench's parquet that went through other tools."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spatialvlm.data.sources.cvbench import open_cvbench
from spatialvlm.data.sources.cvbench_files import write_cvbench
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


def test_marks_in_a_question_are_counted_before_the_first_answer(tmp_path):
  one, two = "Where is it in <image>?", "Is <image> like <image>?"
  write_cvbench(tmp_path / "one.parquet", [question(0), question(1, one)])
  assert open_cvbench(str(tmp_path / "one.parquet"))[1].question == one
  write_cvbench(tmp_path / "two.parquet", [question(0), question(1, two)])
  with pytest.raises(UserError, match=r"two.parquet, row 1, column 'prompt': 2 <image> marks for one image"):
    open_cvbench(str(tmp_path / "two.parquet"))
