"""docs/tour.ipynb runs from its beginning to its end, and its kept output is that of its cells."""

import json
import re

import pytest

from tests import tour


@pytest.fixture(scope="module")
def notebook():
  return json.loads(tour.NOTEBOOK.read_text(encoding="utf-8"))


def shown(notebook):
  """Of each code cell the kinds of what it shows."""
  cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  return [[sorted(output.get("data", {"stream": 0})) for output in cell["outputs"]] for cell in cells]


def test_its_output_is_kept(notebook):
  """All cells were run, in order, and pictures are there."""
  cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)) and len(cells) > 6
  assert sum("image/png" in kinds for cell in shown(notebook) for kinds in cell) > 2
  assert notebook["nbformat"] == 4 and all(
    {"id", "metadata", "source"} <= set(cell) for cell in notebook["cells"]
  )


@pytest.mark.slow
def test_it_runs(notebook, tmp_path):
  """From a folder of its own; figures may differ, what is shown may not."""
  steps = re.compile(r"(train\.steps\D+)\d+")
  short = json.loads(steps.sub(r"\g<1>6", json.dumps(notebook)))
  found = tour.execute(short, tmp_path)
  assert shown(found) == shown(notebook)
