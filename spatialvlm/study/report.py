"""A study's numbers (`measured.collect`) as tables, and as a drawing of what changed."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from spatialvlm.reporting import tables
from spatialvlm.reporting.labels import best_shortcut, label
from spatialvlm.reporting.tables import Cell, Table, interval, percent, signed

Found = Mapping[str, Any]


def scores(found: Found) -> Table:
  """What each cell scores, mean over its seeds, in all and by kind, beside untrained and guessing."""
  names = _names(found)
  first = _first(found)
  rows: list[list[str | Cell]] = [
    ["guessing", *(percent(first["scores"][name]["guessing"]) for name in names), ""],
    ["best shortcut", *(percent(best_shortcut(first, name)[1]) for name in names), ""],
    *(
      [own, *(_score(base["scores"][name]) for name in names), ""] for own, base in found["untrained"].items()
    ),
  ]
  for name, cell in _finished(found).items():
    shown = [Cell(_score(cell["scores"][n]), _kind(cell["changes"][n])) for n in names]
    rows.append([name, *shown, ", ".join(map(str, cell["seeds"]))])
  note = (
    f"In per cent, of {found['questions']} questions; in brackets 95 % intervals over questions. Of several"
    " seeds the mean. Marked: the change from the untrained model, on the same questions, has an interval"
    f" that excludes zero.{_lacking(found)}"
  )
  head = ["", *(_called(name) for name in names), "seeds"]
  return tables.make("study-scores", "Scores", head, rows, (2,), note=note)


def changes(found: Found, control: str = "") -> Table:
  """What each cell changes, with intervals over questions and the spread over seeds, in all and by kind.

  Args:
    control: the cell from which; empty for the untrained model.
  """
  names, rows, of = _names(found), [], control or "the untrained model"
  matched, headline = " and seed" if control else "", _called(names[0])
  for name, cell in _finished(found, control).items():
    first, *kinds = (cell["changes"][n] for n in names)
    spread = f"{signed(first['lowest'])} to {signed(first['highest'])}" if len(cell["seeds"]) > 1 else ""
    rows.append([name, *_change(first), spread, cell["verdict"], *(Cell(_both(c), _kind(c)) for c in kinds)])
  note = (
    f"In points, from {of}, paired by question{matched}; 95 % intervals over questions"
    " of the mean of the seeds. Over seeds: the lowest and the highest change of a single run. What further"
    f" seeds would give, no interval here says. Verdict: whether the interval of {headline!r} excludes"
    f" zero. Of {len(rows) * len(names)} intervals about one in twenty does so by chance."
  )
  head = ["", headline, "95 % interval", "over seeds", "verdict", *map(label, names[1:])]
  return tables.make(f"study-changes-{control}".strip("-"), f"Change from {of}", head, rows, note=note)


def has_beside(found: Found) -> bool:
  """Whether anything was asked beside the study's questions, or under a control."""
  return any(_first(found)["beside"].values())


def beside(found: Found) -> Table:
  """What each cell is worth elsewhere: what the image gives, other worlds, what it may have forgotten."""
  kept = _first(found)["beside"]
  columns = [(part, name) for part in ("gaps", "worlds", "skills") for name in kept[part]]
  columns = [
    (part, name) for part, name in columns if (part, name) != ("skills", "all") or len(kept[part]) > 2
  ]
  rows: list[list[str | Cell]] = []
  for name, base in found["untrained"].items():
    rows.append([name, *(_elsewhere(base["beside"][part][column]) for part, column in columns)])
  for name, cell in _finished(found).items():
    rows.append([name, *(_elsewhere(cell["beside"][part][column]) for part, column in columns)])
  titles = {"gaps": "image against {}", "worlds": "{}", "skills": "skill {}"}
  said = lambda part, name: "all skills" if (part, name) == ("skills", "all") else titles[part].format(name)
  head = ["", *(said(part, name.replace("_", " ")) for part, name in columns)]
  note = (
    "Image against: points that the study's questions lose without the image, or with a grey or another one."
    " Others: per cent of questions, of skills of exact answers, and the change from the untrained model in"
    " points. In brackets 95 % intervals over questions, of the mean of the seeds. Marked: they exclude zero."
  )
  return tables.make("study-beside", "Elsewhere", head, rows, note=note)


def _elsewhere(one: Mapping[str, Any]) -> Cell:
  if "score" not in one:
    return Cell(_both(one), _kind(one))
  if "change" not in one:
    return Cell(percent(one["score"]))
  return Cell(f"{percent(one['score'])}, {_both(one['change'])}", _kind(one["change"]))


def costs(found: Found) -> Table:
  """What each cell takes: parameters, steps, seconds a step (the mean over seeds), memory (the peak)."""
  rows = []
  for name, cell in _finished(found).items():
    counts, runs = cell["parameters"], cell["runs"]
    trained = counts and counts["trained"] + counts["heads"]
    seconds = [run["seconds_per_step"] for run in runs if run["seconds_per_step"] is not None]
    peaks = [max((run["memory"][n] or 0 for run in runs), default=0) for n in ("step", "process", "device")]
    rows.append(
      [
        name,
        f"{trained:,}" if counts else "",
        f"{100 * trained / (counts['all'] + counts['heads']):.2f}" if counts else "",
        " / ".join(f"{steps:,}" for steps in sorted({run["steps"] for run in runs})),
        f"{sum(seconds) / len(seconds):.3f}" if seconds else "",
        *(f"{peak / 2**20:,.0f}" if peak else "" for peak in peaks),
      ]
    )
  note = (
    "Trained: of several stages the largest. Seconds: the mean over steps, compilation, validation and saving"
    " left out; they are this machine's, and of what else it did. Memory: of a step as XLA counts it,"
    " and the peak until the last step of the process and, where it tells, of the fullest device."
  )
  head = ["", "trained", "% of all", "steps", "s a step", "step, MiB", "process, MiB", "device, MiB"]
  return tables.make("study-costs", "What it takes", head, rows, note=note)


def plot(found: Found, path: pathlib.Path) -> None:
  """Changes from the untrained model as PNG, a panel for all questions and for each kind.

  The mean with its interval, a small dot for a seed. Guessing is drawn in as a dashed line, as far from zero
  as it is from the untrained model. A cell whose interval holds zero is grey.
  """
  from matplotlib.figure import Figure

  names, cells = _names(found), _finished(found)
  figure = Figure(figsize=(1.6 + 2.1 * len(names), 1.2 + 0.34 * len(cells)), layout="constrained")
  panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
  base = _first(found)["scores"]
  for axes, name in zip(panels, names, strict=True):
    axes.axvline(0, color="#55626f", lw=1)
    guessing = 100 * (base[name]["guessing"] - base[name]["score"])
    axes.axvline(guessing, color="#c1121f", lw=1, ls="--", label="guessing")
    for place, cell in enumerate(cells.values()):
      _draw(axes, place, cell, name, found["untrained"][cell["untrained"]]["scores"][name]["score"])
    axes.set_title(f"{_called(name)}, {percent(base[name]['score'])} untrained", fontsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color="#dfe4e8", lw=0.6)
  panels[0].set_yticks(range(len(cells)), list(cells))
  panels[0].invert_yaxis()
  figure.supxlabel("change from the untrained model, points, with 95 % interval", fontsize=8)
  figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", frameon=False, fontsize=8)
  figure.savefig(path, dpi=140)


def _draw(axes: Any, place: int, cell: Mapping[str, Any], name: str, base: float) -> None:
  change = cell["changes"][name]
  colour = {"good": "#0b6e99", "bad": "#c2410c", "": "#8b98a5"}[_kind(change)]
  ends = [100 * change["low"], 100 * change["high"]]
  axes.plot(ends, [place, place], color=colour, lw=3, alpha=0.45, solid_capstyle="round")
  axes.plot(100 * change["difference"], place, "o", color=colour, ms=5)
  single = [100 * (run["scores"][name] - base) for run in cell["runs"]]
  if len(single) > 1:
    axes.plot(single, [place + 0.22] * len(single), ".", color=colour, ms=3)


def _names(found: Found) -> list[str]:
  """The scores that are shown: the headline, and each kind of question."""
  return [found["headline"], *(name for name in _first(found)["scores"] if name.startswith("task/"))]


def _first(found: Found) -> Mapping[str, Any]:
  """The untrained model, of several the first cell's."""
  return next(iter(found["untrained"].values()))


def _finished(found: Found, control: str = "") -> dict[str, Mapping[str, Any]]:
  """The cells with changes from the untrained model, or what they are `against` the control, with `seeds`."""
  if control:
    return {name: cell["against"] for name, cell in found["cells"].items() if "against" in cell}
  return {
    name: {**cell, "seeds": [run["seed"] for run in cell["runs"]]}
    for name, cell in found["cells"].items()
    if "changes" in cell
  }


def _lacking(found: Found) -> str:
  lines = [
    f"\n{name}: seed{'s' if cell['missing'][1:] else ''} {', '.join(map(str, cell['missing']))} not finished."
    for name, cell in found["cells"].items()
    if cell["missing"]
  ]
  return "".join(lines) + "".join(f"\n{name} failed: {why}" for name, why in found["failed"].items())


def _called(name: str) -> str:
  return "all" if name == "plain" else label(name)


def _score(score: Mapping[str, float]) -> str:
  return f"{percent(score['score'])} ({interval(score)})"


def _change(change: Mapping[str, float]) -> Sequence[Cell]:
  kind = _kind(change)
  return Cell(signed(change["difference"]), kind), Cell(_ends(change), kind)


def _both(change: Mapping[str, float]) -> str:
  return f"{signed(change['difference'])} ({_ends(change)})"


def _ends(change: Mapping[str, float]) -> str:
  return f"{signed(change['low'])} to {signed(change['high'])}"


def _kind(change: Mapping[str, float]) -> str:
  """The kind of a change's cells: "good" or "bad" where its interval excludes zero, else ""."""
  return "good" if change["low"] > 0 else "bad" if change["high"] < 0 else ""
