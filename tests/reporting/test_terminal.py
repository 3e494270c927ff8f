"""What a reader sees on the screen: tables, and progress."""

import io

import pytest
from rich.console import Console

from spatialvlm.reporting import tables, terminal
from spatialvlm.reporting.tables import Cell


@pytest.fixture
def table():
  rows = [
    ["all [of] them", Cell("", figure="<svg/>"), Cell("48.3", "strong"), Cell("+7.3", "good"), "bigger box"],
    ["Count", Cell("", figure="<svg/>"), "21.0", Cell("-1.0", "bad"), Cell("text", "alarm")],
  ]
  columns = ("", "drawn", "after", "change", "the best of the shortcuts")
  return tables.make("a", "title [of] it", columns, rows, (0,), note="In per cent.\nMarked: not by chance.")


def test_table_as_text(table):
  lines = [line.strip() for line in terminal.plain_text(table).splitlines()]
  assert lines[0] == "title [of] it"
  # What is drawn has no column; a long head is a letter that the caption explains.
  assert lines[2].split() == ["after", "change", "A"]
  assert lines[4].split("  ")[0] == "all [of] them" and lines[4].split()[-4:] == [
    "48.3",
    "+7.3†",
    "bigger",
    "box",
  ]
  assert lines[5] == "" and lines[6].split() == ["Count", "21.0", "-1.0†", "text†"]
  assert lines[8:] == ["A: the best of the shortcuts", "In per cent.", "Marked †: not by chance."]


def test_what_is_printed_is_the_same_text(table, capsys):
  terminal.show(table)
  shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
  assert shown == terminal.plain_text(table).splitlines()


def test_in_a_notebook_it_is_plain_text_among_what_is_printed(table, capsys, monkeypatch):
  monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
  monkeypatch.setenv("FORCE_COLOR", "1")  # as kernels set it
  terminal.show(table)
  with terminal.progress("scoring") as show:
    show(40, 40)
  shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
  plain = terminal.plain_text(table).splitlines()
  assert shown[: len(plain)] == plain and shown[len(plain)].startswith("scoring: 40/40")


@pytest.mark.parametrize("live", [True, False])
def test_progress_ends_with_all(live, tmp_path):
  with open(tmp_path / "out", "w") as file:
    console = Console(file=file, force_terminal=live, width=100)
    with terminal.progress("scoring", console) as show:
      for done in range(0, 41, 10):
        show(done, 40)
        show.note("8 answers longer than 256 tokens" if done == 20 else "")
  assert "40/40" in (tmp_path / "out").read_text()
  assert live or "scoring: 8 answers longer than 256 tokens" in (tmp_path / "out").read_text()


def test_a_bar_of_steps_keeps_its_lines_and_its_figures(monkeypatch):
  out = io.StringIO()
  real = terminal.Progress
  monkeypatch.delenv("CI", raising=False)
  monkeypatch.setattr(
    terminal,
    "Progress",
    lambda *columns: real(*columns, console=Console(file=out, force_terminal=True, width=90)),
  )
  bar = terminal.StepBar(40, 10)
  bar.update(20, "loss 1.5")
  bar.update(30)
  bar.say("step 30: [saved]")
  bar.close()
  assert bar.live and "step 30: [saved]" in out.getvalue()
  assert "30/40" in out.getvalue() and out.getvalue().rindex("loss 1.5") > out.getvalue().index("30/40") - 200


def test_without_a_terminal_a_bar_of_steps_prints_lines_alone(capsys):
  bar = terminal.StepBar(40)
  bar.update(20, "loss 1.5")
  bar.say("step 20: saved")
  bar.close()
  assert not bar.live and capsys.readouterr().out == "step 20: saved\n"


@pytest.mark.parametrize("rate, said", [(0.1724, "0.17"), (0.004, "0.004"), (1.0, "1.0"), (44.66, "44.7")])
def test_a_slow_rate_is_told_by_two_figures(rate, said):
  assert terminal.per_second(rate) == said
