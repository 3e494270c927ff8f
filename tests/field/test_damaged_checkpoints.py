"""Runs whose last checkpoint a full disk, a copy or a crash has damaged."""

import dataclasses
import shutil

import pytest

from spatialvlm.training import step as step_lib
from spatialvlm.training.checkpoint import Checkpoints, Damaged
from spatialvlm.types import UserError
from tests.training.fakes import Stream
from tests.training.helpers import make_config, make_parts, run, same
from tests.training.test_fit import rows

CONFIG = make_config(steps=6, checkpoint_every=2, keep=3)
KINDS = {
  "arrays cut": ("state/d/*", lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])),
  "arrays gone": ("state/d/*", lambda file: file.unlink()),
  "names cut": ("state/_METADATA", lambda file: file.write_text(file.read_text()[:99])),
  "place in the data cut": ("data/position.json", lambda file: file.write_text("")),
  "what is remembered cut": ("_CHECKPOINT_METADATA", lambda file: file.write_text("{")),
}


def harm(folder, kind, step=6):
  pattern, how = KINDS[kind]
  (file,) = (folder / "checkpoints" / str(step)).glob(pattern)
  how(file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  return folder, run(CONFIG, folder)


@pytest.fixture
def folder(whole, tmp_path):
  return shutil.copytree(whole[0], tmp_path / "run")


@pytest.fixture(scope="module")
def like():
  return step_lib.abstract(make_parts(CONFIG)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_before_is_taken_and_nothing_deleted(folder, whole, like, kind):
  harm(folder, kind)
  before = {p.name: p.read_bytes() for p in (folder / "checkpoints" / "6").rglob("*") if p.is_file()}
  stream = Stream(16)
  kept = Checkpoints(folder / "checkpoints", keep=3)
  state, memory, (said,) = kept.newest(like, stream)
  assert int(state.step) == stream.next == 4 and memory["stopped"] is False
  assert f"{folder}/checkpoints/6: checkpoint is damaged (" in said and "incompatible handler" not in said
  away = folder / "damaged_checkpoints" / "6"
  assert said.endswith(f"it was moved to {away}") and kept.steps == [2, 4]
  assert {p.name: p.read_bytes() for p in away.rglob("*") if p.is_file()} == before
  kept.close()


def test_the_run_goes_on_to_the_same_end(folder, whole, capsys):
  harm(folder, "arrays cut")
  outcome = run(CONFIG, folder)
  assert same(outcome.state.params, whole[1].state.params)
  assert [(r["step"], r["loss"]) for r in rows(folder)] == [(r["step"], r["loss"]) for r in rows(whole[0])]
  shown = capsys.readouterr().out
  assert "checkpoint is damaged (" in shown and "step 4 is the newest that can be read" in shown
  assert Checkpoints(folder / "checkpoints", keep=3, reads=True).steps == [2, 4, 6]


def test_where_all_are_damaged_nothing_is_touched(folder, like):
  for step in (2, 4, 6):
    harm(folder, "arrays cut", step)
  kept = Checkpoints(folder / "checkpoints", keep=3)
  with pytest.raises(UserError, match=r"/6: .*damaged.*/4: .*damaged.*/2: .*there is no other"):
    kept.newest(like, Stream(16))
  assert kept.steps == [2, 4, 6] and not (folder / "damaged_checkpoints").exists()


def test_who_only_reads_is_told_which_others_there_are(folder, like):
  harm(folder, "names cut")
  kept = Checkpoints(folder / "checkpoints", keep=3, reads=True)
  with pytest.raises(Damaged, match=r"/6: checkpoint is damaged .*name another one: .*/2, .*/4"):
    kept.weights(6, like.params)


def test_a_whole_checkpoint_of_another_optimizer_is_not_passed_over(folder, like):
  strange = dataclasses.replace(like, ema=dict(like.params))
  with pytest.raises(UserError, match="cannot be restored") as error:
    Checkpoints(folder / "checkpoints", keep=3).newest(strange, Stream(16))
  assert not isinstance(error.value, Damaged) and (folder / "checkpoints" / "6").exists()


def test_a_damaged_best_one_at_the_end_gives_way_to_the_newest(tmp_path, capsys):
  def evaluate(state):
    if int(state.step) == 6:
      harm(tmp_path, "arrays cut", step=2)
    return {"plain": 1 / int(state.step)}

  config = make_config(steps=6, keep=1, checkpoint_every=2, evaluate_every=2, best="plain")
  outcome = run(config, tmp_path, evaluate=evaluate)
  assert int(outcome.state.step) == 6 and outcome.memory.best_step == 2
  shown = " ".join(capsys.readouterr().out.split())
  assert "/checkpoints/2: checkpoint is damaged (" in shown
  assert "takes the parameters of step 6, the newest, in its place" in shown
  assert list((tmp_path / "damaged_checkpoints" / "2").iterdir())
  assert Checkpoints(tmp_path / "checkpoints", keep=1, reads=True).steps == [6]
