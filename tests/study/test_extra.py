"""What was asked beside a study's questions, from files to numbers, tables and the drawing over an axis."""

import dataclasses
import json

import numpy as np
import pytest

from spatialvlm import cli
from spatialvlm.config import CellConfig, RunConfig, ScenesConfig, StudyConfig
from spatialvlm.evaluation.records import SIGHTED
from spatialvlm.study import curves, grid, measured, report, study
from tests.study.test_measured import COUNT, answers, write_answers, write_run

SKILLS = {"name": 20, "where": 10}


def blind(rows, right_N):
  """The same questions without their image, rightly answered as said."""
  wrong = {"A": "B", "B": "A"}
  choose = lambda row, right: row.gold if right else wrong.get(row.gold, "A")
  return [
    dataclasses.replace(row, condition="no_image", choice=choose(row, right), correct=bool(right))
    for row, right in zip(rows, right_N, strict=True)
  ]


def write_beside(folder, right_N, skills):
  write_answers(folder / "beside" / "roll", answers(right_N))
  (folder / "beside" / "skills.json").write_text(
    json.dumps({n: list(map(bool, s)) for n, s in skills.items()})
  )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Two seeds on 100 questions, one on 1,000, and a cell that stands on no axis."""
  folder = tmp_path_factory.mktemp("extra") / "study"
  at = [{"data": "right", "questions": 1000}, {"data": "right", "questions": 100}, {}]
  at += [{"data": "wrong", "questions": 1000}]
  names = ("many", "few", "other", "wrong")
  cells = {name: CellConfig("peft:tiny,method=lora", {}, own) for name, own in zip(names, at, strict=True)}
  config = StudyConfig(cells=cells, seeds=(0, 1), axis="questions", skills=tuple(SKILLS))
  asked = dataclasses.replace(config.questions, bootstrap=200, controls=("no_image",))
  config = dataclasses.replace(
    config, questions=asked, beside={"roll": ScenesConfig(seed=1_000_000, shift="roll")}
  )
  runs = grid.expand(config, folder, lambda recipe, pairs: cli.load(recipe, pairs, RunConfig))
  rng = np.random.default_rng(1)
  right = {}

  def draw(key, share):
    drawn = {"sighted": share, "blind": 0.3, "roll": share}
    right[key] = {part: rng.random(COUNT) < chance for part, chance in drawn.items()}
    right[key]["skills"] = {name: rng.random(count) < 1 - share for name, count in SKILLS.items()}
    rows = answers(right[key]["sighted"])
    return rows + blind(rows, right[key]["blind"])

  write_answers(folder / grid.BASE, draw("untrained", 0.3))
  write_beside(folder / grid.BASE, right["untrained"]["roll"], right["untrained"]["skills"])
  for run in runs:
    if (run.cell, run.seed) in (("few", 0), ("few", 1), ("many", 0), ("wrong", 0)):
      write_run(run, draw((run.cell, run.seed), 0.9 if run.cell == "many" else 0.5))
      assert not run.finished
      write_beside(run.folder, *(right[run.cell, run.seed][part] for part in ("roll", "skills")))
      assert run.finished
  bases = grid.bases(config, runs, folder)
  return config, runs, bases, folder, right, measured.collect(config, runs, bases, {})


def test_what_the_image_gives(made):
  right, found = made[4], made[5]
  gap = found["cells"]["few"]["beside"]["gaps"]["no_image"]
  of = lambda key: right[key]["sighted"].mean() - right[key]["blind"].mean()
  assert gap["difference"] == pytest.approx((of(("few", 0)) + of(("few", 1))) / 2)
  assert gap["low"] < gap["difference"] < gap["high"]
  gap = found["untrained"]["untrained"]["beside"]["gaps"]["no_image"]
  assert gap["difference"] == pytest.approx(of("untrained"))
  assert SIGHTED != "no_image" and found["questions"] == COUNT


def test_other_worlds_and_what_was_forgotten(made):
  right, found = made[4], made[5]
  share = lambda key, part: right[key][part].mean()
  world = found["cells"]["many"]["beside"]["worlds"]["roll"]
  assert world["score"] == pytest.approx(share(("many", 0), "roll")) and world["n"] == COUNT
  change = share(("many", 0), "roll") - share("untrained", "roll")
  assert world["change"]["difference"] == pytest.approx(change)
  skills = found["cells"]["few"]["beside"]["skills"]
  assert {name: one["n"] for name, one in skills.items()} == SKILLS | {"all": 30}
  whole = lambda key: np.concatenate(list(right[key]["skills"].values()))
  now = (whole(("few", 0)).mean() + whole(("few", 1)).mean()) / 2
  assert skills["all"]["score"] == pytest.approx(now)
  change = skills["all"]["change"]
  assert change["difference"] == pytest.approx(now - whole("untrained").mean())
  # Its interval, from a bootstrap of its own.
  diffs = (whole(("few", 0)).astype(float) + whole(("few", 1))) / 2 - whole("untrained")
  drawn = np.random.default_rng(4).choice(diffs, (4000, 30)).mean(axis=1)
  assert (change["low"], change["high"]) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.06)


def test_the_table_and_the_drawing(made):
  config, runs, bases, folder, _, found = made
  table = report.beside(found)
  heads = [column.text for column in table.columns]
  assert heads == ["", "image against no image", "roll", "skill name", "skill where", "all skills"]
  rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
  assert list(rows) == ["untrained", "many", "few", "wrong"]
  assert "(" in rows["untrained"][0] and "(" not in rows["untrained"][1] and " to " in rows["few"][1]
  lines = curves.lines(found, "questions", "plain")
  assert list(lines) == ["right", "wrong"] and [p["at"] for p in lines["right"]] == [100, 1000]
  few = found["cells"]["few"]
  assert (
    lines["right"][0]["score"] == few["scores"]["plain"]["score"] and len(lines["right"][0]["seeds"]) == 2
  )
  # Where all lines share a coordinate it is not said.
  alone = {**found, "cells": {name: found["cells"][name] for name in ("few", "many")}}
  assert list(curves.lines(alone, "questions", "plain")) == ["trained"]
  assert json.loads(json.dumps(found)) == found
  study._sum_up(config, runs, bases, folder, {})
  assert "Elsewhere" in (folder / "tables.md").read_text()
  assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
  # The axis says where the points are, and no tick between.
  panels = curves.drawn(found, "questions").axes
  ticks = [[tick.get_text() for tick in axes.get_xticklabels(which="both")] for axes in panels]
  assert ticks == [["100", "1,000"]] * len(panels)
