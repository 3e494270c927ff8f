"""`launch/compare.py`: runs held against each other, from folders to files."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from spatialvlm import workdir
from spatialvlm.evaluation import records
from spatialvlm.evaluation.report import between_runs, run_page
from spatialvlm.reporting import page
from tests.evaluation.support import row
from tests.launch import command
from tests.reporting.chromium import Chromium, binary

EVIL = "<script>alert(1)</script>"


def write_run(folder, right, protocol="native", extra=()):
  """A finished run of 40 questions, `right(i)` of them right, and rows of other protocols."""
  fields = dict(protocol=protocol, choices=("near", EVIL), question=f"Which? {EVIL}")
  rows = [row(i, right(i), task=("Depth", "Count")[i // 20], image=f"{i // 2}", **fields) for i in range(40)]
  folder.mkdir(parents=True)
  workdir.write_json(folder / "summary.json", {"protocol": protocol})
  records.rewrite(folder, [*rows, *extra])
  return rows


@pytest.fixture
def runs(tmp_path):
  others = [row(i, i % 4 > 0, task=("Depth", "Count")[i // 20], protocol="vsi", image=f"{i // 2}",
                choices=("near", EVIL)) for i in range(40)]  # fmt: skip
  write_run(tmp_path / "a" / "run", lambda i: i % 2 > 0, extra=others)
  write_run(tmp_path / "b" / "run", lambda i: i % 2 > 0 or i < 20)
  return tmp_path


def test_files_and_screen(runs, tmp_path, capfd, monkeypatch):
  kept = []
  monkeypatch.setattr(page, "within", lambda pictures: kept.append(list(pictures)) or pictures)
  pictures = page.embed((i, np.full((30, 30, 3), 5 * i, np.uint8)) for i in range(3))
  asked = [page.Asked(i, "", "", "", "", "", ("a", "b"), (None,)) for i in range(3)]
  (runs / "a" / "run" / run_page.PAGE).write_text(
    page.page("x", {}, [], page.Browser(("v",), asked), pictures)
  )
  out = tmp_path / "out"
  done = command.run(
    capfd, "compare", runs / "a" / "run", runs / "b" / "run", f"--workdir={out}", "--bootstrap=200"
  )
  assert done.code == 0, done.err
  assert kept == [[0, 2, 1]]  # those that changed stay, should there be no room for all
  assert "b/run against a/run" in done.out and "+50.0" in done.out and "10 / 0" in done.out
  assert {f.name for f in out.iterdir()} == {
    "comparison.json", "differences.jsonl", "forest.png", "report.html", "tables.md", "tables.tex",
  }  # fmt: skip
  changes = json.loads((out / "comparison.json").read_text())["changes"]["b/run"]
  assert changes["task/Depth"]["p"] == pytest.approx(2 * 0.5**10)
  assert changes["task/Depth"]["p_holm"] == pytest.approx(4 * 0.5**10)
  lines = [json.loads(line) for line in (out / "differences.jsonl").read_text().splitlines()]
  assert [line["idx"] for line in lines] == list(range(0, 20, 2))
  assert lines[0]["answers"]["a/run"]["correct"] is False and lines[0]["answers"]["b/run"]["correct"] is True
  with Image.open(out / "forest.png") as image:
    assert min(image.size) > 200
  assert EVIL not in (out / "report.html").read_text()
  assert sorted(page.pictures_of(out / "report.html")) == [0, 1, 2]
  # The same command again writes the same; a folder that is no comparison is left alone.
  assert command.run(capfd, "compare", runs / "a/run", runs / "b/run", f"--workdir={out}").code == 0
  refused = command.run(capfd, "compare", runs / "a/run", runs / "b/run", f"--workdir={runs / 'a' / 'run'}")
  assert refused.code == 2 and "no comparison" in refused.err


def test_one_run_under_two_protocols_and_three_at_once(runs):
  a, b = str(runs / "a" / "run"), str(runs / "b" / "run")
  found = between_runs.open_runs([a, a + ":vsi", b])
  assert [run.name for run in found] == ["a/run, native", "a/run, vsi", "b/run, native"]
  changes = between_runs.paired_changes(found, resamples=50)
  assert changes[0]["plain"]["difference"] == pytest.approx(0.25)
  assert changes[1]["plain"]["difference"] == pytest.approx(0.25)
  assert changes[0]["task/Depth"]["gained"] == 5 and changes[1]["task/Depth"]["gained"] == 10
  # Even ones of the first half, of which b alone has all right; in the other half those that vsi alone has.
  assert len(between_runs.differences(found)) == 10 + 5


def test_what_does_not_compare(runs, tmp_path, capfd):
  a, b = runs / "a" / "run", runs / "b" / "run"
  rows = records.read(b)

  def changed(name, some):
    (tmp_path / name).mkdir()
    workdir.write_json(tmp_path / name / "summary.json", {"protocol": "native"})
    records.rewrite(tmp_path / name, some)
    return tmp_path / name

  fewer = changed("fewer", rows[:-1])
  other = changed(
    "other", [dataclasses.replace(r, gold="B", correct=r.choice == "B") if r.idx == 3 else r for r in rows]
  )
  write_run(tmp_path / "vsi", lambda i: True, "vsi")
  (tmp_path / "begun").mkdir()
  records.rewrite(tmp_path / "begun", rows)
  for arguments, message in (
    ([a], "name two runs or more"),
    ([a, tmp_path / "none"], "holds no predictions.jsonl"),
    ([a, tmp_path / "begun"], "has not ended"),
    ([a, fewer], "1 are in one of them only, e.g. 39"),
    ([a, other], "question 3 has other options or another answer"),
    ([a, tmp_path / "vsi"], "several protocols (native, vsi)"),
    ([a, f"{b}:vsi"], "was not asked under protocol 'vsi'"),
    ([a, a], "stands twice"),
  ):
    done = command.run(capfd, "compare", *arguments, f"--workdir={tmp_path / 'no'}")
    assert done.code == 2 and done.err.count("\n") == 1 and message in done.err, done.err
    assert not (tmp_path / "no").exists()


@pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")
def test_in_a_browser(runs, tmp_path):
  found = between_runs.open_runs([str(runs / "a" / "run"), str(runs / "b" / "run")])
  between_runs.write(found, between_runs.paired_changes(found, resamples=50), tmp_path / "out")
  with Chromium(tmp_path / "profile") as browser:
    for width in (1280, 390):
      browser.open(tmp_path / "out" / "report.html", width)
      assert browser.run("document.documentElement.scrollWidth <= innerWidth")
      assert (
        browser.run("document.getElementById('count').textContent") == "10 of 40 questions, 100.0 % right"
      )
      card = browser.run("document.querySelector('.card').innerText")
      assert "a/run: B (wrong)" in card and EVIL in card
    assert not [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
