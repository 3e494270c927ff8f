"""The report of a run: what its summary says is what the reader finds, and nothing of it is markup."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation.report import run_page, run_tables
from spatialvlm.evaluation.scoring import calibration
from spatialvlm.evaluation.scoring.summary import summarize
from spatialvlm.reporting import page
from spatialvlm.types import Question
from tests.evaluation.support import row
from tests.reporting.chromium import Chromium, binary

EVIL = "<script>alert(1)</script>"
CONFIG = ScoreConfig(
  protocols=("native", "vsi"), controls=("grey", "no_image", "circular", "flip"), bootstrap=60
)


def build():
  """40 questions under two protocols and four controls: three in four right, one in two when blind."""
  rng = np.random.default_rng(0)

  def asked(i, right, **fields):
    options = 4 if i % 4 == 0 else 2
    task = ("Count", "Relation", "Depth", "Distance")[i % 4]
    gold = "ABCD"[(i // 4) % options]
    letters = "ABCD"[:options]
    choice = gold if right else letters[(letters.index(gold) + 1) % options]
    share = np.where([c == choice for c in letters], 3.0, 0.0) + rng.normal(0, 0.1, options)
    values = dict(
      logprobs=tuple(share - np.log(np.exp(share).sum())), choices=tuple(f"{EVIL}{c}" for c in letters)
    )
    values |= dict(source=EVIL, filename=EVIL, question=f"Which {i}? {EVIL}", image=f"photo {i // 2}")
    return row(i, right, task, options=options, gold=gold, **(values | fields))

  rows = [asked(i, i % 8 < 6) for i in range(40)]
  for i in range(40):
    silent = dict(logprobs=(), output=f"{EVIL} I do not know", ended=True, protocol="vsi")
    plain = asked(i, i % 2 == 0, **silent)
    rows.append(dataclasses.replace(plain, choice="", correct=False) if i % 10 == 0 else plain)
  rows += [asked(i, i % 2 == 0, condition=c) for c in ("grey", "no_image") for i in range(40)]
  rows += [
    asked(i, i % 8 < 6, condition="circular", shift=s)
    for i in range(40)
    for s in range(1, 4 if i % 4 == 0 else 2)
  ]
  rows += [asked(i, i % 8 < 6, condition="flip") for i in range(40) if i % 4 != 1]
  return rows


class Questions:
  """The same questions with pictures; `read` counts."""

  def __len__(self):
    return 40

  def __getitem__(self, i):
    image = np.full((20, 30, 3), 6 * i, np.uint8)
    return Question(
      idx=i,
      type="2D",
      task="",
      images=(image,),
      question="",
      choices=("a", "b"),
      answer=0,
      prompt="",
      source="",
    )


@pytest.fixture(scope="module")
def run():
  rows = build()
  return rows, summarize(rows, CONFIG)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  (folder / "config.json").write_text(json.dumps({"model": {"path": f"model {EVIL}", "dtype": "float32"}}))
  run_page.write(folder, *run, f"title {EVIL}", Questions())
  return folder


def test_what_is_written(run, folder):
  html = (folder / "report.html").read_text()
  assert EVIL not in html and "title &lt;script&gt;" in html and "model &lt;script&gt;" in html
  assert sorted(page.pictures_of(folder / "report.html")) == list(range(40))
  assert "75.0<small>%</small>" in html
  markdown, latex = (folder / "tables.md").read_text(), (folder / "tables.tex").read_text()
  for table in run_page.report_tables(*run):
    assert f"**{table.title}**" in markdown and rf"\label{{tab:{table.name}}}" in latex
  assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 10


def test_without_the_data_the_pictures_stay(run, folder, tmp_path):
  (tmp_path / "report.html").write_text((folder / "report.html").read_text())
  run_page.write(tmp_path, *run, "again")
  assert page.pictures_of(tmp_path / "report.html") == page.pictures_of(folder / "report.html")


def test_questions_link_to_what_looked_inside(run, folder, tmp_path):
  """One page is there; the others say by which command they come."""
  (tmp_path / "explain" / "3").mkdir(parents=True)
  (tmp_path / "explain" / "3" / "explain.html").write_text("page")
  run_page.write(tmp_path, *run, "again")
  data = re.search(r'id="questions-data">(.*?)</script>', (tmp_path / "report.html").read_text(), re.S)[1]
  found = json.loads(data)
  assert {row["i"]: row["p"] for row in found["rows"] if "p" in row} == {3: "explain/3/explain.html"}
  assert found["explain"] == f"python launch/explain.py --run={tmp_path} --ids="
  assert '"p":' not in (folder / "report.html").read_text()


def cells(table):
  return {r[0].text: [c.text for c in r[1:] if not c.figure] for r in table.rows}


def test_tables_say_what_the_summary_says(run):
  _, summary = run
  scores = cells(run_tables.scores(summary))
  assert scores["all, plain mean"][:3:2] == ["75.0", "100.0"] and scores["all, plain mean"][-1] == "40"
  protocols = cells(run_tables.protocols(summary))
  assert protocols["native"][0] == "75.0" and protocols["vsi"][0] == "40.0"
  assert protocols["vsi"][2] == "90.0"
  # What has no answer to every question stands again, score by score.
  (shares,) = cells(run_tables.answered(summary)).values()
  assert shares[0] == "90.0" and sorted(shares[-4:]) == ["100.0", "100.0", "80.0", "80.0"]
  controls = cells(run_tables.controls(summary))
  assert controls["grey"][0] == "50.0" and controls["grey"][2] == "+25.0"
  gaps = cells(run_tables.gaps(summary))
  assert gaps["no image"][0].startswith("+25.0 (")
  steady = cells(run_tables.steadiness(summary))
  assert steady["circular: right in every order"][0] == "75.0"
  assert steady["flip: follows the mirrored picture"][0] == "100.0"
  baselines = cells(run_tables.baselines(summary))
  assert baselines["guessing"][0] == "43.8" and baselines["this run"][0] == "75.0"
  letters = cells(run_tables.letters(summary))
  assert int(letters["A"][0]) + int(letters["B"][0]) + int(letters["C"][0]) + int(letters["D"][0]) == 40


def test_confusion_counts_every_question_once(run):
  rows, summary = run
  found = run_tables.confusions(run_page.headline_rows(rows, summary))
  assert sorted(found) == [2, 4] and sum(m.sum() for m in found.values()) == 40
  assert sum(np.trace(m[:, :-1]) for m in found.values()) == 30
  silent = run_tables.confusions([r for r in rows if r.protocol == "vsi"])
  assert sum(m[:, -1].sum() for m in silent.values()) == 4


def test_calibration_stands_apart(run):
  rows, summary = run
  head = run_page.headline_rows(rows, summary)
  found = calibration.calibration(head)
  assert cells(run_tables.calibrated(head))["all"][0] == f"{100 * found['ece']:.1f}"
  names = [s.name for s in run_page.sections(rows, summary)]
  assert names == ["result", "scores", "protocols", "looking", "calibration", "letters"]
  # Generated answers have no probabilities, those of texts none of letters, and so no such section.
  generated = [r for r in rows if r.protocol == "vsi"]
  alone = summarize(generated, dataclasses.replace(CONFIG, protocols=("vsi",), controls=()))
  assert "calibration" not in [s.name for s in run_page.sections(generated, alone)]
  texts = [dataclasses.replace(r, protocol="options") for r in head]
  alone = summarize(texts, dataclasses.replace(CONFIG, protocols=("options",), controls=()))
  assert "calibration" not in [s.name for s in run_page.sections(texts, alone)]


def test_a_long_answer_is_cut_on_the_page_alone(run):
  rows, summary = run
  rows = [dataclasses.replace(r, output="word " * 400) if r.protocol == "vsi" else r for r in rows]
  (said,) = {a.answers[1].output for a in run_page.browser(rows, summary).rows}
  assert said.endswith("… (2000 characters)") and len(said) < 450


@pytest.mark.parametrize(
  ("right", "said"),
  [
    (lambda i: i % 10 > 0, "above guessing and every shortcut"),
    (lambda i: i % 2 > 0, "not to be told from guessing"),
    (lambda i: i % 10 == 0, "below guessing"),
  ],
)
def test_the_alarm(right, said):
  rows = [row(i, right(i), gold="AB"[i // 2 % 2], source="COCO") for i in range(120)]
  summary = summarize(rows, ScoreConfig(bootstrap=100))
  (hero, *_) = run_page.sections(rows, summary)
  assert re.search(r"<span class='pill \w+'>(.*?)</span>", hero.body)[1] == said
  assert ("At chance" in hero.body) == (said != "above guessing and every shortcut")


@pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")
def test_in_a_browser(folder, tmp_path):
  with Chromium(tmp_path / "profile") as browser:
    for width, dark in ((1280, True), (390, False)):
      browser.open(folder / "report.html", width, dark=dark)
      assert browser.run("document.documentElement.scrollWidth <= innerWidth"), width
      assert browser.run("document.querySelectorAll('section').length") == 7
      assert browser.run("document.querySelectorAll('.card').length") == 24
      assert (
        browser.run("document.querySelectorAll('section script, section img:not(.card img)').length") == 0
      )
      # Words are seen against what lies behind them: WCAG asks for 4.5 to 1.
      assert browser.run(CONTRAST) >= 4.5
      browser.screenshot(tmp_path / f"{width}.png")
      with Image.open(tmp_path / f"{width}.png") as shot:
        pixels = np.asarray(shot.convert("RGB"))
      assert pixels.shape == (900, width, 3) and (pixels.mean() < 90) == dark
      assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 40  # text, bars, colours: not an empty page
      # What stands beside a score stays there on a narrow screen.
      heads = browser.run(HEADS)
      assert {"score", "95 % interval", "answered", "guessing"} <= set(heads), (width, heads)
      unnamed = "[...document.querySelectorAll('svg:not([aria-hidden])')].filter(s => !s.ariaLabel).length"
      assert browser.run(unnamed) == 0
    assert not [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


HEADS = """[...document.querySelectorAll("#scores thead th")]
  .filter((head) => head.offsetParent).map((head) => head.innerText)"""
CONTRAST = """(() => {
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (c) => c.map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
  } return [255, 255, 255]; };
  return Math.min(...[...document.querySelectorAll("p, td, th, dt, dd, a, h1, h2, span, b, label")]
    .filter((e) => e.textContent.trim() && e.offsetParent && !e.matches(".confusion *"))
    .map((e) => [light(parse(getComputedStyle(e).color).slice(0, 3)), light(behind(e))])
    .map(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)));
})()"""
