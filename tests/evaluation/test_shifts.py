"""The shipped model on plain scenes and on shifted worlds, from a config to one table."""

import dataclasses
import json

import numpy as np
import pytest

from spatialvlm import cli, shipped
from spatialvlm.config import CVBenchConfig, EvaluateConfig, ScenesConfig
from spatialvlm.data.sources.registry import open_questions
from spatialvlm.evaluation import beforehand, records, shifts
from spatialvlm.evaluation.asking.protocols import ProcessorPrompter
from spatialvlm.evaluation.scoring import statistics
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import Note, UserError
from tests.evaluation.support import row

TINY = str(shipped.checkpoints()["smolvlm-tiny"])


@pytest.fixture(scope="module")
def config() -> EvaluateConfig:
  small = [("model.path", TINY), ("data.size", "12"), ("score.batch_size", "8"), ("score.bootstrap", "50")]
  return cli.load("shifted", small, EvaluateConfig)


def test_one_table_of_all_worlds(config, tmp_path, capsys):
  with pytest.warns(Note, match=r"'shapes' is left out: the model's tokenizer has no token for egg"):
    found = shifts.run(config, tmp_path / "run", ["dark", "wide", "shapes"])
  assert list(found["worlds"]) == ["plain", "dark", "wide"] and "barrel" in found["left_out"]["shapes"]
  shown = capsys.readouterr().out
  table = (tmp_path / "run" / "table.txt").read_text()
  for text in (shown, table):
    assert "shapes" in text and "not asked" in text and "no token for" in text
  assert json.loads((tmp_path / "run" / "shifts.json").read_text()) == json.loads(json.dumps(found))
  rows = {name: records.read(tmp_path / "run" / name) for name in found["worlds"]}
  for name, world in found["worlds"].items():
    right = [r.correct for r in rows[name]]
    assert world["scores"]["plain"]["score"] == pytest.approx(np.mean(right)) and len(right) == 12
    assert f"{100 * np.mean(right):.1f}" in table
    assert (tmp_path / "run" / name / "report.html").exists()
    if name != "plain":
      change, first = world["changes"]["plain"], np.mean([r.correct for r in rows["plain"]])
      assert change["difference"] == pytest.approx(np.mean(right) - first)
      assert change["low"] <= change["difference"] <= change["high"]
  assert [found["worlds"][n]["paired"] for n in ("dark", "wide")] == [True, False]
  # The same scene in half the light has the same questions; a wide view has others.
  same = lambda name: [r.question for r in rows[name]] == [r.question for r in rows["plain"]]
  assert same("dark") and [r.idx for r in rows["wide"]] == [r.idx for r in rows["plain"]]
  # Again, and with one more: what is done stays.
  before = {name: (tmp_path / "run" / name / records.FILE).read_bytes() for name in rows}
  again = shifts.run(config, tmp_path / "run", ["dark", "warm"])
  assert again["worlds"]["dark"] == found["worlds"]["dark"] and list(again["worlds"])[-1] == "warm"
  assert all((tmp_path / "run" / n / records.FILE).read_bytes() == b for n, b in before.items())


def test_words_that_a_tokenizer_spells_out_are_refused(config):
  prompter = ProcessorPrompter(load_processor(TINY, **config.model.tiling))
  for shift, unknown in (("colors", True), ("shapes", True), ("roll", False)):
    questions = open_questions(dataclasses.replace(config.data, shift=shift))
    assert bool(beforehand.spelled_out(questions, prompter)) == unknown
    if unknown:
      with pytest.raises(UserError, match=f"shift '{shift}' asks about things .* no token for"):
        beforehand.check(questions, prompter, config.score)


def test_what_is_no_plain_world_is_refused(config, tmp_path):
  for data in (ScenesConfig(shift="roll"), CVBenchConfig()):
    with pytest.raises(UserError, match="no shift of its own"):
      shifts.run(dataclasses.replace(config, data=data), tmp_path / "w")
  with pytest.raises(UserError, match="did you mean 'dark'"):
    shifts.run(config, tmp_path / "w", ["drak"])
  assert not (tmp_path / "w").exists()


def test_runs_on_other_images_are_drawn_apart():
  """The difference of two independent shares has the sum of their variances."""
  before = [row(i, i % 10 < 7, image=f"a{i}") for i in range(400)]
  after = [row(i, i % 2 == 0, image=f"b{i}") for i in range(400)]
  found = statistics.unpaired(before, after, resamples=4000)["plain"]
  assert found["difference"] == pytest.approx(-0.2) and found["n"] == 400
  deviation = np.sqrt((0.7 * 0.3 + 0.25) / 400)
  assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * deviation, rel=0.07)
  assert (found["high"] + found["low"]) / 2 == pytest.approx(-0.2, abs=0.01)
