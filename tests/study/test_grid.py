"""From a study's config to its runs, and what is refused before any begins."""

import dataclasses
import pathlib

import pytest

from spatialvlm import cli, workdir
from spatialvlm import peft as methods
from spatialvlm.config import CellConfig, EvaluateConfig, RunConfig, ScenesConfig, StudyConfig, crossed
from spatialvlm.configs import peft
from spatialvlm.configs.study import BESIDE_METHODS
from spatialvlm.study import grid
from spatialvlm.training import stages
from spatialvlm.training.objectives import OBJECTIVES
from spatialvlm.types import UserError

HERE = pathlib.Path("study")


def read(recipe, settings):
  return cli.load(recipe, settings, RunConfig)


def two(**more) -> StudyConfig:
  cells = {
    "lora": CellConfig("peft:tiny,method=lora", {"peft.rank": 4}),
    "ia3": CellConfig("peft:tiny,method=ia3"),
  }
  return StudyConfig(**{"cells": cells, "seeds": (0, 2), "settings": {"train.steps": 7}, **more})


def test_every_cell_with_every_seed():
  study = two()
  runs = grid.expand(study, HERE, read)
  assert [run.name for run in runs] == ["lora, seed 0", "ia3, seed 0", "lora, seed 2", "ia3, seed 2"]
  assert [str(run.folder) for run in runs[:3:2]] == ["study/runs/lora/seed-0", "study/runs/lora/seed-2"]
  first, _, moved, _ = (run.config for run in runs)
  # Seed 0 is the recipe itself, but for what the study says.
  recipe = cli.load("peft:tiny,method=lora", [("peft.rank", "4"), ("train.steps", "7")], RunConfig)
  asked = dataclasses.replace(study.questions, before=False)
  wanted = dataclasses.replace(recipe, name="study-lora-0", eval=asked, peft=first.peft)
  assert first == wanted and first.peft.options["rank"] == 4 and first.peft.options["alpha"] == 32.0
  assert (moved.seed, moved.peft.seed) == (2, 2)
  worlds = [config.data.sources["scenes"].seed for config in (first, moved)]
  assert worlds == [1, 1 + 2 * grid.STRIDE] and moved.data.validation == first.data.validation
  assert dataclasses.replace(seeds_away(moved), name=first.name) == first


def seeds_away(config):
  sources = {name: dataclasses.replace(source, seed=1) for name, source in config.data.sources.items()}
  return dataclasses.replace(
    config,
    seed=0,
    peft=dataclasses.replace(config.peft, seed=0),
    data=dataclasses.replace(config.data, sources=sources),
  )


def test_stages_get_the_seed_too():
  study = two(cells={"rewards": CellConfig("grpo:tiny")}, seeds=(1,), settings={})
  (run,) = grid.expand(study, HERE, read)
  second = run.config.stages["2-rewards"]
  assert second.peft.seed == 1 and second.data.sources["scenes"].seed == 21 + grid.STRIDE
  assert run.config.stages["1-answers"].peft is None
  assert [str(part) for part in run.parts] == [
    "study/runs/rewards/seed-1/1-answers",
    "study/runs/rewards/seed-1/2-rewards",
  ]


def test_settings_are_a_command_lines():
  """Nested or dotted, a text as it stands; later ones win, and a cell's own win over those of all."""
  settings = {"a.b": 1, "a": {"c": "x", "d": {"e": (1, 2)}}, "f": None, "g": {}, "h": True}
  assert list(grid.pairs(settings)) == [
    ("a.b", "1"), ("a.c", "x"), ("a.d.e", "(1, 2)"), ("f", "None"), ("g", "{}"), ("h", "True")
  ]  # fmt: skip
  cells = {"ia3": CellConfig("peft:tiny,method=ia3", {"train": {"steps": 9, "best": None}})}
  (run,) = grid.expand(two(cells=cells, seeds=(0,)), HERE, read)
  assert run.config.train.steps == 9
  changed = [("cells.ia3.settings.train.steps", "11"), ("settings.optim.learning_rate", "0.5")]
  (run,) = grid.expand(cli.load("study:smoke", changed, StudyConfig), HERE, read)[1:]
  assert (run.config.train.steps, run.config.optim.learning_rate) == (11, 0.5)


@pytest.mark.parametrize(
  ("more", "message"),
  [
    ({"cells": {}}, r"^config\.cells: empty"),
    ({"control": "lroa"}, r"^config\.control: no cell 'lroa'; did you mean 'lora'"),
    ({"seeds": ()}, r"^config\.seeds: empty"),
    ({"seeds": (0, 1, 0)}, r"^config\.seeds: 0 stands twice"),
    ({"seeds": (-1,)}, "-1 is below 0"),
    ({"cells": {"a/b": CellConfig("peft:tiny,method=lora")}}, "a/b: the name becomes a folder's"),
    ({"cells": {"x": CellConfig()}}, r"^config\.cells\.x: recipe: is missing"),
    ({"cells": {"x": CellConfig("peft:tiny,method=lroa")}}, r"config\.cells\.x: .*no method 'lroa'"),
    ({"cells": {"x": CellConfig("pft:tiny")}}, r"config\.cells\.x: .*no such recipe; did you mean 'peft'"),
    (
      {"cells": {"x": CellConfig("peft:tiny,method=lora", {"peft.rnak": 4})}},
      r"config\.cells\.x: config\.peft\.rnak: unknown key; did you mean 'rank'",
    ),
    (
      {"cells": {"x": CellConfig("peft:tiny,method=lora", {"optim.rate": 4})}},
      r"config\.cells\.x: config\.optim\.rate: unknown key",
    ),
    ({"settings": {"train.steps": 0}}, r"config\.cells\.lora: config\.train: steps"),
    ({"settings": {"eval": {"limit": 3}}}, r"eval\.limit is the study's own; set config\.questions"),
    ({"settings": {"seed": 3}}, r"seed is the study's own; set config\.seeds"),
    ({"settings": {"stages.1-answers.peft.seed": 3}}, "is the study's own"),
    (
      {"cells": two().cells | {"x": CellConfig("peft:tiny,method=lora", {"model.max_tiles": 1})}},
      r"config\.cells\.x: model\.max_tiles is 1, and None in 'lora'; all cells",
    ),
    (
      {"settings": {"train.evaluate_every": 2, "train.best": "plain"}},
      "'plain' chooses the step by the questions",
    ),
    ({"axis": "questions"}, r"^config\.axis: no cell stands on 'questions'"),
    (
      {"axis": "n", "cells": {"x": CellConfig("peft:tiny,method=lora", {}, {"n": 0})}},
      r"^config\.cells\.x\.at\.n: 0 has no place on a logarithmic axis",
    ),
    ({"skills": ("nmae",)}, "skill 'nmae' is unknown; did you mean 'name'"),
    ({"skills": ("name",), "skill_count": 0}, r"config\.skill_count: 0"),
    (
      {"beside": {"roll": ScenesConfig(seed=1, shift="roll")}},
      r"trains on the worlds that are asked about \(seed 1\); give config\.beside\.roll another seed",
    ),
    (
      {"settings": {"data.sources.scenes.seed": 1_000_000}},
      r"data\.sources\.scenes: with seed 0 it trains on the worlds that are asked about",
    ),
  ],
)
def test_what_is_refused(more, message):
  with pytest.raises(UserError, match=message):
    grid.expand(two(**more), HERE, read)


def test_one_untrained_model_stands_for_all():
  """A base of few bits is a way to train; what it is held against is the model in full."""
  cells = {"nf4": CellConfig("peft:tiny,method=lora", {"model.quantize": "nf4"})} | two().cells
  study = two(cells=cells)
  (one,) = grid.bases(study, grid.expand(study, HERE, read), HERE)
  base = one.config
  assert isinstance(base, EvaluateConfig) and base.model.quantize is None
  assert base.data == ScenesConfig(seed=1_000_000, size=1000) and base.score.bootstrap == 2000
  assert one.cells == ("nf4", "lora", "ia3") and one.folder == HERE / "untrained" and base.adapter is None


def test_other_eyes_and_adapters_are_held_against_their_own():
  eyes = {"eyes": CellConfig("peft:tiny,method=lora", {"model.encoders": "('own',)"})}
  study = two(cells=two().cells | eyes | {"again": eyes["eyes"]}, seeds=(0, 1))
  first, second = grid.bases(study, grid.expand(study, HERE, read), HERE)
  assert first.cells == ("lora", "ia3") and second.cells == ("eyes", "again")
  assert [base.key for base in (first, second)] == ["untrained", "untrained-eyes"]
  assert second.config.model.encoders == ("own",) and not first.config.model.encoders
  study = cli.load("study:real-data", [], StudyConfig)
  (base,) = grid.bases(study, grid.expand(study, HERE, read), HERE)
  assert base.config.adapter == base.beside.adapter == "checkpoints/smolvlm-135m-dinov2s/adapter"
  runs = {run.cell: run.config for run in grid.expand(study, HERE, read)}
  assert {name: run.data.sources["scenes"].size for name, run in runs.items()} == {
    "right_40": 40, "right_160": 160, "right_640": 640, "wrong-30_640": 640,
    "long_1920": 1920,
  }  # fmt: skip
  assert {run.train.steps * run.train.batch_size for run in runs.values()} == {640, 1920}


def test_a_grid_of_axes():
  cells = crossed(
    "peft:tiny,method=lora", {"a": {"x": {"train.steps": 3}, "y": {}}, "n": {0.5: {"b": 1}, 2: {}}}
  )
  assert list(cells) == ["x_0p5", "x_2", "y_0p5", "y_2"] and cells["x_0p5"].at == {"a": "x", "n": 0.5}
  assert cells["x_0p5"].settings == {"train.steps": 3, "b": 1} and not cells["y_2"].settings
  of = crossed("one", {"a": {"other": {"recipe": "two"}, "same": {}}})
  assert [cell.recipe for cell in of.values()] == ["two", "one"] and not of["other"].settings


def test_the_grids_of_data():
  """How many questions and of which quality: at equal steps, and what more needs more of."""
  study = cli.load("study:tiny-data", [("seeds", "(0,)")], StudyConfig)
  runs = {run.cell: run for run in grid.expand(study, HERE, read)}
  seen = lambda name: runs[name].config.train.steps * runs[name].config.train.batch_size
  size = lambda name: runs[name].config.data.sources["scenes"].size
  for name, cell in study.cells.items():
    assert size(name) == cell.at["questions"]
    assert (seen(name) == 6400) == (cell.at["data"] not in ("long", "once"))
  assert seen("once_1600") == size("once_1600") == 1600 and seen("once_102400") == 102_400
  assert runs["wrong-30_400"].config.data.noise.share == 0.3 and runs["right_400"].config.data.noise is None
  assert runs["replay_6400"].config.data.sources["talk"].tasks == {"name": 1.0, "where": 1.0}
  run = runs["right_400"]
  assert list(run.beside.asked) == ["roll", "low"] and run.beside.skills == ("name", "where")
  asked = run.beside.asked["roll"]
  assert asked.model.path == "study/runs/right_400/seed-0" and asked.data.shift == "roll"
  assert not asked.score.controls and run.config.eval.controls == ("no_image",)
  for arg in (
    "500m-data",
    "500m-methods",
    "real-data",
    "real-ways",
    "tiny-encoders,encoder=/models/dinov2.x",
  ):
    runs = grid.expand(cli.load(f"study:{arg}", [], StudyConfig), HERE, read)
    assert len({run.cell for run in runs}) > 2
  assert runs[2].config.model.encoders == ("own", "/models/dinov2.x") and runs[2].cell == "own+dinov2px"


def test_a_folder_of_something_else_is_refused(tmp_path):
  study = two(seeds=(0,))
  folder = tmp_path / "study"
  runs = grid.expand(study, folder, read)
  grid.check_folders(study, runs, folder)
  assert not folder.exists()
  folder.mkdir()
  (folder / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match="not empty, and it holds no study"):
    grid.check_folders(study, runs, folder)
  workdir.write_json(folder / "config.json", {"cells": {}, "seeds": [], "questions": {}})
  grid.check_folders(study, runs, folder)
  with workdir.alone(runs[1].folder):
    workdir.claim(runs[1].folder, dataclasses.replace(runs[1].config, seed=5))
  with pytest.raises(UserError, match=r"config\.cells\.ia3, seed 0: .*other settings \(seed: 5, now 0\)"):
    grid.check_folders(study, runs, folder)
  # Beside a study at work, what is not finished is not looked at.
  grid.check_folders(study, runs, folder, busy=True)


def test_the_recipe_has_every_method():
  study = cli.load("study:tiny-methods", [], StudyConfig)
  runs = grid.expand(study, HERE, read)
  assert list(study.cells) == [*peft.METHODS, *BESIDE_METHODS] and len(runs) == 3 * len(study.cells)
  assert {run.config.peft.method for run in runs} == set(methods.METHODS)
  assert {run.config.model.quantize for run in runs} == {None, "nf4", "int8"}
  assert {run.config.train.steps for run in runs} == {400}
  assert {run.config.train.batch_size for run in runs} == {16}


def test_the_recipes_of_objectives():
  """Each objective that such data can have stands there, beside what it must be better than."""
  load = lambda arg: cli.load(f"study:{arg}", [("seeds", "(0,)")], StudyConfig)
  runs = {run.cell: run.config for run in grid.expand(load("tiny-objectives"), HERE, read)}
  kinds = {loss.kind for config in runs.values() for loss in config.losses.values()}
  # Words need classes by pixel, which conversations of skills have, and features of a field a field; rewards
  # have a study of their own.
  assert (
    kinds == set(OBJECTIVES) - {"words", "grpo", "field_features"}
    and load("tiny-objectives").control == "answers"
  )
  for config in runs.values():
    first = runs["answers"]
    assert (config.peft, config.train, config.optim) == (first.peft, first.train, first.optim)
  assert runs["told"].teachers["told"].prompt == "{facts} {prompt}" and "answer" in runs["told"].losses

  study = load("tiny-rewards")
  runs = {run.cell: run.config for run in grid.expand(study, HERE, read)}
  (_, first), (_, second) = stages.split(runs["rewards"], HERE)
  alone = runs[study.control]
  for part in ("optim", "peft", "losses"):
    assert getattr(first, part) == getattr(alone, part)
  assert first.data == alone.data and first.train.batch_size == alone.train.batch_size
  assert first.train.steps == alone.train.steps == 400 and [*second.losses] == ["grpo"]
  with pytest.raises(UserError, match="takes encoder=FOLDER"):
    cli.load("study:tiny-data,encoder=x", [], StudyConfig)
  with pytest.raises(UserError, match="no recipe 'tiny'; there are tiny-methods"):
    cli.load("study:tiny", [], StudyConfig)
