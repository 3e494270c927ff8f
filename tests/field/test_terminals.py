"""Terminals that cannot show all that a report holds."""

import io
import sys
import warnings

import pytest

from spatialvlm.cli import screen
from spatialvlm.config import ScoreConfig
from spatialvlm.evaluation.report import run_tables
from spatialvlm.evaluation.scoring.summary import summarize
from spatialvlm.reporting import terminal
from spatialvlm.types import Note
from tests.evaluation import support


class Terminal:
  """What is printed, in an encoding."""

  def __init__(self, monkeypatch, encoding):
    self.encoding, self.stream = encoding, io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", self.stream)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

  def text(self) -> str:
    self.stream.flush()
    return self.stream.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_table_of_scores_on_a_terminal_of_another_encoding(monkeypatch, encoding):
  summary = summarize([support.row(i) for i in range(6)], ScoreConfig(bootstrap=10))
  table = run_tables.result(summary, "Näher, ≥ 3 °C → 表")
  with monkeypatch.context() as patch:
    Terminal(patch, encoding)
    with pytest.raises(UnicodeEncodeError):
      terminal.show(table)
  with monkeypatch.context() as patch:
    output = Terminal(patch, encoding)
    screen.prepare()
    terminal.show(table)
    text = output.text()
  assert ">= 3" in text and "-> ?" in text and "95 % interval" in text


def test_the_nearest_letters(monkeypatch):
  with monkeypatch.context() as patch:
    output = Terminal(patch, "ascii")
    screen.prepare()
    print("50.0 – 77.3† café × 2…")
    print("photo-\udcff.png")
  assert output.text() == "50.0 - 77.3+ cafe x 2...\nphoto-?.png\n"


def test_what_a_terminal_can_show_stays(monkeypatch):
  with monkeypatch.context() as patch:
    output = Terminal(patch, "utf-8")
    screen.prepare()
    print("50.0 – 77.3† 表")
    print("photo-\udcff.png")
  assert output.text() == "50.0 – 77.3† 表\nphoto-?.png\n"


def test_a_note_is_one_line(capsys, monkeypatch):
  monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
  screen.prepare()
  warnings.warn("two\nlines", Note, stacklevel=1)
  assert capsys.readouterr().err == "note: two lines\n"
