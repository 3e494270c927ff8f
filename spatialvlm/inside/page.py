"""The page of one question: a picture with a slider over layers, words to hover, curves; one file."""

from __future__ import annotations

import base64
import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from spatialvlm.inside import curves
from spatialvlm.inside.places import Canvas
from spatialvlm.inside.record import Lens, Record
from spatialvlm.reporting import page as shell
from spatialvlm.reporting import tables
from spatialvlm.reporting.tables import Cell, escape
from spatialvlm.types import LETTERS

# Longest edge of an embedded picture in pixels, and JPEG's quality.
_EDGE, _QUALITY = 1024, 82
# Bytes of the tower's own rollouts, a map of patches for every image token; beyond, the npz alone has them.
_TOWER_BYTES = 3 * 2**20
_ASSETS = pathlib.Path(__file__).parent / "assets"


@dataclasses.dataclass(frozen=True)
class Panel:
  """What another room found of the same question.

  Attributes:
    title: of the section.
    note: one sentence on what is shown, plain text.
    html: HTML of ours, with everything from data escaped; it may use the classes of the report's stylesheet.
  """

  title: str
  note: str
  html: str


def page(record: Record, panels: Sequence[Panel] = ()) -> str:
  """The page's HTML, self-contained.

  Args:
    panels: further sections, in their order.
  """
  sections = [
    shell.Section("looks", "Where it looks", _looks(record)),
    shell.Section("knows", "When it knows", _knows(record)),
    *(
      shell.Section(f"panel-{n}", panel.title, f"<p class='note'>{escape(panel.note)}</p>{panel.html}")
      for n, panel in enumerate(panels)
    ),
    shell.Section("reading", "How to read this", _reading(record)),
  ]
  facts = {
    "model": record.model,
    "question": "" if record.name == "question" else record.name,
    "says": record.said if record.free else record.curves[record.chosen],
    "right": record.curves[record.right] if record.right >= 0 else "",
    "layers": str(len(record.lens.options) - 1),
    "image tokens": str(len(record.image_at)),
  }
  live = shell.Live(_asset("inside.js"), _asset("inside.css"), {"inside-data": _data(record)})
  return shell.page(record.question, facts, sections, live=live)


def _looks(record: Record) -> str:
  kinds = "".join(f"<option value='{key}'>{label}</option>" for key, label in _kinds(record))
  pictures = "".join(
    f"<figure class='seen' data-picture='{n}'><div class='stack'><img alt='Picture {n + 1}'>"
    "<canvas class='heat' tabindex='0' role='img' aria-label='Where it looks; arrow keys move over patches'>"
    "</canvas><div class='labels' aria-hidden='true'></div><div class='spot' hidden></div></div></figure>"
    for n in range(len(record.pictures))
  )
  words = "".join(
    f"<button type='button' class='word' data-word='{n}'>{escape(word)}</button>"
    for n, word in enumerate(record.words)
  )
  answer = f"<button type='button' class='word answer' data-word='{len(record.words)}'>the answer</button>"
  return (
    "<noscript><p>The picture needs JavaScript; curves and tables do not.</p></noscript>"
    f"<div class='inside'><div class='pictures'>{pictures}"
    "<p id='patch' class='patch' role='status' aria-live='polite'></p></div>"
    "<div class='asks'>"
    f"<label class='pick'>what<select id='kind'>{kinds}</select></label>"
    "<label class='pick' id='head-label'>head<select id='head'></select></label>"
    "<label class='slide' id='layer-label'><span>layer <output id='layer-name'></output></span>"
    "<input id='layer' type='range' min='0' step='1' value='0'></label>"
    "<p class='note' id='about'></p>"
    f"<p class='words' aria-label='Words of the question'>{words}{answer}</p>"
    "<p class='scale'><canvas id='ramp' width='128' height='8' aria-hidden='true'></canvas>"
    "<span id='most'></span></p>"
    "<label class='check' id='labels-label'><input type='checkbox' id='labels'> write on each patch what"
    " it says"
    "</label></div></div>"
  )


def _kinds(record: Record) -> list[tuple[str, str]]:
  """What can be laid over the picture: key of the data, and what the page calls it."""
  found = [("looked", "attention, mean of the heads")]
  if record.attention.shape[1] > 1:
    found.append(("heads", "attention of one head, from the answer"))
  if record.rollout.size:
    found.append(("rollout", "rollout: attention down from this layer"))
  if record.gradient.size:
    found.append(("gradient", "gradient-weighted relevance, all layers"))
  if record.vision is not None:
    found.append(("received", "vision tower: patches that are looked at"))
    if record.rollout.size:
      found.append(("through", "rollout through both towers"))
    if record.vision.gradient.size:
      found.append(("vision_gradient", "gradient-weighted, through both towers"))
    if record.vision.rollout.size <= _TOWER_BYTES:
      found.append(("tower", "vision tower: where a patch came from (hover it)"))
  return found


def _knows(record: Record) -> str:
  lenses = [("Logit lens", record.lens)] + ([("Tuned lens", record.tuned)] if record.tuned else [])
  parts = []
  for title, lens in lenses:
    target = record.right if record.right >= 0 else record.chosen
    layer = lens.overtakes(target)
    whose = "the right one" if record.right >= 0 else "what it says"
    name = record.curves[target]
    said = (
      f"{name} ({whose}) does not lead at the end."
      if layer is None
      else f"{name} ({whose}) leads from layer {layer} on, of {len(lens.options) - 1}."
    )
    drawing = curves.by_layer(lens.log_odds, record.curves, title, mark=layer, strong=target)
    parts.append(f"<div><h3>{title}</h3><p class='note'>{escape(said)}</p>{drawing}</div>")
  share = record.attention[:, :, -1].sum(axis=-1)
  drawing = curves.band(share, record.layers, "Share of the answer's attention that goes to the picture")
  parts.append(
    "<div><h3>How much it looks at the picture at all</h3><p class='note'>The share of the answer's"
    " attention that goes to image tokens, by layer: mean of the heads, and from the least to the most of"
    f" them.</p>{drawing}</div>"
  )
  body = f"<div class='columns'>{''.join(parts)}</div>"
  tabled = "".join(
    f"<details><summary>{title}: the likeliest words at the answer's place, by layer</summary>"
    f"{tables.to_html(_words_table(record, title, lens), caption=False)}</details>"
    for title, lens in lenses
  )
  return body + tabled


def _words_table(record: Record, title: str, lens: Lens) -> tables.Table:
  columns = ["layer", *(str(n + 1) for n in range(lens.answer_ids.shape[1]))]
  rows = []
  for layer, (ids, shares) in enumerate(zip(lens.answer_ids, lens.answer_shares, strict=True)):
    cells = [
      Cell(f"{record.word(i).strip() or repr(record.word(i))} {100 * p:.0f} %", "strong" if p > 0.5 else "")
      for i, p in zip(ids, shares, strict=True)
    ]
    rows.append([str(layer), *cells])
  return tables.make("words", f"{title}: likeliest words", columns, rows, minor=(4, 5))


def _reading(record: Record) -> str:
  lines = [
    "A map is laid over the picture cell by cell: tokens of tiles in their places, those of the global"
    " view over"
    " all that they show, each divided among its cells, so that a map's sum is the share that goes to the"
    " picture."
    " Each map is scaled to its own largest value, which stands beside the colours; these go by the square"
    " root, so"
    " that small shares are seen too.",
    "Attention says where a layer reads, not what the answer hung on; a head may read a place and use"
    " nothing of"
    " it, and places without content gather attention. Rollout takes attention as if nothing else moved"
    " content."
    " What an answer hung on is found by changing the picture.",
    "A word looks with the mean of its tokens. Words that stand before the picture cannot see it in a"
    " causal model.",
  ]
  if record.gradient.size:
    lines.append(
      "Gradient-weighted: attention times its gradient for the logit of "
      f"{'“' + record.curves[record.chosen] + '”'}, negative parts left out, carried through all layers;"
      f" in shares"
      " of nothing, so only its places mean something."
    )
  lines.append(
    "The logit lens reads an inner layer by the head that was made for the last one; early layers may know"
    " what it"
    " cannot read. Log-odds are of each option against the others together."
  )
  return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _data(record: Record) -> dict[str, Any]:
  lenses = [("logit lens", record.lens)] + ([("tuned lens", record.tuned)] if record.tuned else [])
  return {
    "layers": record.layers.tolist(),
    "words": [*record.words, "the answer"],
    "pictures": [_picture(record, n) for n in range(len(record.pictures))],
    "lenses": [_lens(title, lens) for title, lens in lenses],
    "vocabulary": record.vocabulary,
    "heads": record.attention.shape[1],
    "letters": list(LETTERS[: len(record.options)]),
  }


def _picture(record: Record, number: int) -> dict[str, Any]:
  canvas = record.canvases[number]
  found = {
    "jpeg": _jpeg(record.pictures[number]),
    "tokens": _packed(canvas.tokens_at().astype(np.uint16)),
    "cells": list(canvas.shape),
    "tiled": canvas.rows > 0,
    "maps": _maps(record, canvas),
  }
  return found


def _maps(record: Record, canvas: Canvas) -> dict[str, Any]:
  """One picture's maps by the keys of `_kinds`: (slider positions, what is chosen beside, rows, columns)."""
  keys = {key for key, _ in _kinds(record)}
  found = {"looked": canvas.lay(record.of_words(record.looked))}
  if "heads" in keys:
    found["heads"] = canvas.lay(record.attention[:, :, -1])
  if "rollout" in keys:
    found["rollout"] = canvas.lay(record.of_words(record.rollout[record.layers - 1]))
  if "gradient" in keys:
    found["gradient"] = canvas.lay(record.of_words(record.gradient))[None]
  if record.vision is not None:
    fine = canvas.finer(record.vision.side // canvas.side)
    flat = lambda values: values.reshape(*values.shape[:-2], -1)
    whole = flat(record.vision.received.mean(axis=1)) / canvas.tiles
    found["received"] = fine.lay(whole)[:, None]
    if "through" in keys:
      found["through"] = fine.lay(record.through_vision(record.of_words(record.rollout[-1])))[None]
    if "vision_gradient" in keys:
      found["vision_gradient"] = fine.lay(flat(record.vision.gradient))[None, None]
    if "tower" in keys:
      own = record.vision.rollout[canvas.first : canvas.first + canvas.tiles]
      found["tower"] = own.reshape(1, -1, fine.side, fine.side)
  return {key: _map(values) for key, values in found.items()}


def _map(values: np.ndarray) -> dict[str, Any]:
  """Values (a, b, rows, columns) in 256 steps from 0 to the largest of each map."""
  most = values.max(axis=(2, 3), keepdims=True)
  steps = np.rint(255 * values / np.maximum(most, 1e-30)).astype(np.uint8)
  return {"shape": list(values.shape), "data": _packed(steps), "most": [_short(v) for v in most.ravel()],
          "sum": [_short(v) for v in values.sum(axis=(2, 3)).ravel()]}  # fmt: skip


def _lens(title: str, lens: Lens) -> dict[str, Any]:
  return {
    "title": title,
    "layers": lens.layers.tolist(),
    "ids": lens.patch_ids.tolist(),
    "shares": np.rint(100 * lens.patch_shares).astype(int).tolist(),
  }


def _packed(values: np.ndarray) -> str:
  little = values.astype(values.dtype.newbyteorder("<"))
  return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()


def _short(value: float) -> float:
  return float(f"{float(value):.4g}")


def _jpeg(pixels: np.ndarray) -> str:
  picture = Image.fromarray(pixels)
  picture.thumbnail((_EDGE, _EDGE))
  buffer = io.BytesIO()
  picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
  return base64.b64encode(buffer.getvalue()).decode()


def _asset(name: str) -> str:
  return (_ASSETS / name).read_text(encoding="utf-8")
