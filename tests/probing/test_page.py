"""The page of a comparison, by itself and in a real browser."""

import json

import numpy as np
import pytest

from spatialvlm.probing import drawings, page
from spatialvlm.reporting import tables
from tests.reporting.chromium import Chromium, binary

FACTS = dict(
  family="clip", image_size=224, tokens=197, patches=196, width=768, parameters=86e6, flops=35.1e9,
  images_per_s=12.3, compile_s=1.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def results():
  rng = np.random.default_rng(0)
  rows = [*page.CONTROLS, "a", "a (drawn)", "b"]
  one = lambda v: {"value": v, "low": v - 0.05, "high": v + 0.05, "images": 9}
  found = {name: {s.name: one(rng.uniform(0.2, 0.8)) for s in page.SCORES} for name in rows}
  found["b"]["nearer"] = {"value": None, "low": None, "high": None, "images": 0}
  names = ["raw pixels", "a", "b"]
  alike = [[1.0, 0.2, 0.5], [0.2, 1.0, None], [0.5, None, 1.0]]
  return {
    "scenes": dict(
      scenes=8, validation=4, test=4, seed=0, render_size=96, grid=4, farthest=10.0, layers=[-2]
    ),
    "encoders": {"a": FACTS, "b": FACTS},
    "probes": found,
    "cka": {"names": names, "cells": alike, "images": alike},
    "photos": {"rule": {}, "rows": {}},
  }


@pytest.fixture(scope="module")
def html(results):
  uri = drawings.as_uri(np.zeros((4, 4, 3), np.uint8))
  return page.html(results, "Encoders: a, b", {"scene": [uri] * 4, "a": [uri] * 4})


def test_tables(results):
  text = page.markdown(results)
  score = results["probes"]["a"]["rmse"]
  assert f"| a | {score['value']:.2f} ({score['low']:.2f} – {score['high']:.2f}) |" in text
  assert "| a | clip | 224 | 197 | 196 | 768 | 86 | 35.1 | 12.3 | 1.5 |" in text
  assert sum(line.startswith("| b |") for line in text.splitlines()) == 4
  nearer = tables.to_markdown(page.scores(results["probes"])).splitlines()
  assert next(line for line in nearer if line.startswith("| b |")).endswith("|  |")


def test_the_page_names_nothing_outside_itself(html, results):
  assert "http" not in html.replace("http-equiv", "") and "<script" not in html
  assert html.count("src='data:image/png;base64,") == 8
  assert html.count("class='dot'") == 5 * 6 - 1
  json.dumps(results, allow_nan=False)


@pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")
def test_no_width_runs_over(html, tmp_path):
  (tmp_path / "p.html").write_text(html)
  with Chromium(tmp_path / "profile") as browser:
    for width, dark in ((390, True), (1280, False)):
      browser.open(tmp_path / "p.html", width, dark=dark)
      assert browser.run("document.documentElement.scrollWidth") <= width
      assert not [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
