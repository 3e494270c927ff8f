"""A server of llama.cpp (the package xllamacpp) for tests, in a process of its own: it ends by aborting.

  python -m tests.oracle.llama_server LANGUAGE [MMPROJ [ADAPTER]]

Writes its address to stdout, and serves until its stdin closes. One thread computes everything; keys and
values are kept in float32.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MARKER = "<__media__>"


class Client:
  """Asks a server."""

  def __init__(self, url: str):
    self.url = url

  def post(self, path: str, **said: Any) -> dict[str, Any]:
    request = urllib.request.Request(
      self.url + path, json.dumps(said).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
      return json.loads(answer.read())

  def template(self, image: np.ndarray | None, text: str) -> str:
    """The prompt that the server's chat template makes of a picture and a text."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
      parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(image)}"}}, *parts]
    return self.post("/apply-template", messages=[{"role": "user", "content": parts}])["prompt"]

  def complete(self, prompt: str, images: list[np.ndarray], tokens: int, vocabulary: int) -> dict[str, Any]:
    """Greedy tokens, the number of the prompt's, and log-probabilities of all tokens by ids at one step.

    The step is the first whose token is whole text: a server leaves out those that are a part of a character.
    Where all are, there are none.
    """
    said = {"prompt_string": prompt, "multimodal_data": [png(image) for image in images]}
    got = self.post(
      "/completion",
      prompt=said if images else prompt,
      return_tokens=True,
      n_predict=tokens,
      n_probs=vocabulary,
      temperature=0,
      cache_prompt=False,
      samplers=["top_k"],
      top_k=1,
      ignore_eos=True,
    )
    shown = next(iter(got.get("completion_probabilities", ())), {"id": got["tokens"][0], "top_logprobs": []})
    return {
      "tokens": got["tokens"],
      "prompt": got["tokens_evaluated"],
      "step": got["tokens"].index(shown["id"]),
      "logprobs": {item["id"]: item["logprob"] for item in shown["top_logprobs"]},
    }


def png(image: np.ndarray) -> str:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "PNG")
  return base64.b64encode(buffer.getvalue()).decode()


@contextlib.contextmanager
def serving(*files: Path) -> Iterator[Client]:
  """A client of a server of these files, which ends with the context."""
  settings = os.environ | {"LLAMA_MEDIA_MARKER": MARKER, "GGML_NO_BACKTRACE": "1"}
  command = [sys.executable, "-m", "tests.oracle.llama_server", *map(str, files)]
  with subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=settings, text=True
  ) as process:
    try:
      line = next((line for line in process.stdout if line.startswith("at http")), "")
      assert line, f"llama.cpp's server ended: {process.wait()}"
      yield Client(line.removeprefix("at ").strip())
    finally:
      process.kill()


def main() -> None:
  import xllamacpp

  params = xllamacpp.CommonParams()
  params.model.path = sys.argv[1]
  if len(sys.argv) > 2:
    params.mmproj.path = sys.argv[2]
  if len(sys.argv) > 3:
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(sys.argv[3], 1.0)]
  params.n_ctx, params.n_parallel, params.port = 512, 1, 0
  params.warmup, params.use_jinja, params.verbosity = False, True, 0
  params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
  params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
  params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
  server = xllamacpp.Server(params)
  print(f"at {server.listening_address}", flush=True)
  sys.stdin.read()
  os._exit(0)


if __name__ == "__main__":
  main()
