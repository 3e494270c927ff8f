"""Rows whose pictures were written in many ways: read, or refused by name; never passed over."""

import base64
import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spatialvlm.config import HFConfig, LlavaConfig
from spatialvlm.data import pipeline
from spatialvlm.data.sources.hf import HubExamples
from spatialvlm.data.sources.hf_tables import ArrowTable
from spatialvlm.types import Turn, UserError

ASKED = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Grey."}]}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(value, side=3):
  buffer = io.BytesIO()
  pixels = np.random.default_rng(0).integers(0, 255, (2, side, 3), np.uint8)
  pixels[:, 0] = value
  Image.fromarray(pixels).save(buffer, "PNG")
  return buffer.getvalue()


def text64(value, **size):
  return base64.b64encode(png(value, **size)).decode()


@pytest.fixture
def folder(tmp_path):
  for i in range(3):
    (tmp_path / f"{i}.png").write_bytes(png(i))
  return tmp_path


def jsonl(folder, *records):
  (folder / "rows.jsonl").write_text("\n".join(json.dumps(record) for record in records))
  return str(folder / "rows.jsonl")


def both(path):
  """Two kinds of source that read the same file of conversations."""
  return [pipeline.open_source(kind(path=path)) for kind in (LlavaConfig, HFConfig)]


def values(example):
  return [int(image[0, 0, 0]) for image in example.images]


def refused(path, kinds=(LlavaConfig, HFConfig), **settings):
  """The message with which each kind refuses a file, when it is opened or its first row read."""
  found = []
  for kind in kinds:
    with pytest.raises(UserError) as error:
      pipeline.open_source(kind(path=path, **settings))[0]
    found.append(str(error.value))
    assert "\n" not in found[-1] and len(found[-1]) < 500
  return found


def test_base64_and_data_urls_are_pictures_in_every_kind(folder):
  cells = [text64(7), f"data:image/png;base64,{text64(7, side=400)}", "0.png", text64(7, side=900)]
  assert len(text64(7)) < 255 < 1024 < len(text64(7, side=900))
  for source in both(jsonl(folder, *({"image": cell} | ASKED for cell in cells))):
    assert [values(source[i]) for i in range(4)] == [[7], [7], [0], [7]]
    assert [source[i].files for i in range(4)] == [("",), ("",), ("0.png",), ("",)]


@pytest.mark.parametrize(
  ("cell", "said"),
  [
    ("x" * 300 + "?", "neither the name of an image file nor an image in base64"),
    (base64.b64encode(b"no picture at all" * 200).decode(), "neither the name of an image file nor"),
    ("data:image/png;base64,????", "no image in base64 follows 'data:image/png;base64,????'"),
    ("data:text/plain,hello", "no image in base64 follows 'data:text/plain,hello'"),
    ("https://example.org/a.png", "nothing is downloaded: fetch it and set image_root"),
    ("a\nb", "neither the name of an image file nor"),
    ("gone.png", "no such image file"),
  ],
)
def test_text_that_is_no_picture_gets_one_line(folder, cell, said):
  for message in refused(jsonl(folder, {"image": cell} | ASKED)):
    assert said in message and "image" in message


def test_a_record_of_llava_with_a_video_is_refused_by_name(folder):
  path = jsonl(folder, {"image": "0.png"} | ASKED, {"video": "a.mp4"} | ASKED)
  for message in refused(path):
    assert "'video' holds video or sound, which nothing reads" in message
  for kind in (LlavaConfig, HFConfig):
    assert values(pipeline.open_source(kind(path=path, ignore=("video",)))[1]) == []
  path = jsonl(folder, {"conversations": [{"from": "human", "value": "<video>\nWhat?"},
                                          {"from": "gpt", "value": "A dog."}]})  # fmt: skip
  assert all("the mark <video>" in message for message in refused(path))


KNOWN = [
  "img",
  "image_path",
  "Image_URL",
  "Image",
  "imagePath",
  "image-list",
  "image_id",
  "photo",
  "video_id",
]


@pytest.mark.parametrize("key", KNOWN)
def test_pictures_under_a_name_that_nobody_reads_are_refused(folder, key):
  path = jsonl(folder, {key: "1.png", "question": "What?", "answer": "Grey."})
  (message,) = refused(path, [HFConfig])
  held = "video or sound, which nothing reads" if "video" in key else "pictures that nothing reads"
  assert f"row 0: column {key!r} holds {held}" in message
  example = pipeline.open_source(HFConfig(path=path, columns={"image": key}))[0]
  assert values(example) == [1]
  for settings in (dict(ignore=(key,)), dict(columns={"image": ""})):
    if "columns" in settings:
      (folder / "rows.jsonl").write_text(
        json.dumps({key: "1.png", "image": None, "question": "Q", "answer": "A"})
      )
    assert pipeline.open_source(HFConfig(path=path, **settings))[0].images == ()


@pytest.mark.parametrize(
  "cell",
  [
    "1.png",
    "/elsewhere/b.JPG",
    ["x", "a.webp?w=3"],
    {"path": "a.tif"},
    "data:image/png;base64,",
    text64(3),
    "a.mp4",
  ],
)
def test_pictures_are_known_by_what_stands_in_a_cell_under_whatever_name(folder, cell):
  row = {"thing": cell, "question": "What?", "answer": "Grey.", "note": "see a.png for more"}
  held = "video or sound, which" if cell == "a.mp4" else "pictures that"
  for message in refused(jsonl(folder, row | ASKED)):
    assert f"'thing' holds {held} nothing reads" in message
  for settings in (dict(ignore=("thing",)), dict(columns={"image": ""})):
    assert pipeline.open_source(HFConfig(path=jsonl(folder, row), **settings))[0].images == ()
  # Beside a picture that is read it may be what that was made of.
  assert all(values(source[0]) == [1] for source in both(jsonl(folder, row | ASKED | {"image": "1.png"})))
  for message in refused(
    jsonl(folder, {"messages": [ASKED["messages"][0] | {"thing": cell}, ASKED["messages"][1]]})
  ):
    assert "a message holds 'thing', of which nothing is read there" in message


def test_texts_that_only_speak_of_pictures_are_texts(folder):
  row = {"thing": "a.png b.png", "page": "https://a.org/png", "n": 3, "id": "7.png", "none": {"path": None}}
  assert all(values(source[0]) == [] for source in both(jsonl(folder, row | ASKED)))
  (folder / "my photo.png").write_bytes(png(6))
  assert all("'thing' holds" in m for m in refused(jsonl(folder, {"thing": "my photo.png"} | ASKED)))


def test_pictures_that_are_counted_are_not_dropped_beside_one_that_is_read(folder):
  path = jsonl(folder, {"image": "0.png", "image_2": "1.png"} | ASKED)
  assert all("'image_2' holds a picture that nothing reads" in message for message in refused(path))
  config = HFConfig(path=path, columns={"images": "image,image_2"})
  assert values(pipeline.open_source(config)[0]) == [0, 1]


def test_objects_that_hold_a_picture_under_another_key_are_not_empty(folder):
  source = {"type": "base64", "media_type": "image/png", "data": text64(8)}
  for cell in ({"file_name": "1.png"}, {"base64": text64(1)}, {"data": text64(1)}):
    assert all(values(opened[0]) == [1] for opened in both(jsonl(folder, {"image": cell} | ASKED)))
  asked = {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "Q"}]}
  for opened in both(jsonl(folder, {"messages": [asked, ASKED["messages"][1]]})):
    assert values(opened[0]) == [8]
  for message in refused(jsonl(folder, {"image": {"key": "1.png"}} | ASKED)):
    assert "expected an image, its bytes or its path, got {'key': '1.png'}" in message


MARKS = [
  "<image_1>",
  "<image 1>",
  "<|image_1|>",
  "<ImageHere>",
  "<IMAGE>",
  "<image_placeholder>",
  "<img>0.png</img>",
]


@pytest.mark.parametrize("mark", MARKS)
def test_marks_of_others_are_no_text(folder, mark):
  talk = [{"role": "user", "content": f"{mark} What?"}, ASKED["messages"][1]]
  for message in refused(jsonl(folder, {"image": "0.png", "messages": talk})):
    assert f"the mark {mark}" in message and "<image>" in message
  path = jsonl(folder, {"messages": talk})  # without a picture they are, but for one that names a picture
  if mark.endswith("</img>"):
    refused(path)
  else:
    assert all(source[0].turns[0].prompt == f"{mark} What?" for source in both(path))


def test_a_column_of_bytes_or_objects_of_them_is_seen(folder):
  kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  columns = {"scan": pa.array([png(3)]), "view": pa.array([{"bytes": png(3), "path": None}], kind)}
  for name, column in columns.items():
    pq.write_table(pa.table({"question": ["Q"], "answer": ["A"], name: column}), folder / "rows.parquet")
    (message,) = refused(str(folder / "rows.parquet"), [HFConfig])
    assert f"row 0: column {name!r} holds pictures that nothing reads" in message
    config = HFConfig(path=str(folder / "rows.parquet"), columns={"image": name})
    assert values(pipeline.open_source(config)[0]) == [3]


def test_a_column_of_the_type_image_is_never_passed_over(folder):
  table = datasets.Dataset.from_dict({"question": ["Q"], "answer": ["A"], "scan": [str(folder / "2.png")]})
  table.cast_column("scan", datasets.Image()).save_to_disk(folder / "d")
  (message,) = refused(str(folder / "d"), [HFConfig])
  assert "row 0: column 'scan' holds" in message
  assert values(pipeline.open_source(HFConfig(path=str(folder / "d"), columns={"image": "scan"}))[0]) == [2]


def test_what_an_image_was_made_of_may_stand_beside_it(folder):
  path = jsonl(folder, {"image": "1.png", "image_path": "/elsewhere/1.png"} | ASKED)
  assert all(values(source[0]) == [1] for source in both(path))
  path = jsonl(folder, {"image": None, "image_path": "/elsewhere/1.png"} | ASKED)
  assert all("'image_path' holds pictures that nothing reads" in message for message in refused(path))


def test_image_counts_where_images_is_empty(folder):
  path = jsonl(
    folder, {"image": "1.png", "images": []} | ASKED, {"image": "", "images": ["0.png", "2.png"]} | ASKED
  )
  assert all([values(source[0]), values(source[1])] == [[1], [0, 2]] for source in both(path))
  path = jsonl(
    folder, {"image": "1.png", "images": [], "question": "Q", "choices": ["a", "b"], "answer": "a"}
  )
  (question,) = pipeline.open_questions(HFConfig(path=path))
  assert values(question) == [1]
  path = jsonl(folder, {"image": "1.png", "images": ["0.png"]} | ASKED)
  assert all("'image' and 'images' both hold pictures" in message for message in refused(path))


def test_rows_of_text_alone_may_say_so_in_any_way(folder):
  empty = [{}, {"image": None}, {"image": ""}, {"images": []}, {"images": None, "image": []}]
  for source in both(jsonl(folder, *(row | ASKED for row in empty))):
    assert [len(source[i].images) for i in range(5)] == [0] * 5


def test_pictures_inside_of_messages(folder):
  """As trl and unsloth write them, and OpenAI's form."""
  parts = [
    {"type": "image", "image": "2.png"},
    {"type": "text", "text": "or"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text64(9)}"}},
    {"type": "text", "text": "?"},
  ]
  talk = [
    {"role": "user", "content": parts},
    {"role": "assistant", "content": [{"type": "text", "text": "both"}]},
  ]
  for source in both(jsonl(folder, {"messages": talk})):
    assert values(source[0]) == [2, 9] and source[0].turns == (Turn("<image>or<image>?", "both"),)
  unlike = [{"role": "user", "content": [parts[0], {"type": "image"}]}, talk[1]]
  assert all(
    "2 parts of messages are images, but 1" in m for m in refused(jsonl(folder, {"messages": unlike}))
  )
  twice = {"messages": talk, "image": "0.png"}
  assert all("the parts of messages both hold pictures" in m for m in refused(jsonl(folder, twice)))
  apart = [{"role": "user", "content": [{"type": "image"}, parts[1]]}, talk[1]]
  for source in both(jsonl(folder, {"messages": apart, "images": ["1.png"]})):
    assert values(source[0]) == [1]


def test_pictures_beside_the_content_of_a_message_are_refused(folder):
  """As ollama writes them."""
  for key in ("images", "image", "video", "Image_1"):
    talk = [{"role": "user", "content": "What?", key: ["0.png"]}, ASKED["messages"][1]]
    for message in refused(jsonl(folder, {"messages": talk})):
      assert f"a message holds {key!r}, of which nothing is read there" in message
    talk = [{"role": "user", "content": "What?", key: []}, ASKED["messages"][1] | {key: None}]
    assert all(source[0].images == () for source in both(jsonl(folder, {"messages": talk})))


@pytest.mark.parametrize("name", ["http://[bad", "//", "~nobody/x.png", "a\0b", "file:///gone.png"])
def test_odd_names_are_no_files(folder, name):
  assert all("image" in message for message in refused(jsonl(folder, {"image": name} | ASKED)))


def test_columns_that_were_mapped_count_more_than_one_named_messages(folder):
  row = {"query": "How many?", "label": "three"} | ASKED
  config = HFConfig(path=jsonl(folder, row), columns={"question": "query", "answer": "label"})
  assert pipeline.open_source(config)[0].turns == (Turn("How many?", "three"),)
  assert pipeline.open_source(HFConfig(path=config.path))[0].turns == (Turn("What?", "Grey."),)


def test_a_list_named_jsonl_and_lines_named_json_and_a_byte_order_mark(folder):
  rows = [{"image": f"{i}.png"} | ASKED for i in range(2)]
  written = {
    "list.jsonl": json.dumps(rows),
    "lines.json": "\n\n".join(map(json.dumps, rows)),
    "mark.jsonl": "\ufeff" + "\r\n".join(map(json.dumps, rows)),
    "mark.json": "\ufeff" + json.dumps(rows, indent=2),
  }
  for name, text in written.items():
    (folder / name).write_bytes(text.encode())
    for source in both(str(folder / name)):
      assert len(source) == 2 and [values(source[i]) for i in range(2)] == [[0], [1]], name
  (folder / "mark.csv").write_bytes("\ufeffquestion,answer\nQ,A\n".encode())
  assert pipeline.open_source(HFConfig(path=str(folder / "mark.csv")))[0].turns == (Turn("Q", "A"),)


def parquet(folder, cells, **columns):
  kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  pq.write_table(pa.table({"image": pa.array(cells, kind), **columns}), folder / "rows.parquet")
  return HFConfig(path=str(folder / "rows.parquet"))


def test_a_file_that_a_row_of_parquet_names_is_missed_before_the_first_answer(folder):
  cells = [{"bytes": png(4), "path": "never/looked/at.png"}, {"bytes": None, "path": "1.png"}]
  asked = dict(question=["Q"] * 3, choices=[["a", "b"]] * 3, answer=["a"] * 3)
  questions = pipeline.open_questions(parquet(folder, [*cells, {"bytes": None, "path": "2.png"}], **asked))
  assert [values(q) for q in questions] == [[4], [1], [2]]
  with pytest.raises(UserError, match=r"row 2, column 'image': no such image file .*'gone.png'"):
    pipeline.open_questions(parquet(folder, [*cells, {"bytes": None, "path": "gone.png"}], **asked))
  with pytest.raises(UserError, match=r"row 2, column 'image': the cell is empty, where an image is wanted"):
    pipeline.open_questions(parquet(folder, [*cells, None], **asked))


def test_pictures_inside_of_messages_of_parquet(folder):
  """Arrow gives every part all keys, null where it has none; rows may be chosen and in another order."""
  text = datasets.Value("string")
  part = {"type": text, "text": text, "image": {"bytes": datasets.Value("binary"), "path": text}}
  features = datasets.Features({"messages": datasets.List({"role": text, "content": datasets.List(part)})})

  def talk(*cells):
    asked = [{"type": "image", "text": None, "image": cell} for cell in cells]
    said = {"type": "text", "text": "Q", "image": None}
    answer = [said | {"text": "A"}]
    return [{"role": "user", "content": [*asked, said]}, {"role": "assistant", "content": answer}]

  rows = [talk(), talk({"bytes": png(5), "path": None}), talk({"bytes": None, "path": "2.png"})]
  table = datasets.Dataset.from_dict({"messages": rows}, features=features)
  table.to_parquet(folder / "rows.parquet")
  source = pipeline.open_source(HFConfig(path=str(folder / "rows.parquet")))
  assert [values(source[i]) for i in range(3)] == [[], [5], [2]] and list(source.picture_counts(9)) == [
    0,
    1,
    1,
  ]
  table.select([2, 0]).save_to_disk(folder / "d")
  source = pipeline.open_source(HFConfig(path=str(folder / "d"), image_root=str(folder)))
  assert [values(source[i]) for i in range(2)] == [[2], []] and list(source.picture_counts(1)) == [1]
  assert source[0].turns == (Turn("<image>Q", "A"),)


def test_counts_are_of_the_rows_that_were_chosen(folder):
  """A data set that was shuffled or cut keeps its whole table and a list of rows."""
  cells = [[str(folder / "0.png")], [], [str(folder / "1.png"), str(folder / "2.png")]]
  images, answer = datasets.List(datasets.Image()), datasets.ClassLabel(names=["no", "yes"])
  features = datasets.Features({"images": images, "question": datasets.Value("string"), "answer": answer})
  table = datasets.Dataset.from_dict(
    {"images": cells, "question": ["Q"] * 3, "answer": [0, 1, 1]}, features=features
  )
  chosen = HubExamples(ArrowTable(table.select([2, 1])), HFConfig(path="chosen"))
  assert [values(chosen[i]) for i in range(2)] == [[1, 2], []] and list(chosen.picture_counts(5)) == [2, 0]
  assert chosen[0].turns == (Turn("Q", "yes"),)
