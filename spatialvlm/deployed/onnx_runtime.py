"""A folder of ONNX files (`export.onnx`) in onnxruntime, on the CPU.

Nothing of this library is needed to run such a folder, and nothing is imported: arrays in transformers'
layout go in, logits come out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

# Suffixes of the files, by transformers.js's names for the numbers.
SUFFIXES = {
  "fp32": "",
  "fp16": "_fp16",
  "q8": "_quantized",
  "int8": "_int8",
  "uint8": "_uint8",
  "q4": "_q4",
  "q4f16": "_q4f16",
}
_KEPT = "past_key_values."
# Tiles that are seen at once: the scores of each take tens of megabytes.
TILES = 4


class OnnxModel:
  """A model's graphs, loaded.

  Args:
    folder: as `launch/export.py --to=onnx` writes it.
    numbers: in which numbers; None for the only ones that lie there.
    threads: of each graph; 0 for as many as there are cores.

  Attributes:
    config: what config.json holds.
    sees: whether it has eyes.

  Raises:
    ValueError: no such files, or several and none is named.
  """

  def __init__(self, folder: str | Path, numbers: str | None = None, threads: int = 0):
    folder = Path(folder)
    self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    self.sees = "vision_config" in self.config
    main = "decoder_model_merged" if self.sees else "model"
    there = [name for name, end in SUFFIXES.items() if (folder / "onnx" / f"{main}{end}.onnx").is_file()]
    if numbers is None and len(there) > 1:
      raise ValueError(f"{folder}: holds {', '.join(there)}; name one of them as numbers")
    if not there or numbers not in (None, *there):
      raise ValueError(f"{folder}: holds no onnx/{main}.onnx in {numbers or 'any numbers'}")
    suffix = SUFFIXES[numbers or there[0]]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3

    def session(part: str) -> ort.InferenceSession:
      file = folder / "onnx" / f"{part}{suffix}.onnx"
      return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    self._decoder = session(main)
    self._eyes = session("vision_encoder") if self.sees else None
    self._table = session("embed_tokens") if self.sees else None
    inputs = {value.name: value for value in self._decoder.get_inputs()}
    self._kept = {name: value for name, value in inputs.items() if name.startswith(_KEPT)}
    self._outputs = [value.name for value in self._decoder.get_outputs()]

  def features(self, pixel_values: np.ndarray, pixel_attention_mask: np.ndarray | None = None) -> np.ndarray:
    """float32 (N, P, D) of the tiles (B, I, 3, S, S) that are not all 0.

    Args:
      pixel_attention_mask: (B, I, S, S), true at real pixels; None where all are.
    """
    size = np.shape(pixel_values)[2:]
    pixels = np.asarray(pixel_values, np.float32).reshape(1, -1, *size)
    mask = np.ones((1, pixels.shape[1], *size[1:]), bool)
    if pixel_attention_mask is not None:
      mask = np.asarray(pixel_attention_mask, bool).reshape(mask.shape)
    real = np.flatnonzero(pixels.any(axis=(0, 2, 3, 4)))
    if not len(real):
      raise ValueError("pixel_values: all tiles are 0, which is padding")
    parts = [real[start : start + TILES] for start in range(0, len(real), TILES)]
    fed = [{"pixel_values": pixels[:, part], "pixel_attention_mask": mask[:, part]} for part in parts]
    return np.concatenate([self._eyes.run(["image_features"], one)[0] for one in fed])

  def read(
    self,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    pixel_values: np.ndarray | None = None,
    pixel_attention_mask: np.ndarray | None = None,
    *,
    cache: Mapping[str, Any] | None = None,
    keep: int = 1,
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Reads tokens behind a cache.

    Args:
      input_ids: (B, T).
      attention_mask: (B, S + T), with the S tokens of the cache; None where none is padding.
      pixel_values, pixel_attention_mask: of the tiles that stand at the image tokens, as of `features`.
      cache: what an earlier call gave; it stays as it is.
      keep: of how many last positions logits are wanted; 0 for all.

    Returns:
      float32 logits (B, keep or T, V), and the longer cache.
    """
    input_ids = np.asarray(input_ids, np.int64)
    B, T = input_ids.shape
    cache = self._empty(B) if cache is None else cache
    before = next(iter(cache.values())).shape()[2]
    mask = np.ones((B, before + T)) if attention_mask is None else attention_mask
    mask = np.asarray(mask, np.int64)
    places = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -T:]
    fed = {"attention_mask": mask, "position_ids": places, "num_logits_to_keep": np.array(keep, np.int64)}
    if self.sees:
      fed["inputs_embeds"] = self._embedded(input_ids, pixel_values, pixel_attention_mask)
    else:
      fed["input_ids"] = input_ids
    values = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for name, v in fed.items()}
    found = dict(
      zip(self._outputs, self._decoder.run_with_ort_values(None, values | dict(cache)), strict=True)
    )
    logits = found.pop("logits").numpy()
    return logits, {name.replace("present.", _KEPT, 1): value for name, value in found.items()}

  def generate(
    self,
    count: int,
    stop: tuple[int, ...] = (),
    seen: Callable[[int], None] = lambda number: None,
    **arrays: np.ndarray,
  ) -> list[int]:
    """The likeliest tokens of the answer to one prompt: `count`, or up to one of `stop`, itself counted.

    Args:
      seen: called with 1 after every token.
      arrays: as of `read`.
    """
    logits, cache = self.read(**arrays)
    length, new = np.shape(arrays["input_ids"])[1], []
    mask = np.asarray(arrays.get("attention_mask", np.ones((1, length))))
    while True:
      new.append(int(logits[0, -1].argmax()))
      seen(1)
      if len(new) == count or new[-1] in stop:
        return new
      mask = np.concatenate([mask, np.ones((1, 1), mask.dtype)], axis=1)
      logits, cache = self.read(np.array([new[-1:]]), mask, cache=cache)

  def _embedded(self, ids: np.ndarray, pixels: np.ndarray | None, mask: np.ndarray | None) -> np.ndarray:
    x = self._table.run(["inputs_embeds"], {"input_ids": ids})[0]
    if pixels is None:
      return x
    rows = self.features(pixels, mask).reshape(-1, x.shape[-1])
    at = ids == self.config["image_token_id"]
    if at.sum() != len(rows):
      raise ValueError(f"{at.sum()} image tokens, but {len(rows)} features of tiles")
    x[at] = rows
    return x

  def _empty(self, batch: int) -> dict[str, Any]:
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    shape = lambda value: (batch, value.shape[1], 0, value.shape[3])
    return {
      name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape(value), kinds[value.type]))
      for name, value in self._kept.items()
    }


class Runtime:
  """See `child`."""

  def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
    self._model = OnnxModel(folder, settings.get("numbers"), settings.get("threads", 0))

  def letters(self, asked: Mapping[str, Any]) -> tuple[int, np.ndarray]:
    arrays = _arrays(asked)
    logits = self._model.read(**arrays)[0][0, -1].astype(np.float64)
    top = logits.max()
    logprobs = logits - top - np.log(np.exp(logits - top).sum())
    return arrays["input_ids"].shape[1], logprobs[list(asked["options"])]

  def generate(self, asked: Mapping[str, Any], count: int, seen: Callable[[int], None]) -> list[int]:
    return self._model.generate(count, seen=seen, **_arrays(asked))


def _arrays(asked: Mapping[str, Any]) -> dict[str, np.ndarray]:
  with np.load(asked["arrays"]) as file:
    return dict(file)
