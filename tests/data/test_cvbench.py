"""The CV-Bench reader and writer, against pyarrow and `datasets`."""

import dataclasses
import hashlib
import io
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spatialvlm.config import CVBenchConfig, DataConfig
from spatialvlm.data import pipeline
from spatialvlm.data.sources import cvbench
from spatialvlm.types import Question, UserError, choice_prompt


def question(idx, count=2, **kwargs):
  image = np.random.default_rng(idx).integers(0, 256, (4, 6, 3), np.uint8)
  choices = tuple(str(i) for i in range(count))
  text = "How many cubes are in the image?"
  fields = dict(
    idx=idx, type="2D", task="Count", images=(image,), question=text, choices=choices, answer=idx % count,
    prompt=choice_prompt(text, choices), source="ADE20K", source_dataset="ADE20K Validation Set",
    filename=f"img/{idx}.png", source_filename="x.jpg",
  )  # fmt: skip
  return Question(**(fields | kwargs))


QUESTIONS = [
  question(3, 6),
  question(1, 2, task="Depth", type="3D", target_class="bed", target_size=400, bbox=((1.0, 2.0, 3.5, 4.0),)),
  question(2, 4),
]


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "test_2d.parquet"
  cvbench.write_cvbench(path, QUESTIONS, row_group=2)
  return path


def rows_of(path):
  return pq.read_table(path).to_pylist()


def rewrite(path, change):
  """Writes the file again after `change(columns)`, a dict of name -> (list, type)."""
  table = pq.read_table(path)
  columns = {f.name: (table.column(f.name).to_pylist(), f.type) for f in table.schema}
  change(columns)
  pq.write_table(pa.table({name: pa.array(values, kind) for name, (values, kind) in columns.items()}), path)


def same(left, right):
  for name in Question.__dataclass_fields__:
    a, b = getattr(left, name), getattr(right, name)
    assert np.array_equal(a, b) if name == "images" else a == b, name


def test_what_is_written_is_read_back(file):
  read = cvbench.open_cvbench(str(file))
  assert len(read) == 3 and pq.ParquetFile(file).metadata.num_row_groups == 2
  for left, right in zip(read, QUESTIONS, strict=True):
    same(left, right)
  same(read[-1], QUESTIONS[-1])
  assert read.row_order == hashlib.sha1(b"3,1,2").hexdigest()
  assert list(file.parent.iterdir()) == [file]


def test_the_prompt_is_cvbenchs():
  assert choice_prompt("How many?", ("3", "2")) == (
    "How many? Select from the following choices.\n(A) 3\n(B) 2"
  )
  assert choice_prompt("Which?", [str(i) for i in range(26)]).endswith("\n(Z) 25")
  with pytest.raises(UserError, match="27 options, but letters run from A to Z"):
    choice_prompt("Which?", [str(i) for i in range(27)])


def test_the_file_has_the_hub_schema_and_datasets_decodes_it(file, tmp_path):
  import datasets

  rows = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "c"))
  assert isinstance(rows.features["image"], datasets.Image)
  assert rows[0]["answer"] == "(D)" and rows[0]["target_class"] is None
  assert rows[1]["bbox"] == [[1.0, 2.0, 3.5, 4.0]]
  np.testing.assert_array_equal(np.asarray(rows[2]["image"]), QUESTIONS[2].images[0])
  kinds = {f.name: str(f.type) for f in pq.read_schema(file)}
  assert kinds["idx"] == kinds["target_size"] == "int32" and kinds["bbox"].endswith("float>>")


def test_a_folder_is_read_in_order_and_split_by_name(file, tmp_path):
  cvbench.write_cvbench(tmp_path / "test_3d.parquet", [question(9)])
  assert [q.idx for q in cvbench.open_cvbench(str(tmp_path))] == [3, 1, 2, 9]
  assert [q.idx for q in cvbench.open_cvbench(str(tmp_path), size=2)] == [3, 1]
  with pytest.raises(UserError, match=r"no file of split 'train'; there is test: set `split`"):
    cvbench.open_cvbench(str(tmp_path), split="train")
  plain = tmp_path / "plain"
  cvbench.write_cvbench(plain / "mine.parquet", [question(9)])
  assert len(cvbench.open_cvbench(str(plain), split="train")) == 1


def test_images_are_read_row_group_by_row_group_within_a_bound(file, monkeypatch):
  monkeypatch.setattr(cvbench, "_CACHED_BYTES", 1)
  read = cvbench.open_cvbench(str(file))
  groups = []
  original = cvbench.File.read_images
  monkeypatch.setattr(
    cvbench.File, "read_images", lambda self, group: (groups.append(group), original(self, group))[1]
  )
  _ = [read[i] for i in (0, 1, 2, 2, 0)]
  assert groups == [0, 1, 0]


def test_images_may_be_paths_beside_the_file(file, tmp_path):
  Image.fromarray(QUESTIONS[0].images[0]).save(tmp_path / "a.png")

  def change(columns):
    columns["image"][0][0] = {"bytes": None, "path": "a.png"}

  rewrite(file, change)
  read = cvbench.open_cvbench(str(file))
  np.testing.assert_array_equal(read[0].images[0], QUESTIONS[0].images[0])
  rewrite(file, _set("image", 1, {"bytes": None, "path": "gone.png"}))
  with pytest.raises(UserError, match="row 1, column 'image': no such image file"):
    cvbench.open_cvbench(str(file))
  rewrite(file, _set("image", 1, None))
  with pytest.raises(UserError, match="row 1, column 'image': the cell holds neither"):
    cvbench.open_cvbench(str(file))


def test_jpeg_as_on_the_hub_and_corrupt_images(file):
  buffer = io.BytesIO()
  Image.fromarray(QUESTIONS[0].images[0]).save(buffer, "JPEG")

  def change(columns):
    columns["image"][0][0]["bytes"] = buffer.getvalue()
    columns["image"][0][1]["bytes"] = buffer.getvalue()[:40]
    columns["image"][0][2]["bytes"] = b""

  rewrite(file, change)
  read = cvbench.open_cvbench(str(file))
  assert read[0].images[0].shape == (4, 6, 3)
  for row in (1, 2):
    with pytest.raises(UserError, match=f"test_2d.parquet, row {row}, column 'image'"):
      read[row]


def _drop(name):
  return lambda columns: columns.pop(name)


def _set(name, row, value):
  def change(columns):
    columns[name][0][row] = value

  return change


def _retype(name, values, kind):
  return lambda columns: columns.update({name: (values, kind)})


@pytest.mark.parametrize(
  "change, message",
  [
    (_drop("answer"), "column 'answer' of CV-Bench's schema is missing"),
    (_drop("source_dataset"), "column 'source_dataset' of"),
    (_retype("idx", ["a", "b", "c"], pa.string()), "column 'idx': expected int32, got string"),
    (_retype("choices", ["a", "b", "c"], pa.string()), "column 'choices': expected list<string>, got string"),
    (_retype("image", ["a", "b", "c"], pa.string()), "column 'image': expected struct"),
    (_set("answer", 1, "(C)"), r"row 1, column 'answer': '\(C\)' is not one of \(A\) to \(B\)"),
    (_set("answer", 0, "D"), r"row 0, column 'answer': 'D' is not one of"),
    (_set("answer", 0, None), "row 0, column 'answer': the cell is empty"),
    (_set("prompt", 2, None), "row 2, column 'prompt': the cell is empty"),
    (_set("choices", 2, ["1"]), "row 2, column 'choices': expected 2 to 26 texts"),
    (_set("choices", 2, ["1", None]), "row 2, column 'choices'"),
    (_set("idx", 2, 3), r"row 2, column 'idx': 3 stands already in .*row 0"),
  ],
)
def test_broken_files_are_refused_by_row_and_column(file, change, message):
  rewrite(file, change)
  with pytest.raises(UserError, match=f"test_2d.parquet.*{message}"):
    cvbench.open_cvbench(str(file))


def test_a_file_without_rows_is_no_source_of_training(tmp_path):
  cvbench.write_cvbench(tmp_path / "none.parquet", [])
  assert len(cvbench.open_cvbench(str(tmp_path / "none.parquet"))) == 0
  sources = {"mine": CVBenchConfig(path=str(tmp_path / "none.parquet"))}
  with pytest.raises(UserError, match="data source 'mine' holds no example"):
    pipeline.training_mixture(DataConfig(sources=sources))


def test_columns_of_nothing_but_nulls_may_be_of_null_type(file):
  rewrite(file, _retype("target_class", [None] * 3, pa.null()))
  assert cvbench.open_cvbench(str(file))[1].target_class is None


def test_what_is_no_parquet_and_what_is_not_there(file, tmp_path):
  file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(UserError, match="cannot be read as parquet"):
    cvbench.open_cvbench(str(file))
  with pytest.raises(UserError, match="no such file or folder"):
    cvbench.open_cvbench(str(tmp_path / "no.parquet"))
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="holds no parquet file"):
    cvbench.open_cvbench(str(tmp_path / "empty"))


def test_without_network_the_hub_is_a_one_line_error():
  with pytest.raises(UserError, match="'nyu-visionx/CV-Bench' is neither a local path nor readable") as error:
    cvbench.open_cvbench()
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match="'someone/else'"):
    cvbench.open_cvbench("someone/else")


@pytest.mark.parametrize(
  ("ids", "message"),
  [
    (range(2638), ""),
    ([*range(17), *range(18, 2638)], "1 of 2638 questions are missing, idx 17 first"),
    ([*range(2637), 9999], "1 of 2638 questions are missing, idx 2637 first"),
    (range(2640), "2 questions too many, idx 2638 first"),
    ([*range(5), 6, 5, *range(7, 2638)], "all questions, but in another order: row 5 holds idx 6"),
  ],
)
def test_what_is_unlike_the_pinned_revision_is_named(ids, message):
  assert cvbench.unlike_the_pinned(ids) == message


@pytest.mark.parametrize(
  ("ids", "different"),
  [
    ((0, 1, 2, 3, 4), ""),
    ((1, 0, 2, 3, 4), "another order: row 0 holds idx 1"),
    ((0, 1, 2, 4), "1 of 5 questions are missing, idx 3 first"),
    ((0, 1, 2, 3, 4, 5), "1 questions too many, idx 5 first"),
    ((0, 1, 2, 3, 77), "1 of 5 questions are missing, idx 4 first"),
    ((1, 2, 3, 4, 5), "1 of 5 questions are missing, idx 0 first"),
  ],
)
def test_a_damaged_copy_is_refused(tmp_path, monkeypatch, ids, different):
  assert hashlib.sha1(",".join(map(str, range(cvbench.QUESTIONS))).encode()).hexdigest() == cvbench.ROW_ORDER
  monkeypatch.setattr(cvbench, "QUESTIONS", 5)
  path = tmp_path / "t.parquet"
  sources = itertools.cycle(cvbench.SOURCES)
  cvbench.write_cvbench(path, [dataclasses.replace(question(i), source=next(sources)) for i in ids])
  if not different:
    assert cvbench.open_cvbench(str(path)).note == ""
    return
  with pytest.raises(UserError, match=f"{different}; get the files again, or set data.partial=true") as error:
    cvbench.open_cvbench(str(path))
  assert str(error.value).startswith(str(path))
  assert different in cvbench.open_cvbench(str(path), partial=True).note
  config = CVBenchConfig(path=str(path), split="test", partial=True)
  assert len(pipeline.open_questions(config)) == len(ids)


def test_a_sample_is_noted_and_another_benchmark_is_not(tmp_path, monkeypatch):
  monkeypatch.setattr(cvbench, "QUESTIONS", 8)
  path = tmp_path / "t.parquet"
  for ids, sources, size, note in (
    ((0, 1, 2), cvbench.SOURCES, 0, "5 of 8 questions are missing, idx 3 first"),
    ((1, 0, 2), cvbench.SOURCES, 2, ""),  # a part is what `size` asks for
    ((0, 1, 2), ("ADE20K", "COCO", "COCO"), 0, ""),  # one of the two files
    ((0, 1, 2), ("ours", "ours", "ours"), 0, ""),
  ):
    rows = [dataclasses.replace(question(i), source=s) for i, s in zip(ids, sources, strict=True)]
    cvbench.write_cvbench(path, rows)
    found = cvbench.open_cvbench(str(path), size=size).note
    assert found == (f"not CV-Bench at {cvbench.HUB_REVISION[:8]}: {note}" if note else "")


def test_content_follows_texts_and_pixels(tmp_path):
  path, first = tmp_path / "t.parquet", question(1)
  turned = dataclasses.replace(first, images=(first.images[0][:, ::-1],))
  contents = []
  for asked in (first, first, dataclasses.replace(first, answer=0), turned):
    cvbench.write_cvbench(path, [asked])
    contents.append(cvbench.open_cvbench(str(path)).content)
  assert contents[0] == contents[1] and len(set(contents)) == 3 and len(contents[0]) == 64


def test_the_row_order_of_the_pinned_revision_is_checked(file, monkeypatch):
  monkeypatch.setattr(cvbench, "_download", lambda *a: [file])
  with pytest.raises(UserError, match="row order"):
    cvbench.open_cvbench()
  monkeypatch.setattr(cvbench, "ROW_ORDER", hashlib.sha1(b"3,1,2").hexdigest())
  assert len(cvbench.open_cvbench(size=2)) == 2
  monkeypatch.setattr(cvbench, "ROW_ORDER", "")
  assert len(cvbench.open_cvbench(revision="0" * 40)) == 3


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
  path = tmp_path / "a.parquet"
  cvbench.write_cvbench(path, QUESTIONS[:1])
  before = path.read_bytes()

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
  with pytest.raises(UserError, match="No space left on device"):
    cvbench.write_cvbench(path, QUESTIONS)
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
  with pytest.raises(UserError, match="cannot be written"):
    cvbench.write_cvbench(path / "below-a-file.parquet", QUESTIONS)


def test_several_images_have_no_place_in_the_schema(tmp_path):
  one = question(1)
  with pytest.raises(UserError, match="question 1: 2 images, where CV-Bench's schema has one"):
    cvbench.write_cvbench(tmp_path / "x.parquet", [dataclasses.replace(one, images=one.images * 2)])
  assert not list(tmp_path.iterdir())


def test_it_serves_as_questions_and_as_training_examples(file):
  config = CVBenchConfig(path=str(file), split="test")
  assert [q.idx for q in pipeline.open_questions(config)] == [3, 1, 2]
  example = pipeline.open_source(config)[0]
  assert example.turns[0].answer == "D" and example.turns[0].prompt == QUESTIONS[0].prompt
