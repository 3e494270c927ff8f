"""llama.cpp (the package xllamacpp): a folder of `language.gguf`, `mmproj.gguf` and `adapter.gguf`.

All as its server does it by default: keys and values in float16, attention as it chooses, one slot. Asked
over HTTP, as an application would, so that cutting pictures and reading the prompt is within the time.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatialvlm.deployed.child import MARK

# Read when the library is loaded; without the second it starts a debugger where it aborts.
os.environ |= {"LLAMA_MEDIA_MARKER": MARK, "GGML_NO_BACKTRACE": "1"}

import xllamacpp

# Seconds for one answer of a large model on a slow machine.
_PATIENCE = 3600
# What makes one of the options the token that is drawn. The server gives no probabilities at a step whose
# token is a part of a character; those that it gives are of the scores before anything was added to them.
_SURE = 1e4
# Begins each part of a stream.
_PART = b"data: "


class Runtime:
  """See `child`."""

  def __init__(self, folder: str, settings: Mapping[str, Any]):
    files, params = Path(folder), xllamacpp.CommonParams()
    params.model.path = str(files / "language.gguf")
    if (files / "mmproj.gguf").is_file():
      params.mmproj.path = str(files / "mmproj.gguf")
    if (files / "adapter.gguf").is_file():
      params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(files / "adapter.gguf"), 1.0)]
    params.n_ctx, params.n_parallel, params.port = settings["context"], 1, 0
    params.warmup, params.use_jinja, params.verbosity = False, True, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    if hasattr(params, "cache_ram_mib"):
      params.cache_ram_mib = 0  # prompts are never asked twice
    self._vocabulary = settings["vocabulary"]
    self._server = xllamacpp.Server(params)
    self._url = self._server.listening_address

  def letters(self, asked: Mapping[str, Any]) -> tuple[int, list[float]]:
    options = asked["options"]
    sure = [[option, _SURE] for option in options]
    (got,) = self._complete(asked, 1, n_probs=self._vocabulary, logit_bias=sure)
    (step,) = got["completion_probabilities"]
    found = {item["id"]: item["logprob"] for item in step["top_logprobs"]}
    return got["tokens_evaluated"], [found[option] for option in options]

  def generate(self, asked: Mapping[str, Any], count: int, seen: Callable[[int], None]) -> list[int]:
    tokens = []
    for part in self._complete(asked, count, stream=True):
      if part["tokens"] and len(tokens) < count:  # the last part repeats what came
        seen(len(part["tokens"]))
        tokens += part["tokens"]
    return tokens

  def served(self, text: str, pictures: Sequence[str]) -> str:
    parts: list[dict[str, Any]] = [
      {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}} for picture in pictures
    ]
    parts.append({"type": "text", "text": text})
    (got,) = self._post("/apply-template", messages=[{"role": "user", "content": parts}])
    return got["prompt"]

  def _complete(self, asked: Mapping[str, Any], count: int, **said: Any) -> Iterator[dict[str, Any]]:
    """Greedy tokens of an answer that nothing ends; with `stream` as they come."""
    prompt: Any = asked["prompt"]
    if asked["pictures"]:
      prompt = {"prompt_string": prompt, "multimodal_data": asked["pictures"]}
    greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True}
    said = {"n_predict": count, "return_tokens": True, "cache_prompt": False, **greedy, **said}
    return self._post("/completion", prompt=prompt, **said)

  def _post(self, path: str, **said: Any) -> Iterator[dict[str, Any]]:
    """The one answer, or each part of a stream."""
    request = urllib.request.Request(
      self._url + path, json.dumps(said).encode(), {"Content-Type": "application/json"}
    )
    try:
      with urllib.request.urlopen(request, timeout=_PATIENCE) as reply:
        if not said.get("stream"):
          yield json.loads(reply.read())
          return
        for line in reply:
          if line.startswith(_PART) and line.strip() != b"data: [DONE]":
            yield json.loads(line.removeprefix(_PART))
    except urllib.error.HTTPError as error:
      raise RuntimeError(f"llama.cpp's server: {error.read().decode(errors='replace')[:300]}") from None
