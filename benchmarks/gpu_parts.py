"""The parts of `benchmarks/gpu.py`, each in a process of its own."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

from benchmarks import compare_torch, gpu

ROOT = gpu.ROOT
TEXT = 86  # tokens of a question beside its image tokens
TARGETS = 8
RANK, ALPHA = 16, 32
NEW_TOKENS = 32
TASKS = {"Count": 788.0, "Relation": 650.0, "Depth": 600.0, "Distance": 600.0}  # CV-Bench's questions of each


class Work(NamedTuple):
  """A shape: tiles an example, and examples of a batch."""

  tiles: int
  batch: int

  @property
  def length(self) -> int:
    """Tokens of a row."""
    return 65 * self.tiles + TEXT


class Sizes(NamedTuple):
  """What a run is of: shapes, a product's width, CV-Bench's questions and how many pictures are rendered."""

  works: tuple[Work, ...]
  full: tuple[Work, ...]
  width: int
  questions: int
  scenes: int
  batch: int


SIZES = {
  "500m": Sizes((Work(1, 32), Work(5, 16), Work(17, 4)), (Work(1, 16), Work(5, 4)), 8192, 2638, 64, 32),
  "toy": Sizes((Work(1, 2), Work(5, 1)), (Work(1, 2),), 256, 12, 4, 4),
}


def run(args: argparse.Namespace) -> None:
  """Does one part, and writes down what it finds (`gpu.note`)."""
  parts = {
    "weights": weights,
    "machine": machine,
    "ours": ours,
    "theirs": theirs,
    "attention": lambda args: ours(args, only="LoRA step", attention="cudnn"),
    "flags": lambda args: ours(args, only="LoRA step"),
    "cvbench1": lambda args: cvbench(args, 1),
    "cvbench17": lambda args: cvbench(args, 17),
    "resume": resume,
  }
  parts[args.part](args)


def weights(args: argparse.Namespace) -> None:
  """Draws the model that both sides load, with a tokenizer, into the folder `weights`."""
  from benchmarks import shaped

  shape = args.out / "shape"
  shape.mkdir(exist_ok=True)
  config = json.loads((compare_torch.SHAPE / "config.json").read_text())
  if args.shape == "toy":  # 64 image tokens a tile, as in the real shape
    small = {"num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config["text_config"] |= small | {"num_key_value_heads": 1, "head_dim": 16}
    config["vision_config"] |= small | {"image_size": 64, "patch_size": 4}
    config["scale_factor"] = 2
  (shape / "config.json").write_text(json.dumps(config))
  (args.out / "weights").mkdir(exist_ok=True)
  shaped.checkpoint(args.out / "weights", shape)


def machine(args: argparse.Namespace) -> None:
  """The two ceilings: a large product of random numbers in bfloat16, and a large copy."""
  import jax
  import jax.numpy as jnp

  width = SIZES[args.shape].width
  a = jax.random.normal(jax.random.key(0), (width, width), jnp.bfloat16)
  b = jax.random.normal(jax.random.key(1), (width, width), jnp.bfloat16)
  product = jax.jit(lambda a, b: a @ b)
  seconds, _ = timed(lambda: product(a, b).block_until_ready(), 20, 5)
  many = jnp.zeros(16 * width * width, jnp.float32) + a[0, 0].astype(jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  moved, _ = timed(lambda: copy(many).block_until_ready(), 20, 5)
  gpu.note(
    args.out,
    part="machine",
    device=f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
    tflops=2 * width**3 / seconds / 1e12,
    gbytes=2 * many.nbytes / moved / 1e9,
    versions=f"jax {jax.__version__}; {os.cpu_count()} cores",
  )


def timed(call: Callable[[], object], repeats: int, seconds: float) -> tuple[float, float]:
  """(median, best) seconds of a call that ends when its work is done; the first, untimed, compiles."""
  call()
  found, started = [], time.perf_counter()
  while len(found) < repeats and (time.perf_counter() - started < seconds or len(found) < 2):
    before = time.perf_counter()
    call()
    found.append(time.perf_counter() - before)
  return statistics.median(found), min(found)


def measured(
  args: argparse.Namespace, side: str, work: str, examples: int, flops: float, call: Callable
) -> None:
  """Times a piece of work and writes it down; one that fails, for lack of memory most of all, is named."""
  try:
    median, best = timed(call, args.repeats, args.limit / 12)
  except Exception as error:  # whatever a library raises: the other rows are still to come
    said = str(error).strip().split("\n")[0][:160]
    gpu.note(args.out, part=args.part, problem=f"{side}, {work}: {type(error).__name__}: {said}")
    return
  row = {"work": work, "examples": examples, "seconds": median, "best": best, "flops": flops}
  gpu.note(args.out, part=args.part, side=side, **row)


def names_of(tiles: int) -> str:
  """What the table calls so many tiles."""
  return f"{tiles} tile" + "s" * (tiles > 1)


class Counts:
  """Arithmetic that a model needs for a batch, in FLOPs, without padding or recomputation.

  Args:
    folder: of the model, whose sizes alone are read.
  """

  def __init__(self, folder: Path):
    from flax import nnx

    from benchmarks import evaluate
    from spatialvlm import hub
    from spatialvlm.models.vlm import Vlm

    config = hub.read_config(folder)
    abstract = nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0)))
    self._tile, self._token, self._head = evaluate.counted(abstract)
    heads = config.text.block.attention
    self._attended = (
      2 * config.text.depth * heads.heads * heads.head_dim
    )  # of a pair; half of 4, as it is causal

  def of(self, work: Work, *, vision: int, decoder: int, logits: int, length: int = 0) -> float:
    """`vision`, `decoder`: forward passes, a backward one as two of them; `logits`: positions of a row."""
    length = length or work.length
    text = length * self._token + length**2 * self._attended + logits * self._head
    return work.batch * (vision * work.tiles * self._tile + decoder * text)


def theirs(args: argparse.Namespace) -> None:
  """transformers' and PEFT's rows."""
  from benchmarks import gpu_theirs

  gpu_theirs.theirs(args)


def ours(args: argparse.Namespace, only: str = "", attention: str = "xla") -> None:
  """This project's rows. Programs are compiled several at a time before anything is timed."""
  from spatialvlm import hub
  from spatialvlm.models import execution
  from spatialvlm.types import UserError

  sizes, folder = SIZES[args.shape], args.out / "weights"
  vlm = hub.load_model(folder, dtype="bfloat16")
  try:
    execution.apply(vlm, execution.Execution(attention=attention))
  except UserError as error:
    gpu.note(args.out, part=args.part, problem=str(error))
    return
  counts = Counts(folder)
  lora = _Steps(args, sizes.works[1:2] if only else sizes.works, counts)
  if only:
    lora.adapt(vlm)
    lora.compile([])
    lora.measure(", ".join(["", *filter(None, [args.variant, attention.replace("xla", "")])]))
    return
  forward = _Forward(args, sizes, vlm, counts)  # of the model before it is adapted
  lora.adapt(vlm)
  lora.compile(forward.programs())
  lora.measure()
  forward.measure()
  lora.know()
  lora.pack()
  del lora, forward, vlm
  _full(args, sizes, hub.load_model(folder, dtype="bfloat16"), counts)
  _answers(args, sizes, hub.load_model(folder, dtype="bfloat16"), counts)


def together(calls: Sequence[Callable[[], object]]) -> list:
  """The results of calls that compile, at the same time: one compilation leaves most cores alone."""
  with futures.ThreadPoolExecutor(max(len(calls), 1)) as pool:
    return [future.result() for future in [pool.submit(call) for call in calls]]


class _Steps:
  """LoRA steps of several shapes."""

  def __init__(self, args: argparse.Namespace, works: Sequence[Work], counts: Counts):
    self._args, self._works, self._counts = args, works, counts

  def adapt(self, vlm) -> None:
    """Puts adapters on the model; its batches then lie on the device."""
    from spatialvlm.config import PeftConfig
    from spatialvlm.configs.lora import EVERY_LINEAR

    config = PeftConfig(target=EVERY_LINEAR, options={"rank": RANK, "alpha": float(ALPHA)})
    self._trained = compare_torch.Trained(vlm, config)
    self._batches = {work: self._trained.put(_batch(vlm, work, TARGETS)) for work in self._works}

  def compile(self, others: Sequence[Callable[[], object]]) -> None:
    """Compiles the steps, and what else is to be compiled meanwhile."""
    together([*(lambda b=b: self._trained.program(b) for b in self._batches.values()), *others])

  def measure(self, suffix: str = "") -> None:
    for work, batch in self._batches.items():
      flops = self._counts.of(work, vision=1, decoder=2, logits=TARGETS)
      name = f"LoRA step of {names_of(work.tiles)}{suffix}"
      measured(self._args, "ours", name, work.batch, flops, lambda batch=batch: self._trained(batch))

  def know(self) -> None:
    """Steps whose pictures are known, as from the second epoch on; they begin with pixels on the host."""
    from spatialvlm.training import frozen_vision

    seen = {w: self._trained.seen(frozen_vision.Memory(2**32), b) for w, b in self._batches.items()}
    together([lambda see=see: self._trained.program(see()) for see in seen.values()])
    for work, see in seen.items():
      flops = self._counts.of(work, vision=0, decoder=2, logits=TARGETS)
      name = f"LoRA step of {names_of(work.tiles)}, features known"
      measured(self._args, "ours", name, work.batch, flops, lambda see=see: self._trained(see()))

  def pack(self) -> None:
    """Conversations of many lengths (benchmarks/packing.py), a row each and packed; features are known."""
    import numpy as np

    from benchmarks import packing
    from spatialvlm.config import DataConfig

    config, trained = DataConfig(), self._trained
    count = 32 if self._args.shape == "500m" else 4
    model = trained.split.model(trained.state.params, trained.split.frozen).config
    encoded = packing.conversations(np.random.default_rng(0), count, config.lengths[-1])
    for one in encoded:
      one.tokens[one.image_slot >= 0] = model.image_token_id
    tokens = sum(len(one.tokens) for one in encoded)
    both = packing.both(encoded, config)
    ready = {
      n: trained.put(packing.with_features(b, model.text.block.width)) for n, (b, _, _) in both.items()
    }
    together([lambda batch=batch: trained.program(batch) for batch in ready.values()])
    for name, batch in ready.items():
      flops = 2 * self._counts.of(Work(0, 1), vision=0, decoder=1, logits=0, length=tokens)
      said = f"conversations {name}, fill {tokens / both[name][2]:.0%}"
      measured(self._args, "ours", said, count, flops, lambda batch=batch: trained(batch))


class _Forward:
  """All logits of several shapes."""

  def __init__(self, args: argparse.Namespace, sizes: Sizes, vlm, counts: Counts):
    import jax
    from flax import nnx

    graphdef, self._state = nnx.split(vlm)
    self._args, self._counts, self._run = args, counts, {}
    self._logits = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
    self._batches = {work: _batch(vlm, work) for work in sizes.works}

  def programs(self) -> list[Callable[[], object]]:
    """What compiles them."""

    def compile_(work: Work) -> None:
      self._run[work] = self._logits.lower(self._state, self._batches[work]).compile()

    return [lambda work=work: compile_(work) for work in self._batches]

  def measure(self) -> None:
    for work, batch in self._batches.items():
      flops = self._counts.of(work, vision=1, decoder=1, logits=work.length)
      call = lambda batch=batch, run=self._run[work]: run(self._state, batch).block_until_ready()
      measured(self._args, "ours", f"forward of {names_of(work.tiles)}", work.batch, flops, call)


def _full(args, sizes: Sizes, vlm, counts: Counts) -> None:
  from spatialvlm.config import PeftConfig

  trained = compare_torch.Trained(vlm, PeftConfig("none", target="", full=".*"))
  batches = {work: trained.put(_batch(vlm, work, TARGETS)) for work in sizes.full}
  together([lambda batch=batch: trained.program(batch) for batch in batches.values()])
  for work, batch in batches.items():
    flops, name = counts.of(work, vision=3, decoder=3, logits=TARGETS), f"full step of {names_of(work.tiles)}"
    measured(args, "ours", name, work.batch, flops, lambda batch=batch: trained(batch))


def _batch(vlm, work: Work, targets: int = 0):
  config = vlm.config
  arrays = compare_torch.inputs(
    work.tiles, work.batch, work.length, config.vision.image_size, config.image_token_id
  )
  return compare_torch.batch_of(arrays, targets, config.image_token_id)


def _answers(args, sizes: Sizes, vlm, counts: Counts) -> None:
  import numpy as np

  from spatialvlm.generation import generate
  from spatialvlm.serving.scorer import VlmScorer

  scorer = VlmScorer(vlm)
  letters = np.arange(100, 104, dtype=np.int32)[None]
  for work in sizes.works[:2]:
    batch = _batch(vlm, work)
    flops = counts.of(work, vision=1, decoder=1, logits=1)
    call = lambda batch=batch: compare_torch.letters_of(scorer, batch, letters)
    measured(args, "ours", f"letters of {names_of(work.tiles)}", work.batch, flops, call)
  work = sizes.works[0]
  batch = _batch(vlm, work)
  flops = counts.of(work, vision=1, decoder=1, logits=NEW_TOKENS, length=work.length + NEW_TOKENS)
  call = lambda: generate(vlm, batch, max_new_tokens=NEW_TOKENS, stop=False)
  measured(args, "ours", f"generate {NEW_TOKENS} of {names_of(1)}", work.batch, flops, call)


def cvbench(args: argparse.Namespace, tiles: int) -> None:
  """CV-Bench's shape: some questions, what all would take, and all of them where that fits the time left."""
  import jax

  from benchmarks import evaluate

  started, sizes = time.perf_counter(), SIZES[args.shape]
  settings = argparse.Namespace(tiles=tiles, dtype="bfloat16", batch=sizes.batch, answer=1)
  runner = evaluate.Ours(args.out / "weights", settings)
  items = proportioned(sizes.questions, sizes.scenes)
  some = items[: max(sizes.batch, sizes.questions // 10)]
  runner(some)  # compiles
  _, seconds, *_ = runner(some)
  projected = seconds * len(items) / len(some)
  said = f"CV-Bench's shape, {names_of(tiles)}: {len(items)} questions in {projected:.1f} s, projected from"
  said += f" {len(some)} in {seconds:.1f} s"
  left = args.limit - (time.perf_counter() - started)
  if projected < 0.8 * left:
    _, whole, *_ = runner(items)
    share = evaluate.operations(runner, items) / whole / 1e12
    said += f"; run whole: {whole:.1f} s ({share:.3g} TFLOP/s), host included"
  else:
    said += f"; not run whole: {left:.0f} s were left"
  gpu.note(args.out, part=args.part, said=f"{said}; {jax.devices()[0].device_kind}")


def proportioned(count: int, scenes: int):
  """Questions in CV-Bench's proportions of tasks and a photo's sizes, a picture of its own to each."""
  import numpy as np
  from PIL import Image

  from spatialvlm.worlds.questions import SceneQuestions

  source = SceneQuestions(seed=7, kinds=TASKS, image_size=384, size=min(count, scenes))
  drawn = list(source)
  found = []
  for index in range(count):
    question = drawn[index % len(drawn)]
    size = (640, 480) if index % 3 else (480, 640)
    picture = np.asarray(Image.fromarray(question.images[0]).resize(size))
    picture = np.roll(picture, index // len(drawn), axis=1)  # another one to the caches
    found.append(dataclasses.replace(question, idx=index, images=(np.ascontiguousarray(picture),)))
  return found


def resume(args: argparse.Namespace) -> None:
  """Six steps of the small model, and six with a kill behind the second: adapters of the same bytes."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
  started = time.perf_counter()

  def train(name: str, kill_behind: int = 0) -> None:
    command = [sys.executable, str(ROOT / "launch" / "train.py"), f"--config={ROOT}/configs/lora.py:tiny"]
    command += [f"--workdir={args.out}/{name}"]
    settings = {
      "train.steps": 6,
      "train.batch_size": 4,
      "train.checkpoint_every": 2,
      "train.validate_every": 0,
      "eval.before": "false",
      "eval.after": "false",
    }
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    left = max(5, args.limit - (time.perf_counter() - started) - 2)
    with subprocess.Popen(command, env=dict(os.environ, XLA_FLAGS=flags), cwd=ROOT) as process:
      try:
        if kill_behind:
          kept = Path(args.out, name, "checkpoints", str(kill_behind))
          while not kept.exists() and process.poll() is None and left > 0:
            time.sleep(0.02)
            left -= 0.02
        else:
          process.wait(left)
      finally:
        process.kill()
    if process.returncode != (-9 if kill_behind else 0):
      raise SystemExit(f"the run {name} ended with code {process.returncode}")

  train("whole")
  train("parted", kill_behind=2)
  train("parted")
  files = [sorted(Path(args.out, name).rglob("adapter_model.safetensors")) for name in ("whole", "parted")]
  if not all(files):
    raise SystemExit("a run wrote no adapter")
  same = all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))
  verdict = "bit-equal" if same else "NOT equal"
  gpu.note(
    args.out,
    part=args.part,
    said=f"6 steps of LoRA, killed behind the 2nd or not: adapters {verdict}",
    same=same,
  )
