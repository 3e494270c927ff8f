"""Scores within training: their rows, the best step by them, early stopping, interruption."""

import json
import os
import signal

import pytest

from spatialvlm.config import EvalConfig
from spatialvlm.training import metrics as metrics_lib
from spatialvlm.training import plots, scores
from spatialvlm.training.checkpoint import Checkpoints
from tests.evaluation import support
from tests.training import fakes
from tests.training.helpers import make_config, make_parts, run, same
from tests.training.test_fit import rows

# By step. The best comes twice; only its first time counts.
SCORES = {2: 0.25, 4: 0.5, 6: 0.75, 8: 0.5, 10: 0.75, 12: 0.5, 13: 0.5}


def scored_run(folder, at=lambda number: None, found=SCORES, **train):
  train = {"steps": 13, "evaluate_every": 2, "checkpoint_every": 5, "keep": 1, "log_every": 3, **train}
  config = make_config(best="plain", **train)
  asked = []

  def evaluate(state):
    asked.append(int(state.step))
    return {"plain": found[int(state.step)], "task/Depth": 0.5}

  return run(config, folder, stream=fakes.Stream(16, at=at), evaluate=evaluate), asked


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("scored")
  return folder, *scored_run(folder)


def test_the_run_ends_with_the_first_best_step(whole):
  folder, outcome, asked = whole
  assert asked == [2, 4, 6, 8, 10, 12, 13]
  found = {row["step"]: row["eval/plain"] for row in rows(folder) if "eval/plain" in row}
  assert found == SCORES
  assert int(outcome.state.step) == 6
  assert (outcome.memory.best, outcome.memory.best_step) == (0.75, 6)
  # Step 10, as good and saved since it was due, did not push step 6 out.
  kept = Checkpoints(folder / "checkpoints", keep=1, best="plain")
  assert kept.steps == [6, 13] and kept.best == 6
  _, fresh = make_parts(make_config())
  assert same(kept.restore(6, fresh).params, outcome.state.params)
  assert not same(kept.restore(13, fresh).params, outcome.state.params)


def test_interrupted_it_ends_the_same_and_counts_nothing_twice(tmp_path, whole):
  def crash(number):
    if number == 9:
      raise InterruptedError

  with pytest.raises(InterruptedError):
    scored_run(tmp_path, at=crash)
  assert rows(tmp_path)[-1]["step"] == 9
  stopped, asked = scored_run(tmp_path, at=lambda n: n == 11 and os.kill(os.getpid(), signal.SIGTERM))
  assert asked == [8, 10, 12]  # step 6 was the last one saved
  # The signal is obeyed with the step's own parameters, though an earlier step was better.
  assert stopped.signal and int(stopped.state.step) == 12
  outcome, asked = scored_run(tmp_path)
  assert asked == [13]
  assert rows(tmp_path) == rows(whole[0])
  assert same(outcome.state.params, whole[1].state.params) and outcome.memory == whole[1].memory


def test_patience_counts_evaluations(tmp_path):
  outcome, asked = scored_run(tmp_path, patience=2)
  assert asked == [2, 4, 6, 8, 10] and outcome.memory.stopped
  assert int(outcome.state.step) == 6


def test_the_curve_shows_losses_and_scores(tmp_path):
  lines = [{"step": s, "loss": 1 / s, "learning_rate": 0.1} for s in (1, 2, 3)]
  (tmp_path / metrics_lib.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
  plots.loss_curve(tmp_path)
  from PIL import Image

  plain = Image.open(tmp_path / "loss.png").size
  with open(tmp_path / metrics_lib.FILE, "a") as f:
    f.write('{"step": 3, "eval/plain": 0.5, "eval/task/Depth": 0.25}\n')
  plots.loss_curve(tmp_path, {"step": 2})
  assert Image.open(tmp_path / "loss.png").size[1] > plain[1]


def test_the_questions_of_a_training_are_drawn_and_always_the_same():
  questions = support.questions(11)
  part = scores.some(questions, EvalConfig(during=5))
  again = scores.some(questions, EvalConfig(during=5))
  assert len(part) == 5 and [q.idx for q in part] == [q.idx for q in again]
  assert part.__getitems__([4, 0])[0].idx == part[4].idx
  places = [(q.idx - 100) // 3 for q in part]
  assert places == sorted(set(places)) and places != list(range(5))
  assert len(scores.some(questions, EvalConfig(during=0))) == 11
  assert {q.idx for q in scores.some(questions, EvalConfig(during=50, limit=4))} == {100, 103, 106, 109}
