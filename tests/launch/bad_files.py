"""Files as users bring them: checkpoints, images and tables, good and broken in one way each."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WEIGHTS = "model.safetensors"


def edit_json(file: Path, **changes: Any) -> None:
  """Sets keys of a JSON object; a mapping changes the nested object of that key."""
  value = json.loads(file.read_text())
  for key, change in changes.items():
    value[key] = {**value[key], **change} if isinstance(change, Mapping) else change
  file.write_text(json.dumps(value))


def cut(file: Path, size: int) -> None:
  file.write_bytes(file.read_bytes()[:size])


def write_talk(file: Path, count: int, answer: str = "A", image: str | None = None) -> Path:
  """Conversations of one turn each, in LLaVA's schema."""
  said = [{"from": "human", "value": "Which is closer?"}, {"from": "gpt", "value": answer}]
  record = {"conversations": said} | ({"image": image} if image else {})
  file.write_text("".join(json.dumps(record | {"id": str(i)}) + "\n" for i in range(count)))
  return file


def with_header(header: bytes) -> bytes:
  return struct.pack("<Q", len(header)) + header + bytes(64)


def broken_copy(source: Path, target: Path, harm: Callable[[Path], Any]) -> Path:
  shutil.copytree(source, target)
  harm(target)
  return target


def _index(folder: Path, weight_map: Any) -> None:
  (folder / WEIGHTS).unlink()
  (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


# What is done to a good checkpoint, and what the one line must say.
CHECKPOINTS: dict[str, tuple[Callable[[Path], Any], str]] = {
  "no weights": (lambda f: (f / WEIGHTS).unlink(), r"no weights \(neither model\.safetensors nor"),
  "truncated": (
    lambda f: cut(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 64),
    r"truncated.*download it again",
  ),
  "cut in the header": (lambda f: cut(f / WEIGHTS, 300), "truncated inside its header; download it again"),
  "empty weights": (lambda f: cut(f / WEIGHTS, 0), "truncated to 0 bytes.*download it again"),
  "only a pickle": (
    lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
    r"only pickle files \(pytorch_model\.bin\).*can run code.*convert them to safetensors",
  ),
  "a pickle by another name": (
    lambda f: (f / WEIGHTS).write_bytes(pickle.dumps(np.zeros(999))),
    "not a safetensors file",
  ),
  "a header that is none": (lambda f: (f / WEIGHTS).write_bytes(with_header(b"[1]")), "no JSON object"),
  "a damaged header": (
    lambda f: (f / WEIGHTS).write_bytes(with_header(b'{"x": {"dtype": "F32", "shape": [1]}}')),
    "entry of tensor x is damaged",
  ),
  "a shard is missing": (lambda f: _index(f, {"x": "a.safetensors"}), r"shards that are not there: a\.saf"),
  "a damaged index": (lambda f: _index(f, ["x"]), "no weight_map of tensor names"),
  "wrong shapes": (
    lambda f: edit_json(f / "config.json", text_config={"intermediate_size": 40}),
    r"3 tensor\(s\) do not fit config\.json: .*shape \[24, 32\], wanted \[24, 40\]",
  ),
  "unknown architecture": (
    lambda f: edit_json(f / "config.json", model_type="llava"),
    "config.json: unknown architecture 'llava'; supported: gemma, gemma2, idefics3, internvl, llama",
  ),
  "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: missing"),
  "a config that is no JSON": (
    lambda f: cut(f / "config.json", 9),
    r"config\.json: (cannot be read|not valid)",
  ),
  "a setting of the wrong type": (
    lambda f: edit_json(f / "config.json", text_config={"hidden_size": "many"}),
    r"text_config\.hidden_size: expected a whole number of at least 1, got 'many'",
  ),
  "a group that is none": (lambda f: edit_json(f / "config.json", vision_config=[1]), "expected an object"),
  "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json; copy the base model's"),
  "a broken tokenizer": (lambda f: cut(f / "tokenizer.json", 9), "cannot be read as a tokenizer"),
  "no image settings": (
    lambda f: (f / "preprocessor_config.json").unlink(),
    r"no preprocessor_config\.json; copy the base model's",
  ),
}

# The same of a good adapter.
ADAPTERS: dict[str, tuple[Callable[[Path], Any], str]] = {
  "no settings": (lambda f: (f / "adapter_config.json").unlink(), r"adapter_config\.json: missing"),
  "truncated": (lambda f: cut(f / "adapter_model.safetensors", 1500), "truncated.*download it again"),
  "a pickle": (
    lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
    r"adapter_model\.bin is a pickle.*safe_serialization=True",
  ),
  "unknown to the table": (
    lambda f: edit_json(f / "adapter_config.json", peft_type="BOFT"),
    "'BOFT' is not supported",
  ),
  "another rank": (
    lambda f: edit_json(f / "adapter_config.json", r=3),
    r"tensor\(s\) do not fit the model: .*shape \[2, 24\], wanted \[3, 24\]",
  ),
  "no regex": (
    lambda f: edit_json(f / "adapter_config.json", target_modules="*("),
    "not a regular expression",
  ),
  "a rank that is none": (
    lambda f: edit_json(f / "adapter_config.json", rank_pattern=["q"]),
    r"rank_pattern is \['q'\]",
  ),
}


def pixels(height: int = 24, width: int = 36) -> np.ndarray:
  """Smooth colours, so that lossy formats stay near them; no two corners alike."""
  y, x = np.mgrid[0:height, 0:width].astype(np.float64)
  return np.stack([250 * x / width, 250 * y / height, 250 - 200 * x / width], -1).astype(np.uint8)


def write_readable_images(folder: Path) -> dict[str, np.ndarray]:
  """Images of every kind that must be read rightly; returns their RGB pixels by file name."""
  folder.mkdir()
  rgb, grey = pixels(), pixels()[..., 1]
  image = Image.fromarray(rgb)
  palette = image.quantize(64)
  alpha = np.full(grey.shape, 255, np.uint8)
  alpha[:8] = 0
  seen = rgb.copy()
  seen[:8] = 255  # what is transparent lies on white
  turned = Image.Exif()
  turned[0x112] = 6  # the camera lay on its right side
  image.save(folder / "rgb.png")
  image.crop((0, 0, 1, 1)).save(folder / "one.png")
  image.convert("CMYK").save(folder / "cmyk.jpg", quality=98, subsampling=0)
  palette.save(folder / "palette.png")
  Image.fromarray(np.dstack([rgb, alpha])).save(folder / "rgba.png")
  Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
  Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.tif")
  Image.fromarray(grey > 120).save(folder / "bits.png")
  image.save(folder / "turned.jpg", quality=98, subsampling=0, exif=turned)
  three = lambda plane: np.repeat(plane[..., None], 3, axis=-1)
  return {
    "rgb.png": rgb,
    "one.png": rgb[:1, :1],
    "cmyk.jpg": rgb,
    "palette.png": np.array(palette.convert("RGB")),
    "rgba.png": seen,
    "deep.png": three(grey),
    "deep.tif": three(grey),
    "bits.png": three(np.where(grey > 120, 255, 0).astype(np.uint8)),
    "turned.jpg": np.rot90(rgb, -1),
  }


def png_of(width: int, height: int) -> bytes:
  """A PNG that claims to be of this size and holds next to nothing."""
  chunk = lambda kind, data: (
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  )
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(bytes(999)))
    + chunk(b"IEND", b"")
  )


def write_unreadable_images(folder: Path) -> dict[str, str]:
  """Images that must be refused; returns what the one line must say by file name."""
  folder.mkdir()
  good = folder / "good.png"
  Image.fromarray(pixels()).save(good)
  (folder / "empty.png").write_bytes(b"")
  (folder / "half.png").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
  (folder / "text.png").write_text("no image at all")
  (folder / "bomb.png").write_bytes(png_of(60_000, 60_000))
  (folder / "large.png").write_bytes(png_of(10_000, 10_000))
  return {
    "empty.png": "the image file is empty",
    "half.png": "is it corrupt or truncated",
    "text.png": "its format is not known",
    "bomb.png": "too large to open safely .*3600000000 pixels.*scale it down first",
    "large.png": "is it corrupt or truncated",
    "absent.png": "no such image file|no image .*absent",
  }


def write_table(path: Path, source: Path, row: int = 0, **changes: Any) -> Path:
  """The parquet of `source` with one row changed."""
  table = pq.read_table(source)
  rows = table.to_pylist()
  rows[row] |= changes
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
  return path
