"""A benchmark from the first question to the summary, on the model that ships with the project."""

import dataclasses
import json

import numpy as np
import pytest

from spatialvlm import cli
from spatialvlm.causes import kept
from spatialvlm.causes.maps import MAPS
from spatialvlm.causes.parts import PARTS
from spatialvlm.causes.run import run
from spatialvlm.config import ExplainConfig
from spatialvlm.types import UserError

FEW = {
  "questions": 3,
  "edge_questions": 48,
  "map_questions": 2,
  "layer_questions": 2,
  "head_questions": 8,
  "answer_questions": 64,
  "scenes": 64,
  "validation": 24,
  "test": 40,
  "rows": 8,
  "bootstrap": 50,
}


def test_the_recipe_names_parts_and_tasks_that_there_are():
  for arg in ("", ":tiny", ":quick"):
    config = cli.load(f"explain{arg}", [], ExplainConfig)
    assert set(config.parts) == set(PARTS)
  with pytest.raises(UserError, match="unknown argument"):
    cli.load("explain:large", [], ExplainConfig)


def few(**more) -> ExplainConfig:
  return dataclasses.replace(cli.load("explain:tiny", [], ExplainConfig), **{**FEW, **more})


def test_too_few_questions_to_fit_cues_are_refused_before_anything_is_written(tmp_path):
  with pytest.raises(UserError, match=r"config.edge_questions: 8 are too few to fit 4 cues; ask 32"):
    run(few(tasks=("Depth",), parts=("edges",), edge_questions=8), tmp_path / "run")
  assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("block", [0, 5])
def test_blocks_that_a_model_has_not_are_refused_before_anything_is_written(block, tmp_path):
  with pytest.raises(UserError, match=f"config.head_blocks: no block {block}; before has 1 to 4"):
    run(few(tasks=("letters",), parts=("heads",), head_blocks=(2, block)), tmp_path / "run")
  assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_a_benchmark_that_was_stopped_gives_what_it_would_have(tmp_path, monkeypatch):
  config = few(tasks=("box", "letters"), parts=("regions", "heads"), drawn=False)
  real, calls = kept.measured, []

  def stops(path, cases, block, measure, show):
    calls.append(path)
    if len(calls) == 1:  # in the middle of a file
      real(path, cases[: 2 * block], block, measure, show)
      raise KeyboardInterrupt
    real(path, cases, block, measure, show)

  monkeypatch.setattr(kept, "measured", stops)
  with pytest.raises(KeyboardInterrupt):
    run(config, tmp_path / "a")
  assert not (tmp_path / "a" / "summary.json").exists()
  monkeypatch.setattr(kept, "measured", real)
  found = run(config, tmp_path / "a")
  names = {path.name for path in (tmp_path / "a").iterdir()}
  assert {"summary.json", "table.txt", "explain.md", "explain.png", "config.json", "identity.json"} <= names
  assert (tmp_path / "a" / "explain.png").read_bytes()[:4] == b"\x89PNG"
  assert json.loads((tmp_path / "a" / "summary.json").read_text()) == json.loads(json.dumps(found))
  table = np.array([[s["value"] for s in row] for row in found["heads"]["letters"]["before"]["change"]])
  assert table.shape == (4, 4) and np.isfinite(table).all()
  assert json.dumps(run(config, tmp_path / "b")) == json.dumps(found)


@pytest.mark.slow
def test_every_part_of_a_model_and_of_drawn_weights(tmp_path):
  found = run(few(tasks=("Depth", "box"), head_blocks=(3, 1)), tmp_path / "run")
  assert set(found) == set(PARTS) and set(found["edges"]) == {"before", "before (drawn)"}
  for task, models in found["layers"].items():
    for row in models.values():
      assert len(row["cut"]["picture"]) == len(row["patched"]["last"]) == 5, task
  # What reads a state behind all blocks at the last position answers as the clean picture does.
  back = found["layers"]["box"]["before"]["patched"]["last"][-1]["value"]
  assert back == pytest.approx(1, abs=1e-3)
  assert found["regions"]["box"]["before"]["pointing"]["value"] > 0.5
  assert len(found["probes"]["before"]["answers"]["Depth"]["layers"]) == 5
  heads = found["heads"]["box"]["before"]
  assert (
    heads["blocks"] == [3, 1]
    and len(heads["change"]) == 2
    and {top["layer"] for top in heads["top"]} <= {1, 3}
  )
  # Block 1, head 4 reads the boxes' colours; it is row 1 here.
  assert heads["top"][0]["layer"] == 1 and heads["top"][0]["head"] == 4
  assert set(found["maps"]["box"]["before"]) == {"cells", *MAPS}
