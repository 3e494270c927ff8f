"""From a ProbeConfig to a comparison of encoders in a workdir."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from spatialvlm import hub, workdir
from spatialvlm.config import ProbeConfig
from spatialvlm.encoder import load_encoder
from spatialvlm.evaluation import report
from spatialvlm.probing import features, page, pictures, probes, similarity, worlds
from spatialvlm.probing.features import Seen
from spatialvlm.types import UserError

RESULTS, TABLE, PAGE, SHEET = "results.json", "encoders.md", "encoders.html", "encoders.png"
DRAWN = " (drawn)"
_NAME = re.compile(r"[A-Za-z0-9_+-]+")


def run(config: ProbeConfig, folder: pathlib.Path) -> dict[str, Any]:
  """Compares the encoders, or continues what was begun in `folder`, and shows the table.

  Features are kept in the folder, one file for each encoder; results are written when all of them are known.

  Returns:
    what `results.json` holds: `scenes`, `encoders` (facts by name), `probes` (scores by row), `cka`.

  Raises:
    UserError: settings, folder or encoders are not what they should be.
  """
  check(config)
  workdir.check(folder, config)
  identities = {name: hub.identity(path) for name, path in config.encoders.items()}
  for name in config.encoders:
    _loaded(config, name)  # a mistake in the last one must not cost the features of the first
  continues = workdir.claim(folder, config, identities)
  begins = "continues" if continues else "begins"
  print(f"{begins} in {folder}: {len(config.encoders)} encoders", flush=True)
  with report.progress("rendering", unit="scenes") as show:
    scenes = worlds.render(config, show)
  seen = {name: one for name, one in _all(config, scenes, folder)}
  rows = _rows(config, scenes, seen)
  results = {
    "scenes": _about(config),
    "encoders": {name: one.facts for name, one in seen.items() if not name.endswith(DRAWN)},
    "probes": _probes(config, scenes, rows),
    "cka": _cka(scenes, rows),
  }
  _write(folder, results, scenes, seen, config)
  for table in page.all_tables(results):
    report.show(report.rich(table))
  print(f"results, tables, pictures and page: {folder}")
  return results


def check(config: ProbeConfig) -> None:
  """Raises a UserError for settings that cannot work, before anything is loaded or written."""
  if not config.encoders:
    raise UserError("config.encoders: there are none; name some, e.g. --config.encoders.dino=PATH_OR_HUB_ID")
  for name in config.encoders:
    if not _NAME.fullmatch(name) or name in page.CONTROLS:
      raise UserError(f"config.encoders: {name!r} cannot be a name; use letters, digits and _+-")
  if config.dtype not in ("float32", "bfloat16"):
    raise UserError(f"config.dtype: {config.dtype!r} is not offered; use float32 or bfloat16")
  for field in ("scenes", "validation", "test", "batch_size", "grid", "bootstrap"):
    if getattr(config, field) < 1:
      raise UserError(f"config.{field}: must be at least 1, got {getattr(config, field)}")
  for field in ("image_size", "pictures", "seed"):
    if getattr(config, field) < 0:
      raise UserError(f"config.{field}: must be at least 0, got {getattr(config, field)}")
  if config.render_size % config.grid:
    raise UserError(f"config.render_size: {config.render_size} is no multiple of config.grid, {config.grid}")
  if config.pictures > config.test:
    raise UserError(f"config.pictures: {config.pictures} are more than the {config.test} scenes of the test")
  if not config.layers or len(set(config.layers)) < len(config.layers):
    raise UserError(f"config.layers: {config.layers} must name layers, each once")
  if not config.penalties or min(config.penalties) <= 0:
    raise UserError(f"config.penalties: {config.penalties} must be above 0")
  if not config.farthest > 0:
    raise UserError(f"config.farthest: must be above 0 metres, got {config.farthest}")


def _loaded(config: ProbeConfig, name: str) -> Any:
  """An encoder that can do what is asked of it."""
  encoder = load_encoder(config.encoders[name], dtype=config.dtype)
  vision = encoder.config.vision
  size = config.image_size or vision.image_size
  if size < vision.patch_size:
    raise UserError(
      f"config.image_size: {size} is smaller than a patch of {name}, {vision.patch_size} pixels"
    )
  for layer in config.layers:
    if not -vision.depth - 1 <= layer <= vision.depth:
      raise UserError(
        f"config.layers: {name} has layers 0 to {vision.depth}, or -{vision.depth + 1} to -1, got {layer}"
      )
  if config.norm and vision.final_norm == "none":
    raise UserError(f"config.norm: {name} has no final norm")
  _ = encoder.resizer
  return encoder


def _all(config: ProbeConfig, scenes: worlds.Worlds, folder: pathlib.Path) -> Iterator[tuple[str, Seen]]:
  """Each encoder's features, read where they are kept, else computed."""
  for name in config.encoders:
    for label in (name, name + DRAWN) if config.random else (name,):
      path = folder / "features" / f"{label.replace(DRAWN, '.drawn')}.npz"
      seen = features.read(path)
      if seen is None:
        encoder = _loaded(config, name)
        if label.endswith(DRAWN):
          encoder = features.drawn(encoder, config.seed)
        with report.progress(label, unit="images") as show:
          seen = features.see(encoder, scenes, config, show)
        features.save(path, seen)
      yield label, seen


def _rows(config: ProbeConfig, scenes: worlds.Worlds, seen: Mapping[str, Seen]) -> dict[str, np.ndarray]:
  """Cells' features (N, C, D) by row of the tables."""
  rows = {
    "place alone": features.place_cells(scenes),
    "raw pixels": features.pixel_cells(scenes, config.grid),
  }
  several = len(config.layers) > 1
  for name, one in seen.items():
    bare, drawn = name.removesuffix(DRAWN), DRAWN if name.endswith(DRAWN) else ""
    for layer, cells in one.layers.items():
      rows[f"{bare} [{layer}]{drawn}" if several else name] = cells
  return rows


def _probes(config: ProbeConfig, scenes: worlds.Worlds, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
  found = {"guessing": probes.summaries(probes.guessing(scenes), config.bootstrap, config.seed)}
  with report.progress("probing", unit="rows") as show:
    for done, (name, cells) in enumerate(rows.items(), start=1):
      measured = probes.run(cells, scenes, config.penalties)
      found[name] = probes.summaries(measured, config.bootstrap, config.seed)
      show(done, len(rows))
  return found


def _cka(scenes: worlds.Worlds, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Of the scenes of the test; a place without its content is the same for every image."""
  test = scenes.part_N == probes.TEST
  cells = {name: one[test] for name, one in rows.items() if name != "place alone"}
  return {
    "names": list(cells),
    "cells": similarity.table([one.reshape(-1, one.shape[-1]) for one in cells.values()]),
    "images": similarity.table([one.mean(1) for one in cells.values()]),
  }


def _about(config: ProbeConfig) -> dict[str, Any]:
  fields = ("scenes", "validation", "test", "seed", "render_size", "grid", "farthest", "layers", "norm")
  return {field: getattr(config, field) for field in fields}


def _write(
  folder: pathlib.Path,
  results: Mapping[str, Any],
  scenes: worlds.Worlds,
  seen: Mapping[str, Seen],
  config: ProbeConfig,
) -> None:
  shown = scenes.images[features.shown(scenes, config.pictures)]
  components = {name: pictures.principal(one.shown) for name, one in seen.items()} if len(shown) else {}
  charts = [
    (
      f"{s.title}, {s.unit}",
      {name: _scaled(row[s.name], s.factor) for name, row in results["probes"].items()},
    )
    for s in page.SCORES
  ]
  pictures.write_sheet(folder / SHEET, shown, components, charts)
  uris = {name: [pictures.as_uri(one) for one in each] for name, each in components.items()}
  if uris:
    uris = {"scene": [pictures.as_uri(one) for one in shown]} | uris
  title = f"Encoders: {', '.join(config.encoders)}"
  workdir.write_text(folder / PAGE, page.html(results, title, uris))
  workdir.write_text(folder / TABLE, page.markdown(results))
  # The last one: where it stands, the others do.
  workdir.write_json(folder / RESULTS, results)


def _scaled(one: Mapping[str, Any], factor: float) -> dict[str, Any]:
  return {k: v if v is None or k == "images" else factor * v for k, v in one.items()}
