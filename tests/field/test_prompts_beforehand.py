"""A question far down cannot be asked as it stands: it is found before the first answer."""

import dataclasses
import json

import pytest
from PIL import Image

from spatialvlm.config import HFConfig, ScenesConfig, ScoreConfig
from spatialvlm.data.sources import registry
from spatialvlm.data.sources.cvbench import open_cvbench, write_cvbench
from spatialvlm.evaluation import beforehand
from spatialvlm.evaluation.asking.protocols import ProcessorPrompter
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import UserError
from tests.evaluation import support
from tests.launch import command
from tests.tiny_processor import write_processor

LONG = "Which of them is it, pray? " * 40


def opened(folder, changes, size=(24, 24), **mapping):
  """Twelve rows, all alike but for `changes`: row -> its cells."""
  rows = []
  for row in range(12):
    cells = dict(question="Which?", choices=["a", "b"], answer="a", image=f"{row}.png", task=f"{row % 2}")
    cells |= changes.get(row, {})
    Image.new("RGB", cells.pop("size", size), (row, 0, 0)).save(folder / f"{row}.png")
    rows.append(cells)
  (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return registry.open_questions(HFConfig(path=f"{folder}/q.jsonl", **mapping))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_processor(tmp_path_factory.mktemp("processor"), longest_edge=32)


@pytest.fixture
def refused(folder):
  """Checks questions; the line that refuses them."""

  def run(questions, max_length=None, max_tiles=None, **settings):
    processor = load_processor(folder, max_length=max_length, max_tiles=max_tiles)
    with pytest.raises(UserError) as error:
      beforehand.check(questions, ProcessorPrompter(processor), ScoreConfig(**settings))
    return str(error.value)

  return run


def test_a_command_asks_nothing_and_leaves_nothing(tmp_path, capfd):
  opened(tmp_path, {9: {"question": LONG}, 10: {"question": LONG}})
  done = command.run(
    capfd,
    "evaluate",
    "--config=configs/cvbench.py:tiny",
    "--config.data.kind=hf",
    f"--config.data.path={tmp_path}/q.jsonl",
    f"--workdir={tmp_path}/run",
  )
  assert done.code == 2 and not (tmp_path / "run").exists()
  (line,) = done.err.splitlines()
  assert f"{tmp_path}/q.jsonl, row 9, column 'question': " in line
  assert "exceed the model's context of 512; shorten the text; else leave the row out" in line
  assert line.endswith("so it is with 1 more of the questions")


def test_buckets(tmp_path, refused):
  line = refused(opened(tmp_path, {9: {"question": LONG}}), lengths=(64, 128))
  assert "row 9, column 'question': " in line and "tokens of text do not fit the largest bucket, 128" in line
  assert "raise score.lengths" in line
  line = refused(opened(tmp_path, {7: {"size": (64, 64)}}, size=(40, 20)), tiles=(1, 3))
  assert "row 7, column 'question': 5 image tiles do not fit the largest bucket, 3; raise score.tiles" in line


def test_what_alone_does_not_fit_is_named(tmp_path, refused):
  questions = opened(tmp_path, {5: {"task": "same"}})
  line = refused(questions, protocols=("native", "lmms_eval"), lengths=(64,))
  assert "row 0, column 'question', protocol 'lmms_eval': " in line and "with 11 more" in line
  assert "else leave 'lmms_eval' out of score.protocols" in line
  assert "no other image among the questions of task 'same'" in refused(questions, controls=("other_image",))
  line = refused(opened(tmp_path, {}, columns={"prompt": "question"}), controls=("circular",))
  assert "row 0, column 'question', control 'circular': its prompt does not list its options" in line


def test_another_questions_picture(tmp_path, folder, refused):
  """A long question on a small picture and a short one on a large picture fit; the other way they do not."""
  text = "Which of them is it? " * 4
  questions = opened(tmp_path, {2: {"question": text}, 4: {"size": (64, 64)}}, size=(40, 20))
  processor = load_processor(folder)
  prompter, longest = ProcessorPrompter(processor), 0
  for i in (2, 4):
    longest = max(longest, len(prompter(questions[i]).encoded.tokens))
  beforehand.check(questions, ProcessorPrompter(load_processor(folder, max_length=longest)), ScoreConfig())
  swapped = opened(tmp_path, {4: {"question": text}, 2: {"size": (64, 64)}}, size=(40, 20))
  line = refused(swapped, max_length=longest, controls=("other_image",))
  assert "row 4, column 'question', control 'other_image': " in line and f"context of {longest}" in line


def test_what_passes_in_every_pass(tmp_path, folder):
  """Of pictures by themselves, joined, and named by another row."""
  prompter = ProcessorPrompter(load_processor(folder))
  controls = ("circular", "grey", "no_image", "other_image", "flip")
  config = ScoreConfig(protocols=("native", "options", "vsi"), controls=controls, new_tokens=2, bootstrap=2)
  rows = {4: {"image": "1", "id": "4"}, 1: {"image": "1.png", "id": "1", "size": (64, 30)}}
  questions = opened(tmp_path, rows | {3: {"id": "3", "image": ["3.png", "2.png"]}}, several_images="join")
  for i in range(len(questions)):
    unopened, question = questions.unopened(i), questions[i]
    assert [image.shape for image in unopened.images] == [image.shape for image in question.images]
    assert (unopened.images[0].make() == question.images[0]).all()
    assert (
      dataclasses.replace(unopened, images=()).__dict__ == dataclasses.replace(question, images=()).__dict__
    )
  beforehand.check(questions, prompter, config)


def test_rendered_questions_stand_for_each_other(refused):
  line = refused(registry.open_questions(ScenesConfig(size=100)), lengths=(8,))
  assert line.startswith("question 0: ") and "do not fit the largest bucket, 8" in line


def test_rows_of_parquet(tmp_path, refused):
  asked = [dataclasses.replace(q, idx=100 + i) for i, q in enumerate(support.questions())]
  asked[6] = dataclasses.replace(asked[6], prompt=LONG)
  write_cvbench(tmp_path / "q.parquet", asked)
  line = refused(open_cvbench(str(tmp_path / "q.parquet")), max_length=400)
  assert line.startswith(f"{tmp_path}/q.parquet, row 6, column 'prompt': ")
