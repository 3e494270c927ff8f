"""One table, four forms: HTML for the report, Markdown, LaTeX for a paper, and what a terminal shows."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Mapping, Sequence

# What a cell says beside its text; colours are the stylesheet's.
KINDS = ("", "strong", "good", "bad", "alarm", "muted")
_MARKED = ("good", "bad", "alarm")
# What stands for a colour where there is none.
MARK = "†"
_LATEX = {
  "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
  ">": r"\textgreater{}", "−": "--", "–": "--", "±": r"$\pm$", "≤": r"$\le$", "✓": r"\checkmark{}",
  MARK: r"\dag{}",
  **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
  """Text and its kind. `figure` is SVG of ours that stands for the cell in HTML; other forms leave it out."""

  text: str
  kind: str = ""
  figure: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows under columns; the first column names the row, the others hold figures.

  Attributes:
    name: a short name, of the file or the anchor.
    rows: as many cells as columns.
    rules: numbers of rows after which a line is drawn.
    minor: columns that a narrow screen leaves out.
    note: what a reader must know.
  """

  name: str
  title: str
  columns: tuple[Cell, ...]
  rows: tuple[tuple[Cell, ...], ...]
  rules: tuple[int, ...] = ()
  minor: tuple[int, ...] = ()
  note: str = ""

  def __post_init__(self):
    for row in self.rows:
      if len(row) != len(self.columns):
        raise ValueError(f"table {self.name}: a row of {len(row)} cells under {len(self.columns)} columns")


def cell(value: str | Cell) -> Cell:
  return value if isinstance(value, Cell) else Cell(value)


def make(
  name: str,
  title: str,
  columns: Sequence[str | Cell],
  rows: Sequence[Sequence[str | Cell]],
  rules: Sequence[int] = (),
  minor: Sequence[int] = (),
  note: str = "",
) -> Table:
  """A table of plain strings and cells."""
  cells = tuple(tuple(cell(value) for value in row) for row in rows)
  return Table(name, title, tuple(map(cell, columns)), cells, tuple(rules), tuple(minor), note)


def to_html(table: Table, caption: bool = True) -> str:
  """A `<table>` with row headers, its note below; without `caption` its title is only heard."""
  small = [" class='minor'" if i in table.minor else "" for i in range(len(table.columns))]
  head = "".join(
    f"<th scope='col'{s}>{c.figure or escape(c.text)}</th>" for c, s in zip(table.columns, small, strict=True)
  )
  body = []
  for number, row in enumerate(table.rows):
    cells = [f"<th scope='row'>{row[0].figure or escape(row[0].text)}</th>"]
    for i, c in enumerate(row[1:], start=1):
      kinds = " ".join(filter(None, [c.kind, "minor" if i in table.minor else "", "fig" if c.figure else ""]))
      kinds = f" class='{kinds}'" if kinds else ""
      cells.append(f"<td{kinds}>{c.figure or escape(c.text)}</td>")
    rule = " class='rule'" if number in table.rules else ""
    body.append(f"<tr{rule}>{''.join(cells)}</tr>")
  note = f"<p class='note'>{escape(table.note)}</p>" if table.note else ""
  seen = "" if caption else " class='unseen'"
  return (
    f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(table.title)}'>"
    f"<table><caption{seen}>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>"
    f"<tbody>{''.join(body)}</tbody></table></div>{note}"
  )


def to_markdown(table: Table) -> str:
  """A GitHub table under its title."""
  keep = _texts(table)
  lines = [f"**{_md(table.title)}**", ""]
  lines.append("| " + " | ".join(_md(table.columns[i].text) for i in keep) + " |")
  lines.append("| " + " | ".join("---" if i == 0 else "---:" for i in keep) + " |")
  for row in table.rows:
    texts = [_md(marked(row[i])) for i in keep]
    texts = [f"**{t}**" if row[i].kind == "strong" and t else t for i, t in zip(keep, texts, strict=True)]
    lines.append("| " + " | ".join(texts) + " |")
  return "\n".join(lines + (["", _md(note(table))] if table.note else [])) + "\n"


def to_latex(table: Table) -> str:
  """A `table` environment with booktabs' rules (needs `\\usepackage{booktabs}`)."""
  keep = _texts(table)
  lines = [
    r"\begin{table}",
    r"\centering",
    rf"\caption{{{_tex(table.title)}{'. ' + _tex(note(table)) if table.note else ''}}}",
    rf"\label{{tab:{re.sub('[^a-z0-9]+', '-', table.name.lower())}}}",
    rf"\begin{{tabular}}{{l{'r' * (len(keep) - 1)}}}",
    r"\toprule",
    " & ".join(_tex(table.columns[i].text) for i in keep) + r" \\",
    r"\midrule",
  ]
  for number, row in enumerate(table.rows):
    texts = [_tex(marked(row[i])) for i in keep]
    texts = [
      rf"\textbf{{{t}}}" if row[i].kind == "strong" and t else t for i, t in zip(keep, texts, strict=True)
    ]
    lines.append(" & ".join(texts) + r" \\")
    if number in table.rules and number + 1 < len(table.rows):
      lines.append(r"\midrule")
  return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def escape(value: object) -> str:
  """Text for HTML, in and outside of attributes."""
  return html.escape(str(value), quote=True)


def percent(value: float | None) -> str:
  return "" if value is None else f"{100 * value:.1f}"


def signed(value: float) -> str:
  return f"{100 * value:+.1f}".replace("-", "−")


def interval(score: Mapping[str, float]) -> str:
  return f"{percent(score['low'])} – {percent(score['high'])}"


def p_value(p: float) -> str:
  return "< 0.001" if p < 0.001 else f"{p:.3f}"


def marked(value: Cell) -> str:
  return value.text + MARK if value.text and value.kind in _MARKED else value.text


def note(table: Table) -> str:
  return table.note.replace("Marked:", f"Marked {MARK}:")


def _texts(table: Table) -> list[int]:
  """The columns that hold more than figures."""
  return [i for i in range(len(table.columns)) if i == 0 or any(not row[i].figure for row in table.rows)]


def _md(text: str) -> str:
  return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text).replace("\n", " ")


def _tex(text: str) -> str:
  return "".join(_LATEX.get(c, c) for c in text)
