"""The table of scores: one row of cells, drawn in the report and in words on the screen."""

from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation.report import run_tables
from spatialvlm.evaluation.scoring.summary import summarize
from spatialvlm.reporting import terminal
from tests.evaluation.support import row
from tests.evaluation.test_cvbench import real_rows

CONFIG = ScoreConfig(bootstrap=200)


def shown(rows, width=110):
  return terminal.plain_text(run_tables.result(summarize(rows, CONFIG), "a title"), width)


def lines(text):
  return {line.split("  ")[1].strip(): line for line in text.splitlines() if "  " in line}


def test_the_real_benchmark_fits_a_terminal():
  rows = real_rows({("Count", "ADE20K"): 100, ("Relation", "COCO"): 300, ("Depth", "Omni3D"): 450})
  text = shown(rows, width=80)
  assert "a title" in text and "…" not in text and "n/a" not in text
  found = lines(text)
  official = 100 * ((100 / 633 + 300 / 805) / 2 + 450 / 1200) / 2
  assert f"{official:.1f}" in found["official"]
  assert " 32.2 " in found["all, plain mean"] and "42.5" in found["all, plain mean"]
  assert "75.0" in found["Depth"] and " 600" in found["Depth"]


def test_what_is_at_chance_and_what_was_answered_is_said_in_words():
  rows = [row(i, i % 2 > 0, task="Depth") for i in range(80)]
  rows += [row(100 + i, i % 10 > 0, task="Count", choice="" if i % 10 == 0 else "A") for i in range(80)]
  text = shown(rows)
  assert "Answered: 95.0 %." in text
  assert "Not to be told from guessing, or below: Depth." in text
  assert "90.0†" in lines(text)["Count"] and "no answer" in text


def test_other_sources_say_that_official_is_not_for_them():
  text = shown([row(i, i % 2 > 0) for i in range(8)])
  assert "Official aggregation: n/a" in text and "scenes" in text
  assert "official " not in text


def test_the_screen_and_the_report_show_the_same_cells():
  rows = [row(i, i % 3 > 0, task=("Depth", "Count")[i % 2], rules={"bigger box": "A"}) for i in range(40)]
  summary = summarize(rows, CONFIG)
  drawn, screen = run_tables.scores(summary), run_tables.result(summary)
  assert drawn.rules == screen.rules
  heads = [c.text for c in screen.columns]
  assert "answered" not in heads  # everything has an answer
  kept = [i for i, c in enumerate(drawn.columns) if c.text in heads]
  assert [[row[i] for i in kept] for row in drawn.rows] == [list(row) for row in screen.rows]
