"""Part "maps": does a map of the picture point at what an answer hangs on?

A map gives each cell of a grid a number. Of each it is asked whether its highest cell lies on an object that
the question names (the pointing game, Zhang et al., 2018), and what becomes of the answer when cells are
greyed from the highest on, or shown from the highest on in a grey picture (deletion and insertion, Petsiuk et
al., 2018: the area under the probability of the choice that the model takes of the whole picture; low and
high are good). Maps that know the truth, the middle of the picture, or nothing, stand beside them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spatialvlm.causes import cases as cases_lib
from spatialvlm.causes import intervals, kept, regions
from spatialvlm.causes.cases import Case
from spatialvlm.causes.kept import Line
from spatialvlm.causes.reader import Prompt, Reader, Row, log_odds
from spatialvlm.config import ExplainConfig
from spatialvlm.inside.asked import Asked, laid
from spatialvlm.inside.explain import Settings, explain
from spatialvlm.inside.record import Record
from spatialvlm.priors.prior import Tokens

SCORES = ("points", "deletion", "insertion")
# A number for each cell of a grid (G, G) of a case's picture.
Map = Callable[[Reader, Case, Prompt, int, np.random.Generator], np.ndarray]


def truth(reader: Reader, case: Case, prompt: Prompt, grid: int, rng: np.random.Generator) -> np.ndarray:
  """The share of a cell that named objects cover; among cells without any, the nearer to one the higher."""
  del reader, prompt, rng
  covered = _covered(case, grid)
  y, x = np.mgrid[:grid, :grid]
  own = np.argwhere(covered >= min(regions.SHARE, covered.max()))
  away = np.min([np.hypot(y - r, x - c) for r, c in own], axis=0)
  return covered - 0.01 * away


def centre(reader: Reader, case: Case, prompt: Prompt, grid: int, rng: np.random.Generator) -> np.ndarray:
  """The nearer to the middle of the picture, the higher; which of equal cells comes first is drawn."""
  del reader, case, prompt
  y, x = np.mgrid[:grid, :grid] - (grid - 1) / 2
  return -np.hypot(y, x) + 1e-6 * rng.random((grid, grid))


def drawn(reader: Reader, case: Case, prompt: Prompt, grid: int, rng: np.random.Generator) -> np.ndarray:
  """Random numbers."""
  del reader, case, prompt
  return rng.random((grid, grid))


def occlusion(reader: Reader, case: Case, prompt: Prompt, grid: int, rng: np.random.Generator) -> np.ndarray:
  """How much greying each cell by itself changes the log-odds of the choice that the model takes."""
  del rng
  pictures = [case.image]
  pictures += [regions.greyed(case.image, cell.mask) for cell in regions.cells(case.image.shape[:2], grid)]
  found = reader.ask([Row(prompt, reader.cut(picture)) for picture in pictures])
  odds = log_odds(found, int(np.argmax(found[0])))
  return np.abs(odds[1:] - odds[0]).reshape(grid, grid)


def attention(reader: Reader, case: Case, prompt: Prompt, grid: int, rng: np.random.Generator) -> np.ndarray:
  """The attention of the last position, the mean over blocks and heads."""
  del rng
  looked_T = reader.attention([Row(prompt, reader.cut(case.image))])[0].mean((0, 1))
  return of_tokens(looked_T[: len(prompt.slots)][prompt.slots >= 0], prompt.places, grid)


def rollout(reader: Reader, case: Case, prompt: Prompt, grid: int, rng: np.random.Generator) -> np.ndarray:
  """Attention rollout from the last position through all blocks (`inside.rollout`)."""
  del rng
  found = _inside(reader, case, prompt, Settings(gradient=False, **_LITTLE))
  return of_tokens(found.rollout[-1, -1], prompt.places, grid)


def gradient(reader: Reader, case: Case, prompt: Prompt, grid: int, rng: np.random.Generator) -> np.ndarray:
  """Gradient-weighted relevance for the model's choice, through all blocks (`inside.rollout`)."""
  del rng
  found = _inside(reader, case, prompt, Settings(rollout=False, **_LITTLE))
  return of_tokens(found.gradient[-1], prompt.places, grid)


_LITTLE = {"heads": False, "words": False, "vision": False}


def _inside(reader: Reader, case: Case, prompt: Prompt, settings: Settings) -> Record:
  """A case as `inside` sees it."""
  processor, pictures = reader.processor, (case.image,)
  encoded = processor.encode_prompt(pictures, case.text, case.answer_prefix, f"question {case.id}")
  asked = Asked(
    encoded=encoded,
    pictures=pictures,
    canvases=laid(processor, pictures),
    words=(),
    question=case.text,
    options=case.choices,
    option_ids=tuple(int(token) for token in prompt.option_ids),
    right=case.answer,
    name=case.id,
  )
  return explain(reader.vlm, processor, asked, settings, name=reader.name)


def of_tokens(values: np.ndarray, places: Tokens, grid: int) -> np.ndarray:
  """(G, G): numbers of image tokens (I * P,) spread evenly over what each shows, summed by cell."""
  x, y = (np.minimum((axis * grid).astype(int), grid - 1) for axis in places.places(grid))
  found = np.zeros((grid, grid))
  np.add.at(found, (y, x), values.reshape(*x.shape[:2], 1) / x.shape[2])
  return found


MAPS: dict[str, Map] = {
  "truth": truth,
  "occlusion": occlusion,
  "attention": attention,
  "rollout": rollout,
  "gradient": gradient,
  "centre": centre,
  "random": drawn,
}


def _covered(case: Case, grid: int) -> np.ndarray:
  """(G, G): the share of each cell that the named objects cover."""
  mask = np.isin(case.instance, case.named)
  return np.array([mask[cell.mask].mean() for cell in regions.cells(mask.shape, grid)]).reshape(grid, grid)


def measure(reader: Reader, folder: pathlib.Path, config: ExplainConfig, show: Any) -> None:
  """Makes all maps of all cases of all tasks that show a picture, and deletes and inserts by them."""
  for task in cases_lib.sighted(config.tasks):
    cases = cases_lib.make(task, config.seed, config.map_questions, config.image_size)
    reader.fit([reader.prompt(case) for case in cases])
    one = lambda some: [of_case(reader, case, config) for case in some]
    with show(f"{reader.name}: maps, {task}") as progress:
      kept.measured(folder / f"maps-{task}.jsonl", cases, 1, one, progress)


def of_case(reader: Reader, case: Case, config: ExplainConfig) -> Line:
  """What each map says, and the probability of the model's choice while cells go, and while they come."""
  prompt, grid = reader.prompt(case), config.grid
  rng = np.random.default_rng((config.seed, 2, sum(map(ord, case.id))))
  named = _covered(case, grid) >= regions.SHARE
  found = {name: make(reader, case, prompt, grid, rng) for name, make in MAPS.items()}
  whole, blank = case.image, np.full_like(case.image, 128)
  masks = [cell.mask for cell in regions.cells(whole.shape[:2], grid)]
  pictures = [whole]
  for values in found.values():
    order = np.argsort(-values, axis=None, kind="stable")
    for step in range(1, config.steps + 1):
      gone = np.any([masks[n] for n in order[: round(len(order) * step / config.steps)]], axis=0)
      pictures += [regions.greyed(whole, gone), np.where(gone[..., None], whole, blank)]
  logprobs = reader.ask([Row(prompt, reader.cut(picture)) for picture in pictures])
  chosen = int(np.argmax(logprobs[0]))
  share = 1 / (1 + np.exp(-log_odds(logprobs, chosen)))
  curves = share[1:].reshape(len(found), config.steps, 2)
  # Nothing gone is the whole picture; nothing there is the grey one, which the last step of deletion shows.
  deletion = np.concatenate([np.full((len(found), 1), share[0]), curves[..., 0]], 1)
  insertion = np.concatenate([curves[:, -1:, 0], curves[..., 1]], 1)
  return {
    "id": case.id,
    "scene": case.scene,
    "cells": float(named.mean()),
    "maps": {
      name: {
        "points": bool(named.reshape(-1)[np.argmax(values)]),
        "deletion": float(np.trapezoid(deletion[i], dx=1 / config.steps)),
        "insertion": float(np.trapezoid(insertion[i], dx=1 / config.steps)),
      }
      for i, (name, values) in enumerate(found.items())
    },
  }


def collect(folders: Mapping[str, pathlib.Path], config: ExplainConfig) -> dict[str, Any]:
  """By task, model and map: `SCORES`; `cells`, the share of them on named objects; `changes`."""
  found: dict[str, Any] = {}
  for task in cases_lib.sighted(config.tasks):
    found[task] = {}
    first: Sequence[Line] = ()
    for name, folder in folders.items():
      lines = kept.read(folder / f"maps-{task}.jsonl")
      first = first or lines
      scenes = [line["scene"] for line in lines]
      row: dict[str, Any] = {"cells": intervals.mean([line["cells"] for line in lines], scenes, config)}
      for kind in lines[0]["maps"]:
        pick = lambda some, score, kind=kind: [float(line["maps"][kind][score]) for line in some]
        row[kind] = {score: intervals.mean(pick(lines, score), scenes, config) for score in SCORES}
        if lines is not first:
          row[kind]["changes"] = {
            score: intervals.change(pick(first, score), pick(lines, score), scenes, config)
            for score in SCORES
          }
      found[task][name] = row
  return found
