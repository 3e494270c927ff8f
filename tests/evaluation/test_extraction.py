"""Answers are read as each harness reads them: outputs that went through the harnesses' own code."""

import json
import pathlib

import pytest

from spatialvlm.evaluation import extract_choice
from spatialvlm.types import UserError

CASES = json.loads((pathlib.Path(__file__).parents[1] / "data" / "extraction_cases.json").read_text())[
  "cases"
]


@pytest.mark.parametrize("protocol", ["lmms_eval", "vlmevalkit", "cambrian"])
def test_recorded_answers(protocol):
  assert len(CASES) == 102
  for case in CASES:
    letters = "ABCDEF"[: len(case["choices"])]
    recorded = case[f"{protocol}_pred"].upper()
    expected = recorded if recorded and recorded in letters else ""
    found = extract_choice(case["output"], case["choices"], protocol)
    assert found == expected, case["output"]
    assert (f"({found})" == case["answer"]) == bool(case[f"{protocol}_score"]), case["output"]


def test_the_wrapper_strips_what_vlmevalkit_reads():
  """A bound on the length counts characters: the blank before a generated answer's first word is none."""
  for output, expected in ((" 3 chairs", "A"), ("3 chairs\n", "A"), ("3 chairs.", "")):
    assert extract_choice(output, ["3", "2", "1", "0"], "vlmevalkit") == expected, output


@pytest.mark.parametrize(
  ("output", "expected"),
  [
    ("B", "B"),
    ("(B) desk", "B"),
    ("The answer: A", "A"),
    ("b", ""),
    ("Come on, A", ""),  # the C is no option here, and nothing after it is looked at
    ("Because", "B"),
    ("", ""),
    ("42", ""),
  ],
)
def test_vsi_takes_the_first_capital(output, expected):
  assert extract_choice(output, ["chair", "desk"], "vsi") == expected


@pytest.mark.parametrize(
  ("output", "protocol", "expected"),
  [
    ("A is nearer than the other one", "vlmevalkit", ""),  # a letter only counts among the last four words
    ("the answer is B because it stands in front of all", "vlmevalkit", "B"),
    ("The correct answer is **a", "vlmevalkit", "A"),
    ("Z desk", "vlmevalkit", ""),
    ("Answer is A, no, the answer is ( B", "cambrian", "B"),
    ("ſ", "lmms_eval", ""),
    ("ﬆ", "cambrian", ""),
  ],
)
def test_corners(output, protocol, expected):
  assert extract_choice(output, ["chair", "desk"], protocol) == expected


def test_bad_input():
  with pytest.raises(UserError, match="protocol 'vlm_eval_kit'; did you mean 'vlmevalkit'"):
    extract_choice("B", ["a", "b"], "vlm_eval_kit")
  with pytest.raises(UserError, match="27 options"):
    extract_choice("B", ["a"] * 27, "vsi")
