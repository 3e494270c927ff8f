"""One self-contained HTML page of an inspection: tiles as images, tokens coloured by role."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from spatialvlm.data.inspect import Inspection, Seen
from spatialvlm.types import PICTURES

if TYPE_CHECKING:
  from spatialvlm.processing.processor import Encoded, Processor

# Larger tiles are scaled down for the page only: it stays small enough to open.
_SHOWN_EDGE = 192

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { margin-top: 2em; } table { border-collapse: collapse; margin: .5em 0; }
td, th { padding: .1em .8em .1em 0; text-align: left; vertical-align: top; }
.facts { display: flex; flex-wrap: wrap; gap: 2em; } .facts h3 { margin: .5em 0 0; font-size: 1em; }
.sample { border: 1px solid #ccc; border-radius: 6px; padding: .8em 1em; margin: 1em 0; }
.sample.bad { border: 2px solid #c62828; } .problem { color: #c62828; font-weight: 600; }
.skipped { color: #8d6e00; }
.about { color: #666; font-size: 12px; } .about b { color: #222; }
.tiles { display: flex; flex-wrap: wrap; gap: 4px; margin: .6em 0; }
.tiles img { width: 96px; height: 96px; border: 1px solid #ddd; }
.tokens { font: 13px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span { border-radius: 3px; padding: 1px 0; box-shadow: inset -1px 0 0 #0002; }
.prompt { background: #eceff1; } .image { background: #bbdefb; padding: 1px 6px !important; }
.special { background: #eceff1; color: #90a4ae; } .answer { background: #a5d6a7; }
.wrong { background: #ef5350; color: white; } .false { background: #ffcc80; }
.against { color: #666; font-size: 12px; margin: .4em 0 0; }
.row { display: flex; background: #eceff1; margin: 2px 0; font-size: 11px; line-height: 1.8; }
.row span { background: #a5d6a7; box-shadow: inset -1px 0 0 #0006; overflow: hidden; white-space: nowrap; }
rect { fill: #78909c; } text { font-size: 10px; fill: #555; }
"""

_LEGEND = """<p class="tokens"><span class="prompt">prompt: read, not learned</span>  <span
class="image">image tokens</span>  <span class="special">special token</span>  <span
class="answer">answer: learned</span>  <span class="false">set against it: wrong, or behind a rearranged
picture</span>  <span class="wrong">learned, but no answer: refused</span></p>"""


def page(inspections: Sequence[Inspection], processor: Processor, title: str) -> str:
  """The page's HTML; it names nothing outside itself."""
  sections = "".join(_section(inspection, processor) for inspection in inspections)
  return (
    f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{_text(title)}</title>"
    f"<style>{_STYLE}</style></head><body><h1>{_text(title)}</h1>{_LEGEND}{sections}</body></html>\n"
  )


def _section(inspection: Inspection, processor: Processor) -> str:
  i = inspection
  facts = [_table("sources", i.sources), _table("tasks", i.tasks)]
  if len(i.lengths):
    total = int(i.lengths.sum())
    shares = {
      "image tokens": f"{i.images / total:.1%}",
      "supervised": f"{i.supervised.sum() / total:.2%}",
      "supervised a sample": f"{i.supervised.mean():.1f}",
      "padding of the text": f"{i.padding:.1%}",
      "truncated": "0 (what is too long is refused)",
    }
    buckets = {str(bucket).replace("x", " x "): count for bucket, count in sorted(i.buckets.items())}
    facts += [
      _table("share of all tokens", shares),
      _table(f"batches by bucket ({i.bucket_says})", buckets),
      f"<div><h3>tokens a sample</h3>{_histogram(i.lengths)}</div>",
      _table("tiles a sample", {str(k): v for k, v in sorted(Counter(i.tiles.tolist()).items())}),
    ]
  problems = _listed("problem", "samples are refused", i.problems)
  problems += _listed("skipped", "rows are left out (data.bad_rows=skip)", i.skipped)
  samples = "".join(_sample(seen, processor) for seen in i.shown)
  return (
    f"<h2>{_text(i.name)}: {i.count} samples, {len(i.shown)} shown</h2>{problems}"
    f"<div class='facts'>{''.join(facts)}</div>{_packed(inspection)}{samples}"
  )


def _listed(kind: str, what: str, reasons: Mapping[str, str]) -> str:
  rows = "".join(f"<li>{_text(name)}: {_text(reason)}</li>" for name, reason in reasons.items())
  return f"<div class='{kind}'>{len(reasons)} {what}:<ul>{rows}</ul></div>" if reasons else ""


def _packed(inspection: Inspection) -> str:
  """The rows of the first packed batch, each conversation as wide as its tokens."""
  if inspection.packed is None:
    return ""
  bucket, rows = inspection.packed
  bars = []
  for row in rows + ((),) * (bucket.rows - len(rows)):
    parts = []
    for one in row:
      title = f"{one.id}: {one.tokens} tokens, {one.targets} supervised, {one.tiles} tiles"
      share = 100 * one.tokens / bucket.length
      parts.append(f"<span style='width:{share:.2f}%' title='{_text(title)}'>{_text(one.id)}</span>")
    bars.append(f"<div class='row'>{''.join(parts)}</div>")
  padding = f"{inspection.padding:.1%} of all positions are padding, {inspection.unpacked:.1%} unpacked"
  return (
    f"<div><h3>the first batch, packed: {bucket.rows} rows of {bucket.length} tokens, {bucket.tiles} tiles"
    f" and {bucket.targets} targets; {padding}</h3>{''.join(bars)}</div>"
  )


def _sample(seen: Seen, processor: Processor) -> str:
  about = [f"<b>{_text(seen.id)}</b>", _text(seen.task)]
  about += [f"image {width}x{height}" for width, height in seen.pictures]
  body = ""
  if seen.encoded is not None:
    e = seen.encoded
    about += [
      f"{len(e.tiles)} tiles",
      f"{len(e.tokens)} tokens",
      f"{np.count_nonzero(e.loss_mask)} supervised",
      f"{e.prefix} in the bidirectional prefix" if e.prefix else "",
    ]
    body = f"<div class='tiles'>{_tiles(e.tiles, processor)}</div>"
    own = e.branches[0].start if e.branches else len(e.tokens)
    body += f"<div class='tokens'>{_tokens(e, seen.wrong, processor, range(own))}</div>"
    body += _branches(e, seen.wrong, processor)
  if seen.bucket is not None:
    about.append(f"bucket {seen.bucket}".replace("x", " x "))
  problem = f"<div class='problem'>refused: {_text(seen.problem)}</div>" if seen.problem else ""
  kind = "sample bad" if problem else "sample"
  return (
    f"<div class='{kind}'><div class='about'>{' · '.join(filter(None, about))}</div>{problem}{body}</div>"
  )


def _tiles(tiles: np.ndarray, processor: Processor) -> str:
  images = []
  for number, pixels in enumerate(tiles, start=1):
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SHOWN_EDGE, _SHOWN_EDGE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    images.append(f"<img title='tile {number}' src='data:image/png;base64,{data}'>")
  return "".join(images)


def _branches(encoded: Encoded, wrong: np.ndarray, processor: Processor) -> str:
  """What stands behind the row and is set against each other (`types.Branches`), a line each, by question."""
  parts, before = [], None
  for branch in encoded.branches:
    pictures = branch.group >= PICTURES
    if branch.group != before:
      what = "pictures set against each other" if pictures else f"answers to question {branch.group + 1}"
      parts.append(f"<div class='against'>{what}; the first is right</div>")
    places = range(branch.start, branch.stop)
    counted = places[-branch.count :]
    kind = "false" if branch.group == before else "answer"
    shown = _tokens(encoded, wrong, processor, places, {at: kind for at in counted})
    parts.append(f"<div class='tokens'>{shown}</div>")
    before = branch.group
  return "".join(parts)


def _tokens(
  encoded: Encoded,
  wrong: np.ndarray,
  processor: Processor,
  places: Sequence[int],
  kinds: Mapping[int, str] | None = None,
) -> str:
  """The tokens at these places; neighbouring image tokens of one role as a single mark with their number.

  `kinds`: roles of some of them, in the place of what the row's loss says.
  """
  kinds = kinds or {}
  image_id = processor.layout.image_token_id
  special = {i for i, token in processor.tokenizer.get_added_tokens_decoder().items() if token.special}

  def role(at: int) -> str:
    token = int(encoded.tokens[at])
    if at in kinds:
      return kinds[at]
    if token == image_id:
      return "wrong image" if wrong[at] else "image"
    if encoded.loss_mask[at]:
      return "wrong" if wrong[at] else "answer"
    return "special" if token in special else "prompt"

  parts = []
  for kind, run in groupby(places, role):
    found = list(run)
    if "image" in kind:
      parts.append(f"<span class='{kind}' title='positions {found[0]} to {found[-1]}'>")
      parts.append(f"image x {len(found)}</span>")
      continue
    for at in found:
      token = int(encoded.tokens[at])
      text = processor.decode([token], skip_special_tokens=False)
      shown = _text(text).replace("\n", "⏎\n")
      parts.append(f"<span class='{kind}' title='position {at}, id {token}'>{shown}</span>")
  return "".join(parts)


def _histogram(values: np.ndarray, bins: int = 24, width: int = 320, height: int = 80) -> str:
  counts, edges = np.histogram(values, bins=min(bins, max(1, int(np.ptp(values)))))
  step, bars = width / len(counts), []
  for k, count in enumerate(counts):
    tall = count / counts.max() * height
    title = f"<title>{edges[k]:.0f} to {edges[k + 1]:.0f}: {count}</title>"
    place = f"x='{k * step:.1f}' y='{height - tall:.1f}' width='{step - 1:.1f}' height='{tall:.1f}'"
    bars.append(f"<rect {place}>{title}</rect>")
  below = height + 12
  bars.append(f"<text x='0' y='{below}'>{values.min()}</text>")
  bars.append(f"<text x='{width}' y='{below}' text-anchor='end'>{values.max()}</text>")
  return f"<svg width='{width}' height='{height + 16}'>{''.join(bars)}</svg>"


def _table(title: str, rows) -> str:
  body = "".join(f"<tr><td>{_text(k or '(none)')}</td><td>{_text(v)}</td></tr>" for k, v in rows.items())
  return f"<div><h3>{_text(title)}</h3><table>{body}</table></div>"


def _text(value) -> str:
  return html.escape(str(value))
