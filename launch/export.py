"""Writes a model for others: `python launch/export.py --model=RUN_OR_FOLDER --to=merged --out=FOLDER`.

`--to=merged` writes a checkpoint for transformers, adapters merged; `--to=adapter` a PEFT folder; `--to=gguf`
files for llama.cpp, in `--numbers=q8_0`, or `--numbers=q4_0,embedding=q8_0,mmproj=f16` by parts; `--to=onnx`
files for transformers.js and onnxruntime, in each of `--numbers=fp32,fp16,q8,q4`, and `--to=onnx-encoder` a
vision encoder alone; `--to=stablehlo` programs that run by JAX alone; `--to=litert` files for phones and
boards, also in `--numbers=int8`, for prompts and answers of `--length` tokens. `--model` names a model's or
adapter's folder or hub id, a training run's workdir or one of its checkpoints; `--adapter` lays a PEFT folder
over it; several, each with a `--weight`, become one.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

if not __package__:  # run by its path: the library of this checkout
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from spatialvlm import cli
from spatialvlm.types import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "a model's or adapter's folder or hub id, or a training run's workdir")
flags.DEFINE_multi_string("adapter", [], "PEFT folder that is put on the model; may be given several times")
flags.DEFINE_multi_float("weight", [], "of each --adapter in the sum of all; below 0 subtracts")
flags.DEFINE_string(
  "to",
  None,
  "what is written: merged, adapter, plain-lora, gguf, gguf-lora, onnx, onnx-encoder, stablehlo or litert",
)
flags.DEFINE_string(
  "numbers",
  "",
  "of gguf: f32, f16, bf16, q8_0, q5_0, q4_0..., also by part; of onnx: fp32, fp16, q8, q4...; of litert:"
  " float32 or int8",
)
flags.DEFINE_integer("length", None, "of litert: most tokens of prompt and answer together")
flags.DEFINE_string("out", None, "folder that is written; it must be new or empty")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the base's weights; adapters are float32")


def main(arguments: Sequence[str]) -> None:
  if arguments:
    raise UserError(f"unexpected argument {arguments[0]!r}; settings are given as --model=, --to= and --out=")
  for name in ("model", "to", "out"):
    if not getattr(FLAGS, name):
      raise UserError(f"--{name} is missing; write --model=RUN_OR_FOLDER --to=merged --out=FOLDER")
  adapters, weights = FLAGS.adapter, FLAGS.weight
  summed = len(adapters) > 1 or bool(weights)
  if summed and len(adapters) != len(weights):
    raise UserError(
      f"--weight: {len(weights)} of them for {len(adapters)} adapters; give each --adapter its own"
    )
  from spatialvlm import export, peft
  from spatialvlm.config import ModelConfig
  from spatialvlm.training import runs

  out = pathlib.Path(FLAGS.out).expanduser()
  # What is wrong here is told before a model is loaded.
  exporter, _ = export.named(FLAGS.to, FLAGS.numbers, FLAGS.length)
  export.check_empty(out)
  config = ModelConfig(path=FLAGS.model, dtype=FLAGS.dtype)
  if exporter.find is not None:
    if adapters:
      raise UserError(f"--adapter: --to={FLAGS.to} writes what has no adapters; leave it out")
    export.export(exporter.find(config), FLAGS.to, out, FLAGS.numbers)
    print(f"{FLAGS.model}: {exporter.what}: {out}")
    return
  only = adapters[0] if adapters and not summed else None
  found = runs.find(config, only)
  vlm = found.load(None)
  if summed:
    several = peft.Adapters(vlm)
    for adapter in dict.fromkeys(adapters):
      several.load(adapter, adapter)
    totals = {
      name: sum(w for a, w in zip(adapters, weights, strict=True) if a == name) for name in several.names
    }
    vlm = several.add(totals, "sum")
  model = export.Exportable(vlm, found.base, found.folder, found.trained)
  export.export(model, FLAGS.to, out, FLAGS.numbers, FLAGS.length)
  print(f"{found.name}: {exporter.what}: {out}")


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
