"""What `model.scan_layers` saves a compiler and costs a step: both ways in one run, of one shape.

  python benchmarks/compile.py [--shape=benchmarks/smolvlm-500m] [--batch=2] [--tokens=120] [--steps=3]
      [--dtype=float32] [--rank=16] [--remat] [--only=lora,full,prefill,decode]

For each program, as a list of layers and as a loop: seconds to trace and lower it, seconds to compile it,
lines of the optimized program, MiB of its temporaries, and seconds of a step (the median). Seconds are the
processor's, of all threads, so that other work beside does not count. Weights are random. Without `--steps`
nothing runs, and only compilers are compared.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EVERY_LINEAR = r".*(text_model|language_model).*\.(q|k|v|o|gate|up|down)_proj"
LORA, FULL, PREFILL, DECODE = "lora", "full", "prefill", "decode"


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--shape", default=str(ROOT / "benchmarks" / "smolvlm-500m"))
  parser.add_argument("--batch", type=int, default=2)
  parser.add_argument("--tokens", type=int, default=120)
  parser.add_argument("--steps", type=int, default=0, help="runs of each program that are timed")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--rank", type=int, default=16)
  parser.add_argument("--remat", action="store_true")
  parser.add_argument("--only", default="lora,prefill,decode", help="programs, by commas; also `full`")
  return parser.parse_args()


def inputs(vlm, batch: int, tokens: int):
  """One tile a row, then text; the last 8 tokens are targets."""
  import jax
  import numpy as np

  from spatialvlm.types import Batch

  config, rng = vlm.config, np.random.default_rng(0)
  side = config.vision.image_size
  image = config.image_tokens(side, side)
  ids = rng.integers(3, config.text.vocab_size - 8, (batch, tokens)).astype(np.int32)
  ids[:, 1 : 1 + image] = config.image_token_id
  mark = ids == config.image_token_id
  return jax.device_put(
    Batch(
      tokens_BT=ids,
      valid_BT=np.ones(ids.shape, bool),
      pixels_NHWC=rng.uniform(-1, 1, (batch, side, side, 3)).astype(np.float32),
      image_slot_BT=np.where(mark, np.cumsum(mark, axis=1) - 1, -1).astype(np.int32),
      target_index_BK=np.tile(np.arange(tokens - 8, tokens, dtype=np.int32), (batch, 1)),
    )
  )


def training(args, loop: bool, full: bool):
  """A step, and the arguments that it begins with."""
  import jax
  import optax

  from spatialvlm import hub, peft
  from spatialvlm.config import PeftConfig
  from spatialvlm.core.axes import make_mesh
  from spatialvlm.models import execution
  from spatialvlm.training import objectives, state, step

  lora = PeftConfig(target=EVERY_LINEAR, options={"rank": args.rank, "alpha": 2.0 * args.rank})
  config = PeftConfig("none", full=r".*text_model\.layers.*") if full else peft.completed(lora)
  vlm = peft.apply(hub.load_model(args.shape, dtype=args.dtype, from_scratch=True), config)
  execution.apply(vlm, execution.Execution(remat=args.remat, scan=loop))
  mesh = make_mesh({"data": 1}, jax.devices()[:1])
  split = state.Split(vlm, peft.trainable_filter(vlm, config), mesh)
  tx, terms = optax.adamw(1e-4), {"answer": (1.0, objectives.Answer())}
  current = state.init_state(split.params, tx, ema=False, mesh=mesh)
  pinned = step.state_shardings(current), None
  run = jax.jit(step.make_train_step(split, tx, terms), donate_argnums=0, out_shardings=pinned)
  sent = step.to_devices(inputs(vlm, args.batch, args.tokens), mesh)
  return run, (current, split.frozen, sent), lambda given, out: (out[0], *given[1:])


def asking(args, loop: bool, decode: bool):
  """A prompt read into a cache, or one more token of each row."""
  import dataclasses

  import jax
  import jax.numpy as jnp
  from flax import nnx

  from spatialvlm import hub
  from spatialvlm.models import execution

  vlm = hub.load_model(args.shape, dtype=args.dtype, from_scratch=True)
  execution.apply(vlm, execution.Execution(scan=loop))
  graph, weights = nnx.split(vlm)
  batch = dataclasses.replace(inputs(vlm, args.batch, args.tokens), target_index_BK=None)
  cache = jax.jit(lambda: vlm.init_cache(args.batch, args.tokens + 8))()
  if decode:
    run = lambda weights, tokens, cache: nnx.merge(graph, weights).decode_step(tokens, cache)
    cache = dataclasses.replace(cache, length=jnp.int32(args.tokens), begun=True)
    given = weights, jnp.ones((args.batch,), jnp.int32), cache
    again = lambda given, out: (*given[:2], dataclasses.replace(out[1], length=jnp.int32(args.tokens)))
    return jax.jit(run, donate_argnums=2), given, again
  run = lambda weights, batch, cache: nnx.merge(graph, weights).prefill(batch, cache)
  return jax.jit(run), (weights, batch, cache), lambda given, out: given


def measure(args, name: str, loop: bool) -> tuple[str, dict[str, float]]:
  import jax

  make = training if name in (LORA, FULL) else asking
  run, given, again = make(args, loop, name in (FULL, DECODE))
  started = time.process_time()
  lowered = run.lower(*given)
  traced = time.process_time()
  compiled = lowered.compile()
  found = {"trace": traced - started, "compile": time.process_time() - traced}
  memory = compiled.memory_analysis()
  found["lines"] = compiled.as_text().count("\n")
  found["temporaries"] = memory.temp_size_in_bytes / 2**20
  seconds = []
  for number in range(args.steps + 1 if args.steps else 0):
    started = time.process_time()
    out = jax.block_until_ready(compiled(*given))
    seconds += [time.process_time() - started] if number else []  # the first touches its memory
    given = again(given, out)
  found["step"] = statistics.median(seconds) if seconds else 0.0
  shown = f"{found['step']:.3f}" if seconds else "-"
  row = (
    f"| {name} | {'loop' if loop else 'list'} | {found['trace']:.1f} | {found['compile']:.1f} "
    f"| {found['lines']:,.0f} | {found['temporaries']:,.0f} | {shown} |"
  )
  return row, found


def main() -> None:
  args = arguments()
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  sys.path.insert(0, str(ROOT))
  import jax

  cores = len(os.sched_getaffinity(0))
  shape = f"{Path(args.shape).name}, {args.dtype}, batch {args.batch}, {args.tokens} tokens, 1 tile"
  ways = f"rank {args.rank}{', remat' if args.remat else ''}"
  where = f"jax {jax.__version__}, {jax.default_backend()}, {cores} core(s), load {os.getloadavg()[0]:.1f}"
  print(f"{shape}, {ways}; {where}")
  print("| program | layers | trace, s | compile, s | lines | temporaries, MiB | step, s |")
  print("|---|---|---|---|---|---|---|")
  for name in args.only.split(","):
    found = []
    for loop in (False, True):
      row, one = measure(args, name, loop)
      print(row, flush=True)
      found.append(one)
    ratios = [f"{found[1][key] / found[0][key]:.2f}" if found[0][key] else "-" for key in found[0]]
    print(f"| {name} | loop / list | " + " | ".join(ratios) + " |", flush=True)


if __name__ == "__main__":
  main()
