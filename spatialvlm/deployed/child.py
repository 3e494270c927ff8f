"""A runtime in a process of its own: `python -m spatialvlm.deployed.child MODULE FOLDER SETTINGS`.

Reads a JSON object a line from stdin and writes one a line to stdout, until stdin closes. `MODULE` is
the full name of one (a file of this room) with a class `Runtime`:

- `Runtime(folder, settings)` loads the model; `settings` holds `threads`, `context` (tokens), `vocabulary`
  (rows of the table of tokens).
- `letters(asked) -> (tokens, log-probabilities)`: how many tokens the prompt became, and of each token of
  `asked["options"]` its log-probability over the whole vocabulary as the first of the answer.
- `generate(asked, count, seen)`: the likeliest tokens of an answer, exactly `count`, whatever would end it;
  `seen(number)` is called with every token, or with several that come together.
- `served(text, pictures) -> str`, of a runtime with a chat template of its own: the prompt that it makes.

`asked` holds `prompt`, a text with `MARK` for each picture; `pictures`, PNG files in base64; or in their
place `arrays`, a NumPy file of what transformers' processors give.

Memory is that of the process: `empty` with the runtime's library loaded and no model, `peak` the most ever.
Nothing heavy is imported but what the module itself needs.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

MARK = "<__media__>"


def peak_bytes() -> int:
  """The most memory that this process has held, in bytes (Linux: VmHWM, which a new program begins anew)."""
  try:
    with open("/proc/self/status", encoding="ascii") as file:
      return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
  except (OSError, StopIteration):  # no Linux
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def answer(runtime: Any, said: Mapping[str, Any], empty: int) -> dict[str, Any]:
  """What a line of the parent's is answered."""
  what, asked = said["do"], said.get("asked")
  if what == "letters":
    tokens, logprobs = runtime.letters(asked)
    return {"tokens": int(tokens), "logprobs": [float(value) for value in logprobs]}
  if what == "generate":
    began, came = time.perf_counter(), []
    seen = lambda number=1: came.append((time.perf_counter() - began, number))
    tokens = runtime.generate(asked, said["count"], seen)
    return {"came": came, "tokens": [int(token) for token in tokens]}
  if what == "served":
    has = hasattr(runtime, "served")
    return {"prompt": runtime.served(said["text"], said["pictures"]) if has else None}
  return {"empty": empty, "peak": peak_bytes()}


def main() -> None:
  module, folder, settings = sys.argv[1:]
  replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)  # what libraries print is no reply
  say = lambda reply: print(json.dumps(reply), file=replies, flush=True)
  try:
    runtime_class = importlib.import_module(module).Runtime
    empty = peak_bytes()
    runtime = runtime_class(folder, json.loads(settings))
    say({"ready": True})
    for line in sys.stdin:
      said = json.loads(line)
      try:
        say(answer(runtime, said, empty))
      except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
  except Exception as error:
    say({"error": f"{type(error).__name__}: {error}"})
  finally:
    os._exit(0)  # llama.cpp's server aborts where it is torn down


if __name__ == "__main__":
  main()
