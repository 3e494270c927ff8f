"""q4_0, q8_0: ggml's blocks of 32 weights, as `--to=gguf` writes them and llama.cpp reads them.

Codes, scales and decoded weights are those of the written file to the bit, so that an adapter is trained over
the very base that is deployed, and learns to live with its rounding. llama.cpp also rounds the activations
that such blocks are multiplied with (to q8_0); here they stay in the model's numbers.

Source: ggml's `quantize_row_q4_0_ref` and `quantize_row_q8_0_ref`, by way of the `gguf` library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from spatialvlm.core.quantised import Names, QuantisedArray
from spatialvlm.hub.gguf import numbers
from spatialvlm.quantise.format import Format

# Weights of a block, and bytes of its float16 scale.
BLOCK, _SCALE = 32, 2


@dataclasses.dataclass(frozen=True)
class _Blocks(QuantisedArray):
  """A matrix in blocks of 32 inputs of one output.

  Attributes:
    codes: (d_out, bytes of a row); see the subclasses.
    scales: float16 (d_out, d_in / 32).
    dtype: of the matrix.
  """

  codes: Any
  scales: Any
  dtype: Any = dataclasses.field(default=None, metadata={"static": True})

  @property
  def shape(self) -> tuple[int, int]:
    return BLOCK * self.scales.shape[1], self.scales.shape[0]

  def integers(self) -> jax.Array:
    """float32 (d_out, d_in / 32, 32): whole numbers that the scales multiply."""
    raise NotImplementedError

  def decoded(self) -> jax.Array:
    d_in, d_out = self.shape
    weights = self.integers() * self.scales.astype(jnp.float32)[..., None]
    return weights.reshape(d_out, d_in).astype(self.dtype).T

  def axes(self, d_in: str | None, d_out: str | None) -> Mapping[str, Names]:
    return {"codes": (d_out, d_in), "scales": (d_out, d_in)}

  def spec(self) -> PartitionSpec:
    return PartitionSpec(*reversed((*self.codes.sharding.spec, None, None)[:2]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Q4Array(_Blocks):
  """4 bits a weight: uint8 `codes` (d_out, d_in / 2), of each block the first 16 weights in the low halves of
  its bytes and the last 16 in the high ones, 8 standing for 0."""

  format: ClassVar[str] = "q4_0"

  def integers(self) -> jax.Array:
    halves = self.codes.reshape(*self.scales.shape, BLOCK // 2)
    return jnp.concatenate([halves & 15, halves >> 4], axis=-1).astype(jnp.float32) - 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Q8Array(_Blocks):
  """8 bits a weight: int8 `codes` (d_out, d_in)."""

  format: ClassVar[str] = "q8_0"

  def integers(self) -> jax.Array:
    return self.codes.reshape(*self.scales.shape, BLOCK).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Ggml(Format):
  """Blocks of one of ggml's types; needs the `gguf` library, which makes them."""

  array: ClassVar[type[_Blocks]]
  codes: ClassVar[type[np.generic]]

  def why_not(self, shape: tuple[int, int]) -> str:
    rest = shape[0] % BLOCK
    return f"its {shape[0]} inputs are no multiple of a block of {BLOCK}" if rest else ""

  def quantise(self, kernel: np.ndarray) -> _Blocks:
    """Raises a UserError where the `gguf` library is not installed."""
    rows = numbers.encode(kernel.T, self.name.upper())
    blocks = rows.reshape(len(rows), kernel.shape[0] // BLOCK, -1)
    scales = np.ascontiguousarray(blocks[..., :_SCALE]).view(np.float16)[..., 0]
    codes = np.ascontiguousarray(blocks[..., _SCALE:]).view(self.codes).reshape(len(rows), -1)
    return self.array(codes, scales, dtype=jnp.dtype(kernel.dtype))


@dataclasses.dataclass(frozen=True)
class Q4(_Ggml):
  """4 bits a weight and a float16 scale a block: 4.5 bits."""

  name: ClassVar[str] = "q4_0"
  array: ClassVar[type[_Blocks]] = Q4Array
  codes: ClassVar[type[np.generic]] = np.uint8


@dataclasses.dataclass(frozen=True)
class Q8(_Ggml):
  """8 bits a weight and a float16 scale a block: 8.5 bits."""

  name: ClassVar[str] = "q8_0"
  array: ClassVar[type[_Blocks]] = Q8Array
  codes: ClassVar[type[np.generic]] = np.int8
