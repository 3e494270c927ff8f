"""Peak memory of loading SmolVLM-500M's shape, in a fresh process.

  python benchmarks/load_memory.py [--dtype=float32] [--stored=float32]

Writes a checkpoint of random weights, loads it in a new process, and prints how far the peak (VmHWM) rose
over what it was before the load, against the limit: 1.3 times the weights in their loaded dtype, plus the
largest tensor of the file.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHAPE = ROOT / "benchmarks" / "smolvlm-500m"


def write_checkpoint(folder: Path, stored: str) -> tuple[int, int]:
  """A checkpoint of the full shape in `folder`: its number of weights, and bytes of its largest tensor."""
  import ml_dtypes
  import numpy as np
  from flax import nnx

  from spatialvlm import hub
  from spatialvlm.hub import rules, tensors
  from spatialvlm.models.vlm import Vlm

  shutil.copy(SHAPE / "config.json", folder)
  config = hub.read_config(folder)
  dtype = np.dtype(ml_dtypes.bfloat16 if stored == "bfloat16" else stored)
  lazy = {}
  abstract = nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0)))
  for index, (parts, variable) in enumerate(nnx.to_flat_state(nnx.state(abstract))):
    path = ".".join(map(str, parts))
    shape = rules.file_shape(variable.shape, path, config.family)

    def make(shape=shape, index=index):
      return (np.random.default_rng(index).standard_normal(shape, np.float32) * 0.02).astype(dtype)

    lazy[rules.to_hf(path, config.family)] = tensors.Lazy(dtype, shape, make)
  tensors.write_sharded(folder, lazy)
  counts = [tensor.count for tensor in lazy.values()]
  return sum(counts) // dtype.itemsize, max(counts)


def load(folder: str, dtype: str) -> None:
  """In the fresh process: prints VmHWM in bytes before and after the load."""
  import jax.numpy as jnp

  from spatialvlm import hub

  jnp.ones(3).block_until_ready()  # the runtime is up before we measure
  before = peak()
  vlm = hub.load_model(folder, dtype=dtype)
  value = float(vlm.decoder.norm.scale[0])
  print(json.dumps({"before": before, "after": peak(), "value": value}))


def peak() -> int:
  (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
  return int(line.split()[1]) * 1024


def measure(dtype: str = "float32", stored: str = "float32") -> dict[str, float]:
  """Writes, loads and reads off; all in bytes."""
  with tempfile.TemporaryDirectory() as folder:
    count, largest = write_checkpoint(Path(folder), stored)
    command = [sys.executable, __file__, f"--dtype={dtype}", f"--folder={folder}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  seen = json.loads(run.stdout.splitlines()[-1])
  weights = count * (2 if dtype == "bfloat16" else 4)
  return {
    "weights": weights,
    "largest": largest,
    "rise": seen["after"] - seen["before"],
    "limit": 1.3 * weights + largest,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--stored", default="float32")
  parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.folder:
    load(args.folder, args.dtype)
    return
  sys.path.insert(0, str(ROOT))
  seen = measure(args.dtype, args.stored)
  print(
    f"{args.stored} file loaded as {args.dtype}: weights {seen['weights'] / 1e6:.0f} MB, largest tensor "
    f"{seen['largest'] / 1e6:.0f} MB, peak rose by {seen['rise'] / 1e6:.0f} MB "
    f"({seen['rise'] / seen['weights']:.2f} of the weights), limit {seen['limit'] / 1e6:.0f} MB"
  )


if __name__ == "__main__":
  main()
