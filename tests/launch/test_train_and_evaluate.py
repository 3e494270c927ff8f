"""A training that asks questions as it goes: what it leaves, and that the chosen weights are those scored."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import spatialvlm
from spatialvlm import cli
from spatialvlm.config import (
  CVBenchConfig,
  EvalConfig,
  EvaluateConfig,
  ModelConfig,
  OptimConfig,
  RunConfig,
  ScoreConfig,
  TrainConfig,
)
from spatialvlm.data.sources.cvbench import write_cvbench
from spatialvlm.evaluation import records
from spatialvlm.evaluation.report import between_runs
from spatialvlm.evaluation.run import run
from spatialvlm.reporting import page
from spatialvlm.serving import scorer
from spatialvlm.training import one_run, runs
from spatialvlm.training.checkpoint import Checkpoints
from spatialvlm.types import UserError
from tests.evaluation import support
from tests.launch import command, tiny
from tests.tiny_model import write_checkpoint

BY = "source/COCO"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  write_cvbench(folder / "test.parquet", support.questions(count=12, images=4))
  write_checkpoint(folder / "checkpoint", longest_edge=16, split=False)
  config = cli.load(str(tiny.write_all(folder)), [], RunConfig)
  source = CVBenchConfig(path=str(folder / "test.parquet"), split="test")
  return dataclasses.replace(
    config,
    model=ModelConfig(path=str(folder / "checkpoint")),
    optim=OptimConfig(learning_rate=0.3, schedule="constant", warmup_steps=0, ema=0.5),
    train=TrainConfig(steps=6, batch_size=8, evaluate_every=2, best=BY, checkpoint_every=0, keep=1),
    eval=EvalConfig(source=source, during=0, batch_size=8, lengths=(160,), tiles=(1,), bootstrap=20),
  )


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "w"
  programs = lambda: [
    f._cache_size() for f in (scorer._encode, scorer._prefix, scorer._read, scorer._letters)
  ]
  before = programs()
  summary = one_run.train(settings, workdir)
  return workdir, summary, [b - a for a, b in zip(before, programs(), strict=True)]


def test_the_step_that_scored_best_is_what_is_scored_and_exported(trained):
  workdir, summary, _ = trained
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  found = {row["step"]: row for row in rows if f"eval/{BY}" in row}
  assert list(found) == [2, 4, 6]
  best = max(found, key=lambda step: found[step][f"eval/{BY}"])  # the first of equals
  assert summary["step"] == best and summary["best"]["step"] == best and summary["best"]["by"] == BY
  # Asked in training and asked afterwards, from what was restored, the moving average says the same.
  assert found[best][f"eval/{BY}"] == summary["best"]["value"] == summary["scores"][BY]["score"]
  after = {f"eval/{name}": score["score"] for name, score in summary["scores"].items()}
  assert _numbers(found[best]) == after | {"eval/answered": 1.0}
  assert best in Checkpoints(workdir / "checkpoints", keep=1, best=BY).steps
  assert len({tuple(sorted(row.items())) for row in map(_numbers, found.values())}) > 1


def _numbers(row):
  return {k: v for k, v in row.items() if k.startswith("eval/")}


def test_all_evaluations_of_a_run_share_their_programs(trained):
  assert max(trained[2]) == 1, trained[2]  # 0: an earlier test of this process made that one


def test_the_workdir_holds_three_reports(trained):
  folder = trained[0] / "evaluation"
  made = {"predictions.jsonl", "summary.json", "report.html", "tables.md", "tables.tex"}
  for name in ("before", "after"):
    assert {f.name for f in (folder / name).iterdir()} == made
    assert len(page.pictures_of(folder / name / "report.html")) == 12
    assert page.title_of(folder / name / "report.html") == f"tiny, {name} training"
  changed = {f.name for f in (folder / "comparison").iterdir()}
  assert changed == made - {"predictions.jsonl", "summary.json"} | {
    between_runs.JSON, between_runs.DIFFERENCES, between_runs.PLOT
  }  # fmt: skip
  before, after = (records.read(folder / name) for name in ("before", "after"))
  differ = sum(a.choice != b.choice for a, b in zip(before, after, strict=True))
  assert len((folder / "comparison" / between_runs.DIFFERENCES).read_text().splitlines()) == differ > 0


def test_the_exported_adapter_is_the_best_steps(trained):
  workdir, summary, _ = trained
  adapter = load_file(workdir / "adapter" / "adapter_model.safetensors")
  assert np.isfinite(np.concatenate([v.ravel() for v in adapter.values()])).all()
  assert summary["step"] in Checkpoints(workdir / "checkpoints", keep=1, best=BY).steps


def evaluation(settings, path):
  """The run's own evaluation as one on its own, of whatever lies at `path`."""
  score = {field.name: getattr(settings.eval, field.name) for field in dataclasses.fields(ScoreConfig)}
  return EvaluateConfig(
    model=ModelConfig(path=str(path)),
    data=settings.eval.source,
    score=ScoreConfig(**score),
  )


def test_a_run_and_its_adapter_are_scored_by_their_paths(settings, trained, tmp_path, capsys):
  workdir, summary, _ = trained
  after, before = records.read(workdir / "evaluation" / "after"), command.files(workdir)
  assert list(run(evaluation(settings, workdir), tmp_path / "run", runs.find).all_rows) == list(after)
  assert f"questions to {workdir}, step {summary['step']}" in capsys.readouterr().out
  assert json.loads((tmp_path / "run/identity.json").read_text())["run"]["step"] == summary["step"]
  assert "checkpoint" in (tmp_path / "run" / "report.html").read_text()
  adapter = evaluation(settings, workdir / "adapter")
  assert list(run(adapter, tmp_path / "adapter", runs.find).all_rows) == list(after)
  assert command.files(workdir) == before  # it may be training there
  # Not that run any more: the checkpoint's content tells.
  extra = workdir / "checkpoints" / str(summary["step"]) / "extra"
  extra.write_text("x")
  with pytest.raises(UserError, match=r"began with other inputs \(run\.sha256"):
    run(evaluation(settings, workdir), tmp_path / "run", runs.find)
  extra.unlink()


def test_which_checkpoint_of_a_run(settings, trained, tmp_path):
  """Without a summary the run has not ended: then the best where the settings say what is, else the last."""
  copy = tmp_path / "w"
  shutil.copytree(trained[0], copy)
  steps = Checkpoints(copy / "checkpoints", keep=1, best=BY, reads=True).steps
  name = lambda path: runs.find(ModelConfig(path=str(path))).name
  (copy / "summary.json").unlink()
  assert name(copy) == f"{copy}, step {trained[1]['step']}"
  text = (copy / "config.json").read_text()
  (copy / "config.json").write_text(text.replace(f'"best": "{BY}"', '"best": ""'))
  assert name(copy) == f"{copy}, step {max(steps)}"
  assert name(copy / "checkpoints" / str(steps[0])) == f"{copy}, step {steps[0]}"
  assert spatialvlm.load_vlm(copy).name == settings.model.path
  for path, adapter, message in (
    (copy / "checkpoints" / "7", None, rf"no checkpoint of step 7; there are {steps[0]}"),
    (copy, "x", "is a training run, with its own"),
  ):
    with pytest.raises(UserError, match=message):
      runs.find(ModelConfig(path=str(path)), adapter)
  (copy / "identity.json").write_text('{"model": {"sha256": "0123"}}')
  with pytest.raises(UserError, match="trained on other weights than lie at its base's path"):
    name(copy)
  (copy / "config.json").write_text(text.replace(settings.model.path, "gone/model"))
  with pytest.raises(UserError, match=r"a training run whose base is not found \(gone/model: no such folder"):
    name(copy)
  shutil.rmtree(copy / "checkpoints")
  with pytest.raises(UserError, match="a training run without checkpoints yet"):
    name(copy)


@pytest.mark.parametrize(
  ("train", "message"),
  [
    ({"best": "task/Deph"}, r"train\.best: unknown score 'task/Deph'; did you mean 'task/Depth'\?"),
    ({"best": "official", "evaluate_every": 0}, r"'official' is a score, which needs train\.evaluate_every"),
    ({"best": "validation"}, r"train\.best: needs train\.validate_every and data\.validation"),
  ],
)
def test_what_cannot_tell_the_best_is_refused(settings, tmp_path, train, message):
  config = dataclasses.replace(settings, train=dataclasses.replace(settings.train, **train))
  with pytest.raises(UserError, match=message):
    one_run.train(config, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_counts_below_nothing_are_refused(settings, tmp_path):
  with pytest.raises(UserError, match=r"config\.eval: .* during and limit at least 0"):
    one_run.train(
      dataclasses.replace(settings, eval=dataclasses.replace(settings.eval, during=-1)), tmp_path / "w"
    )


def test_evaluation_without_questions_is_refused(settings, tmp_path):
  with pytest.raises(UserError, match=r"train\.evaluate_every: there are no questions to ask; set eval"):
    one_run.train(dataclasses.replace(settings, eval=None), tmp_path / "w")
