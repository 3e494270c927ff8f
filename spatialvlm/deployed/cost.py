"""From a model to what its exported files cost, in one folder; what is done already is not done again.

OUT/float-LAYOUT/          the model itself, an evaluation's workdir
OUT/FORM-NUMBERS/files/    exported; beside it its predictions.jsonl and summary.json
OUT/speed.json             times of all of them, taken together
OUT/costs.{json,md,png}    the result
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialvlm import hub, loading, peft, workdir
from spatialvlm.config import EvaluateConfig, ModelConfig, called, read_json
from spatialvlm.core.quantised import weight_bytes
from spatialvlm.data.sources import registry
from spatialvlm.deployed import published, report, scoring, speed
from spatialvlm.deployed.asked import Asker
from spatialvlm.deployed.client import Child
from spatialvlm.deployed.plan import Export, Plan
from spatialvlm.deployed.runtimes import BESIDE, RUNTIMES, layout_of
from spatialvlm.evaluation import records
from spatialvlm.evaluation import run as evaluation
from spatialvlm.evaluation.evaluate import SUMMARY_FILE
from spatialvlm.evaluation.scoring import statistics
from spatialvlm.export import Exportable
from spatialvlm.models.vlm import Vlm
from spatialvlm.processing import layouts
from spatialvlm.processing.processor import Processor, load_processor
from spatialvlm.reporting import tables, terminal
from spatialvlm.types import UserError

COSTS, SPEED, FILES = "costs", "speed.json", "files"
# Most places of a runtime's context; keys and values of more would be most of its memory.
_CONTEXT = 8192


def run(
  config: EvaluateConfig,
  plan: Plan,
  folder: Path,
  find: Callable[[ModelConfig, str | None], loading.Found] = loading.find,
) -> dict[str, Any]:
  """Exports, scores, times, and writes the tables and the picture; returns what `costs.json` holds.

  Raises:
    UserError: settings that cannot be, a model without such a form, a folder of something else, a runtime
      that ends or asks another prompt.
  """
  check(config, plan)
  with workdir.alone(folder):
    return _Run(config, plan, folder, find).result()


def check(config: EvaluateConfig, plan: Plan) -> None:
  """Raises a UserError for settings that cannot work, before anything is loaded or written."""
  evaluation.check(config)
  if len(config.score.protocols) > 1 or config.score.controls:
    raise UserError(
      "config.score: exported files are asked in one pass; name one of score.protocols, and no controls"
    )
  if plan.threads < 1 or plan.repeats < 0 or plan.tokens < 1:
    raise UserError("--threads and --tokens must be at least 1, --repeats at least 0")
  for export in plan.exports:
    layout_of(RUNTIMES[export.form], config.model.layout)


class _Run:
  """One run of the command; what is loaded is loaded once, and only where it is needed."""

  def __init__(self, config: EvaluateConfig, plan: Plan, folder: Path, find: Callable[..., loading.Found]):
    self._config, self._plan, self._folder, self._find = config, plan, folder, find
    self._model = find(config.model, config.adapter)
    self._sees = hub.read_config(self._model.folder).vision is not None
    for layout in self._layouts():  # before anything is written
      Asker(self._processor(layout), config.score.protocols[0])
    self._questions = registry.open_questions(config.data)
    if not len(self._questions):
      raise UserError(f"{called(config.data)}: holds no questions; look at data.path and data.tasks")
    self._count = min(len(self._questions), config.score.limit or len(self._questions))

  def result(self) -> dict[str, Any]:
    identity = self._model.identity() | evaluation.identity(self._questions)
    workdir.claim(self._folder, self._config, identity)
    floats = {layout: self._float(layout) for layout in self._layouts()}
    for export in self._wanted():
      self._export(export)
    self.__dict__.pop("_vlm", None)  # runtimes need the memory
    rows = {export: self._score(export) for export in self._plan.exports}
    times = self._times()
    found = self._found(floats, rows, times)
    _write(found, self._folder)
    return found

  # The model, and its files.

  def _layouts(self) -> tuple[str, ...]:
    found = [self._layout(export) for export in self._plan.exports]
    return tuple(dict.fromkeys(found))

  def _layout(self, export: Export) -> str:
    if not self._sees:
      return layouts.OWN
    if export not in self._plan.exports:  # what the others are timed beside, on the same prompt
      return self._layout(self._plan.exports[0])
    return layout_of(RUNTIMES[export.form], self._config.model.layout)

  def _wanted(self) -> tuple[Export, ...]:
    """What is scored, and what it is timed beside where that can run here."""
    beside = Export(BESIDE, "")
    extra = self._plan.repeats and beside not in self._plan.exports and not RUNTIMES[BESIDE].missing()
    return (*self._plan.exports, beside) if extra else self._plan.exports

  @functools.cached_property
  def _vlm(self) -> Vlm:
    return self._model.load(None)

  def _settings(self, layout: str) -> ModelConfig:
    return dataclasses.replace(self._config.model, layout=layout)

  def _processor(self, layout: str) -> Processor:
    return load_processor(self._model.folder, **self._settings(layout).tiling)

  def _export(self, export: Export) -> None:
    folder = self._folder / export.name
    if (folder / FILES).exists():
      return
    print(f"exports {export.name}", flush=True)
    with workdir.writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
    model = Exportable(self._vlm, self._model.base, self._model.folder, self._config.model)
    RUNTIMES[export.form].write(model, export.numbers, folder / FILES)
    workdir.write_json(self._folder / "float.json", {"bytes": weight_bytes(peft.merge(self._vlm))[1]})

  # Answers.

  def _float(self, layout: str) -> list[records.Prediction]:
    """The model itself, in the layout that the files are asked in."""
    config, most = self._config, self._processor(layout).tiler.most_tiles if self._sees else 1
    tiles = tuple(sorted({*config.score.tiles, most}))
    config = dataclasses.replace(
      config, model=self._settings(layout), score=dataclasses.replace(config.score, tiles=tiles)
    )
    folder = self._folder / f"float-{layout}"
    return list(evaluation.run(config, folder, self._find, show_tables=False).rows)

  def _score(self, export: Export) -> list[records.Prediction]:
    folder = self._folder / export.name
    if scoring.is_scored(folder):
      return records.read(folder)
    form = RUNTIMES[export.form]
    processor = self._processor(self._layout(export))
    context = min(processor.max_length, _CONTEXT)
    with tempfile.TemporaryDirectory() as scratch, terminal.progress(f"asks {export.name}") as show:
      asker = self._asker(export, processor, scratch)
      with Child(form.module, folder / FILES, self._runtime_settings(context)) as child:
        questions = self._questions
        return scoring.score(questions, self._count, asker, child, self._config.score, folder, show)

  def _asker(self, export: Export, processor: Processor, scratch: str) -> Asker:
    arrays = Path(scratch) / "arrays.npz" if RUNTIMES[export.form].takes_arrays else None
    return Asker(processor, self._config.score.protocols[0], arrays)

  def _runtime_settings(self, context: int) -> dict[str, Any]:
    vocabulary = hub.read_config(self._model.folder).text.vocab_size
    return {"threads": self._plan.threads, "context": context, "vocabulary": vocabulary}

  # Times.

  def _times(self) -> dict[str, Any]:
    """Of all files one after the other, so that they are comparable; kept as long as these are the same."""
    plan, wanted = self._plan, self._wanted()
    if not plan.repeats:
      return {"rows": {}}
    said = {
      "names": [export.name for export in wanted],
      "machine": speed.machine(plan.threads),
      "repeats": plan.repeats,
      "tokens": plan.tokens,
    }
    file = self._folder / SPEED
    if file.exists() and said.items() <= (kept := read_json(file)).items():
      return kept
    (question,) = registry.read(self._questions, [0])
    rows = {}
    for export in wanted:
      print(f"times {export.name}", flush=True)
      processor, form = self._processor(self._layout(export)), RUNTIMES[export.form]
      with tempfile.TemporaryDirectory() as scratch:
        asked = self._asker(export, processor, scratch)(question)
        context = min(processor.max_length, -(-(asked.tokens + plan.tokens + 1) // 256) * 256)
        settings, files = self._runtime_settings(context), self._folder / export.name / FILES
        rows[export.name] = speed.measure(form.module, files, settings, asked, plan.repeats, plan.tokens)
        rows[export.name]["prompt"] = asked.given["prompt"]
    found = {**said, "measured": time.strftime("%Y-%m-%d %H:%M"), "rows": rows}
    workdir.write_json(file, found)
    return found

  # Together.

  def _found(
    self,
    floats: Mapping[str, list[records.Prediction]],
    answered: Mapping[Export, list[records.Prediction]],
    times: Mapping[str, Any],
  ) -> dict[str, Any]:
    rows, config = [], self._config
    for layout in floats:
      summary = read_json(self._folder / f"float-{layout}" / SUMMARY_FILE)
      own = f", layout {layout}" if len(floats) > 1 else ""
      rows.append(_row(f"{config.model.dtype}{own}", "this library", self._float_bytes(), summary["scores"]))
    for export in self._wanted():
      folder, form = self._folder / export.name, RUNTIMES[export.form]
      scores = changes = same = None
      if export in answered:
        before, after = floats[self._layout(export)], answered[export]
        scores = read_json(folder / SUMMARY_FILE)["scores"]
        changes = statistics.paired(before, after, resamples=config.score.bootstrap, seed=config.score.seed)
        chosen = {row.idx: row.choice for row in before}
        same = sum(row.choice == chosen[row.idx] for row in after) / len(after)
      size = sum(file.stat().st_size for file in _weights((folder / FILES).rglob("*")))
      measured = times["rows"].get(export.name)
      rows.append(_row(export.name, form.runtime, size, scores, changes, same, measured))
    title = f"{self._model.name} on {called(config.data)}, protocol {config.score.protocols[0]}"
    named = ("machine", "measured", "repeats", "tokens")
    return {
      "title": title,
      **{name: times.get(name) for name in named},
      "rows": rows,
      "notes": _served_otherwise(times["rows"]),
    }

  def _float_bytes(self) -> int | None:
    file = self._folder / "float.json"
    return read_json(file)["bytes"] if file.exists() else None


def _weights(files: Iterable[Path]) -> Iterable[Path]:
  """Those that a device must hold; a tokenizer's files beside them are small."""
  return (file for file in files if file.suffix.startswith((".gguf", ".safetensors", ".onnx")))


def _row(
  name: str,
  runtime: str,
  size: int | None,
  scores: Mapping[str, Any] | None,
  changes: Mapping[str, Any] | None = None,
  same: float | None = None,
  measured: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  return {
    "name": name, "runtime": runtime, "bytes": size, "scores": scores, "changes": changes, "same": same,
    "speed": measured,
  }  # fmt: skip


def _served_otherwise(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Of each runtime whose own chat template makes another prompt than that which was asked."""
  return [
    f"{name}: its chat template makes {row['served']!r} in the server, and {row['prompt']!r} was asked"
    for name, row in rows.items()
    if row["served"] is not None and row["served"] != row["prompt"]
  ]


def _write(found: Mapping[str, Any], folder: Path) -> None:
  shown: Sequence[tables.Table] = [report.accuracy(found)]
  if any(row["speed"] for row in found["rows"]):
    shown = [*shown, report.cost(found), published.table()]
  workdir.write_json(folder / f"{COSTS}.json", found)
  notes = [f"Note: {note}\n" for note in found["notes"]]
  workdir.write_text(folder / f"{COSTS}.md", "\n".join([*map(tables.to_markdown, shown), *notes]))
  with workdir.writing(folder / f"{COSTS}.png"):
    report.plot(found, folder / f"{COSTS}.png")
  for table in shown[:2]:
    terminal.show(table)
  for note in found["notes"]:
    print(f"note: {note}")
  print(f"tables, picture, files and every answer: {folder}")
