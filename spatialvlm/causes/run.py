"""From an ExplainConfig to a summary, tables and a drawing in a workdir."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from flax import nnx

from spatialvlm import loading, workdir
from spatialvlm.causes import cases, drawing
from spatialvlm.causes.parts import PARTS
from spatialvlm.causes.reader import Reader
from spatialvlm.config import ExplainConfig, ModelConfig, check_dtype, nearest
from spatialvlm.models.vlm import Vlm
from spatialvlm.processing.processor import load_processor
from spatialvlm.reporting import tables, terminal
from spatialvlm.types import UserError

SUMMARY, TABLE, MARKDOWN, PICTURE = "summary.json", "table.txt", "explain.md", "explain.png"
DRAWN = " (drawn)"
_NAME = re.compile(r"[A-Za-z0-9_+-]+")
_COUNTS = (
  "questions",
  "edge_questions",
  "map_questions",
  "layer_questions",
  "head_questions",
  "answer_questions",
)
_COUNTS += ("scenes", "validation", "test", "rows", "grid", "steps", "bootstrap")

Find = Callable[[ModelConfig, str | None], loading.Found]


def run(config: ExplainConfig, folder: pathlib.Path, find: Find = loading.find) -> dict[str, Any]:
  """Measures all parts of all models, or goes on with what is in `folder`, and shows the tables.

  Afterwards the folder holds `parts/MODEL/...` (what was measured of each question), summary.json, table.txt,
  explain.md and explain.png. The same command again measures what is missing.

  Args:
    find: what finds a model; `training.runs.find` knows training runs too.

  Returns:
    what summary.json holds: by part, as the part's `collect` says.

  Raises:
    UserError: settings, folder or models are not what they should be.
  """
  with workdir.alone(folder):
    return _run(config, folder, find)


def check(config: ExplainConfig) -> None:
  """Raises a UserError for settings that cannot work, before anything is loaded or written."""
  if not config.models:
    raise UserError("config.models: there are none; name some, e.g. --config.models.mine=PATH_OR_HUB_ID")
  for name in config.models:
    if not _NAME.fullmatch(name):
      raise UserError(f"config.models: {name!r} cannot be a name; use letters, digits and _+-")
  check_dtype(config.dtype, "config.dtype")
  for field, known in (("parts", PARTS), ("tasks", cases.TASKS)):
    names = getattr(config, field)
    if not names or len(set(names)) < len(names):
      raise UserError(f"config.{field}: {names} must name some, each once; known: {', '.join(known)}")
    for name in names:
      if name not in known:
        raise UserError(f"config.{field}: {name!r} is unknown; {nearest(name, known)}")
  for name in _COUNTS:
    if getattr(config, name) < 1:
      raise UserError(f"config.{name}: must be at least 1, got {getattr(config, name)}")
  if len(set(config.head_blocks)) < len(config.head_blocks):
    raise UserError(f"config.head_blocks: {config.head_blocks} must name each once")
  if config.head_blocks and "heads" not in config.parts:
    raise UserError("config.head_blocks: nothing reads it without 'heads' in config.parts")
  if config.image_size % config.grid:
    raise UserError(f"config.image_size: {config.image_size} is no multiple of config.grid, {config.grid}")
  if not cases.sighted(config.tasks) and set(config.parts) - {"heads"}:
    raise UserError("config.tasks: none of them shows a picture; name one that does, or parts=('heads',)")


def _run(config: ExplainConfig, folder: pathlib.Path, find: Find) -> dict[str, Any]:
  check(config)
  workdir.check(folder, config)
  found = {name: find(_model(config, path), None) for name, path in config.models.items()}
  parts = [name for name in config.parts if PARTS[name].asked(config.tasks)]
  for name, one in found.items():
    for part in parts:
      PARTS[part].check(name, one.sizes(), config)
  continues = workdir.claim(folder, config, {name: one.identity() for name, one in found.items()})
  print(f"{'continues' if continues else 'begins'} in {folder}: {', '.join(found)}", flush=True)
  folders: dict[str, pathlib.Path] = {}
  for name, reader in _readers(config, found):
    folders[name] = folder / "parts" / name.replace(" ", "-")
    for part in parts:
      PARTS[part].measure(reader, folders[name], config, _progress)
  results = {part: PARTS[part].collect(folders, config) for part in parts}
  every = [table for part in parts for table in PARTS[part].tables(results[part])]
  workdir.write_text(folder / TABLE, "\n".join(terminal.plain_text(table, width=190) for table in every))
  workdir.write_text(folder / MARKDOWN, "\n".join(map(tables.to_markdown, every)))
  drawing.write(folder / PICTURE, results)
  workdir.write_json(folder / SUMMARY, results)  # the last one: where it stands, the others do
  for table in every:
    terminal.show(table)
  print(f"summary, tables and drawing: {folder}", flush=True)
  return results


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
  with terminal.progress(what) as show:
    yield show


def _model(config: ExplainConfig, path: str) -> ModelConfig:
  return ModelConfig(path=path, dtype=config.dtype, max_tiles=config.max_tiles)


def _readers(config: ExplainConfig, found: dict[str, loading.Found]) -> Iterator[tuple[str, Reader]]:
  """The models one after the other; last the first one with drawn weights, where that is asked for."""
  first: Reader | None = None
  for name, one in found.items():
    vlm = one.load(None)
    reserved = vlm.config.text.max_length - vlm.max_length
    tiling = _model(config, config.models[name]).tiling
    reader = Reader(vlm, load_processor(one.folder, reserved=reserved, **tiling), config.rows, name)
    first = first or reader
    yield name, reader
  if config.drawn:
    name, fresh = f"{first.name}{DRAWN}", Vlm(first.vlm.config, rngs=nnx.Rngs(config.seed))
    yield name, Reader(fresh, first.processor, config.rows, name)
