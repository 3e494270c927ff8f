"""transformers on PyTorch: a folder as `launch/export.py --to=merged` writes it, in its own numbers.

Given arrays, which this library's processor made: those of transformers' own processors, in the layout that
is asked for, which theirs may not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers


class _Streamer:
  """Tells of every token, as transformers' `BaseStreamer`; what comes first is the prompt."""

  def __init__(self, seen: Callable[[int], None]):
    self._seen, self._prompt = seen, True

  def put(self, value: torch.Tensor) -> None:
    if not self._prompt:
      self._seen(value.numel())
    self._prompt = False

  def end(self) -> None:
    """Nothing is left to say."""


class Runtime:
  """See `child`."""

  def __init__(self, folder: str, settings: Mapping[str, Any]):
    torch.set_num_threads(settings["threads"])
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    sees = hasattr(config, "vision_config")
    kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    self._model = kind.from_pretrained(folder, dtype="auto", local_files_only=True).eval()

  @torch.inference_mode()
  def letters(self, asked: Mapping[str, Any]) -> tuple[int, list[float]]:
    given = self._given(asked)
    logits = self._model(**given, logits_to_keep=1).logits[0, -1].float()
    return given["input_ids"].shape[1], torch.log_softmax(logits, -1)[asked["options"]].tolist()

  @torch.inference_mode()
  def generate(self, asked: Mapping[str, Any], count: int, seen: Callable[[int], None]) -> list[int]:
    given = self._given(asked)
    exactly = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    made = self._model.generate(**given, **exactly, streamer=_Streamer(seen))
    return made[0, given["input_ids"].shape[1] :].tolist()

  def _given(self, asked: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    with np.load(asked["arrays"]) as arrays:
      given = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    dtype = self._model.dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
