"""Serves a model to OpenAI's clients: `python launch/serve.py --model=RUN_OR_FOLDER`.

Chat completions with pictures at http://127.0.0.1:8000/v1, many requests at a time. `--adapter=NAME=FOLDER`,
which may be given several times, serves the model with a PEFT adapter on as a model of that name, too.
docs/serve.md says what is understood, and what is refused.
"""

from __future__ import annotations

import os
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
flags.DEFINE_string("name", None, "by which clients ask for it; what --model says if left out")
flags.DEFINE_multi_string("adapter", [], "NAME=FOLDER of a PEFT adapter that is served beside it; repeatable")
flags.DEFINE_string("host", "127.0.0.1", "address to listen at; 0.0.0.0 for every network")
flags.DEFINE_integer("port", 8000, "port to listen at; 0 for any that is free")
flags.DEFINE_string("api_key", None, "that clients must send; also read from SPATIALVLM_API_KEY")
flags.DEFINE_string("images", None, "folder whose pictures clients may show by their path; none if left out")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of weights and activations")
flags.DEFINE_string("quantize", None, "keep the decoder's weights in few bits: nf4 or int8")
flags.DEFINE_integer("max_tiles", None, "tile budget of an image; fewer tiles are faster")
flags.DEFINE_enum("layout", "own", ["own", "mtmd"], "how pictures are cut (docs/edge.md)")
flags.DEFINE_integer("rows", 16, "requests that are answered at the same time, of each model")
flags.DEFINE_integer("queue", 256, "requests that may wait; more are answered by 429")
flags.DEFINE_integer("context", 2048, "most tokens of a prompt and its answer")
flags.DEFINE_float("seconds", 300.0, "that a request may take, its waiting included")
flags.DEFINE_integer("prefix_tokens", 8192, "of prompts' beginnings that are kept for further requests")
flags.DEFINE_integer("image_tiles", 256, "encoded tiles that are kept for further requests")
flags.DEFINE_integer("most_bytes", 32 << 20, "of a request's body, and of a picture's file")
flags.DEFINE_integer("most_pixels", 24_000_000, "of one picture")
flags.DEFINE_integer("most_images", 16, "of one request")
flags.DEFINE_integer("max_tokens", None, "of answers to requests that say no number; else the context's rest")
flags.DEFINE_float("temperature", 1.0, "of answers to requests that say none; OpenAI's is 1")


def main(arguments: Sequence[str]) -> None:
  if arguments:
    raise UserError(f"unexpected argument {arguments[0]!r}; settings are given as --model= and the like")
  if not FLAGS.model:
    raise UserError("--model is missing; name a folder or hub id, or smolvlm-tiny, which comes with us")
  try:
    from spatialvlm.server import run as server
  except ImportError as error:
    raise UserError(f'a server needs {error.name}; install it: pip install "spatialvlm[serve]"') from None
  import spatialvlm
  from spatialvlm.server.service import Service, ServiceConfig
  from spatialvlm.serving.lane import SchedulerConfig

  # What is wrong here is told before a model is loaded.
  images = None if FLAGS.images is None else pathlib.Path(FLAGS.images)
  allowed = ServiceConfig(
    images, FLAGS.most_bytes, FLAGS.most_pixels, FLAGS.most_images, FLAGS.max_tokens, FLAGS.temperature
  )
  scheduling = SchedulerConfig(
    rows=FLAGS.rows,
    context=FLAGS.context,
    queue=FLAGS.queue,
    seconds=FLAGS.seconds,
    image_tiles=FLAGS.image_tiles,
    prefix_tokens=FLAGS.prefix_tokens,
  )
  adapters = _adapters(FLAGS.adapter, FLAGS.name or FLAGS.model)
  api_key = FLAGS.api_key or os.environ.get("SPATIALVLM_API_KEY") or None
  with server.listen(FLAGS.host, FLAGS.port) as listening:
    vlm = spatialvlm.load_vlm(
      FLAGS.model, FLAGS.dtype, max_tiles=FLAGS.max_tiles, layout=FLAGS.layout, quantize=FLAGS.quantize
    )
    models = {FLAGS.name or FLAGS.model: (vlm.model, base := vlm.processor)}
    for name, folder in adapters.items():
      vlm.load_adapter(folder, name)
      # Only a soft prompt needs a processor of its own: it leaves less of the context.
      same = vlm.model.max_length == base.max_length
      models[name] = (vlm.model, base if same else vlm.processor)
    service = Service(models, allowed, scheduling, on_error=server.complain)
    print(f"{', '.join(models)}: {server.address(listening)}", flush=True)
    if FLAGS.host not in ("127.0.0.1", "localhost", "::1") and not api_key:
      print(f"note: anybody who reaches {FLAGS.host} may ask; --api_key asks for a key", file=sys.stderr)
    server.serve(service, listening, api_key)


def _adapters(given: Sequence[str], base: str) -> dict[str, str]:
  """Folders by name."""
  found: dict[str, str] = {}
  for one in given:
    name, equals, folder = one.partition("=")
    if not (name and equals and folder):
      raise UserError(f"--adapter={one}: write --adapter=NAME=FOLDER")
    if name in found or name == base:
      raise UserError(f"--adapter={one}: a model is called {name!r} already; give another name")
    found[name] = folder
  return found


def run() -> None:
  cli.run(main)


if __name__ == "__main__":
  run()
