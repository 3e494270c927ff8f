"""The shell of a report: one HTML file that names nothing outside itself, and its browser of questions.

What comes from data is escaped in the markup and in the embedded JSON, and the script makes text of it, never
markup; the page's own security policy allows no other script than ours, and no request.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import io
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from spatialvlm.reporting.tables import escape

# Bytes of all embedded pictures together, as base64. A page of 25 MB still opens on a phone.
PICTURE_BYTES = 20 * 2**20
# Longest edge in pixels and JPEG's quality, best first. Two photos of 640 pixels took 15, 9, 6 and 4 kB on
# average, so that the third holds 3,500 of their like.
SIZES = ((320, 72), (256, 68), (208, 62), (160, 55))
# Pictures that say how large the others will be.
SAMPLE = 48
# Pixels between two pictures of one question, and above each for its number.
_GAP, _NUMBER = 6, 14
_ASSETS = pathlib.Path(__file__).parent / "assets"
_TITLE = re.compile(r"<title>(.*?)</title>", re.S)
_PICTURES = re.compile(r'<script type="application/json" id="pictures-data">(.*?)</script>', re.S)


@dataclasses.dataclass(frozen=True)
class Answer:
  """What one pass said of a question: letters, probabilities by option, raw output; None for none."""

  choice: str
  gold: str
  probabilities: tuple[float, ...] | None = None
  output: str | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question in the browser.

  Attributes:
    idx: as in the data set.
    answers: one for each view of the page, None where the question was not asked so.
    inside: where the page lies that looks inside the model at it, from this page; "" for nowhere.
  """

  idx: int
  task: str
  source: str
  source_dataset: str
  filename: str
  question: str
  choices: tuple[str, ...]
  answers: tuple[Answer | None, ...]
  inside: str = ""


@dataclasses.dataclass(frozen=True)
class Browser:
  """The questions of a page.

  Attributes:
    views: names of the passes, or runs, whose answers can be looked at.
    first, second: the view that is shown to begin with, and the one it is held against, None for none.
    result: the filter to begin with, e.g. "changed".
    explain: the command that makes the page of a question's `inside`, up to the question's number; "" for
      none.
  """

  views: tuple[str, ...]
  rows: Sequence[Asked]
  first: int = 0
  second: int | None = None
  result: str = ""
  explain: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page: `body` is HTML of ours, with everything from data escaped."""

  name: str
  title: str
  body: str


@dataclasses.dataclass(frozen=True)
class Live:
  """What makes a page move: a script and a style of ours, and what the script reads.

  Attributes:
    style: behind the style that all pages share.
    data: by the id of the element that holds it, as JSON.
  """

  script: str
  style: str = ""
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def page(
  title: str,
  facts: Mapping[str, str],
  sections: Sequence[Section],
  browser: Browser | None = None,
  pictures: Mapping[int, str] | None = None,
  live: Live | None = None,
) -> str:
  """The page's HTML.

  Args:
    facts: what stands below the title.
    pictures: base64 JPEG by `idx` (`embed`, or `pictures_of` an earlier page).
    live: a script of the page's own.
  """
  pictures, live = pictures or {}, live or Live("")
  script = (_asset("report.js") if browser else "") + live.script
  style = _asset("report.css") + live.style
  policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
  parts = [(s.name, s.title, s.body) for s in sections]
  if browser:
    parts.append(("questions", "Questions", _browser(browser, pictures)))
  links = "".join(f"<li><a href='#{escape(name)}'>{escape(label)}</a></li>" for name, label, _ in parts)
  body = "".join(
    f"<section id='{escape(name)}' aria-labelledby='{escape(name)}-title'>"
    f"<h2 id='{escape(name)}-title'>{escape(label)}</h2>{inner}</section>"
    for name, label, inner in parts
  )
  about = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
  return (
    "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
    f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    f"<title>{escape(title)}</title><style>{style}</style></head><body>"
    f"<header><h1>{escape(title)}</h1><dl class='facts'>{about}</dl></header>"
    f"<nav aria-label='Sections'><ul>{links}</ul></nav><main>{body}</main>"
    "<footer><p>One file; it loads nothing from anywhere. Made by spatialvlm.</p></footer>"
    f"{_data(browser, pictures) if browser else ''}"
    + "".join(_json(name, value) for name, value in live.data.items())
    + (f"<script>{script}</script>" if script else "")
    + "</body></html>\n"
  )


def embed(
  images: Iterable[tuple[int, np.ndarray | Sequence[np.ndarray]]],
  count: int = 0,
  limit: int = PICTURE_BYTES,
) -> dict[int, str]:
  """Pictures as base64 JPEG by `idx`, of the best of `SIZES` at which all fit in `limit` bytes.

  Args:
    images: (idx, uint8 (H, W, 3)) or, of a question with several pictures, (idx, all of them), in an order in
      which any stretch is like the rest; pictures that are alike count once. Where even the smallest do not
      fit, the last ones are left out.
    count: how many there are; 0 for few.
  """
  rest = iter(images)
  sample = list(itertools.islice(rest, SAMPLE))
  for size in SIZES:
    room = limit * len(sample) / max(count, len(sample), 1)
    if sum(map(len, {_jpeg(image, size) for _, image in sample})) <= room:
      break
  found: dict[int, str] = {}
  known: dict[str, str] = {}
  left = limit
  for idx, image in itertools.chain(sample, rest):
    text = _jpeg(image, size)
    if text not in known:
      if len(text) > left:
        break
      left -= len(text)
    found[idx] = known.setdefault(text, text)
  return found


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
  """Several pictures in one, on white: two in a row, each with its number, from 1, above it."""
  if len(pictures) == 1:
    return pictures[0]
  width, height = (max(p.size[axis] for p in pictures) for axis in (0, 1))
  rows = -(-len(pictures) // 2)
  found = Image.new("RGB", (2 * width + _GAP, rows * (height + _NUMBER)), "white")
  draw = ImageDraw.Draw(found)
  for n, picture in enumerate(pictures):
    x, y = n % 2 * (width + _GAP), n // 2 * (height + _NUMBER)
    draw.text((x + 2, y + 1), str(n + 1), fill="black")
    found.paste(picture, (x, y + _NUMBER))
  return found


def _jpeg(images: np.ndarray | Sequence[np.ndarray], size: tuple[int, int]) -> str:
  edge, quality = size
  pictures = [Image.fromarray(i) for i in ([images] if isinstance(images, np.ndarray) else images)]
  for picture in pictures:
    picture.thumbnail((edge, edge))
  picture = sheet(pictures)
  buffer = io.BytesIO()
  picture.save(buffer, "JPEG", quality=quality, optimize=True)
  return base64.b64encode(buffer.getvalue()).decode()


def within(pictures: Mapping[int, str], limit: int = PICTURE_BYTES) -> dict[int, str]:
  """As many of these pictures as `limit` allows."""
  found: dict[int, str] = {}
  left, known = limit, set()
  for idx, text in pictures.items():
    cost = 0 if text in known else len(text)
    if cost > left:
      break
    found[idx], left = text, left - cost
    known.add(text)
  return found


def pictures_of(path: pathlib.Path) -> dict[int, str]:
  """The pictures of an earlier page, so that it can be written anew without the data; {} without one."""
  if not path.is_file():
    return {}
  match = _PICTURES.search(path.read_text(encoding="utf-8", errors="replace"))
  try:
    kept = json.loads(match[1]) if match else {"of": {}}
    return {int(idx): str(kept["jpeg"][place]) for idx, place in kept["of"].items()}
  except (ValueError, KeyError, TypeError, IndexError, AttributeError):
    return {}  # not a page of ours: it is written anew, without pictures


def title_of(path: pathlib.Path) -> str:
  """The title of an earlier page, "" without one."""
  match = _TITLE.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
  return html.unescape(match[1]) if match else ""


def spread(keys: Sequence[str]) -> list[int]:
  """An order of places in which every stretch holds each key (e.g. task and result) in near equal numbers."""
  seen: dict[str, int] = {}
  rank = []
  for key in keys:
    seen[key] = seen.get(key, 0) + 1
    rank.append(seen[key])
  return sorted(range(len(keys)), key=lambda i: (rank[i], i))


def safe_json(value: Any) -> str:
  """JSON that can stand inside of a `<script>` element."""
  text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
  for character in "<>&\u2028\u2029":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return text


def _json(name: str, value: Any) -> str:
  return f'<script type="application/json" id="{escape(name)}">{safe_json(value)}</script>'


def _browser(browser: Browser, pictures: Mapping[int, str]) -> str:
  have = sum(row.idx in pictures for row in browser.rows)
  said = (
    f"Pictures of {have} of {len(browser.rows)} questions are embedded ({PICTURE_BYTES // 2**20} MB at most)."
  )
  names = {
    "view": "answers of", "other": "beside", "task": "task", "source": "source", "options": "options",
    "result": "result",
  }  # fmt: skip
  selects = "".join(
    f"<label>{label}<select id='by-{name}'></select></label>" for name, label in names.items()
  )
  return (
    "<noscript><p>The list of questions needs JavaScript; nothing else here does.</p></noscript>"
    f"<form class='filters' aria-label='Filters' autocomplete='off'>{selects}"
    "<label>search<input id='by-search' type='search'></label></form>"
    "<p id='count' role='status' aria-live='polite'></p><div id='cards'></div>"
    f"<p class='more'><button id='more' type='button' hidden>Show more</button></p><p class='note'>{said}</p>"
  )


def _data(browser: Browser, pictures: Mapping[int, str]) -> str:
  kept = [row.idx for row in browser.rows if row.idx in pictures]
  place = {text: i for i, text in enumerate(dict.fromkeys(pictures[idx] for idx in kept))}
  rows = [
    {
      "i": row.idx,
      "t": row.task,
      "s": row.source,
      "d": row.source_dataset,
      "f": row.filename,
      "q": row.question,
      "c": row.choices,
      "r": [_answer(a) for a in row.answers],
      **({"p": row.inside} if row.inside else {}),
    }
    for row in browser.rows
  ]
  questions = {
    "views": browser.views,
    "first": browser.first,
    "second": browser.second,
    "result": browser.result,
    "explain": browser.explain,
    "rows": rows,
  }
  shown = {"of": {str(idx): place[pictures[idx]] for idx in kept}, "jpeg": list(place)}
  return _json("pictures-data", shown) + _json("questions-data", questions)


def _answer(answer: Answer | None) -> list[Any] | None:
  if answer is None:
    return None
  share = None if answer.probabilities is None else [round(p, 4) for p in answer.probabilities]
  return [answer.choice, answer.gold, share, answer.output]


def _asset(name: str) -> str:
  return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
  return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
