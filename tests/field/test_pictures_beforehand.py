"""A picture far down in a benchmark is broken: it is found before the first answer."""

import base64
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from spatialvlm.config import HFConfig, ScenesConfig, ScoreConfig
from spatialvlm.data.sources import registry
from spatialvlm.data.sources.cvbench import write_cvbench
from spatialvlm.evaluation import beforehand
from spatialvlm.evaluation.asking.protocols import ProcessorPrompter
from spatialvlm.processing.images import check_image, open_image
from spatialvlm.processing.processor import load_processor
from spatialvlm.types import UserError
from tests.launch import command

ROWS, BROKEN = 12, (9, 11)


def check(questions, **settings):
  prompter = ProcessorPrompter(load_processor("checkpoints/smolvlm-tiny"))
  beforehand.check(questions, prompter, ScoreConfig(**settings))


def encoded(form="JPEG", **settings):
  pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form, **settings)
  return file.getvalue()


def files(data=None):
  """So many files of pictures, two of them cut short."""
  data = data or encoded()
  return [data[: len(data) // 2] if i in BROKEN else data for i in range(ROWS)]


def rows(cells):
  return [{"question": "Which?", "choices": ["a", "b"], "answer": "a", "image": cell} for cell in cells]


def as_names(folder):
  for i, data in enumerate(files()):
    (folder / f"{i}.jpg").write_bytes(data)
  return [f"{i}.jpg" for i in range(ROWS)]


def as_base64(folder):
  return [base64.b64encode(data).decode() for data in files()]


@pytest.mark.parametrize("kind", [as_names, as_base64])
def test_in_jsonl(tmp_path, kind):
  (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows(kind(tmp_path)))))
  questions = registry.open_questions(HFConfig(path=str(tmp_path), files="q.jsonl"))
  with pytest.raises(UserError, match=r"row 9, column 'image', .*truncated.*with 1 more of the questions"):
    check(questions)
  check(questions, limit=9)


def test_in_parquet(tmp_path):
  table = rows({"bytes": data, "path": None} for data in files(encoded("PNG")))
  pq.write_table(pa.Table.from_pylist(table), tmp_path / "q.parquet")
  with pytest.raises(UserError, match=r"row 9, column 'image', image 0: cannot be read"):
    check(registry.open_questions(HFConfig(path=str(tmp_path))))


def test_a_command_asks_nothing_and_leaves_nothing(tmp_path, capfd):
  scenes = registry.open_questions(ScenesConfig(size=ROWS))
  write_cvbench(tmp_path / "q.parquet", (scenes[i] for i in range(ROWS)))
  table = pq.read_table(tmp_path / "q.parquet")
  image = table.schema.field("image")
  cells = pa.array([{"bytes": data, "path": None} for data in files()], image.type)
  table = table.set_column(table.column_names.index("image"), image, cells)
  pq.write_table(table, tmp_path / "q.parquet")
  done = command.run(
    capfd,
    "evaluate",
    "--config=configs/cvbench.py",
    "--config.model.path=checkpoints/smolvlm-tiny",
    f"--config.data.path={tmp_path}",
    f"--workdir={tmp_path}/run",
  )
  assert done.code == 2 and f"{tmp_path}/q.parquet, row 9, column 'image': cannot be read" in done.err
  assert len(done.err.splitlines()) == 1 and not (tmp_path / "run").exists()


HARM = {
  "whole": lambda data: data,
  "cut": lambda data: data[: len(data) // 2],
  "cut at its end": lambda data: data[:-20],
  "empty": lambda data: b"",
  "no picture": lambda data: b"gone wrong",
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_what_is_found_is_what_opening_finds(form, harm):
  data = HARM[harm](encoded(form))
  assert refused(check_image, data) == refused(open_image, data)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_modes_of_png(mode):
  file = io.BytesIO()
  Image.new(mode, (30, 20)).save(file, "PNG")
  check_image(file.getvalue())
  cut = file.getvalue()[:-20]
  assert refused(check_image, cut) == refused(open_image, cut)


def test_damage_within_a_png():
  data = bytearray(encoded("PNG"))
  data[len(data) // 2] ^= 1
  assert refused(check_image, bytes(data))


@pytest.mark.parametrize("orientation", [None, 1, 3, 6])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_sizes_are_those_of_opened_pictures(form, orientation):
  turned = Image.Exif()
  if orientation:
    turned[ExifTags.Base.Orientation] = orientation
  data = encoded(form, exif=turned)
  assert (
    check_image(data).shape == open_image(data).shape == ((48, 64, 3) if orientation == 6 else (64, 48, 3))
  )


def refused(fn, data):
  try:
    fn(data, "x")
  except UserError:
    return True
  return False
