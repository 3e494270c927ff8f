"""What an answer hangs on, as a section of a question's page: HTML that loads nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from spatialvlm.causes import layers
from spatialvlm.causes.record import Causes
from spatialvlm.causes.regions import KINDS
from spatialvlm.inside.page import Panel
from spatialvlm.reporting import tables
from spatialvlm.reporting.tables import Cell, escape
from spatialvlm.types import LETTERS

_EDGE = 360
# Red: without it the answer loses; blue: it gains.
_LOSES, _GAINS = (194, 65, 12), (11, 110, 153)

NOTE = (
  "How far the log-odds of what it answers move when a place is grey, when attention to it is cut, and when"
  " states of the picture are put into another. The grey picture, which shows nothing, is the control beside"
  " them."
)


def panel(causes: Causes) -> Panel:
  """The section of one question."""
  return Panel("What the answer hangs on", NOTE, html(causes))


def html(causes: Causes) -> str:
  """The section's HTML; texts are escaped."""
  parts = [_cells(causes), tables.to_html(_regions(causes))]
  blocks = [str(i + 1) for i in range(causes.cut.shape[1] - 1)]
  change = causes.change(causes.cut)
  parts.append(
    _heat(
      "cut",
      "Attention from the words cut, in one block and in all",
      [layers.GROUPS[name] for name in causes.cut_groups],
      [*blocks, "all"],
      change,
      max(float(np.abs(change).max()), 1e-6),
    )
  )
  kept = ["before", *blocks]
  names = [layers.GROUPS[name] for name in causes.patch_groups]
  title = (
    "States of the picture put into the other one, behind a block: the share of the difference that returns"
  )
  whole = abs(float(causes.log_odds(causes.logprobs) - causes.log_odds(causes.opposite)))
  note = f"Shares of {whole:.2f} of log-odds, the difference of both pictures; of little they say little."
  parts.append(_heat("patched", title, names, kept, causes.restored(), 1.0, note))
  return "".join(parts)


def _regions(causes: Causes) -> tables.Table:
  """What each known place means, and the blind control."""
  base = causes.log_odds(causes.logprobs)
  rows = [["the picture as it is", "", _number(base), "", _option(causes, causes.logprobs)]]
  for name, kind, found in zip(causes.regions, causes.kinds, causes.grey, strict=True):
    if kind == "cell":
      continue
    label = f"{name} grey" if kind != "all" else "all grey: the blind control"
    rows.append([label, KINDS[kind], *_moved(causes, found)])
  called = {"named": "both objects exchanged", "elsewhere": "two places without them exchanged: the control"}
  for name, found in zip(causes.swaps, causes.swapped, strict=True):
    rows.append([called[name], "their image tokens", *_moved(causes, found)])
  columns = ["what is done", "to what", "log-odds", "change", "it answers"]
  whose = causes.options[causes.chosen]
  note = f"Log-odds of {whose!r}, what it answers of the picture as it is, against the other options."
  return tables.make("causes", "Places of the picture", columns, rows, minor=(1,), note=note)


def _moved(causes: Causes, logprobs_K: np.ndarray) -> list[str]:
  odds, change = causes.log_odds(logprobs_K), causes.change(logprobs_K)
  return [_number(odds), _number(change, sign=True), _option(causes, logprobs_K)]


def _option(causes: Causes, logprobs_K: np.ndarray) -> str:
  place = int(np.argmax(logprobs_K))
  return f"{LETTERS[place]} {causes.options[place]}"


def _number(value: float, sign: bool = False) -> str:
  return f"{round(float(value), 2) + 0.0:{'+' if sign else ''}.2f}".replace("-", "−")


def _heat(
  name: str,
  title: str,
  rows: Sequence[str],
  columns: Sequence[str],
  values: np.ndarray,
  reach: float,
  note: str = "",
) -> str:
  """A table whose cells are coloured around zero, full colour at `reach`."""
  cells = [[label, *(_coloured(v, reach) for v in line)] for label, line in zip(rows, values, strict=True)]
  return tables.to_html(tables.make(name, title, ["", *columns], cells, note=note))


def _coloured(value: float, reach: float) -> Cell:
  """The page's own policy lets no style stand in its markup, so the colour is a drawing's."""
  if not np.isfinite(value):
    return Cell("")
  colour = ",".join(map(str, _LOSES if value < 0 else _GAINS))
  share, text = min(abs(value) / reach, 1.0) * 0.6, _number(value)
  figure = (
    f"<svg role='img' aria-label='{text}' width='52' height='22'><rect width='52' height='22' rx='3'"
    f" fill='rgb({colour})' fill-opacity='{share:.2f}'/><text x='26' y='15' text-anchor='middle'"
    f" font-size='12' fill='currentColor'>{text}</text></svg>"
  )
  return Cell(text, "tinted", figure=figure)


def _cells(causes: Causes) -> str:
  """The picture, each cell of the grid in the colour of what greying it does; empty without a grid."""
  at = [number for number, kind in enumerate(causes.kinds) if kind == "cell"]
  if not at:
    return ""
  change = causes.change(causes.grey[at])
  reach = max(float(np.abs(change).max()), 1e-6)
  picture = causes.picture.astype(np.float32)
  for number, value in zip(at, change, strict=True):
    share = 0.7 * min(abs(value) / reach, 1)
    mask, colour = causes.masks[number], np.array(_LOSES if value < 0 else _GAINS, np.float32)
    picture[mask] = (1 - share) * picture[mask] + share * colour
  image = Image.fromarray(picture.round().astype(np.uint8))
  scale = _EDGE / max(image.size)
  image = image.resize([max(round(side * scale), 1) for side in image.size], Image.Resampling.NEAREST)
  buffer = io.BytesIO()
  image.save(buffer, "PNG", optimize=True)
  uri = base64.b64encode(buffer.getvalue()).decode()
  words = (
    f"Each cell in the colour of what greying it does: red, the answer loses; blue, it gains; full colour is"
    f" {reach:.2f} of log-odds."
  )
  image = f"<img alt='{escape(words)}' src='data:image/png;base64,{uri}'>"
  return f"<figure>{image}<figcaption>{escape(words)}</figcaption></figure>"
