"""Questions about rooms as files: parquet in CV-Bench's schema with depth and cameras; a card."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spatialvlm.config import RoomFilesConfig, fingerprint, read_json, to_dict
from spatialvlm.data.sources import rooms
from spatialvlm.data.sources.cvbench_files import write_cvbench
from spatialvlm.types import Question, UserError
from spatialvlm.worlds.rooms.questions.sequence import Described, RoomQuestions

SETTINGS = "settings.json"
_TILE, _ACROSS = 192, 6
# Of a 16-bit PNG of millimetres.
_MOST_MM = 65535


def write(folder: str | Path, config: RoomFilesConfig, say: Callable[[str], None] = print) -> dict[str, int]:
  """Writes what a folder lacks of a data set; returns how many questions of each task it holds.

  The same command goes on where it was interrupted: a file is there whole or not at all.

  Raises:
    UserError: a setting out of range, or a folder that holds something else.
  """
  folder = Path(folder).expanduser()
  questions = _checked(config)
  _claim(folder, config)
  count, shards = config.source.size, -(-config.source.size // config.shard)
  for number in range(shards):
    path = folder / f"{config.split}-{number:05d}-of-{shards:05d}.parquet"
    if path.exists():
      say(f"{path}: is there")
      continue
    first = number * config.shard
    _shard(path, questions, range(first, min(first + config.shard, count)))
    say(f"{path}: {min(config.shard, count - first)} questions")
  tasks = collections.Counter(questions.kind_of(i) for i in range(count))
  _whole(
    folder / "contact_sheet.png", lambda part: _sheet(questions, min(config.sheet, count)).save(part, "PNG")
  )
  _whole(folder / "README.md", lambda part: part.write_text(_card(config, tasks), encoding="utf-8"))
  return dict(tasks)


def _checked(config: RoomFilesConfig) -> RoomQuestions:
  for name, least in (("source.size", config.source.size), ("shard", config.shard), ("sheet", config.sheet)):
    if least < 1:
      raise UserError(f"config.{name}: {least}; name at least 1")
  if config.split not in ("train", "test"):
    raise UserError(f"config.split: {config.split!r}; known: train, test")
  if config.source.weight != 1:
    raise UserError(
      f"config.source.weight: {config.source.weight:g}: files hold one source alone; leave it out"
    )
  return rooms.questions(config.source)


def _claim(folder: Path, config: RoomFilesConfig) -> None:
  """Says in the folder whose it is, or that what is there is of the same settings."""
  settings = folder / SETTINGS
  said = {"fingerprint": fingerprint(config), "config": to_dict(config)}
  if settings.exists():
    if read_json(settings).get("fingerprint") != said["fingerprint"]:
      raise UserError(f"{folder}: holds a data set of other settings ({SETTINGS}); name another --out")
    return
  if folder.is_dir() and any(folder.iterdir()):
    raise UserError(f"{folder}: is not empty, and no data set of this command; name another --out")
  folder.mkdir(parents=True, exist_ok=True)
  _whole(settings, lambda part: part.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8"))


def _whole(path: Path, make: Callable[[Path], Any]) -> None:
  """A file that is there whole or not at all."""
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  try:
    make(part)
    os.replace(part, path)
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error.strerror or error}); is the disk full?") from error
  finally:
    part.unlink(missing_ok=True)


def _shard(path: Path, questions: RoomQuestions, indices: range) -> None:
  from datasets import Image as Picture
  from datasets import List, Value

  text, numbers = Value("string"), List(Value("float32"))
  columns = {"depth": Picture(), "intrinsics": numbers, "pose": numbers, "reason": text, "words": text}
  made: dict[int, Described] = {}

  def each() -> Iterator[Question]:
    for index in indices:
      made[index] = found = questions.described(index)
      yield found.question

  write_cvbench(path, each(), columns=columns, beside=lambda question: _beside(made.pop(question.idx)))


def _beside(found: Described) -> dict[str, Any]:
  """The further columns: depth in millimetres, 0 for unknown; the camera; the answer in words."""
  frame = found.frame
  buffer = io.BytesIO()
  millimetres = np.round(frame.depth * 1000.0)
  millimetres = np.where(millimetres > _MOST_MM, 0, millimetres).astype(np.uint16)
  Image.fromarray(millimetres).save(buffer, "PNG")
  return {
    "depth": {"bytes": buffer.getvalue(), "path": None},
    "intrinsics": frame.intrinsics.ravel().tolist(),
    "pose": frame.pose.ravel().tolist(),
    "reason": found.reason,
    "words": found.words,
  }


def _sheet(questions: RoomQuestions, count: int) -> Image.Image:
  rows = -(-count // _ACROSS)
  sheet = Image.new("RGB", (_ACROSS * _TILE, rows * _TILE), "white")
  for k in range(count):
    image = Image.fromarray(questions[k].images[0]).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
    sheet.paste(image, (k % _ACROSS * _TILE, k // _ACROSS * _TILE))
  return sheet


def _card(config: RoomFilesConfig, tasks: collections.Counter) -> str:
  source = config.source
  rows = "\n".join(f"| {task} | {count:,} |" for task, count in tasks.items())
  settings = dataclasses.asdict(source)
  said = ", ".join(f"{name} {settings[name]}" for name in ("seed", "image_size", "difficulty"))
  return f"""---
license: apache-2.0
task_categories: [visual-question-answering]
tags: [synthetic, spatial, depth]
---

# {config.name}

{sum(tasks.values()):,} multiple-choice questions about rendered rooms and streets, made by spatialvlm
(`launch/scenes.py`; {said}). No picture of it is a photograph, nobody is shown, and every answer follows
from the scene's geometry.

![Contact sheet](contact_sheet.png)

| task | questions |
|---|---:|
{rows}

`{config.split}-*.parquet` have CV-Bench's columns (idx, type, task, image, question, choices, answer, prompt,
filename, source, source_dataset, source_filename, target_class, target_size, bbox as x0 y0 x1 y1 in pixels):

| column | what |
|---|---|
| depth | 16-bit PNG: millimetres along the optical axis, 0 for sky and beyond 65.5 m |
| intrinsics | 3 x 3 row by row, pixels |
| pose | 4 x 4 row by row, camera (x right, y down, z forward) to world (z up), metres |
| reason, words | why the answer is right, in a sentence, and the answer without options |

Questions come in groups of one text in which each option is right once, and in which the simple rules of
two dimensions (lower edge, bigger box, distance from the middle, nearer in the picture) say the same: text
and rules are right as often as guessing. Keep groups together when you split, and do not score a model on
the seed that it was trained on.
"""
