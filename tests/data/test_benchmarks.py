"""Every recipe of configs/benchmarks.py on a small folder of the benchmark's own schema."""

import base64
import csv
import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spatialvlm import cli
from spatialvlm.config import EvaluateConfig
from spatialvlm.data.sources.registry import open_questions, open_source
from spatialvlm.types import Turn, UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(value, width=2):
  return Image.fromarray(np.full((3, width, 3), value, np.uint8))


def png(value, width=2):
  buffer = io.BytesIO()
  picture(value, width).save(buffer, "PNG")
  return buffer.getvalue()


def save(folder, *names):
  for i, name in enumerate(names):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    picture(10 * i).save(folder / name)


def opened(recipe, folder, open_it=open_questions, **changes):
  overrides = [("data.path", str(folder)), *((f"data.{k}", str(v)) for k, v in changes.items())]
  config = cli.load(f"configs/benchmarks.py:{recipe}", overrides, EvaluateConfig)
  return open_it(config.data)


def write_blink(folder, subset, rows, name="val-00000-of-00001.parquet"):
  """BLINK's parquet: four image columns, of which these subsets fill one; answers as `(A)`."""
  image, text = datasets.Image(), datasets.Value("string")
  names = ("idx", "question", "sub_task", "prompt", "answer")
  features = {n: text for n in names} | {"choices": datasets.List(text)}
  features |= {f"image_{i}": image for i in range(1, 5)}
  table = []
  for i, (question, choices, answer, *images) in enumerate(rows):
    options = "\n".join(f"({letter}) {c}" for letter, c in zip("ABCD", choices, strict=False))
    prompt = f"{question}\nSelect from the following choices.\n{options}"
    images = dict.fromkeys(f"image_{j}" for j in range(1, 5)) | dict(images or {"image_1": picture(i)})
    texts = dict(idx=f"val_{subset}_{i + 1}", question=question, sub_task=subset, prompt=prompt)
    table.append(texts | dict(answer=answer, choices=choices) | images)
  (folder / subset).mkdir(exist_ok=True, parents=True)
  datasets.Dataset.from_list(table, features=datasets.Features(features)).to_parquet(folder / subset / name)
  return folder


DEPTH = "Two points are circled. Which point is closer to the camera?"


@pytest.mark.parametrize(
  ("recipe", "subset", "question", "choices"),
  [
    ("blink-relative-depth", "Relative_Depth", DEPTH, ["A is closer", "B is closer"]),
    ("blink-spatial-relation", "Spatial_Relation", "Is the car beneath the cat?", ["yes", "no"]),
    ("blink-counting", "Counting", "How many blue floats are there?", ["0", "3", "2", "1"]),
  ],
)
def test_blink(tmp_path, recipe, subset, question, choices):
  write_blink(tmp_path, subset, [(question, choices, "(B)"), (question, choices, "(A)")])
  write_blink(tmp_path, subset, [(question, choices, "hidden")], name="test-00000-of-00001.parquet")
  questions = opened(recipe, tmp_path)
  assert [q.answer for q in questions] == [1, 0]
  one = questions[1]
  assert one.choices == tuple(choices) and one.task == subset and one.source == "BLINK" and one.type == ""
  # The data's own prompt: a line break where CV-Bench has a space.
  assert one.prompt.startswith(f"{question}\nSelect from the following choices.\n(A) {choices[0]}\n(B)")
  np.testing.assert_array_equal(one.images[0], np.full((3, 2, 3), 1))
  with pytest.raises(UserError, match="row 0, column 'answer': 'hidden' is not the letter of one of"):
    opened(recipe, tmp_path, files=f"{subset}/test-*.parquet")
  with pytest.raises(UserError, match=rf"holds no {subset}/val-\*\.parquet; give the folder"):
    opened(recipe, tmp_path / subset)


def test_several_images_are_refused_kept_left_out_or_joined(tmp_path):
  two = [("image_1", picture(1)), ("image_2", picture(2, width=3))]
  write_blink(tmp_path, "Counting", [("Q?", ["1", "2"], "(A)"), ("Q?", ["1", "2"], "(B)", *two)])
  with pytest.raises(UserError, match=r"row 1, column 'image_1', .*: 2 images, where a question has"):
    opened("blink-counting", tmp_path)
  kept = opened("blink-counting", tmp_path, several_images="keep")
  assert [[image[0, 0, 0] for image in q.images] for q in kept] == [[0], [1, 2]] and kept.ids == (0, 1)
  assert [image.shape for image in kept[1].images] == [(3, 2, 3), (3, 3, 3)]
  (one,) = opened("blink-counting", tmp_path, several_images="skip")
  assert one.idx == 0
  joined = opened("blink-counting", tmp_path, several_images="join")
  assert len(joined) == 2 and joined.ids == (0, 1)
  assert joined[1].images[0][0, :, 0].tolist() == [1, 1, 2, 2, 2]
  none = [("image_1", None)]
  write_blink(tmp_path, "Counting", [("Q?", ["1", "2"], "(A)", *none)])
  with pytest.raises(UserError, match=r"row 0, column 'image_1'.*: the cell is empty, where an image"):
    opened("blink-counting", tmp_path)


def test_marks_of_several_images_are_as_many(tmp_path):
  two = [("image_1", picture(1)), ("image_2", picture(2))]
  write_blink(tmp_path, "Counting", [("Is <image> like <image>?", ["no", "yes"], "(A)", *two)])
  (kept,) = opened("blink-counting", tmp_path, several_images="keep")
  assert kept.prompt.startswith("Is <image> like <image>?") and len(kept.images) == 2
  with pytest.raises(UserError, match=r"row 0, column 'prompt': 2 <image> marks for 1 image"):
    opened("blink-counting", tmp_path, several_images="join")


COLUMNS = [
  "index",
  "qid",
  "question",
  "A",
  "B",
  "C",
  "D",
  "answer",
  "category",
  "image",
  "image_source",
  "image_url",
]


def write_3dsrbench(folder, *rows):
  """Its TSV for VLMEvalKit: options in columns of their own, empty where they are fewer, images in base64."""
  with open(folder / "3dsrbench_v1_vlmevalkit.tsv", "w", newline="") as stream:
    writer = csv.DictWriter(stream, COLUMNS, delimiter="\t")
    writer.writeheader()
    for i, row in enumerate(rows):
      cells = dict(index=i, qid=f"Q{i}", A="the dog", B="the cat", answer="A", category="height_higher")
      cells |= dict(
        question="Which one is higher?", image_source="MS-COCO", image_url=f"http://c.org/v/{i}.jpg"
      )
      writer.writerow(cells | dict(image=base64.b64encode(png(i)).decode()) | row)
  return folder


def test_3dsrbench(tmp_path):
  four = dict(A="1", B="02", C="None", D="four", answer="C", category="location_above")
  questions = opened("3dsrbench", write_3dsrbench(tmp_path, {}, four, dict(image="0", answer="B")))
  assert [q.choices for q in questions] == [
    ("the dog", "the cat"),
    ("1", "02", "None", "four"),
    ("the dog", "the cat"),
  ]
  assert [q.answer for q in questions] == [0, 2, 1]
  assert [q.images[0][0, 0, 0] for q in questions] == [
    0,
    1,
    0,
  ]  # a short cell names the row that has the image
  assert questions[1].task == "location_above" and questions[1].source_dataset == "MS-COCO"
  # Without the images in base64: by the names of their URLs in a folder of COCO.
  save(tmp_path, "coco/0.jpg")
  changes = {"columns.image": "image_url", "image_root": tmp_path / "coco"}
  with pytest.raises(UserError, match=r"row 1, column 'image_url': no such image file below .*coco"):
    opened("3dsrbench", tmp_path, **changes)
  assert opened("3dsrbench", write_3dsrbench(tmp_path, {}), **changes)[0].filename == "0.jpg"


@pytest.mark.parametrize(
  ("cells", "message"),
  [
    (dict(answer="C"), "row 1, column 'answer': 'C' is not the letter of one of"),
    (dict(answer=""), "row 1, column 'answer': the cell is empty"),
    (dict(question=""), "row 1, column 'question': expected a text, got None"),
    (dict(B="", C="x"), "row 1, column 'A', 'B', 'C', 'D': a choice is empty"),
    (dict(B=""), "row 1, column 'A', 'B', 'C', 'D': expected 2 to 26 choices"),
    (dict(image=""), "row 1, column 'image': the cell is empty, where an image is wanted"),
    (dict(image="gone.jpg"), "row 1, column 'image': no such image file"),
    (dict(index=0), "row 1, column 'index': '0' stands already in row 0"),
  ],
)
def test_bad_cells_are_named_by_row_and_column_at_the_start(tmp_path, cells, message):
  with pytest.raises(UserError, match=message) as error:
    opened("3dsrbench", write_3dsrbench(tmp_path, {}, cells))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", ["vsr", "vsr-zeroshot"])
def test_vsr(tmp_path, recipe):
  save(tmp_path, "images/000000050403.jpg", "images/000000401552.jpg")
  row = dict(image="000000050403.jpg", image_link="http://x.org/train2017/000000050403.jpg", label=1)
  row |= dict(
    caption="The bear is in front of the person.", relation="in front of", vote_true_validator_id=[2]
  )
  other = row | dict(image="000000401552.jpg", label=0, vote_true_validator_id=[])
  lines = [json.dumps(row), json.dumps(other)]
  (tmp_path / "test.jsonl").write_text("\n".join(lines))
  questions = opened(recipe, tmp_path)
  assert [q.answer for q in questions] == [1, 0] and questions[0].choices == ("false", "true")
  assert 'true or false? "The bear is in front of the person."' in questions[0].prompt
  assert questions[1].images[0][0, 0, 0] == 10 and questions[1].filename == "000000401552.jpg"
  assert opened(recipe, tmp_path, **{"columns.task": "relation"})[0].task == "in front of"
  example = opened(recipe, tmp_path, open_source)[1]  # the same, to train on
  assert example.turns == (Turn(questions[1].prompt, "A"),) and example.files == ("000000401552.jpg",)
  (tmp_path / "test.jsonl").write_text("\n".join([*lines, json.dumps(row | {"label": 2})]))
  with pytest.raises(UserError, match="row 2, column 'label': 2 is not the index of one of"):
    opened(recipe, tmp_path)


def test_sat(tmp_path):
  rows = [
    dict(image_bytes=[png(1)], question="Will it be left?", answers=["yes", "no"], question_type="goal_aim"),
    dict(
      image_bytes=[png(2), png(3)], question="Did I move?", answers=["left", "right"], question_type="ego"
    ),
  ]
  rows = [row | dict(correct_answer=row["answers"][0]) for row in rows * 8]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "SAT_test.parquet")
  questions = opened("sat", tmp_path)
  assert {q.choices[q.answer] for q in questions} == {"yes", "left"}
  assert {q.answer for q in questions} == {0, 1}  # the order is drawn
  assert questions[1].images[0][0, :, 0].tolist() == [2, 2, 3, 3] and questions[1].task == "ego"
  assert len(opened("sat", tmp_path, several_images="skip")) == 8
  assert len(opened("sat", tmp_path, open_source, several_images="refuse")[1].images) == 2
  with pytest.raises(UserError, match="several_images is for questions that are scored"):
    opened("sat", tmp_path, open_source)
  for bad, message in (
    ({"correct_answer": "Yes"}, "'Yes' is not the text of one of"),
    ({"answers": ["yes", "yes"]}, r"'yes' stands twice among \['yes', 'yes'\]"),
  ):
    pq.write_table(pa.Table.from_pylist([rows[0] | bad]), tmp_path / "SAT_test.parquet")
    with pytest.raises(UserError, match=f"row 0, column 'correct_answer': {message}"):
      opened("sat", tmp_path)


@pytest.mark.parametrize(
  ("recipe", "file", "images"),
  [
    ("whatsup-a", "controlled_images_dataset.json", "controlled_images"),
    ("whatsup-b", "controlled_clevr_dataset.json", "controlled_clevr"),
  ],
)
def test_whatsup(tmp_path, recipe, file, images):
  """Paths begin with the folder `data` of the authors' repository; the first caption is the right one."""
  captions = [f"A mug {where} a table" for where in ("on", "under", "to the left of", "to the right of")]
  names = [f"mug_{i}.jpeg" for i in range(12)]
  save(tmp_path, *(f"{images}/{name}" for name in names))
  rows = [{"image_path": f"data/{images}/{name}", "caption_options": captions} for name in names]
  (tmp_path / file).write_text(json.dumps(rows))
  questions = list(opened(recipe, tmp_path))
  assert {q.choices[q.answer] for q in questions} == {captions[0]} and questions[3].images[0][0, 0, 0] == 30
  assert {q.answer for q in questions} == {0, 1, 2, 3}
  assert [q.choices for q in opened(recipe, tmp_path)] == [q.choices for q in questions]
  assert [q.choices for q in opened(recipe, tmp_path, seed=1)] != [q.choices for q in questions]
  for text, message in (
    (json.dumps([rows[0] | {"image_path": 3}]), "row 0, column 'image_path': expected an image"),
    (json.dumps([rows[0] | {"image_path": None}]), "row 0, column 'image_path'"),
    (json.dumps([rows[0] | {"caption_options": "on"}]), "row 0, column 'caption_options': expected 2 to 26"),
    ("[{", "not JSON"),
  ):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
      opened(recipe, tmp_path)
  with pytest.raises(UserError, match="needs a `path`"):
    opened(recipe, "")


@pytest.mark.parametrize(
  ("recipe", "file", "images"),
  [
    ("whatsup-coco-one", "coco_qa_one_obj.json", "val2017/{:012}.jpg"),
    ("whatsup-coco-two", "coco_qa_two_obj.json", "val2017/{:012}.jpg"),
    ("whatsup-vg-one", "vg_qa_one_obj.json", "vg_images/{}.jpg"),
    ("whatsup-vg-two", "vg_qa_two_obj.json", "vg_images/{}.jpg"),
  ],
)
def test_whatsup_pairs(tmp_path, recipe, file, images):
  save(tmp_path, *(images.format(number) for number in range(1, 9)))
  right, wrong = "A photo of a dog on the left", "A photo of a dog on the right"
  rows = [[number, right, wrong] for number in range(1, 9)]
  (tmp_path / file).write_text(json.dumps(rows))
  questions = list(opened(recipe, tmp_path))
  assert {q.choices[q.answer] for q in questions} == {right} and {q.answer for q in questions} == {0, 1}
  assert questions[7].images[0][0, 0, 0] == 70
  (tmp_path / file).write_text(json.dumps([*rows, [99, right, wrong]]))
  with pytest.raises(UserError, match="row 8, template of 'image': no such image file"):
    opened(recipe, tmp_path)
  (tmp_path / file).write_text(json.dumps([*rows, [9, right]]))
  with pytest.raises(UserError, match="row 8: expected a list of 3 cells"):
    opened(recipe, tmp_path)


def test_mappings_that_do_not_hold_are_refused(tmp_path):
  write_3dsrbench(tmp_path, {})
  for changes, message in (
    ({"columns.choices": "A,E"}, r"columns.choices='A,E': no such column; known"),
    ({"columns.answr": "answer"}, "columns.answr: not a name of ours; did you mean 'answer'"),
    ({"templates.question": "{ask}"}, "templates.question: '{ask}': no column 'ask'"),
    ({"templates.question": "{question"}, "is no template"),
    ({"templates.task": "x"}, "columns.task: there is a template of 'task' as well"),
    ({"columns.image": ""}, "no column serves as image;"),
    ({"files": "*.xlsx"}, "holds no"),
  ):
    with pytest.raises(UserError, match=message):
      opened("3dsrbench", tmp_path, **changes)
  with pytest.raises(UserError, match=r"config.data.answers: 'word' is not one of"):
    opened("3dsrbench", tmp_path, answers="word")
  with pytest.raises(UserError, match="no benchmark 'blink'; there are blink-relative-depth"):
    opened("blink", tmp_path)
  write_blink(tmp_path, "Counting", [("Q?", ["1", "2"], "(A)")])
  with pytest.raises(UserError, match="shuffle_choices: the data's own `prompt`"):
    opened("blink-counting", tmp_path, shuffle_choices=True)
