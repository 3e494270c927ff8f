"""Before and after, in files and on the screen."""

import json

import pytest

from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation.before_after import compare
from spatialvlm.evaluation.evaluate import Result, summarize
from tests.evaluation.support import row

CONFIG = ScoreConfig(bootstrap=50)


def result(rows):
  return Result(tuple(rows), summarize(rows, CONFIG))


def test_compare(tmp_path, capsys):
  rules = {"bigger box": "B"}
  before = result([row(i, i % 2 > 0, rules=rules) for i in range(20)])
  after = result([row(i, i % 4 > 0, rules=rules) for i in range(20)])
  changes = compare(before, after, CONFIG, tmp_path, "before and after")
  assert changes["task/Depth"]["difference"] == pytest.approx(0.25)
  kept = json.loads((tmp_path / "comparison.json").read_text())
  assert kept["changes"] == json.loads(json.dumps(changes))
  assert set(kept["baselines"]) == {"guessing", "majority letter", "majority text", "bigger box"}
  assert kept["baselines"]["bigger box"]["plain"] == 0.0
  assert {f.name for f in tmp_path.iterdir()} == {"comparison.json", "comparison.txt", "scores.png"}
  shown, table = capsys.readouterr().out, (tmp_path / "comparison.txt").read_text()
  for text in (shown, table):
    assert (
      "before and after" in text and "+25.0" in text and "Answered: every question, before and after" in text
    )
