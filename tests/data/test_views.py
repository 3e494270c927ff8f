"""What other models read of a batch: the same answers behind other prompts and pictures."""

import dataclasses
import json

import numpy as np
import pytest

from spatialvlm.config import DataConfig, LlavaConfig
from spatialvlm.data import pipeline
from spatialvlm.data.depth_words import depth_words
from spatialvlm.data.sources.registry import open_source
from spatialvlm.data.views import View, check_prompt, tells_depth
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Example, Turn, UserError
from tests.launch import tiny

TOLD = "{facts} {prompt}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model's processor, and conversations of which every one says what its picture shows."""
  folder = tmp_path_factory.mktemp("views")
  tiny.write_model(folder / "model")
  file = tiny.write_data(folder)
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  for row in rows:
    row["facts"] = "the box is red" if row["conversations"][1]["value"] == "A" else "the box is blue"
  file.write_text("\n".join(map(json.dumps, rows)) + "\n")
  return folder


@pytest.fixture(scope="module")
def processor(folder):
  return load_processor(folder / "model")


def stream(folder, processor, size=4, packing=False, **views):
  source = LlavaConfig(path=str(folder / "data.jsonl"))
  config = DataConfig(
    sources={"own": source}, lengths=(64, 96, 192), tiles=(1, 5), workers=0, packing=packing
  )
  return next(pipeline.training_stream(config, processor, size, on_note=lambda text: None, views=views))


def answers(batch):
  rows = []
  for tokens, index in zip(batch.tokens_BT, batch.target_index_BK, strict=True):
    rows.append([int(tokens[i]) for i in index if i >= 0])
  return rows


def test_a_told_view_has_the_answers_and_the_pictures_of_the_batch(folder, processor):
  batch, info = stream(folder, processor, told=View(processor, TOLD))
  view = batch.view("told")
  assert answers(view) == answers(batch) and any(answers(batch))
  assert (
    view.tokens_BT.shape[0] == batch.tokens_BT.shape[0] and info.views["told"].length >= info.bucket.length
  )
  assert batch.views["told"].pixels_NHWC is None and view.pixels_NHWC is batch.pixels_NHWC
  for row, own in zip(view.tokens_BT, batch.tokens_BT, strict=True):
    said = processor.decode(row)
    assert "the box is red" in said or "the box is blue" in said
    assert processor.decode(own) in said.replace("the box is red ", "").replace("the box is blue ", "")
  assert (np.sort(view.image_slot_BT, 1)[:, -4:] == np.sort(batch.image_slot_BT, 1)[:, -4:]).all()
  plain, _ = stream(folder, processor)
  assert plain.views == {} and plain.view("anything") is plain
  assert np.array_equal(plain.tokens_BT, batch.tokens_BT)


def test_other_tiles_come_with_pictures_of_their_own(folder, processor):
  many = load_processor(folder / "model", split_images=True, longest_edge=32, max_tiles=5)
  batch, info = stream(folder, processor, sharp=View(many, pictures=True))
  view = batch.view("sharp")
  assert answers(view) == answers(batch)
  assert info.views["sharp"].tiles == 5 and view.pixels_NHWC.shape[0] == 5 * batch.pixels_NHWC.shape[0]


def test_packed_rows_are_packed_alike(folder, processor):
  batch, info = stream(folder, processor, size=8, packing=True, told=View(processor, TOLD))
  view = batch.view("told")
  assert info.bucket.rows == len(batch.tokens_BT) == len(view.tokens_BT) < 8
  assert answers(view) == answers(batch)
  for ours, theirs in zip(batch.segment_BT, view.segment_BT, strict=True):
    assert ours.max() == theirs.max()


def test_facts_are_told_of_the_first_prompt_behind_its_pictures(processor):
  view = View(processor, "You see: {facts}\n{prompt}{not a field}")
  example = Example((np.zeros((16, 16, 3), np.uint8),), (Turn("<image>\nWhat?", "A"), Turn("And?", "B")))
  example = dataclasses.replace(example, facts=lambda: "a {prompt}")
  assert [turn.prompt for turn in view(example).turns] == [
    "<image>\nYou see: a {prompt}\nWhat?{not a field}",
    "And?",
  ]


def test_depth_is_told_by_parts_of_the_picture(processor):
  """Medians in metres; sky, and parts that are mostly sky, are far."""
  depth = np.repeat(np.repeat([[1.04, 0.0], [2.5, 40.0]], 4, axis=0), 6, axis=1)
  depth[0, 0], depth[4, :6], depth[0, 6:9] = 9.0, 0.0, 3.0
  assert depth_words(depth, 2) == (
    "Depth in metres, 2 by 2 parts of the picture, from the top left: 1.0 far; 2.5 40.0."
  )
  assert depth_words(np.full((5, 7), np.nan), 1).endswith("from the top left: far.")
  example = Example((np.zeros((8, 12, 3), np.uint8),), (Turn("<image>What?", "A"),), dense={"depth": depth})
  view = View(processor, "{depth:2} {prompt}")
  assert view(example).turns[0].prompt == f"<image>{depth_words(depth, 2)} What?"
  assert view(example).turns[0].prompt != View(processor, "{depth} {prompt}")(example).turns[0].prompt
  assert depth_words(depth).count(";") == 3 and depth_words(depth) == depth_words(depth, 4)
  with pytest.raises(
    UserError, match=r"view: has \{depth:2\}, but this example has no depth; sources of kind"
  ):
    view(dataclasses.replace(example, dense={}))
  with pytest.raises(UserError, match="a depth map of 8 x 12 has no 9 x 9 parts"):
    View(processor, "{depth:9} {prompt}")(example)


@pytest.mark.parametrize(
  ("prompt", "message"),
  [
    ("{facts}", r"where: '\{facts\}' leaves the question out; write \{prompt\}"),
    ("{depth:0} {prompt}", r"where: \{depth:0\} asks for 0 parts along a side; use 1 to 16"),
    ("{depth:17} {prompt}", r"where: \{depth:17\} asks for 17 parts"),
  ],
)
def test_prompts_that_cannot_be(prompt, message):
  with pytest.raises(UserError, match=message):
    check_prompt(prompt, "where")
  check_prompt("{facts} {depth} {depth:16} {prompt}", "where")
  assert tells_depth("{depth:3}{prompt}") and not tells_depth("{facts} {prompt} depth")


def test_what_cannot_be_told_is_named(folder, processor, tmp_path):
  view = View(processor, TOLD, where="config.teachers.told.prompt")
  source = tiny.write_data(tmp_path)
  config = DataConfig(sources={"own": LlavaConfig(path=str(source))}, lengths=(96,), tiles=(1,), workers=0)
  with pytest.raises(
    UserError, match=r"'own', example \d+.*told\.prompt: has \{facts\}, but this example says none"
  ):
    pipeline.training_stream(config, processor, 4, on_note=lambda text: None, views={"told": view})
  short = dataclasses.replace(
    config, sources={"own": LlavaConfig(path=str(folder / "data.jsonl"))}, lengths=(64,)
  )
  long = View(processor, "{facts} " * 20 + "{prompt}", where="config.teachers.told.prompt")
  with pytest.raises(UserError, match=r"as it is read for config\.teachers\.told: \d+ tokens are more than"):
    pipeline.training_stream(short, processor, 4, on_note=lambda text: None, views={"told": long})


def test_facts_of_a_file_are_texts(folder, tmp_path):
  assert open_source(LlavaConfig(path=str(folder / "data.jsonl")))[0].facts().startswith("the box is")
  row = json.loads((folder / "data.jsonl").read_text().splitlines()[0]) | {"facts": ["red"], "image": None}
  row["conversations"][0]["value"] = "Which?"
  (tmp_path / "list.jsonl").write_text(json.dumps(row) + "\n")
  example = open_source(LlavaConfig(path=str(tmp_path / "list.jsonl")))[0]
  with pytest.raises(UserError, match=r"list\.jsonl.*'facts': expected a text"):
    example.facts()
