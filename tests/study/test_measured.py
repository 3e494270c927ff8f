"""The numbers of a study, recomputed from the predictions' files alone."""

import dataclasses
import json

import numpy as np
import pytest

from spatialvlm import cli, workdir
from spatialvlm.config import CellConfig, RunConfig, ScoreConfig, StudyConfig
from spatialvlm.evaluation import records
from spatialvlm.evaluation.scoring import statistics, summary
from spatialvlm.reporting import tables
from spatialvlm.study import grid, measured, report, study
from spatialvlm.types import UserError
from tests.evaluation.support import row

COUNT = 60
TASKS = ("Count", "Depth")


def answers(right_N):
  return [
    row(i, bool(right), task=TASKS[i % 2], options=4 if i % 2 == 0 else 2, image=f"image {i // 2}")
    for i, right in enumerate(right_N)
  ]


def write_answers(folder, rows):
  folder.mkdir(parents=True)
  records.rewrite(folder, rows)
  found = summary.summarize(rows, ScoreConfig(bootstrap=50))
  workdir.write_json(folder / "summary.json", found)
  return found


def write_run(run, rows, trained=100, seconds=(0.5, 0.25)):
  """A finished run of six steps, in two rows of metrics."""
  found = write_answers(run.folder / "evaluation" / "after", rows)
  said = [{"step": 2, "seconds_per_step": seconds[0]}, {"step": 6, "seconds_per_step": seconds[1]}]
  lines = [json.dumps(line) + "\n" for line in (*said, {"step": 6, "validation/loss": 1.0})]
  (run.folder / "metrics.jsonl").write_text("".join(lines))
  content = {
    "scores": found["scores"],
    "parameters": {"trained": trained, "all": 1000, "heads": 0},
    "memory": {"step": 2**20, "process": (run.seed + 1) * 2**30, "device": None},
  }
  workdir.write_json(run.folder / "summary.json", content)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Two seeds of a cell that helps, one of a cell that changes nothing, none of a third."""
  folder = tmp_path_factory.mktemp("measured") / "study"
  recipe = CellConfig("peft:tiny,method=lora")
  cells = {"helps": recipe, "not": recipe, "none": recipe}
  config = StudyConfig(cells=cells, control="not", seeds=(0, 1))
  config = dataclasses.replace(config, questions=dataclasses.replace(config.questions, bootstrap=400))
  runs = grid.expand(config, folder, lambda recipe, pairs: cli.load(recipe, pairs, RunConfig))
  bases = grid.bases(config, runs, folder)
  rng = np.random.default_rng(0)
  right = {"untrained": rng.random(COUNT) < 0.3}
  right["helps", 0] = right["untrained"] | (rng.random(COUNT) < 0.5)
  right["helps", 1] = right["untrained"] | (rng.random(COUNT) < 0.7)
  right["not", 0] = right["untrained"]
  write_answers(folder / grid.BASE, answers(right["untrained"]))
  for run in runs:
    if (run.cell, run.seed) in right:
      write_run(run, answers(right[run.cell, run.seed]))
  return config, runs, folder, right, bases


@pytest.fixture(scope="module")
def found(made):
  config, runs, _, _, bases = made
  return measured.collect(config, runs, bases, {"none, seed 0": "no such file"})


def lines(folder):
  return (folder / "predictions.jsonl").read_text().splitlines()


def test_scores_and_changes_are_those_of_the_answers(made, found):
  _, runs, folder, *_ = made
  read = lambda folder: {p["idx"]: p for p in map(json.loads, lines(folder))}
  base = read(folder / "untrained")
  own = [read(measured.evaluation(run)) for run in runs if run.cell == "helps"]
  for name, task in (("plain", None), ("task/Count", "Count"), ("task/Depth", "Depth")):
    chosen = [i for i, p in base.items() if task in (None, p["task"])]
    share = lambda by, chosen=chosen: np.mean([by[i]["choice"] == by[i]["gold"] for i in chosen])
    was, now = share(base), [share(by) for by in own]
    cell = found["cells"]["helps"]
    change = cell["changes"][name]
    assert cell["scores"][name]["score"] == pytest.approx(np.mean(now)) and change["n"] == len(chosen)
    assert change["difference"] == pytest.approx(np.mean(now) - was)
    assert [change["lowest"], change["highest"]] == pytest.approx(sorted(n - was for n in now))
    assert [run["scores"][name] for run in cell["runs"]] == pytest.approx(now)
    assert found["untrained"]["untrained"]["scores"][name]["score"] == pytest.approx(was)
    assert cell["scores"][name]["guessing"] == pytest.approx({"Count": 0.25, "Depth": 0.5}.get(task, 0.375))
    # The interval of the mean change, from its own bootstrap over images of two questions.
    diffs = {i: np.mean([by[i]["correct"] for by in own]) - base[i]["correct"] for i in chosen}
    images = sorted({base[i]["image"] for i in chosen})
    of = [[diffs[i] for i in chosen if base[i]["image"] == image] for image in images]
    rng = np.random.default_rng(5)
    draws = [[of[k] for k in rng.integers(len(of), size=len(of))] for _ in range(4000)]
    low, high = np.percentile([np.mean(np.concatenate(draw)) for draw in draws], [2.5, 97.5])
    assert (change["low"], change["high"]) == pytest.approx((low, high), abs=0.03)


def test_what_did_not_help_is_said_so(made, found):
  verdicts = {name: cell.get("verdict") for name, cell in found["cells"].items()}
  assert verdicts == {"helps": "better", "not": "no difference shown", "none": None}
  assert measured.verdict({"low": -0.2, "high": -0.1}) == "worse"
  assert measured.verdict({"low": -0.2, "high": 0.0}) == "no difference shown"
  assert [found["cells"][n]["missing"] for n in ("helps", "not", "none")] == [[], [1], [0, 1]]
  assert json.loads(json.dumps(found))["failed"] == {"none, seed 0": "no such file"}


def test_against_a_control_seed_by_seed(made, found):
  """Over the seeds that both have; the control itself, and who has none of them, stand against nothing."""
  right = made[3]
  assert {n for n, cell in found["cells"].items() if "against" in cell} == {"helps"}
  against = found["cells"]["helps"]["against"]
  assert against["seeds"] == [0] and against["verdict"] == "better"
  gain = right["helps", 0].mean() - right["not", 0].mean()
  assert against["changes"]["plain"]["difference"] == pytest.approx(gain)
  runs = {name: answers(right[name]) for name in (("helps", 0), ("helps", 1), ("not", 0), "untrained")}
  before, after = [runs["helps", 0], runs["not", 0]], [runs["helps", 1], runs["untrained"]]
  change = statistics.paired_mean(before, after, resamples=100)["plain"]
  share = lambda *names: np.mean([right[name].mean() for name in names])
  assert change["before"] == pytest.approx(share(("helps", 0), ("not", 0)))
  assert change["after"] == pytest.approx(share(("helps", 1), "untrained"))
  single = [share(("helps", 1)) - share(("helps", 0)), share("untrained") - share(("not", 0))]
  assert [change["lowest"], change["highest"]] == pytest.approx(sorted(single))
  table = report.changes(found, "not")
  assert table.title == "Change from not" and [row[0].text for row in table.rows] == ["helps"]


def test_of_one_run_it_is_the_pair(made):
  right = made[3]
  before, after = answers(right["untrained"]), answers(right["helps", 1])
  one = statistics.paired(before, after, resamples=200, seed=3)
  mean = statistics.paired_mean([before], [after], resamples=200, seed=3)
  for name, change in mean.items():
    assert {key: change[key] for key in ("before", "after", "difference", "low", "high", "n")} == (
      pytest.approx({key: one[name][key] for key in ("before", "after", "difference", "low", "high", "n")})
    )
    assert change["lowest"] == change["highest"] == change["difference"]
  with pytest.raises(UserError, match="not of the same questions: number 59"):
    statistics.paired_mean([before], [after, after[:-1]])


def test_the_tables_say_it(made, found):
  scores, changes, costs = report.scores(found), report.changes(found), report.costs(found)
  text = lambda table: {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
  assert list(text(scores)) == ["guessing", "best shortcut", "untrained", "helps", "not"]
  assert text(scores)["guessing"][:3] == ["37.5", "25.0", "50.0"] and text(scores)["helps"][-1] == "0, 1"
  change = found["cells"]["helps"]["changes"]["plain"]
  assert text(changes)["helps"][0] == tables.signed(change["difference"])
  assert text(changes)["helps"][2:4] == [
    f"{tables.signed(change['lowest'])} to {tables.signed(change['highest'])}", "better"
  ]  # fmt: skip
  # Of one seed there is no spread.
  assert text(changes)["not"][:4] == ["+0.0", "+0.0 to +0.0", "", "no difference shown"]
  assert text(costs)["helps"] == ["100", "10.00", "6", "0.333", "1", "2,048", ""]
  assert (
    "none: seeds 0, 1 not finished." in scores.note and "none, seed 0 failed: no such file" in scores.note
  )
  assert "not: seed 1 not finished." in scores.note and "one in twenty" in changes.note


def test_the_report_is_made_of_what_is_there(made, capsys):
  config, _, folder, *_ = made
  read = lambda recipe, pairs: cli.load(recipe, pairs, RunConfig)
  workdir.write_json(folder / "config.json", {"cells": {}, "seeds": [], "questions": {}})
  before = {path for path in folder.rglob("*") if path.is_file()}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(grid, "check_folders", lambda *_, **__: None)  # what is there was not made by runs
    assert study.run(config, folder, read, only_report=True) == 0
  new = {path.name for path in folder.rglob("*") if path.is_file()} - {path.name for path in before}
  assert new == {"study.json", "table.txt", "tables.md", "tables.tex", "study.png"}
  assert json.loads((folder / "study.json").read_text())["cells"]["helps"]["verdict"] == "better"
  assert "no difference shown" in capsys.readouterr().out
  markdown = (folder / "tables.md").read_text()
  assert markdown.count("| helps |") == 4 and "best shortcut" in markdown
  with pytest.raises(UserError, match="the untrained model was not scored yet"):
    study.run(config, folder.parent / "other", read, only_report=True)
