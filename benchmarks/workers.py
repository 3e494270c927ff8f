"""Threads beside processes that make batches: rendered scenes, and JPEG files cut into tiles.

  python benchmarks/workers.py [--seconds=20] [--workers=1,2] [--tiles=13] [--rows=4]

Examples a second of the training stream alone, with nobody training beside it, by a processor and tiles of
SmolVLM's shape (512 pixels). Each way is started anew, makes its first batches unseen (what compiles and
imports), and is then asked for batches for so many seconds; in turns, so that what else the computer does
falls on all.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WARM = 8


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--seconds", type=float, default=20)
  parser.add_argument("--workers", default="1,2", help="numbers of threads and of processes, by commas")
  parser.add_argument("--tiles", type=int, default=13, help="most tiles of a photograph")
  parser.add_argument("--rows", type=int, default=4, help="examples of a batch")
  return parser.parse_args()


def photographs(folder: Path, count: int = 16) -> Path:
  """Files of 640 x 480 and a question to each."""
  import json

  import numpy as np
  from PIL import Image

  rng, lines = np.random.default_rng(0), []
  for number in range(count):
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)).astype(int)
    stream = io.BytesIO()
    noisy = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(stream, "JPEG", quality=90)
    (folder / f"{number}.jpg").write_bytes(stream.getvalue())
    turns = [{"from": "human", "value": "<image>\nWhich box is it?"}, {"from": "gpt", "value": "the red box"}]
    lines.append(json.dumps({"id": str(number), "image": f"{number}.jpg", "conversations": turns}))
  (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
  return folder / "data.jsonl"


def rate(source, tiles: int, folder: Path, args: argparse.Namespace, **how: int) -> float:
  """Examples a second."""
  from spatialvlm.config import DataConfig
  from spatialvlm.data import pipeline
  from spatialvlm.processing.processor import load_processor

  data = DataConfig(sources={"own": source}, lengths=(2048,), tiles=(tiles,), prefetch=4, **how)
  processor = load_processor(folder / "model", max_tiles=tiles)
  stream = pipeline.training_stream(data, processor, args.rows, on_note=str)
  for _ in range(WARM):
    next(stream)
  started, count = time.perf_counter(), 0
  while time.perf_counter() < started + args.seconds:
    next(stream)
    count += args.rows
  found = count / (time.perf_counter() - started)
  stream.close()
  return found


def main() -> None:
  args = arguments()
  sys.path.insert(0, str(ROOT))
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from spatialvlm.config import LlavaConfig, ScenesConfig
  from tests import tiny_processor

  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "model").mkdir()
    tiny_processor.write_processor(folder / "model", tile=512, longest_edge=2048, tokens_per_tile=64)
    sources = {
      "rendered scenes, 1 tile": (ScenesConfig(turns=1), 1),
      f"JPEG files, {args.tiles} tiles": (LlavaConfig(path=str(photographs(folder))), args.tiles),
    }
    print(f"{len(os.sched_getaffinity(0))} core(s), load {os.getloadavg()[0]:.1f}, {args.rows} rows a batch")
    print("\n| examples/s | workers | threads | processes |\n|---|---:|---:|---:|")
    for what, (source, tiles) in sources.items():
      for workers in map(int, args.workers.split(",")):
        threads = rate(source, tiles, folder, args, workers=workers)
        processes = rate(source, tiles, folder, args, processes=workers)
        print(f"| {what} | {workers} | {threads:.1f} | {processes:.1f} |", flush=True)
  print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
  main()
