"""docs/tour.ipynb: what is kept of it is whole and true to its text, and its cells run as they stand."""

import re

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from tests import tour

NOTEBOOK = tour.read()
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
WORDS = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
# An absolute path, but not the / of "tokens/s" or of a link.
PATH = re.compile(r"(?<![\w.:/])/[A-Za-z][\w.-]*/[\w./-]+")
AGAIN = "run: python -m tests.tour"
SHORT = {"STEPS": 2, "HELD_OUT": 8, "GREYED": 3}


def drawings(cell) -> int:
  return sum(tour.PNG in output.get("data", {}) for output in cell.outputs)


def test_it_was_executed_from_top_to_bottom_without_an_error():
  assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1)), AGAIN
  assert not [output for cell in CODE for output in cell.outputs if output.output_type == "error"]
  nbformat.validate(NOTEBOOK)


def test_the_kept_outputs_are_there():
  for cell in CODE:
    assert drawings(cell) == len(re.findall(r"^(?:plt\.show|show\w*)\(", cell.source, re.M)), cell.source
    if re.search(r"^(?:print|table|asked_first)\(|stages\.train\(", cell.source, re.M):
      assert tour.text(cell).strip(), cell.source
  assert sum(map(drawings, CODE)) >= 6
  assert tour.NOTEBOOK.stat().st_size < 600_000


def test_no_path_of_the_computer_that_ran_it_stands_there():
  assert PATH.findall("at /home/me/tour-x/run, and tokens/s, runs/x, http://a.b/c/d") == [
    "/home/me/tour-x/run"
  ]
  kept = "\n".join([*map(tour.text, CODE), str(NOTEBOOK.metadata)])
  assert not PATH.findall(kept)


def test_figures_that_the_text_names_stand_in_the_outputs():
  """What is said of the run that is kept, after "In the run that is kept", is said with its own figures."""
  _, said = WORDS.split("In the run that is kept", 1)
  figures = set(re.findall(r"\d+\.\d+", said))
  assert len(figures) >= 6
  outputs = "\n".join(map(tour.text, CODE))
  assert not [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", outputs)]


def test_links_lead_somewhere():
  links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", WORDS)
  assert links and all((tour.NOTEBOOK.parent / link).exists() for link in links if "://" not in link)


def test_an_error_in_a_cell_is_raised(tmp_path):
  wrong = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
  with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
    tour.executed(wrong, tmp_path)


@pytest.mark.slow
def test_its_cells_run(tmp_path):
  before = tour.NOTEBOOK.read_bytes()
  found = tour.executed(NOTEBOOK, tmp_path, SHORT)
  again = [cell for cell in found.cells if cell.cell_type == "code"]
  assert list(map(drawings, again)) == list(map(drawings, CODE))
  said = "\n".join(map(tour.text, again))
  assert "step 2/2" in said and "Depth, 3 questions, and the change from before" in said
  assert not PATH.findall(said)
  (work,) = tmp_path.glob("tour-*")
  assert (work / "run" / "adapter" / "adapter_config.json").is_file()
  assert [path.name for path in work.iterdir()] == ["run"] and tour.NOTEBOOK.read_bytes() == before
