"""One row in many is broken: it ends the run, or is left out and named, and resuming keeps the bits."""

import json

import datasets
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spatialvlm.config import CVBenchConfig, HFConfig, LlavaConfig
from spatialvlm.data import pipeline
from spatialvlm.data.sources.cvbench_files import write_cvbench
from spatialvlm.types import Note, Question, UserError
from tests.data.fakes import FakeProcessor, config

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Grey."}]


@pytest.fixture
def source(tmp_path):
  """Eight pictures, the third of them cut short, the fourth no picture."""
  rows = []
  for i in range(8):
    noise = np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)
    noise[:2, :2] = 10 * i
    Image.fromarray(noise).save(tmp_path / f"{i}.png")
    rows.append({"id": f"r{i}", "image": f"{i}.png", "conversations": TALK})
  (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:900])
  (tmp_path / "3.png").write_bytes(b"gone wrong")
  (tmp_path / "rows.json").write_text(json.dumps(rows))
  return LlavaConfig(path=str(tmp_path / "rows.json"))


def stream(source, **settings):
  settings = config(sources={"mine": source}, **({"shuffle": False} | settings))
  return pipeline.training_stream(settings, FakeProcessor(), 3)


def test_a_cut_picture_ends_the_run_by_name_unless_it_may_be_left_out(source):
  batches = stream(source)
  with pytest.raises(UserError, match=r"row 2, image 2.png: cannot be read as an image"):
    next(batches)


def test_rows_that_are_left_out_are_named_and_the_next_good_one_stands_there(source):
  batches = stream(source, bad_rows="skip")
  infos = [next(batches)[1] for _ in range(3)]
  assert [list(info.ids) for info in infos] == [
    ["mine[0] (r0)", "mine[1] (r1)", "mine[4] (r4)"],
    ["mine[4] (r4)", "mine[4] (r4)", "mine[5] (r5)"],
    ["mine[6] (r6)", "mine[7] (r7)", "mine[0] (r0)"],
  ]
  assert list(infos[0].skipped) == ["mine[2]", "mine[3]"] and not infos[2].skipped
  assert "2.png: cannot be read as an image" in infos[0].skipped["mine[2]"]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_interrupted_stream_goes_on_with_the_same_bits(source, threads):
  settings = dict(bad_rows="skip", shuffle=True, workers=threads, prefetch=threads)
  whole, half = stream(source, **settings), stream(source, **settings)
  for _ in range(2):
    next(whole), next(half)
  again = stream(source, **settings)
  again.set_state(json.loads(json.dumps(half.get_state())))
  seen = set()
  for _ in range(6):
    (batch, info), (other, same) = next(whole), next(again)
    assert info.ids == same.ids and info.skipped == same.skipped
    assert all(map(np.array_equal, jax.tree.leaves(batch), jax.tree.leaves(other)))
    seen |= set(info.skipped)
  assert seen == {"mine[2]", "mine[3]"}


def test_a_picture_that_is_not_there_and_a_broken_record_are_left_out_too(source, tmp_path):
  rows = json.loads((tmp_path / "rows.json").read_text())
  rows[2]["image"], rows[3] = "gone.png", {"id": "r3", "image": "0.png", "conversations": TALK[:1]}
  (tmp_path / "rows.json").write_text(json.dumps(rows))
  with pytest.raises(UserError, match=r"row 2: image gone.png: no such image file"):
    stream(source)
  skipped = next(stream(source, bad_rows="skip"))[1].skipped
  assert "gone.png" in skipped["mine[2]"] and "must take turns" in skipped["mine[3]"]


def test_data_of_which_nothing_can_be_used_ends_the_run_all_the_same(source, tmp_path):
  for i in range(8):
    (tmp_path / f"{i}.png").write_bytes(b"gone wrong")
  with pytest.raises(UserError, match="data source 'mine': not one row can be used; the last: "):
    next(stream(source, bad_rows="skip"))


def test_rows_without_a_picture_are_counted_before_and_while_they_are_read(source, tmp_path):
  rows = json.loads((tmp_path / "rows.json").read_text())
  for row in rows[2:5]:
    row["image"] = ""
  (tmp_path / "rows.json").write_text(json.dumps(rows))
  with pytest.warns(Note, match="data source 'mine': without a picture are 3 of its first 8 rows"):
    batches = stream(source)
  assert [next(batches)[1].blind for _ in range(2)] == [{"mine": 1}, {"mine": 2}]
  for row in rows:
    row["image"] = "0.png"
  (tmp_path / "rows.json").write_text(json.dumps(rows))
  with pytest.warns(Note, match="data source 'mine': its first 8 rows all have pictures"):
    stream(source)


def left_out(source, *, whole):
  """Which rows of a source are skipped, and why, once all were read; `whole` is the first error without."""
  with pytest.raises(UserError, match=whole):
    stream(source)
  batches = stream(source, bad_rows="skip", lengths=(64,))
  skipped = {}
  for _ in range(4):
    skipped |= next(batches)[1].skipped
  return {int(name[len("mine[") : -1]): reason for name, reason in skipped.items()}


@pytest.mark.filterwarnings("ignore:data source")
def test_a_row_of_more_pictures_than_a_bucket_has_tiles(source, tmp_path):
  rows = [{"image": ["0.png"] * count, "conversations": TALK} for count in (1, 1, 3, 1)]
  (tmp_path / "rows.json").write_text(json.dumps(rows))
  said = "data source 'mine', example 2: 3 image tiles are more than the largest of data.tiles, 2"
  with pytest.raises(UserError, match=said):
    next(stream(source, tiles=(1, 2)))
  info = next(stream(source, tiles=(1, 2), bad_rows="skip"))[1]
  assert info.ids == ("mine[0]", "mine[1]", "mine[3]") and said in info.skipped["mine[2]"]


@pytest.mark.filterwarnings("ignore:data source")
def test_lines_that_are_no_json_and_rows_that_teach_nothing(source, tmp_path):
  """The same file for both kinds that read it; a picture that is gone is found before it is read."""
  records = json.loads((tmp_path / "rows.json").read_text())
  records[5]["image"] = "gone.png"
  lines = [json.dumps(record) for record in records]
  lines[1], lines[4], lines[6] = '{"image": "0.png", "conv', '["a list"]', lines[6].replace("Grey.", " ")
  (tmp_path / "rows.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"id": "\xff"}')
  for kind in (LlavaConfig, HFConfig):
    config = kind(path=str(tmp_path / "rows.jsonl"))
    found = left_out(config, whole="rows.jsonl:2: not JSON")
    assert list(found) == [1, 2, 3, 4, 5, 6, 8]
    said = ["rows.jsonl:2: not JSON", *["cannot be read as an image"] * 2, "expected an object, got"]
    said += ["no such image file", "an answer is empty", "rows.jsonl:9: cannot be read as text"]
    assert all(map(str.__contains__, found.values(), said)), found


@pytest.mark.filterwarnings("ignore:data source")
def test_rows_of_csv_files_with_too_few_cells(tmp_path):
  (tmp_path / "a.csv").write_text("question,answer\nQ,A\nQ\nQ,\nQ,B\n")
  found = left_out(
    HFConfig(path=str(tmp_path / "a.csv")), whole="a.csv, row 1: 1 cells, where the first line"
  )
  assert list(found) == [1, 2] and "column 'answer': the cell is empty" in found[2]
  settings = dict(templates={"question": "{x}?"}, choices=("yes", "no"))
  (tmp_path / "a.csv").write_text("x,answer\nQ,yes\n,no\nQ,maybe\n")
  found = left_out(HFConfig(path=str(tmp_path / "a.csv"), **settings), whole="row 1, column 'x': the cell is")
  assert "'maybe' is neither an index, a letter nor the text" in found[2]


@pytest.mark.filterwarnings("ignore:data source")
def test_pictures_that_rows_of_parquet_name(source, tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  cells = [{"bytes": None, "path": name} for name in ("0.png", "gone.png", "1.png")]
  table = pa.table({"image": pa.array(cells, kind), "question": ["Q"] * 3, "answer": ["A"] * 3})
  pq.write_table(table, tmp_path / "rows.parquet")
  found = left_out(
    HFConfig(path=str(tmp_path / "rows.parquet")), whole="row 1, column 'image': no such image"
  )
  assert list(found) == [1]


@pytest.mark.filterwarnings("ignore:data source")
def test_rows_of_cvbench_files(tmp_path):
  image = np.zeros((4, 4, 3), np.uint8)
  asked = dict(type="2D", task="Count", images=(image,), question="Q", choices=("1", "2"), answer=1)
  asked |= dict(prompt="Q?", source="ADE20K")
  file = tmp_path / "x.parquet"
  write_cvbench(file, [Question(idx=i, **asked) for i in range(8)], row_group=3)
  table = pq.read_table(file)
  rows = table.to_pylist()
  rows[1]["answer"], rows[2]["image"], rows[4]["idx"], rows[6]["idx"] = "(C)", {"path": "gone.png"}, None, 5
  rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:40]
  rows[7]["image"] = None
  pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file, row_group_size=3)
  found = left_out(CVBenchConfig(path=str(file)), whole=r"x.parquet, row 1, column 'answer': '\(C\)'")
  assert list(found) == [1, 2, 3, 4, 6, 7]
  said = ["'answer'", "no such image file", "cannot be read as an image", "'idx': the cell is empty"]
  said += ["5 stands already in", "neither bytes nor a path"]
  assert all(map(str.__contains__, found.values(), said)), found
  file.write_bytes(file.read_bytes()[:900])
  with pytest.raises(UserError, match=r"x.parquet: cannot be read as parquet"):
    stream(CVBenchConfig(path=str(file)), bad_rows="skip")


@pytest.mark.filterwarnings("ignore:data source")
def test_a_text_of_parquet_that_is_no_utf8(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  raw = pa.array([b"Q", b"\xff\xfe", b"Q"], pa.binary())
  asked = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
  pq.write_table(pa.table({"question": asked, "answer": ["A"] * 3}), tmp_path / "rows.parquet")
  said = "row 1: a text that is no UTF-8"
  found = left_out(HFConfig(path=str(tmp_path / "rows.parquet")), whole=said)
  assert list(found) == [1] and said in found[1]
