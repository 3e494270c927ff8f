"""`launch/inspect_data.py` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import tiny

ROOT = Path(__file__).parents[2]


def run(*arguments):
  command = [sys.executable, str(ROOT / "launch" / "inspect_data.py"), *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
  return tiny.write_all(tmp_path_factory.mktemp("run"))


def test_a_page_and_a_summary(recipe, tmp_path):
  done = run(f"--config={recipe}", f"--output={tmp_path}/a/page.html", "--scan=6", "--show=2")
  assert done.returncode == 0, done.stderr
  assert "training: 6 samples from own 6" in done.stdout and "validation: 4 samples" in done.stdout
  page = (tmp_path / "a" / "page.html").read_text()
  assert page.count("class='sample'") == 4 and "data:image/png;base64" in page


def test_a_sample_that_is_too_long_is_shown_and_ends_in_one_line_and_exit_code_2(recipe, tmp_path):
  lines = [json.loads(line) for line in (recipe.parent / "data.jsonl").read_text().splitlines()]
  lines[2]["conversations"][1]["value"] = "A cube. " * 60
  data = recipe.parent / "long.jsonl"
  data.write_text("\n".join(map(json.dumps, lines)))
  done = run(
    f"--config={recipe}", f"--config.data.sources.own.path={data}", f"--workdir={tmp_path}", "--scan=12"
  )
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: training data: own[2] (2): ")
  assert "more than the longest sequence of 96" in done.stderr
  assert "class='sample bad'" in (tmp_path / "inspect.html").read_text()
