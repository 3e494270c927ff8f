"""The shell of a report, by itself and in a real browser."""

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from spatialvlm.reporting import page
from spatialvlm.reporting.page import Answer, Asked, Browser, Section
from tests.reporting.chromium import Chromium, binary

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
NEEDS_BROWSER = pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")


def asked(idx, *answers, task="Depth", choices=("near", "far")):
  given = tuple(None if a is None else Answer(a, "A", (0.75, 0.25)) for a in answers)
  return Asked(idx, task, "COCO", "", f"img/{idx}.png", f"Which {idx}?", choices, given)


@pytest.fixture(scope="module")
def html():
  rows = [asked(i, "AB"[i % 2], "AB"[i % 3 > 0], task=("Depth", "Count")[i % 2]) for i in range(60)]
  hostile = Answer("B", "A", (0.5, 0.5), EVIL)
  rows.append(Asked(60, "Depth", EVIL, EVIL, EVIL, EVIL + "</script>", (EVIL, "b"), (hostile, None)))
  rows.append(asked(61, "", "A"))
  pictures = page.embed((i, np.full((40, 60, 3), 4 * i, np.uint8)) for i in range(60))
  browser = Browser((f"run {EVIL}", "other"), rows)
  return page.page(f"T {EVIL}", {"model": EVIL}, [Section("one", "One", "<p>body</p>")], browser, pictures)


def test_nothing_from_data_is_markup(html):
  assert EVIL not in html and "<img" not in html
  data = re.search(r'id="questions-data">(.*?)</script>', html, re.S)[1]
  assert json.loads(data)["rows"][60]["c"] == [EVIL, "b"]


def test_one_file_and_one_script(html):
  """No address but the data URIs that the script makes; the policy names this very script and style."""
  assert "http" not in html.replace("http-equiv", "")
  for kind in ("script", "style"):
    (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"{kind}-src 'sha256-{digest}'" in html
  assert "default-src 'none'" in html


def test_pictures_come_back_from_a_page(html, tmp_path):
  (tmp_path / "p.html").write_text(html)
  found = page.pictures_of(tmp_path / "p.html")
  assert sorted(found) == list(range(60))
  with Image.open(io.BytesIO(base64.b64decode(found[50]))) as image:
    assert image.size == (60, 40) and abs(np.asarray(image).mean() - 200) < 3
  assert page.pictures_of(tmp_path / "none.html") == {}
  (tmp_path / "bad.html").write_text('<script type="application/json" id="pictures-data">[1]</script>')
  assert page.pictures_of(tmp_path / "bad.html") == {}


def test_pictures_are_small_few_and_single():
  noise = np.random.default_rng(0).integers(0, 256, (4, 700, 900, 3), dtype=np.uint8)
  one = page.embed([(7, noise[0])])
  with Image.open(io.BytesIO(base64.b64decode(one[7]))) as image:
    assert max(image.size) == page.SIZES[0][0]
  images = [(0, noise[0]), (1, noise[0]), (2, noise[1]), (3, noise[2])]
  smallest = len(page._jpeg(noise[0], page.SIZES[-1]))
  assert sorted(page.embed(images, limit=int(2.5 * smallest))) == [0, 1, 2]


def test_all_pictures_get_room_by_being_smaller():
  noise = np.random.default_rng(0).integers(0, 256, (60, 400, 400, 3), dtype=np.uint8)
  images = list(enumerate(noise))
  for size in page.SIZES:
    edge, limit = size[0], int(60.5 * len(page._jpeg(noise[0], size)))
    found = page.embed(iter(images), len(images), limit)
    assert sorted(found) == list(range(60)) and sum(map(len, found.values())) <= limit
    with Image.open(io.BytesIO(base64.b64decode(found[59]))) as image:
      assert max(image.size) == edge


def test_several_pictures_stand_two_in_a_row_each_with_its_number():
  rng = np.random.default_rng(0)
  four = [np.full((400, 500, 3), shade, np.uint8) for shade in (40, 90, 140, 190)]
  (text,) = page.embed([(3, four)]).values()
  with Image.open(io.BytesIO(base64.b64decode(text))) as image:
    edge = page.SIZES[0][0]
    assert image.size == (2 * edge + 6, 2 * (edge * 4 // 5 + 14))
    sheet = np.asarray(image.convert("L")).astype(int)
  places = [(140, 100), (140, 500), (410, 100), (410, 500)]
  assert all(abs(sheet[at] - shade) < 6 for at, shade in zip(places, (40, 90, 140, 190), strict=True))
  numbers = [sheet[y : y + 14, x : x + 30] for y in (0, 270) for x in (0, edge + 6)]
  assert all(number.min() < 120 and number.mean() > 200 for number in numbers)
  assert len({number.tobytes() for number in numbers}) == 4
  one = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
  assert page.embed([(0, one)]) == page.embed([(0, [one])])


def test_spread_is_even_wherever_it_stops():
  keys = ["a"] * 90 + ["b"] * 10
  order = page.spread(keys)
  assert sorted(order) == list(range(100))
  assert [keys[i] for i in order[:20]].count("b") == 10


@NEEDS_BROWSER
def test_in_a_browser(html, tmp_path):
  (tmp_path / "p.html").write_text(html)
  with Chromium(tmp_path / "profile") as browser:
    for width, dark in ((1280, False), (390, True)):
      browser.open(tmp_path / "p.html", width, dark=dark)
      assert browser.run("document.documentElement.scrollWidth <= innerWidth"), width
      shade = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
      assert shade < 60 if dark else shade > 200
    _filters(browser)
    problems = [e for e in browser.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert not problems
    asked_for = [
      e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"
    ]
    assert asked_for and all(url.startswith(("file:", "data:")) for url in asked_for)


def _filters(browser):
  def choose(name, value):
    browser.run(
      f"(() => {{ const e = document.getElementById('by-{name}'); e.value = {json.dumps(value)};"
      "e.dispatchEvent(new Event(e.type === 'search' ? 'input' : 'change')); })()"
    )
    return browser.run("document.getElementById('count').textContent")

  count = "document.querySelectorAll('.card').length"
  assert browser.run(count) == 24
  browser.run("document.getElementById('more').click()")
  assert browser.run(count) == 48
  assert choose("task", "Count") == "30 of 62 questions, 0.0 % right"
  assert choose("task", "").startswith("62 of 62")
  assert choose("result", "none").startswith("1 of 62")
  choose("other", "1")
  changed = sum("AB"[i % 2] != "AB"[i % 3 > 0] for i in range(60)) + 1
  assert choose("result", "changed").startswith(f"{changed} of 62")
  choose("result", "")
  # What the data brought is text, with its picture missing.
  assert choose("search", "onerror").startswith("1 of 62")
  card = browser.run("document.querySelector('.card').innerText")
  assert card.count(EVIL) >= 4 and "picture not embedded" in card
  assert browser.run("document.querySelectorAll('.card script, .card img').length") == 0
  assert browser.run("document.querySelector('.option.gold').innerText").startswith("✓")
  choose("search", "which 17?")
  assert browser.run("document.querySelector('.card img').naturalWidth") == 60
