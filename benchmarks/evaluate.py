"""SmolVLM-500M's shape on a multiple-choice set: our evaluator beside transformers, in one run.

  python benchmarks/evaluate.py [--questions=64] [--images=40] [--tiles=1] [--answer=4] [--dtype=float32]

Prints questions per second and the ratios of
  native           letters after one prefill (this project)
  controls         native and every control of `evaluation.asking.controls`
  everything       every protocol and every control; `--answer` tokens for each generated answer
against transformers on the same prompts and weights:
  (a)              `generate` of `--answer` tokens, one question at a time, as harnesses run SmolVLM
  (b)              batches, logits of the last position only
Preprocessing is part of all of them. Weights are random, so no answer would end by itself: it has one length
on both sides. What compiling took is shown apart. On a GPU `--dtype=bfloat16 --peak=989` (TFLOP/s of an H200)
adds the share of the arithmetic floor, and the time that CV-Bench's 2,638 questions would take. Needs PyTorch
and transformers (`make oracle` installs them); `--peer=0` goes without.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

import shaped

ROOT = Path(__file__).resolve().parents[1]
CV_BENCH = 2638
LABELS = {
  "native": "native",
  "controls": "native and all controls",
  "everything": "all protocols and controls",
}


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--questions", type=int, default=64)
  parser.add_argument("--images", type=int, default=40)
  parser.add_argument("--tiles", type=int, default=1, help="tile budget of an image, the global view counted")
  parser.add_argument("--answer", type=int, default=4, help="tokens of a generated answer")
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--shape", type=Path, default=shaped.SHAPE, help="folder with another config.json")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--more", default="controls,everything", help="what of ours beside native, by commas")
  parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s of the device, 0 for not known")
  parser.add_argument("--peer", type=int, default=1, help="0: without transformers")
  return parser.parse_args()


def questions(count: int, images: int):
  """Rendered questions; those beyond the number of images ask again about an earlier one, in other words."""
  from spatialvlm.worlds.questions import SceneQuestions

  found = list(SceneQuestions(seed=7, image_size=384, size=images)[i] for i in range(images))
  for i in range(count - images):
    first = found[i % images]
    change = {name: f"Look at the image. {getattr(first, name)}" for name in ("question", "prompt")}
    found.append(dataclasses.replace(first, idx=images + i, **change))
  # One after the other, as CV-Bench has them.
  return sorted(found, key=lambda q: (q.idx % images, q.idx))


class Ours:
  """The evaluator; every call begins with empty pools and compiled programs."""

  def __init__(self, folder: Path, args: argparse.Namespace):
    import jax

    from spatialvlm import hub
    from spatialvlm.evaluation.asking.protocols import ProcessorPrompter
    from spatialvlm.processing.processor import load_processor

    self.vlm = hub.load_model(folder, dtype=args.dtype)
    tile = self.vlm.config.vision.image_size
    tiling = {"max_tiles": args.tiles, "longest_edge": 4 * tile if args.tiles > 1 else tile}
    self.prompter = ProcessorPrompter(load_processor(folder, **tiling))
    self.batch, self.answer = args.batch, args.answer
    self.compiling = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._heard)

  def _heard(self, event: str, seconds: float, **_) -> None:
    if event.startswith("/jax/core/compile"):
      self.compiling += seconds

  def __call__(self, items, protocols=("native",), controls=()):
    """(result, seconds without compiling, seconds of compiling, programs)."""
    from spatialvlm.config import ScoreConfig
    from spatialvlm.evaluation.evaluate import evaluate
    from spatialvlm.serving.scorer import VlmScorer

    config = ScoreConfig(
      batch_size=self.batch, protocols=protocols, controls=controls, new_tokens=self.answer, bootstrap=100
    )
    scorer, before, started = VlmScorer(self.vlm), self.compiling, time.perf_counter()
    result = evaluate(items, scorer, self.prompter, config)
    compiling = self.compiling - before
    return result, time.perf_counter() - started - compiling, compiling, len(scorer.programs)


class Theirs:
  """transformers, on the GPU where there is one."""

  def __init__(self, folder: Path, args: argparse.Namespace):
    import torch
    import transformers

    from tests.oracle import hf_processor

    torch.set_num_threads(args.threads)
    self.torch, self.answer, self.batch = torch, args.answer, args.batch
    self.device = "cuda" if torch.cuda.is_available() else "cpu"
    self.dtype = getattr(torch, args.dtype)
    self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=self.dtype)
    self.model = self.model.eval().to(self.device)
    self.processor = hf_processor.load(folder, "idefics3")
    if args.tiles == 1:
      self.processor.image_processor.do_image_splitting = False
      self.processor.image_processor.size = {"longest_edge": 512}

  def _inputs(self, items):
    from PIL import Image

    parts = lambda q: [{"type": "image"}] * len(q.images) + [{"type": "text", "text": q.prompt}]
    say = lambda q: [{"role": "user", "content": parts(q)}]
    texts = [self.processor.apply_chat_template(say(q), add_generation_prompt=True) for q in items]
    images = [[Image.fromarray(image) for image in q.images] for q in items]
    inputs = self.processor(text=texts, images=images, return_tensors="pt", padding=True, padding_side="left")
    return inputs.to(self.device, self.dtype)

  def generate(self, items) -> float:
    """Seconds for greedy answers, one question at a time."""
    started = time.perf_counter()
    with self.torch.no_grad():
      for question in items:
        inputs = self._inputs([question])
        new = dict(max_new_tokens=self.answer, min_new_tokens=self.answer, do_sample=False)
        self.model.generate(**inputs, **new, eos_token_id=None).cpu()
    return time.perf_counter() - started

  def letters(self, items):
    """(log-probabilities of the last position, float32, by question; seconds), in batches."""
    found, started = [], time.perf_counter()
    with self.torch.no_grad():
      for i in range(0, len(items), self.batch):
        out = self.model(**self._inputs(items[i : i + self.batch]), logits_to_keep=1)
        found.extend(out.logits[:, -1].float().log_softmax(-1).cpu().numpy())
    return found, time.perf_counter() - started


def counted(vlm) -> tuple[float, float, float]:
  """FLOPs of a tile, of a token in the decoder's layers (its attention left out), and of a token's logits."""
  import jax
  from flax import nnx

  size = lambda part: sum(x.size for x in jax.tree.leaves(nnx.state(part)) if x.ndim > 1)
  vision, width = vlm.config.vision, vlm.config.text.block.width
  patches = vision.grid**2
  tile = 2 * patches * size(vlm.vision) + 4 * vision.depth * patches**2 * vision.block.width
  decoder = 2 * sum(size(layer) for layer in vlm.decoder.stack.layers)
  return tile, decoder, 2 * width * vlm.config.text.vocab_size


def operations(ours: Ours, items) -> float:
  """FLOPs of `native` without any padding: every image once, its prefix once, every text once."""
  tile, decoder, head = counted(ours.vlm)
  per_tile = ours.vlm.config.vision.grid**2 // ours.vlm.config.connector.factor**2
  total, seen = 0.0, set()
  for question in items:
    key = question.images[0].tobytes()
    encoded = ours.prompter(question).encoded
    image = encoded.image_slot >= 0
    prefix = int(image.nonzero()[0][-1]) + 1
    if key not in seen:
      tiles = int(image.sum()) // per_tile
      total += tiles * tile + prefix * decoder
    seen.add(key)
    total += (len(encoded.tokens) - prefix) * decoder + head
  return total


def memory() -> str:
  import jax

  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return f"{stats['peak_bytes_in_use'] / 2**30:.1f} GiB on the device"
  (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
  return f"{int(line.split()[1]) / 2**20:.1f} GiB resident (VmHWM)"


def load() -> str:
  return f"load {os.getloadavg()[0]:.1f}"


def show(name: str, count: int, seconds: float, base: float, more: str = "") -> None:
  print(f"| {name} | {seconds:.1f} | {count / seconds:.3f} | {seconds / base:.2f} | {more} |", flush=True)


def compare(ours: Ours, folder: Path, args: argparse.Namespace, items, base: float, result) -> None:
  """The peer, then `native` once more, so that both sides stand on both sides of the other."""
  theirs = Theirs(folder, args)
  theirs.letters(items[: args.batch]), theirs.generate(items[:1])
  batched, batched_s = theirs.letters(items)
  one_s = theirs.generate(items)
  show("(a) transformers, generate one by one", len(items), one_s, base)
  show("(b) transformers, batched, last logits", len(items), batched_s, base)
  _, again, *_ = ours(items)
  show("native, once more", len(items), again, base)
  middle = (base + again) / 2
  print(f"\nnative: {one_s / middle:.2f}x the questions per second of (a), {batched_s / middle:.2f}x of (b)")
  print(
    f"largest difference of letters' log-probabilities to (b): {difference(ours, items, result, batched):.1e}"
  )


def difference(ours: Ours, items, result, batched) -> float:
  letters = [ours.prompter(question).option_ids for question in items]
  rows = {row.idx: row.logprobs for row in result.rows}
  return max(
    abs(value - float(theirs[token]))
    for question, ids, theirs in zip(items, letters, batched, strict=True)
    for token, value in zip(ids, rows[question.idx], strict=True)
  )


def main() -> None:
  args = arguments()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  os.environ["OMP_NUM_THREADS"] = str(args.threads)
  sys.path.insert(0, str(ROOT))
  import jax

  from spatialvlm.evaluation.asking.controls import CONTROLS
  from spatialvlm.evaluation.asking.protocols import PROTOCOLS

  every, controls = tuple(PROTOCOLS), tuple(CONTROLS)
  items = questions(args.questions, args.images)
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    shaped.checkpoint(folder, args.shape)
    ours = Ours(folder, args)
    passes = {
      "native": (("native",), ()),
      "controls": (("native",), controls),
      "everything": (every, controls),
    }
    names = ["native", *filter(None, args.more.split(","))]
    # What compiles is compiled by a few questions of each kind; the rest is shown in the table.
    ours([q for q in items if q.idx < 12], *passes[names[-1]])
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {args.threads} threads; {args.dtype};")
    print(f"{len(items)} questions over {args.images} images of at most {args.tiles} tiles; {load()}")
    print("| work | seconds | questions/s | of native | |\n|---|---:|---:|---:|---|")
    found = {}
    for name in names:
      found[name] = _, seconds, compiling, programs = ours(items, *passes[name])
      note = f"{compiling:.1f} s of compiling apart; {programs} programs; {memory()}"
      show(LABELS[name], len(items), seconds, found["native"][1], note)
    result, base, *_ = found["native"]
    if args.peak:
      share = operations(ours, items) / (base * args.peak * 1e12)
      print(f"\nnative: {100 * share:.0f} % of the arithmetic floor of {args.peak:.0f} TFLOP/s")
    print(f"native, {CV_BENCH:,} questions at this rate: {CV_BENCH * base / len(items):.0f} s")
    if args.peer:
      compare(ours, folder, args, items, base, result)
  print(f"at the end {load()}")


if __name__ == "__main__":
  main()
