"""The screen: tables as text with colours, and progress while a run goes on. Nothing else imports rich."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  ProgressColumn,
  TextColumn,
  TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from spatialvlm.reporting import tables

# Seconds between lines of progress where the output is no terminal.
QUIET = 30.0
# Characters of a column's head in the terminal; a longer one becomes a letter, explained below the table.
WIDEST = 14


def rich(table: tables.Table) -> Table:
  """A table in rich's form: what is coloured is marked as well, and the note stands below.

  Columns that hold drawings alone are left out; heads longer than `WIDEST` become letters, explained below.
  """
  keep = [i for i in range(len(table.columns)) if i == 0 or any(row[i].text for row in table.rows)]
  heads, key = [], []
  for text in (table.columns[i].text for i in keep[1:]):
    if len(text) > WIDEST:
      key.append(f"{chr(ord('A') + len(key))}: {text}")
      text = key[-1][0]
    heads.append(text)
  out = _table(table.title, *heads)
  for number, row in enumerate(table.rows):
    out.add_row(*(_cell(row[i]) for i in keep), end_section=number in table.rules)
  out.caption = Text("\n".join([*key, tables.note(table)]))
  return out


def _cell(cell: tables.Cell) -> Text:
  styles = {"strong": "bold", "good": "bold green", "bad": "bold red", "alarm": "yellow"}
  return Text(tables.marked(cell), styles.get(cell.kind, ""))


def _console(**options: Any) -> Console:
  """The screen. A notebook is none: text without colours, so that tables stand among what is printed."""
  plain = dict(force_jupyter=False, force_terminal=False, color_system=None)
  return Console(**{**(plain if Console().is_jupyter else {}), **options})


def show(table: tables.Table) -> None:
  """Prints a table; where the output is no terminal, as wide as it needs."""
  shown, console = rich(table), _console()
  if not console.is_terminal:
    wide = console.measure(shown, options=console.options.update(max_width=1000)).maximum
    console = _console(width=max(wide, 110))
  console.print(shown)


def plain_text(table: tables.Table, width: int = 110) -> str:
  """A table as text without colours, as for a file."""
  console = _console(width=width, color_system=None, force_terminal=False)
  with console.capture() as capture:
    console.print(rich(table))
  return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


@dataclasses.dataclass(frozen=True)
class Display:
  """What shows progress. Called with (done, total): `on_progress` of `evaluate`; `note`: its `on_note`."""

  show: Callable[[int, int], None]
  note: Callable[[str], None]

  def __call__(self, done: int, total: int) -> None:
    self.show(done, total)


@contextlib.contextmanager
def progress(
  what: str = "scoring", console: Console | None = None, unit: str = "questions"
) -> Iterator[Display]:
  """A live bar with rate and remaining time; lines without a terminal."""
  console = console or _console()
  if jax.process_index() > 0:
    yield Display(lambda done, total: None, lambda text: None)
  elif not console.is_terminal:
    yield _lines(what, console, unit)
  else:
    columns = (
      TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
      task = bar.add_task(what, total=None)
      yield Display(
        lambda done, total: bar.update(task, completed=done, total=total),
        lambda text: bar.update(task, description=f"{what}, {text}" if text else what),
      )


class StepBar:
  """A live bar of numbered steps with figures beside it; of the first process, and on a terminal alone.

  Attributes:
    live: whether there is a bar. Without one `update` shows nothing, and `say` prints a plain line.
  """

  def __init__(self, total: int, step: int = 0):
    self._bar = Progress(
      BarColumn(bar_width=24),
      MofNCompleteColumn(),
      TextColumn("{task.fields[figures]}"),
      TimeRemainingColumn(compact=True),
    )
    self._main = jax.process_index() == 0
    self.live = self._main and self._bar.console.is_terminal and not os.environ.get("CI")
    if self.live:
      self._task = self._bar.add_task("", total=total, completed=step, figures="")
      self._bar.start()

  def update(self, step: int, figures: str | None = None) -> None:
    """Moves the bar; `figures` None leaves those that are shown."""
    if self.live:
      self._bar.update(self._task, completed=step, **({} if figures is None else {"figures": figures}))

  def say(self, text: str) -> None:
    """A line that stays."""
    if self.live:
      self._bar.console.print(text, markup=False, highlight=False)
    elif self._main:
      print(text, flush=True)

  def close(self) -> None:
    if self.live:
      self._bar.stop()


class _Rate(ProgressColumn):
  def __init__(self, unit: str):
    super().__init__()
    self._unit = unit

  def render(self, task) -> Text:
    return Text(f"{per_second(task.speed)} {self._unit}/s" if task.speed else "")


def per_second(rate: float) -> str:
  """A rate for people: one decimal, or two figures of a slow one."""
  return f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def _lines(what: str, console: Console, unit: str) -> Display:
  start, last, first, noted = time.monotonic(), -QUIET, None, -QUIET

  def show(done: int, total: int) -> None:
    nonlocal last, first
    now = time.monotonic()
    first = done if first is None else first
    if now - start - last < QUIET and done < total:
      return
    last = now - start
    rate = (done - first) / last if last > 0 and done > first else 0.0
    rest = f", {per_second(rate)} {unit}/s, {(total - done) / rate:.0f} s to go" if rate else ""
    console.print(f"{what}: {done}/{total}{rest}", highlight=False)

  def note(text: str) -> None:
    nonlocal noted
    now = time.monotonic() - start
    if text and now - noted >= QUIET:
      noted = now
      console.print(f"{what}: {text}", highlight=False)

  return Display(show, note)


def _table(title: str, *columns: str) -> Table:
  out = Table(title=escape(title) or None, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
  out.add_column("", no_wrap=True)
  for column in columns:
    out.add_column(column, justify="right", no_wrap=True)
  return out
