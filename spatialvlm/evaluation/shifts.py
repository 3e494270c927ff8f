"""One model on plain rendered scenes and on every shifted world: does what it learned hold there?"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from spatialvlm import loading, workdir
from spatialvlm.config import EvaluateConfig, ModelConfig, ScenesConfig
from spatialvlm.data.sources.registry import open_questions
from spatialvlm.evaluation import beforehand
from spatialvlm.evaluation.asking.protocols import ProcessorPrompter
from spatialvlm.evaluation.evaluate import Result
from spatialvlm.evaluation.report import shift_tables
from spatialvlm.evaluation.run import run as evaluate
from spatialvlm.evaluation.scoring import statistics
from spatialvlm.processing.processor import load_processor
from spatialvlm.reporting import tables, terminal
from spatialvlm.types import Note, UserError
from spatialvlm.worlds import shifts as worlds

JSON, TEXT, MARKDOWN, LATEX = "shifts.json", "table.txt", "tables.md", "tables.tex"
# Folder of the plain world's evaluation.
PLAIN = "plain"


def run(
  config: EvaluateConfig,
  folder: pathlib.Path,
  shifts: Sequence[str] = (),
  find: Callable[[ModelConfig, str | None], loading.Found] = loading.find,
) -> dict[str, Any]:
  """Scores a model on the questions of the plain world, then on those of each shift, and shows the table.

  Each world is an evaluation of its own in `folder/NAME`, with its report; an interrupted one goes on, and
  one that has ended is not asked again. The folder itself holds shifts.json, table.txt, tables.md and
  tables.tex.
  A shift whose words the model's tokenizer does not know is left out, which the table and a note say.

  Args:
    config: of the plain evaluation; its data are plain scenes.
    shifts: names of `worlds.shifts.SHIFTS`; empty for all.
    find: as of `evaluation.run.run`.

  Returns:
    What shifts.json holds: `model`; `worlds[name]`, "plain" first: what it `differs` in, the `scores` and
    `baselines` of its summary and, but for the plain one, `changes` by score (difference, low, high, and
    whether it is `paired`); `left_out[name]`, the words that are not known.

  Raises:
    UserError: the data are no plain scenes, an unknown shift, or anything of an evaluation.
  """
  if not isinstance(config.data, ScenesConfig) or config.data.shift:
    raise UserError("config.data: shifts are of rendered scenes; take kind 'scenes', and no shift of its own")
  names = tuple(dict.fromkeys(shifts)) or tuple(worlds.SHIFTS)
  for name in names:
    worlds.look(name or "''")
  with workdir.alone(folder):
    workdir.check(folder, config)
    found = _once(find(config.model, config.adapter))
    unknown = _unknown_words(config, found, names)
    workdir.claim(folder, config, found.identity())
    for name, words in unknown.items():
      warnings.warn(f"shift {name!r} is left out: {_said(words)}", Note, stacklevel=2)
    asked = [name for name in names if name not in unknown]
    results = {
      name: evaluate(_of(config, name), folder / name, lambda *_: found, show_tables=False)
      for name in (PLAIN, *asked)
    }
    summed = {"model": found.name, "worlds": _summed(results, config), "left_out": unknown}
    if jax.process_index() == 0:
      _write(folder, summed)
  return summed


def _once(found: loading.Found) -> loading.Found:
  """The same, loaded and hashed once for all worlds."""
  return dataclasses.replace(
    found, load=functools.cache(found.load), identity=functools.cache(found.identity)
  )


def _of(config: EvaluateConfig, name: str) -> EvaluateConfig:
  shift = "" if name == PLAIN else name
  return dataclasses.replace(
    config, name=f"{config.name}-{name}", data=dataclasses.replace(config.data, shift=shift)
  )


def _unknown_words(
  config: EvaluateConfig, found: loading.Found, names: Sequence[str]
) -> dict[str, list[str]]:
  prompter = ProcessorPrompter(load_processor(found.folder, **config.model.tiling))
  unknown = {}
  for name in names:
    if words := beforehand.spelled_out(open_questions(_of(config, name).data), prompter):
      unknown[name] = words
  return unknown


def _said(words: Sequence[str]) -> str:
  return f"the model's tokenizer has no token for {', '.join(words)}"


def _summed(results: Mapping[str, Result], config: EvaluateConfig) -> dict[str, Any]:
  plain, found = results[PLAIN], {}
  for name, result in results.items():
    look = worlds.look("" if name == PLAIN else name)
    found[name] = {
      "differs": look.differs,
      "scores": result.summary["scores"],
      "baselines": result.summary["baselines"],
    }
    if name != PLAIN:
      held = statistics.paired if look.same_scenes else statistics.unpaired
      changes = held(plain.rows, result.rows, resamples=config.score.bootstrap, seed=config.score.seed)
      kept = ("difference", "low", "high")
      found[name] |= {
        "paired": look.same_scenes,
        "changes": {score: {key: change[key] for key in kept} for score, change in changes.items()},
      }
  return found


def _write(folder: pathlib.Path, summed: Mapping[str, Any]) -> None:
  workdir.write_json(folder / JSON, summed)
  left_out = {name: _said(words) for name, words in summed["left_out"].items()}
  table = shift_tables.scores(summed["model"], summed["worlds"], left_out)
  more = shift_tables.changes(summed["worlds"])
  workdir.write_text(folder / TEXT, terminal.plain_text(table, width=190))
  workdir.write_text(folder / MARKDOWN, "\n".join(map(tables.to_markdown, (table, more))))
  workdir.write_text(folder / LATEX, "\n".join(map(tables.to_latex, (table, more))))
  terminal.show(table)
  print(f"the table, changes by kind, and each world's report: {folder}")
