"""From a ProbeConfig to a comparison of encoders in a workdir."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from spatialvlm import hub, workdir
from spatialvlm.config import ProbeConfig, check_dtype
from spatialvlm.encoder import load_encoder
from spatialvlm.probing import drawings, features, page, photos, probes, similarity, worlds
from spatialvlm.probing.features import Seen
from spatialvlm.reporting import terminal
from spatialvlm.types import UserError

RESULTS, TABLE, PAGE, SHEET = "results.json", "encoders.md", "encoders.html", "encoders.png"
DRAWN = " (drawn)"
_NAME = re.compile(r"[A-Za-z0-9_+-]+")


def run(config: ProbeConfig, folder: pathlib.Path) -> dict[str, Any]:
  """Compares the encoders, or continues what was begun in `folder`, and shows the table.

  Features are kept in the folder, one file for each encoder; results are written when all of them are known.

  Returns:
    what `results.json` holds: `scenes`, `encoders` (facts by name), `probes` (scores by row), `cka`, and
    `photos` (what probes say of photographs, by row).

  Raises:
    UserError: settings, folder or encoders are not what they should be.
  """
  with workdir.alone(folder):
    return _run(config, folder)


def _run(config: ProbeConfig, folder: pathlib.Path) -> dict[str, Any]:
  check(config)
  workdir.check(folder, config)
  for name in config.encoders:
    _loaded(config, name)  # a mistake in the last one must not cost the features of the first
  shots = photos.read(config.photos, config.grid)
  identities = {name: hub.identity(path) for name, path in config.encoders.items()}
  if shots.names:
    identities["photos/"] = photos.identity(shots)  # no encoder is called so
  continues = workdir.claim(folder, config, identities)
  begins = "continues" if continues else "begins"
  print(f"{begins} in {folder}: {len(config.encoders)} encoders", flush=True)
  with terminal.progress("rendering", unit="scenes") as show:
    scenes = worlds.render(config, show)
  found = _Found(config, scenes, shots)
  found.guess()
  place, pixels = features.place_cells, features.pixel_cells
  counts = (len(scenes.images), len(shots.images))
  found.add("place alone", *(place(count, scenes.cells) for count in counts), similar=False)
  found.add("raw pixels", *(pixels(images, config.grid) for images in (scenes.images, shots.images)))
  several = len(config.layers) > 1
  for name, drawn, seen in _all(config, scenes, shots, folder):
    found.see(name + drawn, seen, known=not drawn)
    for layer, cells_NCD in seen.layers.items():
      row = f"{name} [{layer}]{drawn}" if several else name + drawn
      found.add(row, cells_NCD, seen.photos.get(layer))
  results = found.results()
  _write(folder, results, found)
  for table in page.all_tables(results):
    terminal.show(table)
  print(f"results, tables, pictures and page: {folder}")
  return results


class _Found:
  """What is known so far: of each encoder's features only what a later comparison needs stays in memory."""

  def __init__(self, config: ProbeConfig, scenes: worlds.Worlds, shots: photos.Photos):
    self.config, self.scenes, self.shots = config, scenes, shots
    self.images = scenes.images[features.shown(scenes, config.pictures)]
    self.components: dict[str, np.ndarray] = {}
    self._facts: dict[str, Any] = {}
    self._probes: dict[str, Any] = {}
    self._photos: dict[str, Any] = {}
    self._test: dict[str, np.ndarray] = {}

  def guess(self) -> None:
    self._put("guessing", probes.guessing(self.scenes))

  def add(self, row: str, cells_NCD: np.ndarray, photo_NCD: np.ndarray | None, similar: bool = True) -> None:
    """Probes one row's features, and keeps those of the test where they are to be compared."""
    self._put(row, probes.run(cells_NCD, self.scenes, self.config.penalties))
    if self.shots.names:
      self._photos[row] = photos.score(cells_NCD, photo_NCD, self.scenes, self.shots, self.config.penalties)
    if similar:
      self._test[row] = cells_NCD[self.scenes.part_N == probes.TEST]

  def see(self, name: str, seen: Seen, known: bool) -> None:
    if known:
      self._facts[name] = seen.facts
    if len(self.images):
      self.components[name] = drawings.principal(seen.shown)

  def results(self) -> dict[str, Any]:
    fields = ("scenes", "validation", "test", "seed", "render_size", "grid", "farthest", "layers", "norm")
    return {
      "scenes": {field: getattr(self.config, field) for field in fields},
      "encoders": self._facts,
      "probes": self._probes,
      "cka": {
        "names": list(self._test),
        "cells": similarity.table([one.reshape(-1, one.shape[-1]) for one in self._test.values()]),
        "images": similarity.table([one.mean(1) for one in self._test.values()], similarity.debiased_cka),
      },
      "photos": {"rule": photos.lower_is_nearer(self.shots), "rows": self._photos},
    }

  def _put(self, row: str, measured: Mapping[str, probes.Measured]) -> None:
    found = self._probes[row] = probes.summaries(measured, self.config.bootstrap, self.config.seed)
    said = (f"{s.title.lower()}: {s.text(found[s.name]['value'])} {s.unit}" for s in page.SCORES)
    print(f"{row}\n  {'; '.join(said)}", flush=True)


def check(config: ProbeConfig) -> None:
  """Raises a UserError for settings that cannot work, before anything is loaded or written."""
  if not config.encoders:
    raise UserError("config.encoders: there are none; name some, e.g. --config.encoders.dino=PATH_OR_HUB_ID")
  for name in config.encoders:
    if not _NAME.fullmatch(name) or name in page.CONTROLS:
      raise UserError(f"config.encoders: {name!r} cannot be a name; use letters, digits and _+-")
  check_dtype(config.dtype, "config.dtype")
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


def _all(
  config: ProbeConfig, scenes: worlds.Worlds, shots: photos.Photos, folder: pathlib.Path
) -> Iterator[tuple[str, str, Seen]]:
  """(name, mark of drawn weights, features) of each encoder: read where they are kept, else computed."""
  for name in config.encoders:
    for drawn in ("", DRAWN) if config.random else ("",):
      path = folder / "features" / f"{name}{'.drawn' if drawn else ''}.npz"
      seen = features.read(path)
      if seen is None:
        encoder = _loaded(config, name)
        if drawn:
          encoder = features.drawn(encoder, config.seed)
        with terminal.progress(name + drawn, unit="images") as show:
          seen = features.see(encoder, scenes, config, show, shots.images)
        features.save(path, seen)
      yield name, drawn, seen


def _write(folder: pathlib.Path, results: Mapping[str, Any], found: _Found) -> None:
  charts = [
    (
      f"{s.title}, {s.unit}",
      {name: _scaled(row[s.name], s.factor) for name, row in results["probes"].items()},
    )
    for s in page.SCORES
  ]
  drawings.write_sheet(folder / SHEET, found.images, found.components, charts)
  uris = {name: [drawings.as_uri(one) for one in each] for name, each in found.components.items()}
  if uris:
    uris = {"scene": [drawings.as_uri(one) for one in found.images]} | uris
  title = f"Encoders: {', '.join(results['encoders'])}"
  workdir.write_text(folder / PAGE, page.html(results, title, uris))
  workdir.write_text(folder / TABLE, page.markdown(results))
  # The last one: where it stands, the others do.
  workdir.write_json(folder / RESULTS, results)


def _scaled(one: Mapping[str, Any], factor: float) -> dict[str, Any]:
  return {k: v if v is None or k == "images" else factor * v for k, v in one.items()}
