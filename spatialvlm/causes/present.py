"""Part "probes": what linear probes read off each layer, beside what the model makes of it.

Of the vision tower's layers, the image tokens behind the connector and the decoder's layers: depth, place,
relation, which of two things is nearer (`probing.probes`), and how many objects there are. Of the last
position, by layer of the decoder: the right option. Where a probe is right and the model's answer is not, the
information is there and is not used.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from spatialvlm import workdir
from spatialvlm.causes import cases as cases_lib
from spatialvlm.causes.cases import Case
from spatialvlm.causes.reader import Reader, Row
from spatialvlm.config import ExplainConfig, ProbeConfig
from spatialvlm.probing import features, probes, worlds
from spatialvlm.reporting import terminal
from spatialvlm.types import UserError

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Tasks of two choices, whose right one the last position's probe is asked for, and the shares of its scenes.
CHOSEN = ("Depth", "LeftRight", "Distance")
_SHARES = (0.6, 0.15, 0.25)
_ASKED = "How many objects are there?"


def measure(reader: Reader, folder: pathlib.Path, config: ExplainConfig, show: Any) -> None:
  """Reads features of rendered scenes and of questions, and fits and tests all probes on them."""
  path = folder / "probes.json"
  if path.is_file():
    return
  scenes = _rendered(
    config.seed, config.scenes, config.validation, config.test, config.image_size, config.grid
  )
  numbers = lambda found: probes.summaries(found, config.bootstrap, config.seed)
  rows: dict[str, Any] = {
    "guessing": numbers(probes.guessing(scenes) | {"count": probes.count_guessing(scenes)})
  }
  for name, cells_NCD in _controls(scenes, config):
    rows[name] = numbers(_all(cells_NCD, scenes))
  with show(f"{reader.name}: features") as progress:
    for name, cells_NCD in _cells(reader, scenes, config, progress):
      rows[name] = numbers(_all(cells_NCD, scenes))
  last = {}
  for task in CHOSEN:
    if task in config.tasks:
      with show(f"{reader.name}: answers, {task}") as progress:
        last[task] = _answers(reader, task, config, progress)
  with workdir.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  workdir.write_json(path, {"features": rows, "answers": last})


@functools.lru_cache(maxsize=1)
def _rendered(seed: int, scenes: int, validation: int, test: int, size: int, grid: int) -> worlds.Worlds:
  """The scenes, rendered once for all models."""
  settings = ProbeConfig(
    scenes=scenes, validation=validation, test=test, render_size=size, grid=grid, seed=seed
  )
  with terminal.progress("scenes for probes", unit="scenes") as show:
    return worlds.render(settings, show)


def _all(cells_NCD: np.ndarray, scenes: worlds.Worlds) -> dict[str, probes.Measured]:
  return probes.run(cells_NCD, scenes, PENALTIES) | {"count": probes.count(cells_NCD, scenes, PENALTIES)}


def _controls(scenes: worlds.Worlds, config: ExplainConfig):
  yield "place alone", features.place_cells(len(scenes.images), scenes.cells)
  yield "raw pixels", features.pixel_cells(scenes.images, config.grid)


def _cells(reader: Reader, scenes: worlds.Worlds, config: ExplainConfig, show: Any):
  """(name, (N, C, D)) of every layer of the model, in the order in which a picture goes through them."""
  cases = [Case("scene", str(n), str(n), image, _ASKED, ("1", "2")) for n, image in enumerate(scenes.images)]
  tiles = [reader.cut(image) for image in scenes.images]
  if len(tiles[0]) > 1:
    raise UserError(
      "config.max_tiles: probes read pictures of one tile; set it to 1, or leave 'probes' out of parts"
    )
  layers = tuple(range(reader.encoder_depth + 1))
  for layer, patches_NPD in reader.layers(tiles, layers).items():
    yield f"vision {layer}", _averaged(patches_NPD, config.grid)
  prompts = [reader.prompt(case) for case in cases]
  reader.fit(prompts)
  parts = []
  for start in range(0, len(cases), reader.rows):
    some = slice(start, start + reader.rows)
    rows = [Row(prompt, tile) for prompt, tile in zip(prompts[some], tiles[some], strict=True)]
    at = np.flatnonzero(reader.pad(prompts[0].slots, -1) >= 0)
    parts.append(np.asarray(reader.streams(rows), np.float32)[:, :, at])
    show(min(start + reader.rows, len(cases)), len(cases))
  for layer, image_NPD in enumerate(np.concatenate(parts, axis=1)):
    yield f"decoder {layer}" if layer else "connector", _averaged(image_NPD, config.grid)


def _averaged(x_NPD: np.ndarray, grid: int) -> np.ndarray:
  side = round(x_NPD.shape[1] ** 0.5)
  return np.einsum("cp,npd->ncd", features.averages((side, side), side, grid), x_NPD, optimize=True)


def _answers(reader: Reader, task: str, config: ExplainConfig, show: Any) -> dict[str, Any]:
  """`layers`: the share of questions whose right option a probe reads off the last position, by layer;
  `model`: the share that the model itself answers rightly, on the same questions."""
  cases = cases_lib.make(task, config.seed, config.answer_questions, config.image_size)
  prompts = [reader.prompt(case) for case in cases]
  reader.fit(prompts)
  states, right = [], []
  for start in range(0, len(cases), reader.rows):
    some = slice(start, start + reader.rows)
    rows = [Row(p, reader.cut(c.image)) for p, c in zip(prompts[some], cases[some], strict=True)]
    last = np.array([len(prompt.tokens) - 1 for prompt in prompts[some]])
    streams = np.asarray(reader.streams(rows), np.float32)
    states.append(streams[:, np.arange(len(rows)), last])
    answers = np.array([case.answer for case in cases[some]])
    right.append(np.argmax(reader.ask(rows), axis=1) == answers)
    show(min(start + reader.rows, len(cases)), len(cases))
  x_LND, right_N = np.concatenate(states, axis=1), np.concatenate(right)
  y_N = np.array([case.answer for case in cases])
  scene_N, part_N = _parted([case.scene for case in cases], config.seed)
  test = part_N == probes.TEST
  layers = [probes.choice(x_ND, y_N, scene_N, part_N) for x_ND in x_LND]
  shares = {"model": probes.shares(right_N[test], scene_N[test])}
  return {
    "layers": [found.summary(config.bootstrap, config.seed) for found in layers],
    "model": shares["model"].summary(config.bootstrap, config.seed),
  }


def _parted(scenes: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
  """The number of each question's scene, and the part that all questions of a scene belong to."""
  names, scene_N = np.unique(scenes, return_inverse=True)
  order = np.random.default_rng((seed, 3)).permutation(len(names)) / len(names)
  return scene_N, np.searchsorted(np.cumsum(_SHARES)[:2], order, side="right")[scene_N]


def collect(folders: Mapping[str, pathlib.Path], config: ExplainConfig) -> dict[str, Any]:
  """By model: `features[row][probe]`, and `answers[task]` as of `_answers`."""
  del config
  return {name: json.loads((folder / "probes.json").read_text()) for name, folder in folders.items()}
