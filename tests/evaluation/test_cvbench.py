"""The aggregations, against CV-Bench's published formula and counts."""

import numpy as np
import pytest

from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation.report import run_page, run_tables
from spatialvlm.evaluation.scoring import aggregation
from spatialvlm.evaluation.scoring.summary import summarize
from spatialvlm.reporting import labels, terminal
from tests.evaluation.support import row

# Questions of the real benchmark by task and source, as far as they are published: 788 Count and 650 Relation
# over ADE20K (633) and COCO (805), 600 Depth and 600 Distance on Omni3D.
REAL = {
  ("Count", "ADE20K"): 347,
  ("Count", "COCO"): 441,
  ("Relation", "ADE20K"): 286,
  ("Relation", "COCO"): 364,
  ("Depth", "Omni3D"): 600,
  ("Distance", "Omni3D"): 600,
}


def real_rows(right):
  """Rows in the real proportions; `right[task, source]` of each cell are correct."""
  rows = []
  for (task, source), n in REAL.items():
    options = 4 if task == "Count" else 2
    rows += [
      row(len(rows) + i, i < right.get((task, source), 0), task, source, options=options) for i in range(n)
    ]
  return rows


def test_official_formula():
  rows = real_rows({("Count", "ADE20K"): 100, ("Relation", "COCO"): 300, ("Depth", "Omni3D"): 450})
  table = aggregation.aggregation(rows)
  found = table.values(np.array([r.correct for r in rows]))
  ade, coco, omni = 100 / 633, 300 / 805, 450 / 1200
  assert found["official/2D"] == pytest.approx((ade + coco) / 2)
  assert found["official/3D"] == pytest.approx(omni)
  assert found["official"] == pytest.approx(((ade + coco) / 2 + omni) / 2)
  assert found["plain"] == pytest.approx(850 / 2638)
  assert found["type/2D"] == pytest.approx(400 / 1438)
  assert found["task/Relation"] == pytest.approx(300 / 650)
  assert found["source/ADE20K"] == pytest.approx(ade)
  assert not table.official_note


def test_counts_and_guessing_of_the_real_benchmark():
  rows = real_rows({})
  table = aggregation.aggregation(rows)
  counts = table.counts()
  assert (counts["plain"], counts["type/2D"], counts["type/3D"]) == (2638, 1438, 1200)
  assert [counts[f"task/{t}"] for t in aggregation.TASKS] == [788, 650, 600, 600]
  assert (counts["official"], counts["official/2D"], counts["official/3D"]) == (2638, 1438, 1200)
  # Uniform guessing with four options on every Count question is published as 42.5 %.
  assert table.values(aggregation.guessing(rows))["plain"] == pytest.approx(0.425, abs=5e-4)


def test_official_is_not_for_other_sources():
  table = aggregation.aggregation([row(0, source="scenes"), row(1, source="COCO")])
  assert "official" not in table.scores
  assert table.official_note.startswith("n/a") and "scenes" in table.official_note


def test_official_is_not_for_a_part():
  table = aggregation.aggregation([row(0, source="ADE20K"), row(1, source="Omni3D")])
  assert "official" not in table.scores
  assert table.official_note == "n/a: no question from COCO in this run"


def test_official_of_another_number_of_questions_says_so():
  rows = real_rows({("Depth", "Omni3D"): 600})
  for part in (rows[1:], [*rows, row(9999, source="COCO")], rows[::100]):
    table = aggregation.aggregation(part)
    assert "official" in table.scores and "another number of questions" in table.official_note
  sizes = "(ADE20K 632 of 633, COCO 805 of 805, Omni3D 1200 of 1,200)"
  assert sizes in aggregation.aggregation(rows[1:]).official_note
  summary = summarize(rows[::100], ScoreConfig(bootstrap=20))
  assert labels.label("official", summary) == "official formula, part"
  assert "official formula, part" in terminal.plain_text(run_tables.result(summary))
  (hero, *_) = run_page.sections(rows[::100], summary)
  assert "official formula, part, native" in hero.body


def test_sources_data_sets_stand_apart():
  rows = [row(i, i < 2, source="Omni3D", source_dataset=f"Omni3D_{'ab'[i % 2]}") for i in range(4)]
  table = aggregation.aggregation(rows)
  found = table.values(np.array([r.correct for r in rows]))
  assert found["source_dataset/Omni3D_a"] == found["source_dataset/Omni3D_b"] == 0.5
  assert list(table.scores) == [
    "plain", "type/3D", "task/Depth", "source/Omni3D", "source_dataset/Omni3D_a", "source_dataset/Omni3D_b",
  ]  # fmt: skip


def test_macro_is_the_mean_of_the_tasks():
  found = aggregation.aggregation(rows := real_rows({("Depth", "Omni3D"): 300, ("Count", "COCO"): 394}))
  assert found.values(np.array([r.correct for r in rows]))["macro"] == pytest.approx((0.5 + 0.5) / 4)
  assert list(found.scores)[:5] == ["official", "official/2D", "official/3D", "plain", "macro"]
