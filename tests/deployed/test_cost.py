"""Exported files asked in another process: as the evaluator asks, once each, and what comes of it."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from spatialvlm.config import CVBenchConfig, EvaluateConfig, ModelConfig, ScoreConfig
from spatialvlm.data.sources.cvbench import write_cvbench
from spatialvlm.deployed import client, cost, plan, report, runtimes, scoring, speed
from spatialvlm.deployed.asked import Asked, Asker
from spatialvlm.evaluation import records
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import UserError
from tests import tiny_edge
from tests.deployed import still_runtime
from tests.evaluation.support import questions

STILL = "tests.deployed.still_runtime"
SETTINGS = {"threads": 1, "context": 512, "vocabulary": 500}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp("cost")
  tiny_edge.write("smolvlm", folder / "tiny-smolvlm")
  write_cvbench(folder / "table.parquet", questions(count=8, images=3))
  return folder


@pytest.fixture
def here(monkeypatch):
  """GGUF files run by this library in place of llama.cpp, which `make test` does not install."""
  form = dataclasses.replace(
    runtimes.RUNTIMES["gguf"], module="tests.deployed.own_runtime", needs=("gguf",), runtime="ours"
  )
  monkeypatch.setitem(runtimes.RUNTIMES, "gguf", form)


def config_of(world, **score) -> EvaluateConfig:
  return EvaluateConfig(
    model=ModelConfig(str(world / "tiny-smolvlm")),
    data=CVBenchConfig(path=str(world / "table.parquet"), split="test"),
    score=ScoreConfig(batch_size=4, lengths=(160,), tiles=(2,), bootstrap=50, **score),
  )


def test_an_exported_file_is_asked_as_the_model_is(world, here, tmp_path, monkeypatch):
  """The same log-probabilities question by question, tables and a picture; and nothing is asked twice."""
  exports = plan.read_exports(["gguf"], ["f32"])
  asked = plan.Plan(exports, threads=1, repeats=0)
  out = tmp_path / "out"
  found = cost.run(config_of(world), asked, out)
  float_rows, rows = records.read(out / "float-mtmd"), records.read(out / "gguf-f32")
  assert len(rows) == 8 and [row.idx for row in rows] == [row.idx for row in float_rows]
  for ours, theirs in zip(rows, float_rows, strict=True):
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    assert dataclasses.replace(ours, logprobs=()) == dataclasses.replace(theirs, logprobs=())
  (whole, file) = found["rows"]
  assert whole["changes"] is None and file["changes"]["plain"]["difference"] == 0 and file["same"] == 1
  assert file["bytes"] == sum(path.stat().st_size for path in (out / "gguf-f32" / "files").iterdir())
  assert file["speed"] is None and not (out / "speed.json").exists()
  assert "gguf-f32" in (out / "costs.md").read_text() and Image.open(out / "costs.png").width > 500
  assert json.loads((out / "costs.json").read_text()) == found

  class Never:
    def __init__(self, *_):
      raise AssertionError("it was asked again")

  monkeypatch.setattr(cost, "Child", Never)
  assert cost.run(config_of(world), asked, out) == found
  with pytest.raises(UserError, match="holds a run with other settings"):
    cost.run(config_of(world, limit=4), asked, out)


def asker(world, **settings) -> Asker:
  return Asker(load_processor(world / "tiny-smolvlm", layout="mtmd", **settings), "native")


def test_questions_that_are_answered_are_left_alone(world, tmp_path):
  all_questions, make = questions(count=4, images=2), asker(world)
  tokens = make(all_questions[0]).tokens
  same = [question for question in all_questions if make(question).tokens == tokens]
  ask = lambda count: scoring.score(same, count, make, child, ScoreConfig(bootstrap=10), tmp_path / "answers")
  with client.Child(STILL, tmp_path, SETTINGS | {"tokens": tokens}) as child:
    first = ask(1)
    (tmp_path / "answers" / "summary.json").unlink()
    assert ask(len(same))[:1] == first
  prompts = (tmp_path / "asked").read_text().splitlines()
  assert len([line for line in prompts if line.startswith("<|im_start|>")]) == len(same)
  assert all(row.choice == "A" for row in records.read(tmp_path / "answers"))


def test_another_prompt_is_refused(world, tmp_path):
  with (
    client.Child(STILL, tmp_path, SETTINGS | {"tokens": 5}) as child,
    pytest.raises(UserError, match=r"question \d+ is a prompt of 5 tokens in its runtime and of \d+ here"),
  ):
    scoring.score(questions(count=1), 1, asker(world), child, ScoreConfig(), tmp_path / "answers")


def test_a_runtime_that_does_not_start_or_ends(tmp_path):
  (tmp_path / "broken").touch()
  with pytest.raises(UserError, match="ValueError: no model here"):
    client.Child(STILL, tmp_path, SETTINGS)
  with pytest.raises(UserError, match="ModuleNotFoundError"):
    client.Child("tests.deployed.no_such_runtime", tmp_path, SETTINGS)
  (tmp_path / "broken").unlink()
  with client.Child(STILL, tmp_path, SETTINGS) as child:
    child._process.kill()
    with pytest.raises(UserError, match="the runtime ended with code -9"):
      child.memory()


def test_times_and_memory(tmp_path):
  asked = Asked({"prompt": "4 + 4", "pictures": ["x"], "options": []}, tokens=9, seconds=0.5, text="4 + 4")
  found = speed.measure(STILL, tmp_path, SETTINGS, asked, repeats=3, tokens=10)
  middle, least, most = found["first_token_s"]
  assert 0.52 <= least <= middle <= most < 1.0  # what was cut before is counted in
  assert 50 < found["tokens_per_s"][0] <= 101
  assert still_runtime.MUCH <= found["peak_bytes"] - found["empty_bytes"] < 2 * still_runtime.MUCH
  assert found["served"] == "1 4 + 4" and found["prompt_tokens"] == 9


@pytest.fixture
def installed(monkeypatch):
  """All runtimes, as far as plans are concerned."""
  monkeypatch.setattr(runtimes.Form, "missing", lambda self: [])


def test_what_a_user_names(installed):
  read = plan.read_exports
  assert [export.name for export in read(["gguf"], [])] == [
    f"gguf-{n}" for n in ("f16", "q8_0", "q5_0", "q4_0")
  ]
  parts = read(["gguf"], ["q4_0+embedding=q8_0"])[0]
  assert parts.numbers == "q4_0,embedding=q8_0" and parts.name == "gguf-q4_0-embedding=q8_0"


@pytest.mark.parametrize(
  ("to", "numbers", "message"),
  [
    (["ggfu"], [], "--to=ggfu: no form that is scored in a runtime; did you mean 'gguf'"),
    (["gguf"], ["q4_k"], "the gguf library reads such blocks and does not write them"),
    (["gguf", "gguf-lora"], ["q8_0"], "of which form"),
    (["gguf"], ["merged:q8_0"], "'merged' is not in --to=gguf"),
    (["gguf"], ["q8_0", "q8_0"], "one stands twice"),
    (["merged"], ["q8_0"], "belongs to --to=gguf"),
  ],
)
def test_what_no_user_can_mean(installed, to, numbers, message):
  with pytest.raises(UserError, match=message):
    plan.read_exports(to, numbers)


def test_a_runtime_that_is_not_installed(monkeypatch):
  form = dataclasses.replace(runtimes.RUNTIMES["gguf"], needs=("no_such_package",))
  monkeypatch.setitem(runtimes.RUNTIMES, "gguf", form)
  with pytest.raises(UserError, match=r"needs no_such_package, which is not installed: pip install"):
    plan.read_exports(["gguf"], [])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"score": {"controls": ("grey",)}}, "asked in one pass"),
    ({"score": {"protocols": ("options",)}}, "'options' reads no letters"),
    ({"model": {"layout": "mtmt"}}, "llama.cpp cuts pictures as layout=mtmd"),
    ({"data": {"path": "/nowhere"}}, "/nowhere"),
  ],
)
def test_settings_that_cannot_be(world, installed, tmp_path, change, message):
  config = config_of(world)
  parts = {name: dataclasses.replace(getattr(config, name), **said) for name, said in change.items()}
  asked = plan.Plan(plan.read_exports(["gguf"], ["f32"]), threads=1)
  with pytest.raises(UserError, match=message):
    cost.run(dataclasses.replace(config, **parts), asked, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_tables_say_what_was_timed(tmp_path):
  score = {"score": 0.5, "low": 0.4, "high": 0.6, "n": 8, "guessing": 0.3, "answered": 1.0}
  change = {
    "difference": -0.1,
    "low": -0.2,
    "high": -0.01,
    "gained": 1,
    "lost": 3,
    "p": 0.6,
    "detectable": 0.2,
  }
  scores = {"plain": score, "task/Depth": score}
  timed = {"first_token_s": [1.0, 0.5, 2.0], "tokens_per_s": [9.0, 8.0, 10.0]}
  timed |= {"peak_bytes": 2_000_000, "empty_bytes": 500_000, "prompt_tokens": 70}
  row = {"runtime": "r", "bytes": 1_000_000, "scores": scores, "changes": None, "same": None, "speed": None}
  rows = [
    row | {"name": "float32"},
    row
    | {"name": "gguf-q4_0", "changes": {"plain": change, "task/Depth": change}, "same": 0.75, "speed": timed},
    row | {"name": "merged", "scores": None, "speed": timed},
  ]
  found = {"title": "t", "machine": "m", "measured": "now", "repeats": 3, "tokens": 9}
  accuracy, took = report.accuracy(found | {"rows": rows}), report.cost(found | {"rows": rows})
  texts = [[cell.text for cell in row] for row in accuracy.rows]
  assert [row[0] for row in texts] == ["float32", "gguf-q4_0"]
  assert texts[1][3:9] == ["−10.0", "−20.0 to −1.0", "1 / 3", "0.600", "20.0", "75.0"]
  texts = [cell.text for cell in took.rows[0]]
  assert texts == ["gguf-q4_0", "r", "1.0", "70", "1.000 (0.500 – 2.000)", "9.0 (8.0 – 10.0)", "2.0", "0.5"]
  report.plot(found | {"rows": rows}, tmp_path / "costs.png")
  assert Image.open(tmp_path / "costs.png").height > 400
