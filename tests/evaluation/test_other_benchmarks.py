"""Questions that are not CV-Bench's, from a recipe of configs/benchmarks.py to tables."""

import dataclasses
import json

import datasets
import pytest
from PIL import Image

from spatialvlm import cli
from spatialvlm.config import EvaluateConfig
from spatialvlm.data.sources.registry import open_questions
from spatialvlm.evaluation import records
from spatialvlm.evaluation.evaluate import evaluate
from spatialvlm.evaluation.report import run_tables
from spatialvlm.reporting import terminal
from spatialvlm.serving.scorer import VlmScorer
from spatialvlm.types import LETTERS
from tests.evaluation import support
from tests.evaluation.test_passes import ALL, processor, prompter, vlm

__all__ = ["processor", "prompter", "vlm"]
CAPTIONS = [f"A mug {where} a table" for where in ("on", "under", "to the left of", "to the right of")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """What's Up, in the files of its authors: of four captions the first is right."""
  folder = tmp_path_factory.mktemp("whatsup")
  (folder / "controlled_images").mkdir()
  rows = []
  for i, question in enumerate(support.questions(count=4, images=4)):
    Image.fromarray(question.images[0]).save(folder / "controlled_images" / f"{i}.png")
    captions = CAPTIONS[i:] + CAPTIONS[:i]
    rows.append({"image_path": f"data/controlled_images/{i}.png", "caption_options": captions})
  (folder / "controlled_images_dataset.json").write_text(json.dumps(rows))
  return folder


@pytest.fixture(scope="module")
def result(folder, vlm, prompter):
  recipe = cli.load("benchmarks:whatsup-a", [("data.path", str(folder))], EvaluateConfig)
  conditions = ("circular", "grey", "other_image", "flip")
  config = dataclasses.replace(ALL, protocols=("native", "options"), controls=conditions)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    return evaluate(open_questions(recipe.data), VlmScorer(vlm), prompter, config)


def text(row, letter):
  return row.choices[LETTERS.index(letter)]


def test_every_score_that_there_is_and_no_official_one(result):
  summary = result.summary
  assert "these questions are from What's Up" in summary["official_note"]
  names = {"plain", "task/Relation", "source/What's Up", "source_dataset/Controlled A"}
  assert set(summary["scores"]) == names and summary["scores"]["plain"]["guessing"] == 0.25
  assert {text(row, row.gold) for row in result.rows} == set(CAPTIONS)
  shown = terminal.plain_text(run_tables.result(summary, "a model"))
  assert "n/a: defined on ADE20K" in shown and "Relation" in shown
  assert run_tables.protocols(summary) and run_tables.controls(summary)


def test_controls(result):
  found = result.summary["controls"]
  assert {name: part["scores"]["plain"]["n"] for name, part in found.items()} == dict.fromkeys(found, 4)
  passes = records.passes(result.all_rows)
  assert len(passes["native", "circular"]) == 12 and set(found) == {"circular", "grey", "other_image", "flip"}
  before = {row.idx: text(row, row.gold) for row in result.rows}
  # Left and right swap, where an object lies on or under another it still does.
  after = dict(zip(CAPTIONS, [*CAPTIONS[:2], CAPTIONS[3], CAPTIONS[2]], strict=True))
  assert all(text(row, row.gold) == after[before[row.idx]] for row in passes["native", "flip"])
