"""LLaVA-style files, and the conversations in them."""

import json

import numpy as np
import pytest
from PIL import Image

from spatialvlm.config import LlavaConfig
from spatialvlm.data import pipeline
from spatialvlm.data.sources.conversation import parse_turns
from spatialvlm.data.sources.llava import Llava
from spatialvlm.types import Turn, UserError

HUMAN = {"from": "human", "value": "<image>\nWhat is it?"}
GPT = {"from": "gpt", "value": "A cube."}


@pytest.fixture
def folder(tmp_path):
  for i, name in enumerate(("a.png", "b.png")):
    Image.fromarray(np.full((3, 2, 3), i, np.uint8)).save(tmp_path / name)
  return tmp_path


def jsonl(folder, *records):
  path = folder / "data.jsonl"
  path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
  return path


def test_a_record_becomes_an_example(folder):
  data = Llava(jsonl(folder, {"id": 7, "image": "a.png", "conversations": [HUMAN, GPT]}, "", {
    "images": ["a.png", "b.png"], "messages": [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}]},
      {"role": "assistant", "content": [{"type": "text", "text": "both"}]},
      {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."},
    ]}))  # fmt: skip
  assert len(data) == 2 and data[0].id == "7"
  assert data[0].turns == (Turn("<image>What is it?", "A cube."),)
  assert data[1].turns == (Turn("Be brief.\n<image>or<image>", "both"), Turn("Sure?", "Yes."))
  assert [image[0, 0, 0] for image in data[1].images] == [0, 1]
  assert data[-1].turns == data[1].turns


def test_json_files_text_only_records_and_other_folders(folder):
  path = folder / "list" / "data.json"
  path.parent.mkdir()
  path.write_text(json.dumps([
    {"conversations": [{"from": "human", "value": "Hi"}, GPT], "image": None},
    {"conversations": [{"from": "human", "value": "This?"}, GPT], "image": "b.png"},
  ]))  # fmt: skip
  config = LlavaConfig(path=str(path), image_root=str(folder))
  data = pipeline.open_source(config)
  assert data[0].images == () and data[0].turns[0].prompt == "Hi"
  assert data[1].images[0].shape == (3, 2, 3)
  assert len(pipeline.open_source(LlavaConfig(path=str(path), size=1))) == 1


GOOD = {"id": 1, "image": "a.png", "conversations": [HUMAN, GPT]}


@pytest.mark.parametrize(
  "record, message",
  [
    ("{bad", "not JSON"),
    ("[1]", "expected an object, got list"),
    (GOOD | {"image": "gone.png"}, "no such image file .*gone.png.; set image_root"),
    (GOOD | {"image": 3}, "expected an image, its bytes or its path, got 3"),
    ({"id": 1}, "neither 'conversations' nor 'messages'"),
    (GOOD | {"conversations": []}, "expected a list of messages"),
    (GOOD | {"conversations": [GPT, HUMAN]}, "must take turns"),
    (GOOD | {"conversations": [HUMAN]}, "must take turns"),
    (GOOD | {"conversations": [HUMAN, HUMAN, GPT]}, "must take turns"),
    (GOOD | {"conversations": [HUMAN, {"from": "dog", "value": "wuff"}]}, "unknown role 'dog'"),
    (GOOD | {"conversations": [HUMAN, {"from": "gpt", "value": " "}]}, "an answer is empty"),
    (GOOD | {"conversations": [HUMAN, {"from": "gpt", "value": "<image>"}]}, "an answer holds an <image>"),
    (GOOD | {"conversations": [HUMAN, {"value": "x"}]}, "a message has keys 'value'"),
    (GOOD | {"image": ["a.png", "b.png"]}, "1 <image> marks for 2 images"),
    (GOOD | {"image": None}, "1 <image> marks for 0 images"),
  ],
)
def test_broken_records_are_named_by_file_and_line(folder, record, message):
  with pytest.raises(UserError, match=rf"data.jsonl:2: .*{message}"):
    Llava(jsonl(folder, GOOD, record))


def test_an_image_that_breaks_later_is_named(folder):
  data = Llava(jsonl(folder, GOOD))
  (folder / "a.png").write_bytes(b"no image")
  with pytest.raises(UserError, match=r"data.jsonl:1, image .*a.png: cannot be read"):
    data[0]


def test_files_that_are_not_there_or_of_the_wrong_form(folder):
  with pytest.raises(UserError, match="no such file"):
    Llava(folder / "no.jsonl")
  (folder / "one.json").write_text(json.dumps(GOOD))
  with pytest.raises(UserError, match="expected a list of records"):
    Llava(folder / "one.json")
  (folder / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match="cannot be read as text"):
    Llava(folder / "bytes.jsonl")
  with pytest.raises(UserError, match="needs a `path`"):
    pipeline.open_source(LlavaConfig())


def test_the_cauldrons_pairs_and_odd_content():
  pairs = [{"user": "Q1", "assistant": "A1", "source": "x"}, {"user": "Q2", "assistant": "A2"}]
  assert parse_turns(pairs, 1) == (Turn("Q1", "A1"), Turn("Q2", "A2"))
  with pytest.raises(UserError, match="neither text nor an image"):
    parse_turns([{"role": "user", "content": [{"type": "audio"}]}], 0)
  with pytest.raises(UserError, match="not an object"):
    parse_turns(["hello"], 0)
  with pytest.raises(UserError, match="no turn"):
    parse_turns([{"role": "system", "content": "x"}], 0)
