"""Part "regions": what becomes of an answer when a region is grey, or two objects are exchanged.

The pointing score is one number of it: how often it matters more to grey an object that the question names
  than to
grey one that it does not name, 0.5 where it matters alike. Objects that are named are larger than others on
average, so there is a second one against the same mask at another place.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm.causes import cases as cases_lib
from spatialvlm.causes import intervals, kept, regions
from spatialvlm.causes.cases import Case
from spatialvlm.causes.kept import Line
from spatialvlm.causes.reader import Prompt, Reader, Row, log_odds
from spatialvlm.config import ExplainConfig

SHOWN = ("named", "other", "moved", "box", "frame", "upper", "lower", "else", "all")


def measure(reader: Reader, folder: pathlib.Path, config: ExplainConfig, show: Any) -> None:
  """Asks all cases of all tasks that show a picture."""
  for task in cases_lib.sighted(config.tasks):
    cases = cases_lib.make(task, config.seed, config.questions, config.image_size)
    reader.fit([reader.prompt(case) for case in cases])
    one = lambda some: [of_case(reader, case, config.seed) for case in some]
    with show(f"{reader.name}: regions, {task}") as progress:
      kept.measured(folder / f"regions-{task}.jsonl", cases, 1, one, progress)


def of_case(reader: Reader, case: Case, seed: int) -> Line:
  """The log-probabilities of a case's choices, of its picture, of it with each region grey, and exchanged."""
  prompt, found = reader.prompt(case), regions.of_case(case, seed)
  pictures = [case.image, *(regions.greyed(case.image, region.mask) for region in found)]
  rows = [Row(prompt, reader.cut(picture)) for picture in pictures]
  orders = exchanges(case, prompt, seed)
  rows += [Row(prompt, rows[0].tiles, order) for order in orders.values()]
  asked = reader.ask(rows)
  return {
    "id": case.id,
    "scene": case.scene,
    "answer": case.answer,
    "base": asked[0],
    "kinds": [region.kind for region in found],
    "places": [region.place for region in found],
    "areas": [region.mask.mean() for region in found],
    "grey": asked[1 : 1 + len(found)],
    "swaps": dict(zip(orders, asked[1 + len(found) :], strict=True)),
  }


def exchanges(case: Case, prompt: Prompt, seed: int) -> dict[str, np.ndarray]:
  """Where image tokens stand when the first two named objects are exchanged, and two places without them.

  The latter is the control: boxes of the same sizes, elsewhere.
  """
  if len(case.boxes) < 2:
    return {}
  shape = case.instance.shape
  order = lambda a, b: regions.exchanged(a, b, case.margin, shape, prompt.places)
  first, second = case.boxes[-2:]  # of Distance the two that are compared
  found = {"named": order(first, second)}
  rng = np.random.default_rng((seed, 1, sum(map(ord, case.id))))
  near = np.any([regions.rectangle(box, case.margin, shape) for box in case.boxes], axis=0)
  places = [regions.elsewhere(regions.rectangle(box, 0, shape), near, rng) for box in (first, second)]
  if all(place is not None for place in places):
    found["elsewhere"] = order(*(_bounds(place) for place in places))
  return found


def _bounds(mask: np.ndarray) -> tuple[float, ...]:
  rows, columns = np.nonzero(mask)
  return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def collect(folders: Mapping[str, pathlib.Path], config: ExplainConfig) -> dict[str, Any]:
  """By task and model: see `_one`; of further models `changes` from the first, on the same questions."""
  found: dict[str, Any] = {}
  for task in cases_lib.sighted(config.tasks):
    by = {name: per_case(kept.read(folder / f"regions-{task}.jsonl")) for name, folder in folders.items()}
    first = next(iter(by.values()))
    found[task] = {}
    for name, values in by.items():
      found[task][name] = {key: intervals.mean(x, values["scene"], config) for key, x in _numbers(values)}
      if values is not first:
        found[task][name]["changes"] = {
          key: intervals.change(first[key], x, values["scene"], config) for key, x in _numbers(values)
        }
  return found


def _numbers(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
  return [(key, x) for key, x in values.items() if key != "scene"]


def per_case(lines: Sequence[Line]) -> dict[str, Any]:
  """One number a case of each kind, NaN where a case has none; `scene` beside them.

  - `accuracy`: whether the likeliest choice is right; `log_odds` of the right one.
  - `pointing`: the share of pairs (an object that is named, one that is not) in which greying the former
    changes the log-odds of the right choice more, ties half; `pointing_moved`: the same mask elsewhere in the
    place of the latter.
  - `size/KIND`, `shift/KIND`, `flips/KIND`: how much greying a region of a kind changes these log-odds,
    without and with sign, and the share of them that change the likeliest choice.
  - `lower_more`: the share of named objects whose lower part matters more than the upper one.
  - `swap`, `swap_elsewhere`: change of the log-odds when two objects are exchanged; `..._flips`.
  """
  found: dict[str, list] = {"scene": [line["scene"] for line in lines]}
  rows = [_of_line(line) for line in lines]
  for key in sorted({key for row in rows for key in row}, key=_order):
    found[key] = [row.get(key, np.nan) for row in rows]
  return found


def _order(key: str) -> tuple:
  first, _, kind = key.partition("/")
  names = ("accuracy", "log_odds", "pointing", "pointing_moved", "lower_more")
  return (
    names.index(first) if first in names else len(names),
    first,
    SHOWN.index(kind) if kind in SHOWN else 0,
  )


def _of_line(line: Line) -> dict[str, float]:
  answer, base = line["answer"], kept.array(line["base"])
  grey = kept.array(line["grey"])
  odds, kinds, places = log_odds(base, answer), np.array(line["kinds"]), np.array(line["places"])
  shift = log_odds(grey, answer) - odds
  size, flips = np.abs(shift), np.nanargmax(grey, 1) != np.nanargmax(base)
  found = {"accuracy": float(np.nanargmax(base) == answer), "log_odds": float(odds)}
  for kind in SHOWN:
    if (of := kinds == kind).any():
      found |= {
        f"size/{kind}": size[of].mean(),
        f"shift/{kind}": shift[of].mean(),
        f"flips/{kind}": flips[of].mean(),
      }
  named, other = size[kinds == "named"], size[kinds == "other"]
  if len(named) and len(other):
    found["pointing"] = _wins(named[:, None], other[None, :])
  pairs = [
    (size[(kinds == "named") & (places == p)], size[(kinds == "moved") & (places == p)]) for p in set(places)
  ]
  pairs = [(a[0], b[0]) for a, b in pairs if len(a) and len(b)]
  if pairs:
    found["pointing_moved"] = _wins(*np.array(pairs).T)
  lower, upper = size[kinds == "lower"], size[kinds == "upper"]
  if len(lower):
    found["lower_more"] = _wins(lower, upper)
  for name, key in (("named", "swap"), ("elsewhere", "swap_elsewhere")):
    if name in line["swaps"]:
      after = kept.array(line["swaps"][name])
      found[key] = float(log_odds(after, answer) - odds)
      found[f"{key}_flips"] = float(np.nanargmax(after) != np.nanargmax(base))
  return found


def _wins(a: np.ndarray, b: np.ndarray) -> float:
  """The share of pairs in which the first is larger, ties half."""
  return float(np.mean((a > b) + 0.5 * (a == b)))
