"""Results on the screen: tables of one run and of two, and progress while a run goes on."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from rich import box
from rich.console import Console
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

from spatialvlm.evaluation.scoring import statistics
from spatialvlm.reporting import tables

# Seconds between lines of progress where the output is no terminal.
QUIET = 30.0
# Characters of a column's head in the terminal; a longer one becomes a letter, explained below the table.
WIDEST = 14
LABELS = {
  "official": "official",
  "official/2D": "2D, official",
  "official/3D": "3D, official",
  "plain": "all, plain mean",
  "macro": "mean of the tasks",
}


def label(name: str, summary: Mapping[str, Any] | None = None) -> str:
  """`task/Depth` -> `Depth`; the aggregates in words, the official one of a part (of `summary`) as such."""
  part = name.startswith("official") and bool(summary and summary.get("official_note"))
  return LABELS.get(name, name.split("/", 1)[-1]) + (" formula, part" if part else "")


def table(summary: Mapping[str, Any], title: str = "") -> Table:
  """The scores of one run, in percent: with 95 % interval, guessing, the best shortcut, and counts.

  The answered rates have a column where there are questions without an answer.
  """
  silent = any(score["answered"] < 1 for score in summary["scores"].values())
  heads = ["score", "95 % interval", "answered", "guessing", "best shortcut", "n"]
  out = _table(title, *(head for head in heads if silent or head != "answered"))
  for name, section, score in rows_of(summary["scores"]):
    best, shortcut = _best_shortcut(summary, name)
    value = Text(f"{_percent(score['score'])}", style="bold")
    kind = "alarm" if score["low"] <= score["guessing"] else ""
    out.add_row(
      label(name, summary),
      value,
      _cell(tables.Cell(f"{_percent(score['low'])} – {_percent(score['high'])}", kind)),
      *([_percent(score["answered"])] if silent else []),
      _percent(score["guessing"]),
      f"{_percent(shortcut)} {best}",
      str(score["n"]),
      end_section=section,
    )
  main = [n for n in summary["scores"] if n in ("official", "plain") or n.startswith("task/")]
  chance = statistics.at_chance({name: summary["scores"][name] for name in main})
  said = f"Answered: {_percent(summary['scores']['plain']['answered'])} %."
  said += f" {tables.MARK}: reaches down to guessing."
  if chance:
    said += f"\nNot to be told from guessing, or below: {', '.join(map(label, chance))}."
  out.caption = _caption(summary, said)
  return out


def comparison(
  changes: Mapping[str, Mapping[str, float]], summary: Mapping[str, Any], title: str = ""
) -> Table:
  """What changed between two runs (`statistics.paired`), beside guessing and the best shortcut, in percent.

  Args:
    summary: of either run: the baselines are those of the questions.
  """
  silent = any(c[key] < 1 for c in changes.values() for key in ("answered_before", "answered_after"))
  heads = ["before", "after", "change", "95 % interval", "answered", "guessing", "best shortcut", "n"]
  out = _table(title, *(head for head in heads if silent or head != "answered"))
  for name, section, change in rows_of(changes):
    best, shortcut = _best_shortcut(summary, name)
    kind = "good" if change["low"] > 0 else "bad" if change["high"] < 0 else ""
    out.add_row(
      label(name, summary),
      _percent(change["before"]),
      Text(_percent(change["after"]), style="bold"),
      _cell(tables.Cell(_signed(change["difference"]), kind)),
      _cell(tables.Cell(f"{_signed(change['low'])} – {_signed(change['high'])}", kind)),
      *([f"{_percent(change['answered_before'])} / {_percent(change['answered_after'])}"] if silent else []),
      _percent(summary["scores"][name]["guessing"]),
      f"{_percent(shortcut)} {best}",
      str(int(change["n"])),
      end_section=section,
    )
  answered = "before / after" if silent else "every question, before and after"
  said = f"{tables.MARK}: the interval of the change excludes zero.\nAnswered: {answered}."
  out.caption = _caption(summary, said)
  return out


def leaks(found: Mapping[str, Any], shown: int = 10) -> Table:
  """What `leaks.summary` holds: counts by source, and the first few pictures by name in the caption."""
  kinds = ("name and picture", "picture", "mirrored picture", "name")
  out = _table("", "examples", *(k if k != "name" else "name alone" for k in kinds))
  for name, counts in found["sources"].items():
    style = "bold red" if any(counts[k] for k in kinds[:3]) else ""
    out.add_row(Text(name, style), str(counts["examples"]), *(Text(str(counts[k]), style) for k in kinds))
  lines = [
    f"{leak['source']}[{leak['index']}] {leak['id']}: {leak['how']}, {leak['benchmark']}, "
    f"questions {', '.join(map(str, leak['questions'][:5]))}{' ...' if len(leak['questions']) > 5 else ''}"
    for leak in sorted(found["leaks"], key=lambda leak: leak["distance"] is None)[:shown]
  ]
  lines += [f"and {len(found['leaks']) - shown} more"] if len(found["leaks"]) > shown else []
  none = [f"None of the benchmark's {found['pictures_in_benchmark']} pictures was found."]
  out.caption = Text("\n".join(lines or none))
  return out


def rich(table: tables.Table) -> Table:
  """A table of the report for the terminal; what it colours is marked as well."""
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


def show(renderable: Any) -> None:
  """Prints a table; where the output is no terminal, as wide as it needs."""
  console = Console()
  if not console.is_terminal:
    wide = console.measure(renderable, options=console.options.update(max_width=1000)).maximum
    console = Console(width=max(wide, 110))
  console.print(renderable)


def plain_text(renderable: Any, width: int = 110) -> str:
  """A table as text without colours, as for a file."""
  console = Console(width=width, color_system=None, force_terminal=False)
  with console.capture() as capture:
    console.print(renderable)
  return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def plot_comparison(
  changes: Mapping[str, Mapping[str, float]], summary: Mapping[str, Any], path: pathlib.Path, title: str = ""
) -> None:
  """Before and after as bars per task and for all, guessing drawn in, as PNG.

  The whisker on `after` is the 95 % interval of the change.
  """
  from matplotlib.figure import Figure

  names = [n for n in changes if n.startswith("task/")] + [n for n in ("plain", "official") if n in changes]
  figure = Figure(figsize=(1.6 + 1.3 * len(names), 3.6), layout="constrained")
  axes = figure.subplots()
  for place, name in enumerate(names):
    change = changes[name]
    before, after = 100 * change["before"], 100 * change["after"]
    low, high = 100 * (change["difference"] - change["low"]), 100 * (change["high"] - change["difference"])
    axes.bar(place - 0.2, before, 0.38, color="#9aa5b1", label="" if place else "before")
    axes.bar(place + 0.2, after, 0.38, color="#2a6f97", label="" if place else "after")
    axes.errorbar(place + 0.2, after, [[max(low, 0)], [max(high, 0)]], color="#222222", capsize=3, lw=1.2)
    guess = 100 * summary["scores"][name]["guessing"]
    axes.hlines(
      guess, place - 0.42, place + 0.42, color="#c1121f", ls="--", lw=1.2, label="" if place else "guessing"
    )
    axes.text(
      place + 0.2, after + max(high, 0) + 1, f"{_signed(change['difference'])}", ha="center", fontsize=8
    )
  axes.set_xticks(range(len(names)), ["all" if n == "plain" else label(n) for n in names])
  axes.set_ylim(0, 100)
  axes.set_ylabel("accuracy, %")
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, fontsize=8)
  axes.set_title(title, fontsize=10)
  figure.savefig(path, dpi=140)


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
  console = console or Console()
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


class _Rate(ProgressColumn):
  def __init__(self, unit: str):
    super().__init__()
    self._unit = unit

  def render(self, task) -> Text:
    return Text(f"{task.speed:.1f} {self._unit}/s" if task.speed else "")


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
    rest = f", {rate:.1f} {unit}/s, {(total - done) / rate:.0f} s to go" if rate else ""
    console.print(f"{what}: {done}/{total}{rest}", highlight=False)

  def note(text: str) -> None:
    nonlocal noted
    now = time.monotonic() - start
    if text and now - noted >= QUIET:
      noted = now
      console.print(f"{what}: {text}", highlight=False)

  return Display(show, note)


def _table(title: str, *columns: str) -> Table:
  out = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
  out.add_column("", no_wrap=True)
  for column in columns:
    out.add_column(column, justify="right", no_wrap=True)
  return out


def rows_of(scores: Mapping[str, Any]) -> Iterator[tuple[str, bool, Any]]:
  """The scores worth a row, with whether a line follows: (name, line, score)."""
  # A lone source is all questions once more.
  kinds = collections.Counter(name.split("/")[0] for name in scores)
  names = [n for n in scores if kinds[n.split("/")[0]] > 1 or "/" not in n or n.startswith("task/")]
  for i, name in enumerate(names):
    last = i + 1 < len(names) and _kind(names[i + 1]) != _kind(name)
    yield name, last, scores[name]


def _kind(name: str) -> str:
  return "plain" if name == "macro" else name.split("/")[0]


def _best_shortcut(summary: Mapping[str, Any], name: str) -> tuple[str, float]:
  """The best of the baselines that know something: priors of the answers, rules of two dimensions."""
  priors = {k: v[name] for k, v in summary["baselines"].items() if k != "guessing"}
  best = max(priors, key=priors.get)
  return best.removeprefix("majority "), priors[best]


def _caption(summary: Mapping[str, Any], text: str) -> str:
  note = summary["official_note"]
  return (f"Official aggregation: {note}.\n" if note else "") + f"Protocol {summary['protocol']}. {text}"


def _percent(value: float) -> str:
  return f"{100 * value:.1f}"


def _signed(value: float) -> str:
  return f"{100 * value:+.1f}"
