"""What changed between two runs, as a reader sees it."""

import numpy as np
from PIL import Image

from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation.report import change_tables
from spatialvlm.evaluation.scoring import statistics
from spatialvlm.evaluation.scoring.summary import summarize
from spatialvlm.reporting import terminal
from tests.evaluation.support import row

CONFIG = ScoreConfig(bootstrap=200)


def cells(table):
  return {
    row[0].text: {c.text: cell for c, cell in zip(table.columns, row, strict=True)} for row in table.rows
  }


def test_beside_baselines():
  rules = {"bigger box": "B"}
  before = [row(i, i % 2 > 0, task=("Depth", "Count")[i // 40], rules=rules) for i in range(80)]
  after = [row(i, i % 2 > 0 or i < 40, task=("Depth", "Count")[i // 40]) for i in range(80)]
  changes = statistics.paired(before, after, resamples=200)
  table = change_tables.beside_baselines(changes, summarize(before, CONFIG), "a title")
  heads = [c.text for c in table.columns]
  assert heads == ["", "before", "after", "change", "95 % interval", "guessing", "best shortcut", "n"]
  found = cells(table)
  depth, count = found["Depth"], found["Count"]
  assert (depth["before"].text, depth["after"].text, depth["change"].text) == ("50.0", "100.0", "+50.0")
  assert depth["change"].kind == "good" and count["change"].text == "+0.0" and count["change"].kind == ""
  assert depth["n"].text == "40" and found["all, plain mean"]["change"].text == "+25.0"
  shown = terminal.plain_text(table)
  assert "+50.0†" in shown and "Marked †: the interval of the change excludes zero." in shown
  assert "a title" in shown and "Answered: every question, before and after." in shown


def test_answered_rates_have_a_column_where_an_answer_lacks():
  before = [row(i, i % 2 > 0) for i in range(40)]
  after = [row(i, i % 4 > 0, choice="A" if i % 4 else "") for i in range(40)]
  changes = statistics.paired(before, after, resamples=50)
  table = change_tables.beside_baselines(changes, summarize(before, CONFIG))
  assert cells(table)["Depth"]["answered"].text == "100.0 / 75.0"
  assert table.note.endswith("Answered: before / after.")


def test_plots_are_images_that_show_the_scores(tmp_path):
  before, after = ([row(i, i % k > 0) for i in range(40)] for k in (2, 8))
  changes = statistics.paired(before, after, resamples=50)
  change_tables.plot_bars(changes, summarize(before, CONFIG), tmp_path / "bars.png", "title")
  change_tables.plot_forest("a", {"b": changes, "c": changes}, tmp_path / "forest.png")
  for name in ("bars.png", "forest.png"):
    with Image.open(tmp_path / name) as image:
      pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 200 and pixels.std() > 15, name
