"""Training steps with and without packing, in turn, in one run, on a length mix in LLaVA's manner.

  python benchmarks/packing.py [--threads=2] [--batch=8] [--batches=6] [--layers=4] [--width=576]

The mix is drawn, by the kinds of conversation that LLaVA-1.5 (arXiv 2310.03744) was tuned on: instructions,
several short questions on a picture, regions, single short questions, and long texts without a picture. The
model is a decoder of SmolVLM-256M's width, cut to `--layers`, drawn at random, in float32, with LoRA (rank 8)
on all its linear layers; features of pictures are known, as where a frozen vision tower has seen them before
(64 image tokens each). Both sides take the same conversations, in the buckets of `DataConfig`;
the first step of each shape is made once untimed. Prints each batch's shapes, seconds and losses, then the
examples per second of both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHAPE = ROOT / "benchmarks" / "smolvlm-500m"
IMAGE_TOKENS = 64
# Share of the mix, median tokens of text and deviation of their logarithm, share of learned tokens, pictures.
MIX = (
  (0.24, 220, 0.4, 0.7, 1),
  (0.35, 130, 0.5, 0.2, 1),
  (0.20, 220, 0.4, 0.3, 1),
  (0.15, 50, 0.3, 0.4, 1),
  (0.06, 800, 0.7, 0.6, 0),
)


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--batch", type=int, default=8, help="conversations of a step")
  parser.add_argument("--batches", type=int, default=6)
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--width", type=int, default=576, help="a multiple of 192")
  parser.add_argument("--dry", action="store_true", help="shapes and fill alone, of 20 times as many batches")
  return parser.parse_args()


def limit_threads(count: int) -> None:
  """XLA's thread pool takes its size from the cores that this process may use."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
  os.environ.setdefault("JAX_PLATFORMS", "cpu")


def model_config(layers: int, width: int):
  from spatialvlm.models.families import FAMILIES

  source = json.loads((SHAPE / "config.json").read_text())
  heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 192, "head_dim": 64}
  source["text_config"] |= heads | {
    "hidden_size": width,
    "intermediate_size": width * 8 // 3,
    "num_hidden_layers": layers,
  }
  source["vision_config"] |= {"num_hidden_layers": 1}  # it does not run
  return FAMILIES["smolvlm"].parse_config(source, dtype="float32", where=str(SHAPE))


def conversations(rng, count: int, longest: int):
  """Conversations of the mix; a picture's only pixel is its number."""
  import numpy as np

  from spatialvlm.processing.processor import Encoded

  found = []
  for kind in rng.choice(len(MIX), count, p=[share for share, *_ in MIX]):
    _, median, spread, learned, pictures = MIX[kind]
    text = int(np.clip(rng.lognormal(np.log(median), spread), 16, longest - IMAGE_TOKENS * pictures))
    image = np.arange(IMAGE_TOKENS * pictures)
    tokens = rng.integers(3, 49_000, len(image) + text).astype(np.int32)
    tokens[1 : 1 + len(image)] = 49_190
    slots = np.full(len(tokens), -1, np.int32)
    slots[1 : 1 + len(image)] = image
    found.append(
      Encoded(
        tokens=tokens,
        loss_mask=np.arange(len(tokens)) >= len(tokens) - max(1, int(learned * text)),
        image_slot=slots,
        tiles=rng.integers(0, 256, (pictures, 1, 1, 3)).astype(np.uint8),
      )
    )
  return found


def both(encoded, config):
  """{"unpacked", "packed": (batch, bucket, positions)} of the same conversations."""
  import numpy as np

  from spatialvlm.data import batch as batches

  sizes = {"lengths": config.lengths, "tiles": config.tiles, "targets": config.targets}
  rows, packed, _ = batches.packed_of(encoded, **sizes, tokens_per_tile=IMAGE_TOKENS)
  shown = {"unpacked": (encoded, batches.bucket_of(encoded, **sizes)), "packed": (rows, packed)}
  found = {}
  for name, (held, bucket) in shown.items():
    batch = batches.collate(held, **bucket._asdict(), pad_id=2, batch_size=len(encoded))
    found[name] = batch, bucket, int(np.prod(batch.tokens_BT.shape))
  return found


def with_features(batch, width: int):
  """Features in the place of pixels: 256 kinds of picture."""
  import numpy as np

  if batch.pixels_NHWC is None:
    return batch
  table = np.random.default_rng(0).normal(size=(256, IMAGE_TOKENS, width)).astype(np.float32)
  return dataclasses.replace(
    batch, pixels_NHWC=None, normal=None, features_NPD=table[batch.pixels_NHWC[:, 0, 0, 0]]
  )


class Side:
  """A model that takes steps in one way; both begin alike."""

  def __init__(self, layers: int, width: int):
    import jax
    import optax
    from flax import nnx

    from spatialvlm import peft
    from spatialvlm.config import MeshConfig, PeftConfig
    from spatialvlm.core.axes import make_mesh
    from spatialvlm.models.vlm import Vlm
    from spatialvlm.training import objectives, state, step

    self.mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    config = peft.completed(PeftConfig(target=r".*text_model.*_proj", options={"rank": 8}))
    vlm = peft.apply(Vlm(model_config(layers, width), rngs=nnx.Rngs(0)), config)
    split = state.Split(vlm, peft.trainable_filter(vlm, config), self.mesh)
    tx = optax.adamw(1e-4)
    self.state = state.init_state(split.params, tx, ema=False, mesh=self.mesh)
    self.frozen = split.frozen
    run = step.make_train_step(split, tx, {"answer": (1.0, objectives.Answer())})
    shardings = step.state_shardings(self.state), None
    self.programs = step.Programs(run, self.mesh, donate=False, out_shardings=shardings)

  def __call__(self, batch) -> tuple[float, float]:
    """(seconds, loss) of a step; the first of each shape is made twice, and its result once thrown away."""
    import jax

    from spatialvlm.training import step

    batch = step.to_devices(batch, self.mesh)
    program, fresh = self.programs.get(self.state, self.frozen, batch)
    if fresh:
      jax.block_until_ready(program.run(self.state, self.frozen, batch))
    started = time.perf_counter()
    self.state, metrics = jax.block_until_ready(program.run(self.state, self.frozen, batch))
    return time.perf_counter() - started, float(metrics["loss"])


def main() -> None:
  args = arguments()
  limit_threads(args.threads)
  sys.path.insert(0, str(ROOT))
  import numpy as np

  from spatialvlm.config import DataConfig

  config, rng = DataConfig(), np.random.default_rng(0)
  count = args.batches * (20 if args.dry else 1)
  drawn = [both(conversations(rng, args.batch, config.lengths[-1]), config) for _ in range(count)]
  names = ("unpacked", "packed")
  tokens = sum(int(pair["packed"][0].valid_BT.sum()) for pair in drawn)
  positions = {name: sum(pair[name][2] for pair in drawn) for name in names}
  shapes = {name: len({pair[name][0].tokens_BT.shape + pair[name][1] for pair in drawn}) for name in names}
  print(
    f"{count} steps of {args.batch} conversations, {tokens / count / args.batch:.0f} tokens each in the mean"
  )
  for name in names:
    print(f"{name}: fill {tokens / positions[name]:.0%}, {shapes[name]} programs")
  if args.dry:
    return
  sides = {name: Side(args.layers, args.width) for name in names}
  ready = [{name: with_features(pair[name][0], args.width) for name in names} for pair in drawn]
  print("| step | unpacked, rows x tokens | s | packed | s | losses |\n|---|---|---|---|---|---|", flush=True)
  total = dict.fromkeys(names, 0.0)
  for number, pair in enumerate(ready):
    found = {name: sides[name](pair[name]) for name in names}
    cells = []
    for name in names:
      total[name] += found[name][0]
      cells.append("x".join(map(str, pair[name].tokens_BT.shape)) + f" | {found[name][0]:.2f}")
    losses = " ".join(f"{found[name][1]:.6f}" for name in names)
    print(f"| {number} | {' | '.join(cells)} | {losses} |", flush=True)
  rates = {name: count * args.batch / total[name] for name in names}
  print(
    f"examples a second: unpacked {rates['unpacked']:.2f}, packed {rates['packed']:.2f}:"
    f" {rates['packed'] / rates['unpacked']:.2f} x; load {os.getloadavg()[0]:.1f}"
  )


if __name__ == "__main__":
  main()
