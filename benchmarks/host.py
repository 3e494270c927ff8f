"""From a picture's file to what goes to the device, on one core: this project beside transformers.

  taskset -c 0 python benchmarks/host.py [--size=640x480] [--tile=512] [--edge=2048] [--repeats=15]

Milliseconds, by the clock and of processor time, the least of all repeats, of a JPEG in memory (a smooth
scene with fine noise, quality 90): read by `processing.images.open_image`, cut by the tiler of SmolVLM, as 8
bits (what this project sends to devices, which normalise there), and as normalised float32. In the same run
transformers' own image processor for Pillow, which gives float32, and the one for torchvision where that is
installed; their pixels are held against ours. Then how many pictures a second threads and processes of this
project cut, on the cores that this process may use.
"""

import argparse
import dataclasses
import io
import multiprocessing
import os
import sys
import time
from concurrent import futures
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--size", default="640x480", help="width and height of the picture")
  parser.add_argument("--tile", type=int, default=512)
  parser.add_argument("--edge", type=int, default=2048, help="longest edge of the first resize")
  parser.add_argument("--repeats", type=int, default=15)
  parser.add_argument("--workers", default="1,2", help="numbers of threads and of processes, by commas")
  parser.add_argument("--peer", type=int, default=1, help="0: without transformers")
  return parser.parse_args()


def jpeg(width: int, height: int) -> bytes:
  """A picture's file."""
  import numpy as np
  from PIL import Image

  rng = np.random.default_rng(0)
  coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
  smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
  pixels = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, "JPEG", quality=90)
  return stream.getvalue()


def timed(call, repeats: int) -> tuple[float, float]:
  """The least milliseconds by the clock, and of processor time, in which others' work does not count."""
  call()
  found = []
  for _ in range(repeats):
    started = time.perf_counter(), time.process_time()
    call()
    found.append((time.perf_counter() - started[0], time.process_time() - started[1]))
  wall, cpu = (1e3 * min(values) for values in zip(*found, strict=True))
  return wall, cpu


def theirs(kind: str, args: argparse.Namespace):
  """transformers' image processor of SmolVLM, or why there is none."""
  try:
    if kind == "Pillow":
      from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil as Kind
    else:
      import torchvision  # noqa: F401
      from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor as Kind
  except ImportError as error:
    return f"not installed ({error})"
  return Kind(size={"longest_edge": args.edge}, max_image_size={"longest_edge": args.tile})


def cut(file: bytes, tile: int, edge: int) -> int:
  """Tiles of a file, in a worker."""
  from spatialvlm.processing.images import open_image
  from spatialvlm.processing.tilers import Idefics3Tiler

  return len(Idefics3Tiler(tile_size=tile, longest_edge=edge)(open_image(file)).pixels)


def rate(pool, workers: int, file: bytes, args: argparse.Namespace) -> float:
  """Pictures a second."""
  count = 12 * workers
  with pool(workers) as running:
    ask = lambda number: [running.submit(cut, file, args.tile, args.edge) for _ in range(number)]
    for future in ask(8 * workers):  # what imports and starts is not counted
      future.result()
    started = time.perf_counter()
    for future in ask(count):
      future.result()
    return count / (time.perf_counter() - started)


def main() -> None:
  args = arguments()
  sys.path.insert(0, str(ROOT))
  os.environ.setdefault("OMP_NUM_THREADS", "1")
  import numpy as np
  import PIL
  from PIL import Image

  from spatialvlm.processing import resizes
  from spatialvlm.processing.images import open_image
  from spatialvlm.processing.tilers import Idefics3Tiler

  width, height = map(int, args.size.split("x"))
  file, tiler = jpeg(width, height), Idefics3Tiler(tile_size=args.tile, longest_edge=args.edge)
  tiles = tiler(open_image(file)).pixels
  print(f"{width}x{height}, {len(file):,} bytes of JPEG, {len(tiles)} tiles of {args.tile};")
  print(f"Pillow {PIL.__version__}, {len(os.sched_getaffinity(0))} core(s), load {os.getloadavg()[0]:.1f}")
  print(f"\n| work | best of {args.repeats}, ms | processor time, ms | pixels |\n|---|---:|---:|---|")

  def row(name: str, call, says: str = "") -> None:
    wall, cpu = timed(call, args.repeats)
    print(f"| {name} | {wall:.1f} | {cpu:.1f} | {says} |", flush=True)

  pixels = open_image(file)
  row("ours, decode", lambda: open_image(file))
  least, resizes.LEAST = resizes.LEAST, 2**62
  row("ours, tiles of decoded pixels, by Pillow (the first of every shape)", lambda: tiler(pixels))
  resizes.LEAST = least
  started = time.perf_counter()
  found = [tiler(pixels).pixels for _ in range(resizes.BY_PILLOW + 2)][-1]
  said = "ours by Pillow, bit for bit" if np.array_equal(found, tiles) else "NOT those of Pillow"
  print(f"| (compiling, once) | {1e3 * (time.perf_counter() - started):.0f} | | |")
  row("ours, tiles of decoded pixels, by XLA", lambda: tiler(pixels), said)
  row("ours, file to 8 bits (as runs send them)", lambda: tiler(open_image(file)))
  fast = dataclasses.replace(tiler, direct=True)
  other = [fast(pixels).pixels for _ in range(resizes.BY_PILLOW + 2)][-1].astype(int) - tiles
  said = f"{(other != 0).mean():.1%} differ, by {np.abs(other).mean():.2f} of 255 on average"
  said += f" ({np.abs(other[-1]).mean():.2f} in the global view), {np.abs(other).max()} at most"
  row("ours, file to 8 bits, model.pixels=fast", lambda: fast(open_image(file)), said)
  row("ours, file to float32", lambda: tiler.normalise(tiler(open_image(file)).pixels))
  for kind in ("Pillow", "torchvision") if args.peer else ():
    processor = theirs(kind, args)
    if isinstance(processor, str):
      print(f"| transformers, {kind} | | | {processor} |")
      continue
    call = lambda p=processor: p(Image.open(io.BytesIO(file)), return_tensors="np")["pixel_values"]
    found = call()[0].transpose(0, 2, 3, 1)
    off = np.abs(found - tiler.normalise(tiles)) / 2 * 255
    said = f"{(off > 0.5).mean():.1%} differ from ours, by {off.max():.0f} of 255 at most"
    row(f"transformers, {kind}, file to float32", call, said if off.any() else "ours, bit for bit")
  fresh = multiprocessing.get_context("spawn")  # JAX has threads, which no fork may copy
  processes = lambda workers: futures.ProcessPoolExecutor(workers, mp_context=fresh)
  print("\n| workers | threads, pictures/s | processes, pictures/s |\n|---:|---:|---:|")
  for workers in map(int, args.workers.split(",")):
    found = [rate(pool, workers, file, args) for pool in (futures.ThreadPoolExecutor, processes)]
    print(f"| {workers} | {found[0]:.1f} | {found[1]:.1f} |", flush=True)
  print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
  main()
