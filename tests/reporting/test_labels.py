"""What scores are called, and which shortcut a score is held against."""

import pytest

from spatialvlm.reporting import labels

SUMMARY = {
  "official_note": "",
  "baselines": {
    "guessing": {"plain": 0.9, "task/Depth": 0.9},
    "majority text": {"plain": 0.4, "task/Depth": 0.5},
    "bigger box": {"plain": 0.6, "task/Depth": 0.5},
    "of depth alone": {"task/Depth": 0.1},
  },
}


@pytest.mark.parametrize(
  ("name", "said"), [("official/2D", "2D, official"), ("task/Depth", "Depth"), ("source/a/b", "a/b")]
)
def test_labels(name, said):
  assert labels.label(name) == labels.label(name, SUMMARY) == said


def test_the_official_score_of_a_part_says_so():
  assert labels.label("official", SUMMARY | {"official_note": "a part"}) == "official formula, part"
  assert labels.label("plain", SUMMARY | {"official_note": "a part"}) == "all, plain mean"


def test_guessing_is_no_shortcut_and_the_first_of_equals_is_taken():
  assert labels.best_shortcut(SUMMARY, "plain") == ("bigger box", 0.6)
  assert labels.best_shortcut(SUMMARY, "task/Depth") == ("majority text", 0.5)
  assert labels.short("majority text") == "text" and labels.short("bigger box") == "bigger box"


def test_rows_stand_in_groups_and_a_lone_source_has_none():
  scores = dict.fromkeys(("plain", "macro", "type/2D", "type/3D", "task/Depth", "source/ADE20K"), 1.0)
  rows = list(labels.rows_of(scores))
  assert [name for name, *_ in rows] == ["plain", "macro", "type/2D", "type/3D", "task/Depth"]
  assert [name for name, line, _ in rows if line] == ["macro", "type/3D"]
