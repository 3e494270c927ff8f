"""From a FieldConfig to a fitted field and its views in a workdir."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spatialvlm import workdir
from spatialvlm.config import FieldConfig, read_json
from spatialvlm.fields import fit, report, scenes, written
from spatialvlm.fields.field import Field
from spatialvlm.fields.grid import Space
from spatialvlm.fields.posed import cameras, folder
from spatialvlm.fields.posed.cameras import View
from spatialvlm.reporting import terminal
from spatialvlm.types import UserError

FIELD, STATE, REPORT, PICTURE = "field.safetensors", "state.safetensors", "report.json", "field.png"
# Kinds of views' sources: what reads them, and whether files may say themselves what is held out.
SOURCES: dict[str, Callable[[FieldConfig], tuple[list[View], bool]]] = {
  "scene": lambda config: (scenes.read(config.source), False),
  "folder": lambda config: (
    folder.read(config.source, black=config.background == "black"),
    folder.split(config.source),
  ),
}


def run(config: FieldConfig, place: pathlib.Path) -> dict[str, Any]:
  """Fits the field, or goes on with what was begun in `place`, renders, measures, and shows the table.

  Returns:
    what `report.json` holds.

  Raises:
    UserError: settings, views or the folder are not what they should be.
  """
  with workdir.alone(place):
    return _run(config, place)


def _run(config: FieldConfig, place: pathlib.Path) -> dict[str, Any]:
  check(config)
  workdir.check(place, config)
  with_split, views = _views(config)
  fitted, held = [v for v in views if not v.heldout], [v for v in views if v.heldout]
  space = _space(config, fitted)
  new = cameras.between([v.camera for v in fitted], config.new_views, config.seed)
  continues = workdir.claim(place, config, {"views": _identity(views)})
  print(
    f"{'continues' if continues else 'begins'} in {place}: {len(fitted)} views to fit, {len(held)} held out"
    + (" (as the files say)" if with_split else ""),
    flush=True,
  )
  if (place / REPORT).exists():
    print(f"finished before: {place / REPORT}")
    return read_json(place / REPORT)
  field = _fitted(config, space, fitted, place)
  measured = (
    held
    if len(held) <= config.measured
    else [held[k] for k in np.linspace(0, len(held) - 1, config.measured).round().astype(int)]
  )
  wanted = [("heldout", v.file, v.camera) for v in measured]
  wanted += [("new", "", camera) for camera in new]
  wanted += [("given", v.file, v.camera) for v in fitted if config.given]
  with terminal.progress("rendering", unit="views") as show:
    found = written.write(field, place, wanted, show)
  rendered = [found[f"heldout-{n:04d}"] for n in range(len(measured))]
  results = {
    "views": {"fitted": len(fitted), "heldout": len(held), "measured": len(measured), "new": len(new)},
    "names": [v.name for v in measured],
    "space": dataclasses.asdict(space),
    "steps": config.steps,
    "seed": config.seed,
    "parameters": sum(v.size for v in fit.named(field.params).values()),
    **(report.measured(measured, rendered, fitted, config.seed) if measured else {}),
  }
  if measured:
    report.draw(place / PICTURE, measured, rendered)
    terminal.show(report.table({k: results[k] for k in ("psnr", "abs_rel")}))
  # The last one: where it stands, the others do.
  workdir.write_json(place / REPORT, results)
  (place / STATE).unlink(missing_ok=True)
  print(f"field, views, depth and report: {place}")
  return results


def _fitted(config: FieldConfig, space: Space, views: Sequence[View], place: pathlib.Path) -> Field:
  state = fit.start(config)
  if (place / STATE).exists():
    state = fit.restore(place / STATE, state)
    print(f"goes on after step {int(state.step)}", flush=True)
  if int(state.step) < config.steps:
    begun = time.process_time()
    with terminal.progress("fitting", unit="steps") as show:
      keep = lambda state: fit.save(place / STATE, state)
      state = fit.run(config, space, views, state, keep, show, say=lambda text: print(text, flush=True))
    print(f"fitted: {time.process_time() - begun:.0f} s of processor time", flush=True)
  field = Field(state.params, config, space)
  field.save(place / FIELD)
  return field


def check(config: FieldConfig) -> None:
  """Raises a UserError for settings that cannot work, before anything is read or written."""
  for name in ("steps", "rays", "features", "width", "checkpoint_every", "measured"):
    if getattr(config, name) < 1:
      raise UserError(f"config.{name}: must be at least 1, got {getattr(config, name)}")
  for name in ("coarse", "fine", "proposal"):
    if getattr(config, name) < 2:
      raise UserError(f"config.{name}: must be at least 2, got {getattr(config, name)}")
  for name in (
    "heldout",
    "radius",
    "near",
    "far",
    "distortion",
    "smoothness",
    "depth_weight",
    "new_views",
    "seed",
  ):
    if not getattr(config, name) >= 0:
      raise UserError(f"config.{name}: must be at least 0, got {getattr(config, name)}")
  if config.heldout == 1:
    raise UserError("config.heldout: 1 holds every view out; take 0 for none, or 2 and more")
  if not config.learning_rate > 0:
    raise UserError(f"config.learning_rate: must be above 0, got {config.learning_rate}")
  if not config.planes or min(config.planes) < 2 or len(set(config.planes)) < len(config.planes):
    raise UserError(f"config.planes: {config.planes} must name resolutions from 2 on, each once")
  if config.near and config.far and config.near >= config.far:
    raise UserError(f"config.near, config.far: {config.near:g} m is not below {config.far:g} m")
  if len(config.center) not in (0, 3):
    raise UserError(f"config.center: three numbers in metres are wanted, got {config.center}")


def _views(config: FieldConfig) -> tuple[bool, list[View]]:
  """Whether files said what is held out, and all views."""
  views, said = SOURCES[config.source.kind](config)
  if config.depth_weight and not any(v.depth is not None for v in views):
    raise UserError("config.depth_weight: the views have no depth to learn from; set it to 0")
  if said or not config.heldout:
    return said, views
  marked = [dataclasses.replace(v, heldout=n % config.heldout == 0) for n, v in enumerate(views)]
  if sum(not v.heldout for v in marked) < 2:
    raise UserError(
      f"config.heldout: leaves under 2 of {len(views)} views to fit; give more views, or set it to 0"
    )
  return said, marked


def _space(config: FieldConfig, views: Sequence[View]) -> Space:
  looking = [v.camera for v in views]
  center = np.array(config.center) if config.center else cameras.looked_at(looking)
  distance = float(np.median([np.linalg.norm(c.pose[:3, 3] - center) for c in looking]))
  near, far = config.near or distance / 8, config.far or distance * 20
  if not 0 < near < far:
    raise UserError(
      f"config.near, config.far: {near:g} and {far:g} metres; near must be above 0 and below far"
    )
  return Space(tuple(map(float, center)), config.radius or distance / 2, near, far, middle=2 * distance)


def _identity(views: Sequence[View]) -> str:
  """Names the views' pixels, depths and cameras."""
  digest = hashlib.sha256()
  for view in views:
    digest.update(view.image.tobytes() + view.camera.pose.tobytes() + view.camera.intrinsics.tobytes())
    digest.update(b"" if view.depth is None else view.depth.tobytes())
  return digest.hexdigest()[:16]
