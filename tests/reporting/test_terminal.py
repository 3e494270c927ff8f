"""What a reader of the tables sees."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation.evaluate import summarize
from spatialvlm.evaluation.scoring import statistics
from spatialvlm.reporting import terminal
from tests.evaluation.support import row
from tests.evaluation.test_cvbench import real_rows

CONFIG = ScoreConfig(bootstrap=200)


def lines(table, width=110):
  return {
    line.split("  ")[1].strip(): line
    for line in terminal.plain_text(table, width).splitlines()
    if "  " in line
  }


def test_table_of_the_real_benchmark_fits_a_terminal():
  rows = real_rows({("Count", "ADE20K"): 100, ("Relation", "COCO"): 300, ("Depth", "Omni3D"): 450})
  text = terminal.plain_text(terminal.table(summarize(rows, CONFIG), "a title"), width=80)
  assert "a title" in text and "…" not in text and "n/a" not in text
  shown = lines(terminal.table(summarize(rows, CONFIG)), 80)
  official = 100 * ((100 / 633 + 300 / 805) / 2 + 450 / 1200) / 2
  assert f"{official:.1f}" in shown["official"]
  assert " 32.2 " in shown["all, plain mean"] and "42.5" in shown["all, plain mean"]
  assert "75.0" in shown["Depth"] and " 600" in shown["Depth"]


def test_what_is_at_chance_and_what_was_answered_is_said_in_words():
  rows = [row(i, i % 2 > 0, task="Depth") for i in range(80)]
  rows += [row(100 + i, i % 10 > 0, task="Count", choice="" if i % 10 == 0 else "A") for i in range(80)]
  text = terminal.plain_text(terminal.table(summarize(rows, CONFIG)))
  assert "Answered: 95.0 %." in text
  assert "Not to be told from guessing, or below: Depth." in text


def test_other_sources_say_that_official_is_not_for_them():
  text = terminal.plain_text(terminal.table(summarize([row(i, i % 2 > 0) for i in range(8)], CONFIG)))
  assert "Official aggregation: n/a" in text and "scenes" in text
  assert "official " not in text


def test_comparison():
  before = [row(i, i % 2 > 0, task=("Depth", "Count")[i // 40]) for i in range(80)]
  after = [row(i, i % 2 > 0 or i < 40, task=("Depth", "Count")[i // 40]) for i in range(80)]
  changes = statistics.paired(before, after, resamples=200)
  shown = lines(terminal.comparison(changes, summarize(before, CONFIG)))
  assert "50.0" in shown["Depth"] and "100.0" in shown["Depth"] and "+50.0" in shown["Depth"]
  assert "+0.0" in shown["Count"]
  assert "+25.0" in shown["all, plain mean"]


def test_plot_is_an_image_that_shows_the_scores(tmp_path):
  before, after = ([row(i, i % k > 0) for i in range(40)] for k in (2, 8))
  changes = statistics.paired(before, after, resamples=50)
  terminal.plot_comparison(changes, summarize(before, CONFIG), tmp_path / "scores.png", "title")
  with Image.open(tmp_path / "scores.png") as image:
    pixels = np.asarray(image.convert("RGB"))
  assert min(pixels.shape[:2]) > 200 and pixels.std() > 20


@pytest.mark.parametrize("live", [True, False])
def test_progress_ends_with_all(live, tmp_path):
  with open(tmp_path / "out", "w") as file:
    console = Console(file=file, force_terminal=live, width=100)
    with terminal.progress("scoring", console) as show:
      for done in range(0, 41, 10):
        show(done, 40)
        show.note("8 answers longer than 256 tokens" if done == 20 else "")
  assert "40/40" in (tmp_path / "out").read_text()
  assert live or "scoring: 8 answers longer than 256 tokens" in (tmp_path / "out").read_text()
