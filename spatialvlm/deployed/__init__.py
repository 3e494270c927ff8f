"""What a model costs on a device: exported files asked and timed in their own runtimes.

    child, llama_cpp, onnx_runtime, hugging_face < runtimes < client < asked, scoring, speed < report < cost

- `runtimes.RUNTIMES` lists the forms that are scored (`gguf`, `gguf-lora`, `onnx`, `merged`) by their names
  in `export.EXPORTERS`: how files are written, and the module that runs them. A further one is a file with
  a class `Runtime` and a line there; `runtimes.Form` says what a line holds, `child` what a `Runtime` is.
- `child`: a runtime in a process of its own, so that its memory is its own and its end is no other's. It
  imports neither JAX nor the rest of this library.
- `client.Child`: that process from outside.
- `scoring.score(...)`: every question, one by one, as `evaluation.evaluate` would ask it: same prompt, same
  tokens, letters by their log-probability. What is kept is an ordinary `predictions.jsonl`.
- `speed.measure(...)`: time to the first token, tokens a second, peak of memory.
- `cost.run(EvaluateConfig, Plan, folder, find)`: all of it, what `launch/edge.py` calls. What is done is not
  done again.
"""
