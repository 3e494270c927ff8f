"""SmolVLM-500M's shape, float32: this project and transformers in turn, in one run, on two threads.

  python benchmarks/compare_torch.py [--threads=2] [--repeats=5] [--only=forward1,lora]

Prints, for every piece of work, the seconds of both (the best of all repeats, and their median) and the ratio
ours / theirs of the bests. Weights are random and the same on both sides; the agreement of their logits is
printed first. Needs PyTorch, transformers and peft (`make oracle` installs them).
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHAPE = ROOT / "benchmarks" / "smolvlm-500m"
TEXT = 56  # tokens of a question beside its image tokens
TARGETS = 8  # answer tokens of a training example
IMAGE_TOKEN = 49190
LETTERS = 4


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--only", default="", help="names of the pieces of work, by commas")
  return parser.parse_args()


def limit_threads(count: int) -> None:
  """Both thread pools take their size from the cores that this process may use."""
  cores = sorted(os.sched_getaffinity(0))[:count]
  os.sched_setaffinity(0, cores)
  os.environ["OMP_NUM_THREADS"] = str(len(cores))
  os.environ["JAX_PLATFORMS"] = "cpu"


def inputs(tiles: int, batch: int, length: int, size: int = 512, image_token: int = IMAGE_TOKEN):
  """Arrays in the layout of transformers' processors; a tile's 64 tokens are framed by a token of text."""
  import numpy as np

  rng = np.random.default_rng(tiles)
  ids = rng.integers(3, 49000, (batch, length))
  ids[ids == image_token] += 1
  for tile in range(tiles):
    ids[:, 2 + 65 * tile : 66 + 65 * tile] = image_token
  pixels = rng.uniform(-1, 1, (batch, tiles, 3, size, size)).astype(np.float32)
  return {"input_ids": ids, "attention_mask": np.ones_like(ids), "pixel_values": pixels}


def batch_of(arrays, targets: int = 0, image_token: int = IMAGE_TOKEN):
  """The same as this project's `Batch`, on the device; the last `targets` tokens are supervised."""
  import jax
  import numpy as np

  from spatialvlm.types import Batch

  ids, pixels = arrays["input_ids"].astype(np.int32), arrays["pixel_values"]
  mark = ids == image_token
  B, T = ids.shape
  return jax.device_put(
    Batch(
      tokens_BT=ids,
      valid_BT=np.ones((B, T), bool),
      pixels_NHWC=pixels.reshape(-1, *pixels.shape[2:]).transpose(0, 2, 3, 1),
      image_slot_BT=np.where(mark, np.cumsum(mark, axis=1) - 1, -1).astype(np.int32),
      target_index_BK=np.tile(np.arange(T - targets, T, dtype=np.int32), (B, 1)) if targets else None,
    )
  )


def forwards(vlm, torch_model):
  """{name: (ours, theirs)}: all logits at one tile (120 tokens) and at five (387)."""
  import jax
  import torch
  from flax import nnx

  graphdef, state = nnx.split(vlm)
  logits = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
  work = {}
  for tiles in (1, 5):
    arrays = inputs(tiles, 1, 65 * tiles - 1 + TEXT + 6 * (tiles == 5) + (tiles == 1))
    batch, tensors = batch_of(arrays), {key: torch.tensor(value) for key, value in arrays.items()}

    def ours(batch=batch):
      return jax.block_until_ready(logits(state, batch))

    def theirs(tensors=tensors):
      with torch.no_grad():
        return torch_model(**tensors, use_cache=False).logits

    work[f"forward{tiles}"] = (ours, theirs)
  return work


def decoding(vlm, torch_model):
  """Prefill and 8 greedy tokens; and a question's letters scored, against the same 8 tokens."""
  import numpy as np
  import torch

  from spatialvlm.generation import generate
  from spatialvlm.serving.scorer import VlmScorer

  arrays = inputs(1, 1, 120)
  batch, tensors = batch_of(arrays), {key: torch.tensor(value) for key, value in arrays.items()}
  scorer = VlmScorer(vlm)
  letters = np.arange(100, 100 + LETTERS, dtype=np.int32)[None]

  def theirs():
    with torch.no_grad():
      return torch_model.generate(
        **tensors, max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None
      )

  def score():
    return letters_of(scorer, batch, letters)

  ours = lambda: generate(vlm, batch, max_new_tokens=8, stop=False)
  return {"generate8": (ours, theirs), "letters": (score, theirs)}


def letters_of(scorer, batch, letters):
  """Log-probabilities of the letters of a batch's rows: images, prefixes, texts, as the evaluator asks them.

  Args:
    letters: int32 (1, L), the tokens of every row's letters.
  """
  import jax
  import numpy as np

  from spatialvlm.types import Batch

  slots, rows = np.asarray(batch.image_slot_BT), len(batch.tokens_BT)
  features = scorer.encode(np.asarray(batch.pixels_NHWC))
  image = np.flatnonzero(slots[0] >= 0)[-1] + 1
  head, text = (
    {k: np.asarray(getattr(batch, k))[:, part] for k in ("tokens_BT", "valid_BT")}
    for part in (slice(image), slice(image, None))
  )
  prefix = Batch(
    **head,
    features_NPD=features,
    tile_index_BI=np.arange(len(features), dtype=np.int32).reshape(rows, -1),
    image_slot_BT=slots[:, :image],
  )
  prefixes = scorer.prefix(prefix)
  index = np.arange(rows, dtype=np.int32)
  read = scorer.read(prefixes, index, text["tokens_BT"], text["valid_BT"], room=0)
  letters = np.repeat(letters, rows, axis=0)
  return jax.block_until_ready(scorer.letters(read, letters, np.ones_like(letters, bool)))


class Trained:
  """This project's side of a training step: AdamW on what `config` names.

  Attributes:
    programs: makes the compiled step of a batch's shape.
    state: the current one; each step takes it and puts the next in its place.
  """

  def __init__(self, vlm, config):
    import jax
    import optax

    from spatialvlm import peft
    from spatialvlm.core.axes import make_mesh
    from spatialvlm.training import objectives, state, step

    self.mesh = make_mesh({"data": 1}, jax.devices()[:1])
    self.config = peft.completed(config)
    vlm = peft.apply(vlm, self.config)
    self.split = state.Split(vlm, peft.trainable_filter(vlm, self.config), self.mesh)
    tx, self.terms = optax.adamw(1e-4), {"answer": (1.0, objectives.Answer())}
    self.state = state.init_state(self.split.params, tx, ema=False, mesh=self.mesh)
    pinned = (
      step.state_shardings(self.state),
      None,
    )  # as runs have it: left free, the second step compiles anew
    run = step.make_train_step(self.split, tx, self.terms)
    self.programs = step.Programs(run, self.mesh, donate=True, out_shardings=pinned)

  def put(self, batch):
    """A batch on the device."""
    from spatialvlm.training import step

    return step.to_devices(batch, self.mesh)

  def program(self, batch):
    """The compiled step of a batch's shape."""
    return self.programs.get(self.state, self.split.frozen, batch)[0]

  def __call__(self, batch):
    """The loss of a step on a batch that lies on the device."""
    import jax

    program = self.program(batch)
    self.state, metrics = program.run(self.state, self.split.frozen, batch)
    return jax.block_until_ready(metrics["loss"])

  def seen(self, memory, batch):
    """Gives the batch, from the host, with features for pixels: of a frozen tower, or what `memory` knows."""
    import jax

    from spatialvlm.training import frozen_vision

    vision = frozen_vision.FrozenVision(self.split, self.terms, memory)
    on_host = with_keys(jax.device_get(batch))
    return lambda: self.put(vision(self.state, self.split.frozen, on_host)[0])


def torch_lora(torch_model, rank: int, alpha: int, target: str):
  """The same of PEFT: the adapted model, and its optimizer."""
  import peft
  import torch

  config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=target)
  adapted = peft.get_peft_model(torch_model, config)
  return adapted, torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-4)


def torch_step(model, optimizer, tensors, targets: int):
  """A step of transformers; the last `targets` tokens are supervised."""
  labels = tensors["input_ids"].clone()
  labels[:, :-targets] = -100

  def step():
    optimizer.zero_grad()
    loss = model(**tensors, labels=labels, use_cache=False).loss
    loss.backward()
    optimizer.step()
    return loss.detach()

  return step


def lora(vlm, torch_model):
  """A LoRA step: r=8 on q, k, v, o of the decoder, batch 2 of 120 tokens with one tile, AdamW.

  Ours in three ways, each beside the same step of PEFT: with the vision tower in the step (`lora`), as a run
  with a frozen tower takes pictures that it has not seen (`lora-new`), and those that it has (`lora-known`).
  The last two begin with the pixels of a batch on the host, as runs do.
  """
  import torch

  from spatialvlm.config import PeftConfig
  from spatialvlm.training import frozen_vision

  arrays = inputs(1, 2, 120)
  trained = Trained(vlm, PeftConfig(options={"rank": 8, "alpha": 16.0}))
  batch = batch_of(arrays, TARGETS)
  on_device = trained.put(batch)
  adapted, optimizer = torch_lora(torch_model, 8, 16, trained.config.target)
  tensors = {key: torch.tensor(value) for key, value in arrays.items()}
  theirs = torch_step(adapted, optimizer, tensors, TARGETS)
  new, known = (trained.seen(memory, batch) for memory in (None, frozen_vision.Memory(2**30)))
  return {
    "lora": (lambda: trained(on_device), theirs),
    "lora-new": (lambda: trained(new()), theirs),
    "lora-known": (lambda: trained(known()), theirs),
  }


def with_keys(batch):
  """A batch whose tiles have the names that the data's threads give them."""
  import dataclasses

  from spatialvlm.data import tile_keys
  from spatialvlm.types import Extra

  keys = Extra(tile_keys.tile_keys(batch.pixels_NHWC), "tile")
  return dataclasses.replace(batch, extra={tile_keys.TILE_KEY: keys})


def measure(name, ours, theirs, repeats):
  """Both in turn; the first run of each compiles and is not counted."""
  ours(), theirs()
  seconds = {"ours": [], "theirs": []}
  for _ in range(repeats):
    for side, run in (("ours", ours), ("theirs", theirs)):
      time.sleep(0.3)  # the other side's threads spin for a while after their work
      started = time.perf_counter()
      run()
      seconds[side].append(time.perf_counter() - started)
  best = {side: min(values) for side, values in seconds.items()}
  middle = {side: statistics.median(values) for side, values in seconds.items()}
  print(
    f"| {name} | {best['ours']:.3f} ({middle['ours']:.3f}) | {best['theirs']:.3f} ({middle['theirs']:.3f}) "
    f"| {best['ours'] / best['theirs']:.2f} ({middle['ours'] / middle['theirs']:.2f}) |",
    flush=True,
  )


def machine() -> str:
  names = [
    line.split(":")[1].strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines()
    if line.startswith("model name")
  ]
  return (
    f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
  )


def main() -> None:
  args = arguments()
  limit_threads(args.threads)
  sys.path.insert(0, str(ROOT))
  import jax
  import numpy as np
  import torch
  import transformers

  from spatialvlm import hub

  torch.set_num_threads(args.threads)
  vlm = hub.load_model(SHAPE, from_scratch=True)
  with tempfile.TemporaryDirectory() as folder:
    hub.save_model(vlm, folder)
    torch_model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
  versions = f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
  print(f"{machine()}; {args.threads} threads; float32; {versions}")
  wanted = [name for name in args.only.split(",") if name]
  work = forwards(vlm, torch_model) | decoding(vlm, torch_model)
  if not wanted or "forward1" in wanted:
    ours, theirs = (np.asarray(run()) for run in work["forward1"])
    print(f"largest difference of logits {np.abs(ours - theirs).max():.1e}, of {np.abs(theirs).max():.1f}")
  print(f"| work | ours, s: best of {args.repeats} (median) | transformers | ratio |\n|---|---|---|---|")
  for name, (ours, theirs) in work.items():
    if not wanted or name in wanted:
      measure(name, ours, theirs, args.repeats)
  if not wanted or any(name.startswith("lora") for name in wanted):  # last, since it changes both models
    for name, (ours, theirs) in lora(vlm, torch_model).items():
      if not wanted or name in wanted:
        measure(name, ours, theirs, args.repeats)
  print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
  main()
