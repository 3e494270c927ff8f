"""Every data set of configs/mixtures.py on a small folder of its own schema, read as training reads it."""

import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spatialvlm import cli
from spatialvlm.config import HFConfig, LlavaConfig, RunConfig
from spatialvlm.configs import mixtures
from spatialvlm.data import leave_out, pipeline
from spatialvlm.data.sources.registry import open_source
from spatialvlm.types import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(value, side=40):
  return Image.fromarray(np.full((side, side, 3), value, np.uint8))


def png(value):
  buffer = io.BytesIO()
  picture(value).save(buffer, "PNG")
  return buffer.getvalue()


def save(file, value=0):
  file.parent.mkdir(parents=True, exist_ok=True)
  picture(value).save(file)


def lines(file, *rows):
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text("\n".join(map(json.dumps, rows)))


def parquet(file, rows, **features):
  file.parent.mkdir(parents=True, exist_ok=True)
  datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(file)


def opened(name, folder, defer=False):
  return open_source(mixtures.sources([name], str(folder))[name], defer=defer)


TEXT, IMAGE = datasets.Value("string"), datasets.Image()


def test_sat(tmp_path):
  rows = [
    dict(image_bytes=[png(1)], question="Is it near?", answers=["yes", "no"], question_type="other"),
    dict(image_bytes=[png(2), png(3)], question="How did I move?", answers=["left", "right"],
         question_type="action_sequence"),
  ]  # fmt: skip
  rows = [row | dict(correct_answer=row["answers"][0]) for row in rows * 8]
  (tmp_path / "sat").mkdir()
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sat" / "SAT_train.parquet")
  found = [opened("sat", tmp_path)[i] for i in range(len(rows))]
  for example, row in zip(found, rows, strict=True):
    (turn,) = example.turns
    assert f"({turn.answer}) {row['correct_answer']}" in turn.prompt
    assert turn.prompt.startswith(f"{row['question']} Select from") and example.task == row["question_type"]
  assert {e.turns[0].answer for e in found} == {"A", "B"}  # the right one is the first in all of the data
  assert [len(e.images) for e in found[:2]] == [1, 2] and found[1].images[1][0, 0, 0] == 3


def test_vsr(tmp_path):
  row = dict(image="000000085637.jpg", image_link="http://images.cocodataset.org/train2017/000000085637.jpg",
             caption="The oven is under the cat.", label=1, relation="under", annotator_id=21,
             vote_true_validator_id=[2, 6], vote_false_validator_id=[])  # fmt: skip
  lines(tmp_path / "vsr" / "train.jsonl", *[row, row | dict(label=0)] * 4)
  save(tmp_path / "vsr" / "images" / "000000085637.jpg", 7)
  source = opened("vsr", tmp_path)
  for i in range(8):
    (turn,) = source[i].turns
    assert turn.prompt.startswith('Is this statement about the image true or false? "The oven is under the')
    assert f"({turn.answer}) {('true', 'false')[i % 2]}" in turn.prompt
  assert {source[i].turns[0].answer for i in range(0, 8, 2)} == {"A", "B"}
  assert source[0].images[0].shape == (40, 40, 3) and source[0].files == ("000000085637.jpg",)


CAULDRON = {
  "tallyqa": [("How many horses are there? Be succinct.", "2."), ("How many dogs?", "0.")],
  "clevr": [("Are there any big cubes?\nYour answer must be brief.", "Yes.")],
  "cauldron_vsr": [('Is "The cat is on the oven." an appropriate description of the image?', "No.")],
}


@pytest.mark.parametrize(("name", "talk"), CAULDRON.items())
def test_the_cauldron(tmp_path, name, talk):
  texts = [dict(user=user, assistant=said, source="X") for user, said in talk]
  parts = dict(user=TEXT, assistant=TEXT, source=TEXT)
  row = dict(images=[picture(9)], texts=texts)
  file = tmp_path / name / "train-00000-of-00002-abc.parquet"
  parquet(file, [row, row], images=datasets.List(IMAGE), texts=datasets.List(parts))
  source = opened(name, tmp_path)
  assert len(source) == 2 and [(t.prompt, t.answer) for t in source[0].turns] == talk
  assert source[0].task == mixtures.SOURCES[name].templates["task"] and source[0].images[0][0, 0, 0] == 9


def test_openspaces(tmp_path):
  part = lambda index, text, kind: dict(index=index, text=text, type=kind)
  messages = [
    dict(role="user", content=[part(0, None, "image"), part(None, "How wide is the van?", "text")]),
    dict(role="assistant", content=[part(None, "About 2 metres.", "text")]),
    dict(role="user", content=[part(None, "And how far?", "text")]),
    dict(role="assistant", content=[part(None, "5 metres.", "text")]),
  ]
  content = datasets.List(dict(index=datasets.Value("int64"), text=TEXT, type=TEXT))
  parquet(
    tmp_path / "openspaces" / "train-00000-of-00001.parquet",
    [dict(images=[picture(4)], messages=messages)],
    images=datasets.List(IMAGE),
    messages=datasets.List(dict(content=content, role=TEXT)),
  )
  (example,) = opened("openspaces", tmp_path)
  assert [(t.prompt, t.answer) for t in example.turns] == [
    ("<image>How wide is the van?", "About 2 metres."),
    ("And how far?", "5 metres."),
  ]
  assert example.images[0][0, 0, 0] == 4


def test_stvqa(tmp_path):
  options, image = ["left of", "above", "inside", "below"], picture(5)
  graph = '{"objects": [{"id": "cup.1", "bbox": [1, 2, 3, 4]}], "relationships": []}'
  row = dict(images=image, problem="Image size: (40 x 40)...", question_only="Where is the cup?",
             question_with_options="Where is the cup?\n\nOptions:...", options=options, answer_only="B",
             answer=f"<scene>{graph}</scene>\n<answer>B</answer>", category="relation", level="easy",
             full_scene_graph=graph, image_id="107899")  # fmt: skip
  features = dict.fromkeys(row, TEXT) | dict(images=IMAGE, options=datasets.List(TEXT))
  parquet(tmp_path / "stvqa" / "data" / "train-00000-of-00001.parquet", [row] * 6, **features)
  source = opened("stvqa", tmp_path)
  for example in source:
    (turn,) = example.turns
    assert f"({turn.answer}) above" in turn.prompt and "<scene>" not in turn.prompt
    assert example.task == "relation"
  assert len({example.turns[0].answer for example in source}) > 1


def spar(**changes):
  """A row of SPAR-7M: pictures below images/, a depth that only a reader of depth reads, marks in pixels."""
  talk = [{"from": "human", "value": "How deep is the chair (red point)?"}, {"from": "gpt", "value": "2.1"}]
  row = dict(id="scannet_0", conversations=talk, image=["scene0000_00/image_color/1.jpg"],
             depth=["scene0000_00/image_depth/1.png"], red_point=[[10, 30]],
             type="depth_prediction_oc")  # fmt: skip
  return row | changes


def write_spar(folder, *rows):
  lines(folder / "spar" / "qa_jsonl" / "train" / "depth_prediction_oc" / "fill" / "fill_1.jsonl", *rows)
  for name in ("1", "2"):
    save(folder / "spar" / "images" / "scene0000_00" / "image_color" / f"{name}.jpg", 100)


def test_spar(tmp_path):
  two = ["scene0000_00/image_color/1.jpg", "scene0000_00/image_color/2.jpg"]
  box = dict(red_point=[], blue_bbox=[[5, 6, 20, 21]], bbox_img_idx=[[1]], image=two)
  write_spar(tmp_path, spar(), spar(**box), spar(red_point=None))
  source = opened("spar", tmp_path)
  example = source[0]
  assert [(t.prompt, t.answer) for t in example.turns] == [("How deep is the chair (red point)?", "2.1")]
  assert example.task == "depth_prediction_oc" and len(example.images) == 1
  assert example.images[0][30, 10].tolist() == [255, 0, 0] and 95 < example.images[0][10, 30, 0] < 105
  first, second = source[1].images
  assert second[5, 12].tolist() == second[12, 20].tolist() == [0, 0, 255] and 95 < second[12, 12, 2] < 105
  assert first.min() > 95 and first.max() < 105 and source[2].images[0].max() < 105


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (dict(red_point=[], yellow_point=[[1, 2]]), "row 0: 'yellow_point' holds what is to be drawn"),
    (dict(red_point=[], bbox_list=[[1, 2, 3, 4]]), "'bbox_list' holds what is to be drawn"),
    (dict(red_point=[[1, 2, 3]]), r"'red_point': neither a point \[x, y\] nor a box .*: \[1, 2, 3\]"),
    (dict(image=["scene0000_00/image_color/1.jpg"] * 2), "of 2 pictures nothing says which one its mark"),
    (
      dict(image=["scene0000_00/image_color/1.jpg"] * 2, point_img_idx=[[0, 1]]),
      r"\(point_img_idx: \[\[0, 1",
    ),
  ],
)
def test_marks_that_are_not_understood_are_refused(tmp_path, row, message):
  write_spar(tmp_path, spar(**row), spar())
  with pytest.raises(UserError, match=message):
    opened("spar", tmp_path)
  assert opened("spar", tmp_path, defer=True)[1].images  # the good row stays


def test_marks_outside_of_a_picture_and_unknown_colours(tmp_path):
  write_spar(tmp_path, spar(red_point=[[10, 300]]))
  with pytest.raises(
    UserError, match=r"row 0: a red mark at \(10.0, 300.0\) lies outside of a picture of 40 x"
  ):
    opened("spar", tmp_path)[0]
  path = str(tmp_path / "spar" / "qa_jsonl" / "train" / "depth_prediction_oc" / "fill" / "fill_1.jsonl")
  shared = dict(path=path, image_root=str(tmp_path / "spar" / "images"))
  with pytest.raises(UserError, match=r"marks\.red_point='pink': no colour of marks"):
    open_source(HFConfig(marks=dict(red_point="pink"), **shared))
  with pytest.raises(UserError, match="'red_point' holds what is to be drawn into a picture, and is not"):
    open_source(HFConfig(**shared))
  with pytest.raises(UserError, match=r"fill_1\.jsonl:1: 'red_point' holds what is to be drawn"):
    open_source(LlavaConfig(**shared))
  plain = open_source(LlavaConfig(ignore=("red_point",), **shared))[0].images[0]
  assert plain.max() < 105


def test_llava(tmp_path):
  talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cube."}]
  rows = [dict(id="000000033471", image="coco/train2017/000000033471.jpg", conversations=talk)]
  save(tmp_path / "llava" / "coco" / "train2017" / "000000033471.jpg", 3)
  (tmp_path / "llava" / "llava_v1_5_mix665k.json").write_text(json.dumps(rows))
  (example,) = opened("llava", tmp_path)
  assert example.turns[0].prompt == "<image>What is it?" and example.turns[0].answer == "A cube."


def test_the_recipe_mixes_what_is_named():
  said = [("data.sources.sat.path", "/x"), ("data.leave_out", "l.json")]
  config = cli.load("lora:500m,data=sat+llava", said, RunConfig)
  assert list(config.data.sources) == ["scenes", "sat", "llava"] and config.data.sources["sat"].path == "/x"
  folder = cli.load("lora:500m,data=spar,folder=/data", [], RunConfig).data.sources["spar"]
  assert (folder.path, folder.image_root) == ("/data/spar", "/data/spar/images")
  depth = cli.load("lora:500m,data=nyuv2+scannet,folder=/data", [], RunConfig).data.sources
  assert [(s.path, s.layout) for s in (depth["nyuv2"], depth["scannet"])] == [
    ("/data/nyuv2", "nyuv2"),
    ("/data/scannet", "scannet"),
  ]
  assert depth["nyuv2"].depth_size == depth["scenes"].image_size  # they stand in one batch
  assert config.data.bad_rows == "skip" and config.model.max_tiles == 5 and config.data.leave_out == "l.json"
  assert cli.load("lora:500m", [], RunConfig).data.bad_rows == "refuse"
  same = [
    cli.load(recipe, [], RunConfig) for recipe in ("mixtures:sat,folder=/x", "lora:500m,data=sat,folder=/x")
  ]
  assert same[0] == same[1]
  with pytest.raises(UserError, match=r"name data sets, e\.g\. mixtures\.py:sat\+vsr; there are sat, vsr"):
    cli.load("mixtures", [], RunConfig)
  for arg, message in (
    ("500m,data=sat+cvbench", "no data set 'cvbench'; there are sat, vsr"),
    ("500m,date=sat", "cannot read '500m,date=sat'; 500m alone takes more"),
    ("tiny,data=sat", "cannot read 'tiny,data=sat'"),
    ("500m,folder=/data", "folder= says where data sets lie, and data= which"),
  ):
    with pytest.raises(UserError, match=message):
      cli.load(f"lora:{arg}", [], RunConfig)


def _talks(folder, count):
  talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A."}]
  lines(folder / "talk.jsonl", *[dict(id=str(i), conversations=talk) for i in range(count)])
  return {"mine": LlavaConfig(path=str(folder / "talk.jsonl"))}


def test_rows_that_a_leak_check_found_are_left_out(tmp_path):
  configs, file = _talks(tmp_path, 5), tmp_path / "leaks.json"
  of = leave_out.described(configs["mine"], 5)
  leak = lambda index, distance: dict(source="mine", index=index, distance=distance)

  def mixed(examples=5, of=of):
    found = dict(
      sources=dict(mine=dict(examples=examples, of=of)), leaks=[leak(1, 0), leak(3, None), leak(4, 9)]
    )
    file.write_text(json.dumps(found))
    return pipeline.open_mixed(configs, shuffle=True, seed=0, without=str(file))

  stream = mixed()
  seen = [(s.index, s.example.id) for s in stream.read(range(9))]
  assert sorted(seen[:3]) == sorted(seen[3:6]) == [(0, "0"), (2, "2"), (3, "3")]  # a name alone is no leak
  behind = [index for _, index, _ in stream.after(0)]
  assert sorted(behind) == [0, 2, 3] and behind[0] == seen[0][0]
  with pytest.raises(UserError, match=r"looked at 4 of 5 rows of source 'mine'; run launch/leaks.py without"):
    mixed(examples=4)
  with pytest.raises(UserError, match=r"was made of other rows of source 'mine'; run launch/leaks.py"):
    mixed(of=leave_out.described(LlavaConfig(path="other"), 5))
  with pytest.raises(UserError, match=r"none\.json: missing; launch/leaks.py --output writes it"):
    pipeline.open_mixed(configs, shuffle=True, seed=0, without=str(tmp_path / "none.json"))
