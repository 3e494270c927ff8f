"""`launch/field.py` as a user runs it."""

import dataclasses
import json

import numpy as np
import pytest

from spatialvlm.config import (
  DataConfig,
  FolderViewsConfig,
  LogConfig,
  LossConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  PosedConfig,
  RunConfig,
  TrainConfig,
)
from spatialvlm.fields import field, fit, grid, written
from spatialvlm.fields.posed import folder, transforms
from spatialvlm.training import one_run
from spatialvlm.types import UserError
from tests.fields import support
from tests.launch import command, tiny

pytestmark = pytest.mark.slow  # `make oracle` runs them

SETTINGS = {
  "source.number": 3, "source.views": 24, "source.size": 16, "heldout": 6, "steps": 60, "rays": 128,
  "coarse": 16, "fine": 8, "planes": "(16,)", "features": 4, "proposal": 16, "width": 16, "new_views": 2,
  "checkpoint_every": 20,
}  # fmt: skip
FLAGS = [f"--config.{name}={value}" for name, value in SETTINGS.items()]


def test_a_field_is_fitted_stopped_continued_and_read_again(tmp_path, capfd, monkeypatch):
  place = tmp_path / "run"
  typed = lambda *more: command.run(
    capfd, "field", "--config=field:scene", f"--workdir={place}", *FLAGS, *more
  )
  save = fit.save

  def interrupted(path, state):
    save(path, state)
    if int(state.step) == 40:
      raise KeyboardInterrupt

  monkeypatch.setattr(fit, "save", interrupted)
  assert typed().code == 130
  assert not (place / "report.json").exists() and (place / "state.safetensors").exists()
  monkeypatch.setattr(fit, "save", save)
  done = typed()
  assert done.code == 0, done.err
  assert "goes on after step 40" in done.out and "4 held-out views" in done.out
  results = json.loads((place / "report.json").read_text())
  assert results["views"] == {"fitted": 20, "heldout": 4, "measured": 4, "new": 2}
  assert set(results["psnr"]) == {"field", "nearest fitted view", "constant"}
  assert len(results["abs_rel"]["field, median"]["each"]) == 4
  assert (place / "field.png").stat().st_size > 1000 and not (place / "state.safetensors").exists()
  # The folder is a posed RGB-D folder.
  views = folder.read(FolderViewsConfig(path=str(place)))
  assert len(views) == 4 + 2 + 20 and all(v.depth.shape == (16, 16) for v in views)
  shown = field.load(place / "field.safetensors").render(views[-1].camera)
  np.testing.assert_array_equal(shown.image, views[-1].image)
  np.testing.assert_allclose(shown.depth, views[-1].depth, atol=6e-4)
  before = command.files(place)
  again = typed()
  assert again.code == 0 and "finished before" in again.out and command.files(place) == before
  other = typed("--config.seed=1")
  assert other.code == 2 and "other settings (seed: 0, now 1)" in other.err


def test_image_tokens_learn_what_a_field_knows(tmp_path):
  """From a field's folder to an adapter and a head, by configs; without the field the run does not begin."""
  room = support.posed_ball(tmp_path / "room")
  space = grid.Space((0.0, 0.0, 0.0), 1.5, 1.5, 8.0, 4.0)
  field.Field(fit.start(support.TINY).params, support.TINY, space).save(room / "field.safetensors")
  tiny.write_model(tmp_path / "model")
  posed = PosedConfig(
    path=str(room), ask="Metres", depth_size=0, field=str(room / "field.safetensors"), field_size=16
  )
  config = RunConfig(
    name="room",
    model=ModelConfig(str(tmp_path / "model"), from_scratch=True),
    peft=PeftConfig("lora", full=r"model\.connector\..*", options={"rank": 2}),
    data=DataConfig(sources={"room": posed}, lengths=(1024,), tiles=(1,), workers=1),
    losses={"answer": LossConfig(), "room": LossConfig("field_features", weight=0.5, kwargs={"share": 0.1})},
    optim=OptimConfig(learning_rate=1e-2, warmup_steps=0),
    train=TrainConfig(steps=6, batch_size=4, log_every=1, checkpoint_every=0),
    log=LogConfig(tensorboard=False),
  )
  summary = one_run.train(config, tmp_path / "run")
  assert set(summary["exported"]) == {"adapter", "heads", "model"}
  assert (tmp_path / "run" / "heads" / "room.json").exists()
  rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  # A fresh head says the mean.
  assert rows[0]["room/mse"] == pytest.approx(rows[0]["room/mse_of_mean"]) and rows[0]["room/mse"] > 0.1
  assert rows[-1]["room/mse"] < rows[-1]["room/mse_of_mean"]
  without = dataclasses.replace(posed, field="")
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources={"room": without}))
  with pytest.raises(UserError, match=r"losses\.room: no data source gives the dense target 'field'"):
    one_run.train(config, tmp_path / "none")
  assert not (tmp_path / "none").exists()


def test_pictures_of_ones_own_with_depth_that_is_learned_from(tmp_path, capfd):
  views, place = support.ball(8, size=12), tmp_path / "mine"
  (place / "depth").mkdir(parents=True)
  frames = []
  for n, view in enumerate(views):
    (place / f"{n}.png").write_bytes(written.png(view.image))
    (place / f"depth/{n}.png").write_bytes(written.png(written.millimetres(view.depth)))
    frames.append({"file_path": f"{n}", "depth_path": f"depth/{n}.png"})
  transforms.write(place / "transforms.json", [v.camera for v in views], frames, written.MILLIMETRES)
  more = {"steps": 8, "heldout": 4, "planes": "(8,)", "new_views": 1, "given": False, "background": "white"}
  more |= {"depth": "expected", "depth_weight": 0.1, "smoothness": 0.01, "measured": 1}
  flags = [f"--config.{name}={value}" for name, value in (SETTINGS | more).items() if "source" not in name]
  run = tmp_path / "run"
  done = command.run(capfd, "field", f"--config=field:folder,path={place}", f"--workdir={run}", *flags)
  assert done.code == 0, done.err
  results = json.loads((run / "report.json").read_text())
  assert results["views"] == {"fitted": 6, "heldout": 2, "measured": 1, "new": 1}
  assert results["abs_rel"]["field, expected"]["views"] == 1 and len(results["names"]) == 1
  assert sorted(p.name for p in (run / "renders").iterdir()) == ["heldout-0000.png", "new-0000.png"]
  about = json.loads((run / "transforms.json").read_text())
  assert [frame.get("from") for frame in about["frames"]] == [f"{place}/0.png", None]
  shown = field.load(run / "field.safetensors").render(views[0].camera)
  np.testing.assert_array_equal(shown.depth, shown.expected)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--config.steps=0"], "config.steps: must be at least 1"),
    (["--config.heldout=1"], "config.heldout: 1 holds every view out"),
    (["--config.planes=(8, 8)"], "config.planes"),
    (["--config.center=(1.0, 2.0)"], "config.center: three numbers"),
    (["--config.near=5", "--config.far=2"], "config.near, config.far"),
    (["--config.source.views=1"], "config.source.views"),
    (["--config.source.angle=5"], "config.source.angle"),
    (["--config.source.size=8"], "image size 8"),
    (["--config=field:lego"], "known: scene, folder,path=FOLDER"),
    (["--config=field:folder"], "config.source.path: is missing"),
    (["--config=field:folder,path=/nowhere"], "/nowhere: no such folder"),
    (["--config=field:folder,path={place}", "--config.source.scale=0"], "config.source.scale"),
    (["--config=field:folder,path={place}", "--config.source.metres=0"], "config.source.metres"),
    (["--config=field:folder,path={place}", "--config.depth_weight=1"], "have no depth to learn from"),
    (
      ["--config=field:folder,path={place}", "--config.heldout=2", "--config.source.scale=9"],
      "leaves nothing",
    ),
    (["--config=field:folder,path={place}/images"], "5 pictures without poses"),
    (["--config=field:folder,path={place}/gone"], "2 of 5 pictures are missing"),
  ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capfd, flags, message):
  place = tmp_path / "views"
  support.pictures(place / "images")
  support.as_transforms(place, support.ring())
  support.pictures(place / "gone" / "images", 3)
  support.as_transforms(place / "gone", support.ring())
  flags = [flag.format(place=place) for flag in flags]
  before = command.files(tmp_path)
  done = command.run(capfd, "field", f"--workdir={tmp_path}/run", *flags)
  assert done.code == 2 and message in done.err
  assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1
  assert "Traceback" not in done.err and command.files(tmp_path) == before
