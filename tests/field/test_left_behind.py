"""Pointers of git-lfs, a file of one object, rows beside pictures: what is left of somebody's folder."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spatialvlm.config import CVBenchConfig, HFConfig, LlavaConfig, read_json
from spatialvlm.data.sources.cvbench_files import write_cvbench
from spatialvlm.data.sources.registry import open_questions, open_source
from spatialvlm.hub import tensors
from spatialvlm.hub.gguf import file as gguf_file
from spatialvlm.processing import processor_files
from spatialvlm.types import Note, Question, UserError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
TALK = [{"user": "What?", "assistant": "Grey."}]
ROW = {"image": "0.png", "conversations": TALK}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def pictures(folder, count=3):
  folder.mkdir(exist_ok=True, parents=True)
  for i in range(count):
    Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "folder/a.parquet"])
def test_pointers_in_place_of_rows(tmp_path, name):
  file = tmp_path / name
  file.parent.mkdir(exist_ok=True)
  file.write_bytes(POINTER)
  path = file.parent if "folder" in name else file
  kinds = [HFConfig, *([LlavaConfig] if "json" in name else [CVBenchConfig] if "parquet" in name else [])]
  for kind in kinds:
    with pytest.raises(UserError, match=r"a\.\w+: a pointer of git-lfs .*'git lfs pull'"):
      open_source(kind(path=str(path)))


def test_pointers_in_place_of_saved_rows_and_of_pictures(tmp_path):
  saved = tmp_path / "saved"
  datasets.Dataset.from_list([{"messages": TALK}]).save_to_disk(str(saved))
  (file,) = saved.glob("*.arrow")
  file.write_bytes(POINTER)
  with pytest.raises(UserError, match=r"\.arrow: a pointer of git-lfs"):
    open_source(HFConfig(path=str(saved)))
  pictures(tmp_path)
  (tmp_path / "0.png").write_bytes(POINTER)
  (tmp_path / "a.jsonl").write_text(json.dumps(ROW))
  for kind in (LlavaConfig, HFConfig):
    with pytest.raises(UserError, match=r"0\.png\)?: a pointer of git-lfs"):
      open_source(kind(path=str(tmp_path / "a.jsonl")))[0]


def test_pointers_in_place_of_weights_and_words(tmp_path):
  for name, read in (
    ("model.safetensors", tensors.read_header),
    ("model.gguf", gguf_file.read_header),
    ("config.json", read_json),
  ):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=f"{name}: a pointer of git-lfs"):
      read(tmp_path / name)
  for name, read in (
    ("tokenizer.json", processor_files.tokenizer),
    ("chat_template.jinja", lambda folder: processor_files.template(folder, {}, {})),
  ):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=f"{name}: a pointer of git-lfs"):
      read(tmp_path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
  ("whole", "said"),
  [
    (ROW, "one record alone; put it in brackets"),
    ({"info": {}, "data": [ROW, ROW]}, r"lists under 'data' \(2\); write the list of records alone"),
    ({"0": ROW, "1": ROW}, "one object of 2 objects by name; write these alone, as a list"),
  ],
)
def test_a_file_that_is_one_object(tmp_path, name, whole, said):
  pictures(tmp_path)
  (tmp_path / name).write_text(json.dumps(whole, indent=2))
  for kind in (LlavaConfig, HFConfig):
    with pytest.raises(UserError, match=f"expected a list of records, or one a line, but it is .*{said}"):
      open_source(kind(path=str(tmp_path / name)))


def test_one_line_of_lines_is_one_record(tmp_path):
  pictures(tmp_path)
  (tmp_path / "a.jsonl").write_text("\n" + json.dumps(ROW))
  assert len(open_source(LlavaConfig(path=str(tmp_path / "a.jsonl")))) == 1


def test_rows_beside_pictures_are_not_passed_by(tmp_path):
  pictures(tmp_path / "images")
  rows = [{"image": f"images/{i}.png", "conversations": TALK} for i in range(3)]
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  with pytest.raises(UserError, match=r"holds pictures and rows.jsonl, .* files='rows.jsonl'"):
    open_source(HFConfig(path=str(tmp_path)))
  source = open_source(HFConfig(path=str(tmp_path), files="rows.jsonl"))
  assert len(source) == 3 and source[2].images[0][0, 0, 0] == 40


def test_rows_beside_a_folder_for_each_class_are_noted(tmp_path):
  for kind in ("cat", "dog"):
    pictures(tmp_path / kind)
  settings = dict(columns={"answer": "label"}, templates={"question": "What?"})
  for name, text in (("classes.json", '{"cat": 0}'), (".cache/a.json", "[]"), ("dataset_infos.json", "{}")):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  with pytest.warns(Note, match=r": classes.json not read beside what was; .* files='classes.json'"):
    source = open_source(HFConfig(path=str(tmp_path), **settings))
  assert [example.turns[0].answer for example in source] == ["cat"] * 3 + ["dog"] * 3


def test_a_picture_that_cannot_be_read_is_named_by_its_file(tmp_path):
  pictures(tmp_path)
  (tmp_path / "1.png").write_bytes(b"gone wrong")
  rows = [{"image": f"{i}.png", "conversations": TALK} for i in range(3)]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  said = r"row 1, column 'image', image 0 \(\S*/1\.png\): cannot be read as an image"
  with pytest.raises(UserError, match=said):
    open_source(HFConfig(path=str(tmp_path / "a.jsonl")))[1]
  cells = [{"bytes": b"gone wrong", "path": "photos/x.jpg"}, {"bytes": b"gone wrong", "path": None}]
  saved = [{"image": cell, "question": "Q", "choices": ["a", "b"], "answer": "a"} for cell in cells]
  datasets.Dataset.from_list(saved).save_to_disk(str(tmp_path / "saved"))
  questions = open_questions(HFConfig(path=str(tmp_path / "saved")))
  for index, name in enumerate((r" \(photos/x\.jpg\)", "")):
    with pytest.raises(UserError, match=f"row {index}, column 'image', image 0{name}: cannot be read as"):
      questions.unopened(index)


def test_a_picture_that_a_row_of_cvbench_names_is_named_too(tmp_path):
  file, image = tmp_path / "x.parquet", np.zeros((4, 4, 3), np.uint8)
  asked = dict(type="2D", task="Count", images=(image,), question="Q", prompt="Q?", source="COCO")
  write_cvbench(file, [Question(idx=0, choices=("1", "2"), answer=1, **asked)])
  table = pq.read_table(file)
  rows = table.to_pylist()
  rows[0]["image"] = {"path": "photos/x.png"}
  pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "x.png").write_bytes(POINTER)
  with pytest.raises(UserError, match=r"row 0, column 'image' \(\S*photos/x.png\): a pointer of git-lfs"):
    open_questions(CVBenchConfig(path=str(file))).unopened(0)
