"""docs/rooms.svg: the rooms in rows, each above all that it imports; drawn from the imports themselves.

Rooms within a room are one box with it; arrows that a longer way says as well are left out.

`python -m tests.rooms_picture` draws it anew; a test holds that it is what the code says.
"""

from __future__ import annotations

import ast
import html
import pathlib
import textwrap

from tests import test_layers

PICTURE = test_layers.ROOT / "docs" / "rooms.svg"
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 176, 74, 18, 46, 20
LEFT_OUT = ("benchmarks",)
STYLE = """
  svg { background: #fff }
  rect { fill: #f4f7fa; stroke: #5b7083; rx: 6 }
  path { fill: none; stroke: #9db0c0; stroke-width: 1.2 }
  .far { stroke-width: 0.8; stroke-dasharray: 3 3 }
  .name { font: bold 14px sans-serif; fill: #12263a }
  .what { font: 10.5px sans-serif; fill: #33475b }
  @media (prefers-color-scheme: dark) {
    svg { background: #12181f } rect { fill: #1e2832; stroke: #8aa0b4 } path { stroke: #4d6173 }
    .name { fill: #e8eef4 } .what { fill: #b9c7d4 }
  }
"""


def reduced(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
  """The arrows without those that a longer way says as well."""

  def reach(name: str) -> set[str]:
    found: set[str] = set()
    for below in arrows[name]:
      found |= {below} | reach(below)
    return found

  return {
    name: {b for b in below if not any(b in reach(other) for other in below - {b})}
    for name, below in arrows.items()
  }


def whole() -> dict[str, set[str]]:
  """The rooms that each room imports, `evaluation` and all in it taken as one."""
  found: dict[str, set[str]] = {}
  for name, below in test_layers.arrows().items():
    top = name.split(".")[0]
    if top not in LEFT_OUT:
      found.setdefault(top, set()).update({other.split(".")[0] for other in below} - {top})
  return found


def captions() -> dict[str, str]:
  """The first sentence of what each room says of itself."""
  found = {}
  for name in whole():
    place = test_layers.ROOT / (
      name if name in ("launch", "configs") else "spatialvlm/" + name.replace(".", "/")
    )
    files = [place / "__init__.py", place.with_suffix(".py")]
    file = next((file for file in files if file.is_file()), None)
    text = file and ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    found[name] = (text or "").split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")
  return found


def draw() -> str:
  """The picture as SVG."""
  arrows = whole()
  level: dict[str, int] = {}
  while len(level) < len(arrows):
    for name, below in arrows.items():
      if name not in level and below <= set(level):
        level[name] = 1 + max((level[b] for b in below), default=-1)
  rows = [[n for n in arrows if level[n] == height] for height in range(max(level.values()) + 1)]
  widest = max(map(len, rows))
  total_x = 2 * MARGIN + widest * (WIDTH + GAP_X) - GAP_X
  total_y = 2 * MARGIN + len(rows) * (HEIGHT + GAP_Y) - GAP_Y
  place = {}
  for height, row in enumerate(rows):
    left = (total_x - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
    for number, name in enumerate(row):
      top = total_y - MARGIN - HEIGHT - height * (HEIGHT + GAP_Y)
      place[name] = (left + number * (WIDTH + GAP_X), top)
  parts = []
  for name, below in reduced(arrows).items():
    for other in sorted(below):
      (x0, y0), (x1, y1) = place[name], place[other]
      x0, y0, x1, bend = x0 + WIDTH / 2, y0 + HEIGHT, x1 + WIDTH / 2, 0.5 * GAP_Y
      far = ' class="far"' if level[name] - level[other] > 1 else ""
      parts.append(
        f'<path{far} d="M{x0:g} {y0:g} C{x0:g} {y0 + bend:g} {x1:g} {y1 - bend:g} {x1:g} {y1:g}"/>'
      )
  said = captions()
  for name, (x, y) in place.items():
    parts.append(f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}"/>')
    parts.append(f'<text class="name" x="{x + 8:g}" y="{y + 18:g}">{name}</text>')
    for number, line in enumerate(textwrap.wrap(said[name], 31, max_lines=4, placeholder=" …")):
      parts.append(
        f'<text class="what" x="{x + 8:g}" y="{y + 33 + 12 * number:g}">{html.escape(line)}</text>'
      )
  head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_x:g} {total_y:g}" role="img">'
  title = "<title>The rooms; each imports rooms below it alone</title>"
  return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
  pathlib.Path(PICTURE).write_text(draw(), encoding="utf-8")
