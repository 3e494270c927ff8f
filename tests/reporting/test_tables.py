"""One table in four forms, and nothing in it that the form would take for markup."""

import html.parser

import pytest

from spatialvlm.reporting import tables
from spatialvlm.reporting.tables import Cell

EVIL = "<script>alert('x')</script> & 50 % of _a_ | b"


class Reader(html.parser.HTMLParser):
  """Tags, and the text of each cell."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.cells, self._open = [], [], False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag in ("td", "th"):
      self.cells.append("")
      self._open = True

  def handle_endtag(self, tag):
    self._open = self._open and tag not in ("td", "th")

  def handle_data(self, data):
    if self._open:
      self.cells[-1] += data


@pytest.fixture
def table():
  rows = [
    [EVIL, Cell("", figure="<svg></svg>"), Cell("1.0", "strong")],
    ["plain", Cell("", figure="<svg/>"), "−2.0"],
  ]
  return tables.make(
    "a name", "T & C", ("", Cell("0 to 1", figure="<i>ends</i>"), "score"), rows, (0,), note="5 % <b>"
  )


def test_html(table):
  found = Reader(tables.to_html(table))
  assert found.cells == ["", "ends", "score", EVIL, "", "1.0", "plain", "", "−2.0"]
  assert "script" not in found.tags and "b" not in found.tags and found.tags.count("svg") == 2
  assert "class='unseen'" in tables.to_html(table, caption=False)


def test_markdown_leaves_figures_out(table):
  lines = tables.to_markdown(table).splitlines()
  assert lines[2:4] == ["|  | score |", "| --- | ---: |"]
  assert lines[4].endswith("| **1.0** |") and "<script" not in lines[4].replace("\\<", "")
  # A bar in a cell would end it.
  assert lines[4].replace("\\|", "").count("|") == 3


def test_latex(table):
  text = tables.to_latex(table)
  assert r"\begin{tabular}{lr}" in text and r"\label{tab:a-name}" in text
  assert r"\textless{}script\textgreater{}" in text and r"50 \% of \_a\_ | b" in text
  assert r"\textbf{1.0}" in text and "plain & --2.0" in text
  assert text.index(r"\textbf{1.0}") < text.rindex(r"\midrule") < text.index("plain")
  assert r"\caption{T \& C. 5 \% \textless{}b\textgreater{}}" in text


def test_a_colour_is_a_mark_where_there_is_none():
  rows = [["a", Cell("1.0", "alarm"), Cell("2.0")], ["b", Cell("", "good"), Cell("3.0", "good")]]
  table = tables.make("x", "x", ("", "y", "z"), rows, note="Marked: this.")
  markdown, latex = tables.to_markdown(table), tables.to_latex(table)
  assert "| a | 1.0† | 2.0 |" in markdown and "| b |  | 3.0† |" in markdown
  assert "Marked †: this." in markdown and r"1.0\dag{} & 2.0" in latex and r"Marked \dag{}: this." in latex
  assert "†" not in tables.to_html(table)


def test_latex_of_its_own_signs():
  evil = "\\ { } $ # ^ ~ &"
  text = tables.to_latex(tables.make("x", evil, ("",), [[evil]]))
  assert r"\textbackslash{} \{ \} \$ \# \textasciicircum{} \textasciitilde{} \&" in text


def test_a_row_that_does_not_fit_is_a_mistake():
  with pytest.raises(ValueError, match="a row of 2 cells under 1 columns"):
    tables.make("x", "x", ("",), [["a", "b"]])


def test_numbers():
  assert tables.percent(0.4321) == "43.2" and tables.percent(None) == ""
  assert tables.signed(-0.05) == "−5.0" and tables.signed(0.05) == "+5.0"
  assert tables.p_value(0.0004) == "< 0.001" and tables.p_value(0.0312) == "0.031"
