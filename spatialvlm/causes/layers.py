"""Part "layers": where on its way through the decoder an answer is made.

Attention is cut, in one block or in all, from the words to what image tokens show; and states of the clean
picture are put, layer by layer and place by place, into a reading of a picture for which another choice is
right (activation patching), or of a grey one where there is no such picture. What share of the difference
between both answers comes back says where the difference is held.
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
from spatialvlm.models.interventions import Cut, Given, Interventions

# Groups of image tokens, and of the text behind them.
SEEN = ("first", "second", "elsewhere", "picture")
TEXT = ("colour words", "other words", "last")
GROUPS = {
  "first": "image tokens that show the box of the first named object",
  "second": "of the second",
  "elsewhere": "all other image tokens",
  "picture": "all image tokens",
  "colour words": "the words for the frames' colours in the question",
  "other words": "the other words behind the picture",
  "last": "the last position, where the answer is read",
}


def groups(case: Case, prompt: Prompt) -> dict[str, np.ndarray]:
  """bool (T,) of each group that a question has."""
  shape, places = case.image.shape[:2], prompt.places
  found: dict[str, np.ndarray] = {}
  for name, box in zip(("first", "second"), case.boxes, strict=False):
    found[name] = prompt.at(regions.showing(regions.rectangle(box, case.margin, shape), places))
  picture = prompt.slots >= 0
  if found:
    found["elsewhere"] = picture & ~np.any(list(found.values()), axis=0)
  found["picture"] = picture
  behind = np.arange(len(prompt.tokens)) >= prompt.behind
  last = np.arange(len(prompt.tokens)) == len(prompt.tokens) - 1
  colours = behind & ~last & np.array([word.strip().lower() in case.frames for word in prompt.words])
  found |= {"colour words": colours, "other words": behind & ~last & ~colours, "last": last}
  return {name: at for name, at in found.items() if at.any()}


def cut(reader: Reader, prompt: Prompt, tiles: np.ndarray, at: Mapping[str, np.ndarray]) -> np.ndarray:
  """(G, L + 1, K): attention cut from all behind the picture to each group, in each block, and in all."""
  L, rows = reader.depth, len(at) * (reader.depth + 1)
  layers_BL = np.tile(np.concatenate([np.eye(L, dtype=bool), np.ones((1, L), bool)]), (len(at), 1))
  behind_T = np.zeros(reader.length, bool)
  behind_T[prompt.behind : len(prompt.tokens)] = True
  keys_BT = np.repeat([reader.pad(x) for x in at.values()], L + 1, axis=0)
  changes = Interventions(Cut(layers_BL, np.repeat(behind_T[None], rows, 0), keys_BT))
  return reader.ask([Row(prompt, tiles)] * rows, changes).reshape(len(at), L + 1, -1)


def patched(
  reader: Reader, prompt: Prompt, clean: np.ndarray, other: np.ndarray, at: Mapping[str, np.ndarray]
) -> np.ndarray:
  """(G, L + 1, K): a reading of the tiles `other` with states of `clean` at each group, in each layer."""
  count, rows = reader.depth + 1, len(at) * (reader.depth + 1)
  streams = reader.streams([Row(prompt, clean)])
  layers_BL = np.tile(np.eye(count, dtype=bool), (len(at), 1))
  places_BT = np.repeat([reader.pad(x) for x in at.values()], count, axis=0)
  changes = Interventions(given=Given(layers_BL, places_BT, streams))
  return reader.ask([Row(prompt, other)] * rows, changes).reshape(len(at), count, -1)


def measure(reader: Reader, folder: pathlib.Path, config: ExplainConfig, show: Any) -> None:
  """Cuts and patches all cases of all tasks that show a picture."""
  for task in cases_lib.sighted(config.tasks):
    cases = cases_lib.make(task, config.seed, config.layer_questions, config.image_size)
    reader.fit([reader.prompt(case) for case in cases])
    one = lambda some: [of_case(reader, case) for case in some]
    with show(f"{reader.name}: layers, {task}") as progress:
      kept.measured(folder / f"layers-{task}.jsonl", cases, 1, one, progress)


def of_case(reader: Reader, case: Case) -> Line:
  """The log-probabilities of a case's choices, whatever is cut or patched."""
  prompt = reader.prompt(case)
  opposite = case.opposite if case.opposite is not None else np.full_like(case.image, 128)
  clean, other = reader.cut(case.image), reader.cut(opposite)
  at = groups(case, prompt)
  seen = {name: x for name, x in at.items() if name in SEEN}
  base = reader.ask([Row(prompt, clean), Row(prompt, other)])
  return {
    "id": case.id,
    "scene": case.scene,
    "answer": case.answer,
    "base": base[0],
    "opposite": base[1],
    "cut": dict(zip(seen, cut(reader, prompt, clean, seen), strict=True)),
    "patched": dict(zip(at, patched(reader, prompt, clean, other, at), strict=True)),
  }


def collect(folders: Mapping[str, pathlib.Path], config: ExplainConfig) -> dict[str, Any]:
  """By task and model: `clean` and `opposite`, the log-odds of the right choice of both pictures;
  `cut[group]`, their change by block, the last entry with all blocks cut; `patched[group]`, by layer, the
  share of the difference that comes back, None where there is no difference to speak of.
  """
  found: dict[str, Any] = {}
  for task in cases_lib.sighted(config.tasks):
    lines = {name: kept.read(folder / f"layers-{task}.jsonl") for name, folder in folders.items()}
    found[task] = {name: _one(some, config) for name, some in lines.items()}
  return found


def _one(lines: Sequence[Line], config: ExplainConfig) -> dict[str, Any]:
  scenes = [line["scene"] for line in lines]
  odds = lambda values, line: log_odds(kept.array(values), line["answer"])
  clean = np.array([odds(line["base"], line) for line in lines])
  other = np.array([odds(line["opposite"], line) for line in lines])
  found: dict[str, Any] = {
    "clean": intervals.mean(clean, scenes, config),
    "opposite": intervals.mean(other, scenes, config),
    "cut": {},
    "patched": {},
  }
  for name in (*SEEN, *TEXT):
    for kind in ("cut", "patched"):
      if not any(name in line[kind] for line in lines):
        continue
      layers = len(next(line[kind][name] for line in lines if name in line[kind]))
      missing = np.full(layers, np.nan)
      values = np.array([odds(line[kind][name], line) if name in line[kind] else missing for line in lines])
      if kind == "cut":
        found[kind][name] = [intervals.mean(values[:, i] - clean, scenes, config) for i in range(layers)]
      else:
        back = values - other[:, None]
        found[kind][name] = [
          intervals.ratio(back[:, i], clean - other, scenes, config) for i in range(layers)
        ]
  return found
