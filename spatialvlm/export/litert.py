"""A model as LiteRT files (.tflite), for phones and boards: one row, fixed sizes, in float32 or int8.

A folder of: `language.tflite` with the signatures `prefill` and `step`, which share their weights; of a
model with eyes `vision.tflite` (`vision`); `programs.json`, which says what goes in and out; and the files
of tokenizer and processor. The functions are those of `programs` for one row without holes, so that one
number says how much of the cache is filled, and it is the caller's:

- vision: pixels (1, C, H, W) -> images (1, P, D).
- prefill: tokens (1, T), of which the first `count` are read; `images` (1, T, D), read where a token is an
  image token; `length`, slots filled so far; `keys_I`, `values_I` -> logits (1, V) behind the last token
  read, and the cache. The caller adds `count` to `length`; a longer prompt is read T tokens at a time.
- step: tokens (1,), `length` and the cache -> logits and the cache. The caller adds 1.

The converter is litert-converter, which takes StableHLO as JAX lowers it and needs no TensorFlow; int8 is
made by ai-edge-quantizer: weights of 8 bits, one scale a channel; activations are rounded as they come. It
passes by the table that tokens are looked up in, which is therefore made here (`Programs.with_int8_rows`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from spatialvlm import priors
from spatialvlm.config import nearest
from spatialvlm.export.exporter import Exportable, no_merging
from spatialvlm.export.programs import Part, Programs
from spatialvlm.export.stablehlo import MANIFEST, about, companions
from spatialvlm.export.whole import read_processor, write_files
from spatialvlm.models.vlm import Vlm
from spatialvlm.types import UserError

LANGUAGE, EYES = "language.tflite", "vision.tflite"
NUMBERS = ("float32", "int8")
# Tokens that `prefill` reads at a time, and the longest cache unless a user says otherwise.
CHUNK, LENGTH = 128, 2048
# A flatbuffer's offsets have 32 bits, of which one is a sign; some room for all that is no weight.
_MOST = 2**31 - 2**24
_MISSING = '--to=litert: needs the LiteRT converter (no {}): pip install "spatialvlm[litert]"'


@dataclasses.dataclass(frozen=True)
class Function:
  """One signature of a file.

  Attributes:
    name: of the signature.
    part: whose weights are constants of it.
    run: (weights, *inputs) -> outputs.
    inputs: shapes and dtypes by name, in their order.
    outputs: names, in their order.
  """

  name: str
  part: Part
  run: Callable[..., tuple[jax.Array, ...]]
  inputs: dict[str, jax.ShapeDtypeStruct]
  outputs: tuple[str, ...]


def numbers(text: str) -> str:
  """What a user says of the numbers: one of `NUMBERS`, empty for the first.

  Raises:
    UserError: another one.
  """
  if text and text not in NUMBERS:
    raise UserError(f"--numbers={text}: LiteRT files have no such numbers; {nearest(text, NUMBERS)}")
  return text or NUMBERS[0]


def why_not(vlm: Vlm) -> str | None:
  """Why a model has no such files; None where it has."""
  if told := ", ".join(priors.configs_of(vlm)):
    return f"LiteRT files read no priors ({told}), which are added to this model's image tokens"
  if vlm.config.prefix_lm:
    return (
      f"the prompts of {vlm.config.family} see themselves as a whole, and LiteRT's sizes are fixed: they are"
      " read in pieces; --to=stablehlo has no such limit"
    )
  if vlm.config.dtype != "float32":
    return (
      f"LiteRT files are made of float32, and this model was loaded in {vlm.config.dtype}; leave out --dtype"
    )
  return no_merging(vlm)


def write(model: Exportable, folder: Path) -> Path:
  """Writes the folder, all of it or nothing.

  Raises:
    UserError: the converter is not installed or does not convert the model, a length beyond the context,
      a model beyond 2 GiB, a processor that cannot be read, or a full disk.
  """
  kind: str = model.numbers or NUMBERS[0]
  converter = Converter.of(kind)
  programs, processor = Programs.of(model.vlm), read_processor(model)
  programs = programs.with_int8_rows() if kind == "int8" else programs
  made = functions(programs, cache_length(programs, model.length))
  files: dict[str, Callable[[Path], Any]] = {}
  for name, inside in made.items():
    size = sum(tensor.count for tensor in inside[0].part.tensors.values())
    if size > _MOST:
      raise UserError(
        f"{model.base}: {name} would hold {size / 2**30:.1f} GiB of float32 weights, and a LiteRT file less"
        " than 2; --to=gguf and --to=stablehlo have no such limit"
      )
    files[name] = lambda file, inside=inside: file.write_bytes(converter(inside))
  said = {
    "format": "litert",
    "numbers": kind,
    "model": about(programs.config, processor, model.base),
    "length": cache_length(programs, model.length),
    "programs": {
      function.name: {
        "file": name,
        "inputs": [
          {"name": key, "shape": list(leaf.shape), "dtype": jnp.dtype(leaf.dtype).name}
          for key, leaf in function.inputs.items()
        ],
        "outputs": list(function.outputs),
      }
      for name, inside in made.items()
      for function in inside
    },
  }
  files[MANIFEST] = lambda file: file.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
  return write_files(files | companions(model), folder)


def cache_length(programs: Programs, asked: int | None) -> int:
  """Most tokens of prompt and answer together.

  Raises:
    UserError: none, or more than the model's context.
  """
  most = programs.config.text.max_length
  if asked is not None and not 1 <= asked <= most:
    raise UserError(f"--length={asked}: the model's context is {most}; give 1 to {most}")
  return asked or min(most, LENGTH)


def functions(programs: Programs, length: int, chunk: int = CHUNK) -> dict[str, list[Function]]:
  """The signatures of each file. The cache has room for a whole piece behind `length` tokens."""
  text = programs.config.text
  chunk = min(chunk, length)
  shapes = programs.cache(1, length + chunk)
  whole = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  cache = {f"{name}_{i}": leaf for name in ("keys", "values") for i, leaf in enumerate(shapes[name])}
  sees = programs.eyes is not None
  images = {"images": jax.ShapeDtypeStruct((1, chunk, text.block.width), jnp.float32)} if sees else {}

  def cached(filled, flat):
    keys, values = flat[: text.depth], flat[text.depth :]
    valid = (jnp.arange(length + chunk) < filled)[None]
    return {"keys": tuple(keys), "length": filled, "valid": valid, "values": tuple(values)}

  def prefill(weights, tokens, count, filled, *rest):
    placed, flat = (rest[0], rest[1:]) if sees else (None, rest)
    valid = (jnp.arange(chunk) < count)[None]
    logits, grown = programs.prefill_placed(weights, tokens, valid, cached(filled, flat), placed)
    logits = jnp.where(filled + count <= length, logits, jnp.nan)
    return logits, *grown["keys"], *grown["values"]

  def step(weights, tokens, filled, *flat):
    logits, grown = programs.step(weights, tokens, cached(filled, flat))
    logits = jnp.where(filled + 1 <= length, logits, jnp.nan)
    return logits, *grown["keys"], *grown["values"]

  inputs = {"tokens": whole(1, chunk), "count": whole(), "length": whole(), **images, **cache}
  one = {"tokens": whole(1), "length": whole(), **cache}
  outputs = ("logits", *cache)
  made = {
    LANGUAGE: [
      Function("prefill", programs.language, prefill, inputs, outputs),
      Function("step", programs.language, step, one, outputs),
    ]
  }
  if sees:
    vision = programs.config.vision
    pixels = jax.ShapeDtypeStruct((1, vision.channels, vision.image_size, vision.image_size), jnp.float32)
    see = lambda weights, pixels: (programs.see(weights, pixels),)
    made[EYES] = [Function("vision", programs.eyes, see, {"pixels": pixels}, ("images",))]
  return made


@dataclasses.dataclass(frozen=True)
class Converter:
  """From functions to the bytes of a file."""

  api: Any
  ir: Any
  passes: Any
  quantise: Callable[[bytes], bytes] | None

  @classmethod
  def of(cls, kind: str) -> Converter:
    """Of these numbers.

    Raises:
      UserError: it is not installed.
    """
    try:
      from litert_converter import converter_api_ext
      from litert_converter.mlir import ir, passmanager
    except ImportError as error:
      raise UserError(_MISSING.format(error.name)) from error
    return cls(converter_api_ext, ir, passmanager, _int8() if kind == "int8" else None)

  def __call__(self, inside: list[Function]) -> bytes:
    """The bytes of a file with these signatures.

    Raises:
      UserError: the converter refuses one.
    """
    context = self.ir.Context()
    self.api.prepare_mlir_context(context)
    with context, self.ir.Location.unknown():
      config = self.api.ConvertToTFLConfig()
      config.model_origin_framework = "JAX"
      try:
        merged = self.api.merge_modules([self._module(function) for function in inside])
        self.api.run_convert_to_tfl_passes(merged, self.passes.PassManager("builtin.module"), config)
      except (ValueError, self.ir.MLIRError) as error:
        why = " ".join(str(error).split())[:200]
        names = ", ".join(function.name for function in inside)
        raise UserError(f"--to=litert: the converter refuses {names}: {why}") from error
      made = self.api.export_flatbuffer_to_bytes(merged.operation)
    return made if self.quantise is None else self.quantise(made)

  def _module(self, function: Function) -> Any:
    weights = {name: jnp.asarray(tensor.make()) for name, tensor in function.part.tensors.items()}
    inner = lambda *inputs: function.run(weights, *inputs)
    lowered = jax.jit(inner, keep_unused=True).lower(*function.inputs.values())
    code = io.BytesIO()  # as text, weights would take twice the room and five times as long
    lowered.compiler_ir("stablehlo").operation.write_bytecode(code)
    module = self.ir.Module.parse(code.getvalue())
    self.passes.PassManager.parse("builtin.module(strip-debuginfo)").run(module.operation)
    self.api.set_signature(module.operation, function.name, list(function.inputs), list(function.outputs))
    return module


def _int8() -> Callable[[bytes], bytes]:
  try:
    from ai_edge_quantizer import quantizer, recipe
  except ImportError as error:
    raise UserError(_MISSING.format(error.name)) from error

  def quantise(made: bytes) -> bytes:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it talks
      work = quantizer.Quantizer(bytearray(made))
      work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
      return bytes(work.quantize().quantized_model)

  return quantise
