"""The page of a question, by itself and in a real browser."""

import base64
import dataclasses
import json
import re

import matplotlib.figure
import numpy as np
import pytest

from spatialvlm.inside import curves, drawing, explain, page, written
from spatialvlm.inside.page import Panel
from spatialvlm.types import UserError
from tests.inside import support
from tests.reporting.chromium import Chromium, binary

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
NEEDS_BROWSER = pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
  vlm = support.load(tmp_path_factory.mktemp("model"))
  found = explain.explain(vlm.model, vlm.processor, support.ask(vlm, right="B"))
  return dataclasses.replace(found, model=EVIL, question=EVIL, words=(EVIL, *found.words[1:]))


@pytest.fixture(scope="module")
def html(record):
  return page.page(record, [Panel("Causes", f"What it hung on {EVIL}", "<p>grey</p>")])


def data_of(html):
  return json.loads(re.search(r'id="inside-data">(.*?)</script>', html, re.S)[1])


def test_one_file_that_names_nothing_outside(html):
  assert EVIL not in html and "http" not in html.replace("http-equiv", "").replace(
    "http://www.w3.org/2000/svg", ""
  )
  assert html.count("<script>") == 1 and "default-src 'none'" in html
  assert "<h2 id='panel-0-title'>Causes</h2>" in html and "<p>grey</p>" in html


def test_maps_are_what_the_record_says(record, html):
  """Out of the page's 256 steps, each map by its own largest value."""
  data = data_of(html)
  (picture,) = data["pictures"]
  found = picture["maps"]["rollout"]
  steps = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(found["shape"])
  most = np.array(found["most"]).reshape(*found["shape"][:2], 1, 1)
  want = record.canvases[0].lay(record.of_words(record.rollout))
  np.testing.assert_allclose(steps / 255 * most, want, atol=most.max() / 400)
  assert picture["cells"] == [6, 8] and list(picture["maps"]) == [
    "looked",
    "heads",
    "rollout",
    "gradient",
    "received",
    "through",
    "tower",
  ]
  received = picture["maps"]["received"]
  assert np.allclose(received["sum"], 1, atol=1e-3) and received["shape"] == [2, 1, 12, 16]
  tokens = np.frombuffer(base64.b64decode(picture["tokens"]), "<u2").reshape(2, 6, 8)
  np.testing.assert_array_equal(tokens, record.canvases[0].tokens_at())


def test_curves_say_in_words_what_they_show(record):
  drawing = curves.by_layer(record.lens.log_odds, ("A <near>", "B far"), "Logit lens", mark=1, strong=1)
  assert "A &lt;near&gt;, layer 0" in drawing and "class='mark'" in drawing and "log-odds by layer" in drawing


def test_files_of_a_question(record, tmp_path):
  path = written.write(record, tmp_path / "one")
  assert path.name == "explain.html"
  names = {"explain.html", "record.npz", "attention.png", "lens.png"}
  assert {p.name for p in path.parent.iterdir()} == names
  written.check(path.parent)
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match="not empty, and it holds no explained question"):
    written.check(tmp_path / "other")


def test_panels_on_axes(record):
  left, right = matplotlib.figure.Figure().subplots(1, 2)
  cells = record.canvases[0].lay(record.gradient[-1])
  drawing.over(left, record.pictures[0], cells)
  below, above = left.images
  assert above.get_extent() == [0, record.pictures[0].shape[1], record.pictures[0].shape[0], 0]
  assert np.unravel_index(above.get_array().argmax(), cells.shape) == np.unravel_index(
    cells.argmax(), cells.shape
  )
  assert below.get_array().ndim == 2
  drawing.curves(right, record)
  lines = {line.get_label(): line for line in right.lines}
  for k, name in enumerate(record.curves):
    np.testing.assert_array_equal(lines[name].get_ydata(), record.lens.log_odds[:, k])
  assert lines[record.curves[record.right]].get_linewidth() > 2


@NEEDS_BROWSER
def test_in_a_browser(html, record, tmp_path):
  (tmp_path / "p.html").write_text(html)
  with Chromium(tmp_path / "profile") as browser:
    for width, dark in ((390, True), (1280, False)):
      browser.open(tmp_path / "p.html", width, dark=dark)
      assert browser.run("document.documentElement.scrollWidth <= innerWidth"), width
    kinds = browser.run("[...document.getElementById('kind').options].map((o) => o.value)")
    painted = """(() => { const c = document.querySelector('.heat'); const d = c.getContext('2d')
      .getImageData(0, 0, c.width, c.height).data; let s = 0; for (const v of d) s += v; return s; })()"""
    seen = {}
    for kind in kinds:
      browser.run(f"(() => {{ const k = document.getElementById('kind'); k.value = '{kind}';"
                  "k.dispatchEvent(new Event('change')); })()")  # fmt: skip
      seen[kind] = browser.run(painted)
    assert len(set(seen.values())) == len(seen) and seen["looked"] > 0 and seen["tower"] == 0
    browser.run("document.querySelector('.heat').dispatchEvent(new PointerEvent('pointerdown',"
                "{clientX: 200, clientY: 400, pointerType: 'touch'}))")  # fmt: skip
    assert "says" in browser.run("document.getElementById('patch').innerText")
    assert browser.run(painted) > 0  # the tower's own map of that patch
    problems = [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert not problems
