"""Asks a model about an image: `python launch/chat.py --model=FOLDER_OR_HUB_ID --image=FILE "question"`.

The answer streams to the screen. Without a question, lines of standard input are asked one by one. `--image`
may be given several times, and left out.
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
flags.DEFINE_string(
  "model", None, "a model's or adapter's folder or hub id, a GGUF file, or a training run's workdir"
)
flags.DEFINE_string("adapter", None, "PEFT folder that is put on the model")
flags.DEFINE_multi_string("image", [], "image file; may be repeated")
flags.DEFINE_integer("max_new_tokens", 256, "longest answer in tokens")
flags.DEFINE_float("temperature", 0.0, "0 for the likeliest answer; above, answers are drawn")
flags.DEFINE_float("top_p", 1.0, "draw among the likeliest tokens up to this probability")
flags.DEFINE_integer("seed", 0, "of drawn answers")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and activations")
flags.DEFINE_string("quantize", None, "keep the decoder's weights in few bits: nf4, int8, q4_0, q8_0")
flags.DEFINE_integer("max_tiles", None, "tile budget of an image; fewer tiles are faster")
flags.DEFINE_string("layout", "own", "whose way of cutting images: own, or mtmd for llama.cpp's")


def main(arguments: Sequence[str]) -> None:
  if not FLAGS.model:
    raise UserError("--model is missing; name a folder or hub id, or smolvlm-tiny, which comes with us")
  if len(arguments) > 1:
    raise UserError(f"one question is wanted, got {len(arguments)}; put it in quotation marks")
  if not arguments and sys.stdin.isatty():
    print("Ask; an empty line ends.", file=sys.stderr)
  import spatialvlm
  from spatialvlm.processing.images import open_image

  images = [open_image(file) for file in FLAGS.image]
  vlm = spatialvlm.load_vlm(
    FLAGS.model, FLAGS.dtype, max_tiles=FLAGS.max_tiles, layout=FLAGS.layout, quantize=FLAGS.quantize
  )
  if FLAGS.adapter:
    vlm.load_adapter(FLAGS.adapter)
  for question in arguments or iter(sys.stdin.readline, ""):
    if not question.strip():
      return
    for piece in vlm.chat_stream(
      images,
      question.strip(),
      max_new_tokens=FLAGS.max_new_tokens,
      temperature=FLAGS.temperature,
      top_p=FLAGS.top_p,
      seed=FLAGS.seed,
    ):
      print(piece, end="", flush=True)
    print(flush=True)


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
