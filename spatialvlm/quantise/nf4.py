"""nf4: 4 bits a weight in blocks of one scale each (QLoRA, Dettmers et al., arXiv 2305.14314).

Blocks, scales and decoded weights are those of bitsandbytes' `quantize_4bit` to the bit, so that an adapter
that was trained over them finds the same base in transformers. Of double quantisation that holds for the
formula that bitsandbytes has for CUDA and in PyTorch: its compiled kernel for CPUs looks a scale's code up by
16 bits, which differs by one place in about 2 of 1,000 scales. The mean that is taken from the scales is
rounded once here; bitsandbytes sums it in float32 in an order that is its device's, which can differ in the
last bits where the weights are float32 (in bfloat16 such sums are exact).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from spatialvlm.core.quantised import Names, QuantisedArray
from spatialvlm.quantise.format import Format
from spatialvlm.types import UserError

# Quantiles of the normal distribution, as bitsandbytes has them; 0 is exact.
CODE = np.array(
  [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
  ],
  np.float32,
)
# The two weights of a byte, high bits first.
_PAIRS = np.stack([np.repeat(CODE, 16), np.tile(CODE, 16)], axis=-1)
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
# Scales that share one scale in double quantisation.
_SCALES = 256
_LEAST = np.float32(1e-38)


@functools.cache
def dynamic_code() -> np.ndarray:
  """(256,) float32, ascending: the 8-bit numbers of double quantisation, whose steps grow with their size.

  Decades from 1e-6 to 1, each of twice as many steps as the one below (Dettmers, arXiv 1511.04561).
  """
  one, tenth = np.float32(1), np.float32(0.1)
  found = [np.zeros(1, np.float32), np.ones(1, np.float32)]
  for decade in range(7):
    count = 2**decade
    # Rounded once, from both ends to the middle: as torch.linspace does.
    step, k = np.float64((one - tenth) / np.float32(count)), np.arange(count + 1)
    edges = np.where(k < (count + 1) // 2, tenth + step * k, 1 - step * (count - k)).astype(np.float32)
    means = np.float32(10.0 ** (decade - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
    found += [means, -means]
  return np.sort(np.concatenate(found))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nf4Array(QuantisedArray):
  """A matrix in nf4, laid out as in bitsandbytes: row by row of the transpose, the first weight in high bits.

  Attributes:
    codes: uint8 (d_out, d_in / 2), two weights a byte.
    scales: float32 (d_out, d_in / block), the largest absolute weight of each block; with double quantisation
      uint8, places in `dynamic_code`.
    outer: float32 (blocks / 256,), scales of the scales, row by row; None without double quantisation.
    offset: float32 (), their mean; None likewise.
    dtype: of the matrix.
  """

  codes: Any
  scales: Any
  outer: Any = None
  offset: Any = None
  dtype: Any = dataclasses.field(default=None, metadata={"static": True})

  format: ClassVar[str] = "nf4"

  @property
  def shape(self) -> tuple[int, int]:
    return 2 * self.codes.shape[1], self.codes.shape[0]

  def decoded(self) -> jax.Array:
    d_in, d_out = self.shape
    weights = _lookup(_PAIRS, self.codes).reshape(*self.scales.shape, -1) * self.block_scales()[..., None]
    return weights.reshape(d_out, d_in).astype(self.dtype).T

  def block_scales(self) -> jax.Array:
    """(d_out, d_in / block) float32, decoded where they are quantised too."""
    if self.outer is None:
      return self.scales
    rows, columns = self.scales.shape
    number = jnp.arange(rows)[:, None] * columns + jnp.arange(columns)
    inner = _lookup(dynamic_code(), self.scales) * self.outer[number // _SCALES]
    return _rounded(inner, self.offset) + self.offset

  def axes(self, d_in: str | None, d_out: str | None) -> Mapping[str, Names]:
    return {"codes": (d_out, d_in), "scales": (d_out, d_in), "outer": (None,), "offset": ()}

  def spec(self) -> PartitionSpec:
    return PartitionSpec(*reversed((*self.codes.sharding.spec, None, None)[:2]))


@dataclasses.dataclass(frozen=True)
class Nf4(Format):
  """4 bits a weight, and a float32 scale a block: 4.5 bits in blocks of 64, 4.13 with double quantisation.

  Attributes:
    block: weights that share a scale; neighbours among the inputs of one output.
    double: quantise the scales too, to 8 bits in blocks of 256.
  """

  name: ClassVar[str] = "nf4"
  block: int = 64
  double: bool = False

  def check(self) -> None:
    if self.block not in _BLOCKS:
      raise UserError(
        f"config.model.quantize_block: {self.block} is not one of {', '.join(map(str, _BLOCKS))}, as"
        " bitsandbytes has them"
      )

  def why_not(self, shape: tuple[int, int]) -> str:
    if not shape[0] % self.block:
      return ""
    fits = [block for block in _BLOCKS if not shape[0] % block]
    way = f"model.quantize_block={fits[-1]} fits it" if fits else "no block fits it: leave it out"
    return f"its {shape[0]} inputs are no multiple of a block of {self.block} ({way})"

  def quantise(self, kernel: np.ndarray) -> Nf4Array:
    codes, scales = blocks(np.ascontiguousarray(kernel.T), self.block)
    if not self.double:
      return Nf4Array(codes, scales, dtype=jnp.dtype(kernel.dtype))
    places, outer, offset = scales_quantised(scales)
    return Nf4Array(codes, places, outer, offset, dtype=jnp.dtype(kernel.dtype))


def blocks(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
  """Codes (d_out, d_in / 2) uint8 and scales (d_out, d_in / block) float32 of a weight (d_out, d_in)."""
  rows = weight.shape[0]
  codes = np.empty((rows, weight.shape[1] // 2), np.uint8)
  scales = np.empty((rows, weight.shape[1] // block), np.float32)
  middles = (CODE[:-1] + CODE[1:]) / np.float32(2)
  step = max(1, (1 << 20) // weight.shape[1])  # of what fits a cache
  for start in range(0, rows, step):
    part = weight[start : start + step].astype(np.float32).reshape(-1, scales.shape[1], block)
    largest = np.abs(part).max(-1)
    part *= (np.float32(1) / np.maximum(largest, _LEAST))[..., None]
    places = np.zeros(part.shape, np.uint8)
    for middle in middles:
      places += part > middle
    flat = places.reshape(len(part), -1)
    codes[start : start + step] = flat[:, ::2] << 4 | flat[:, 1::2]
    scales[start : start + step] = largest
  return codes, scales


def scales_quantised(
  scales: np.ndarray, mean: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Places in `dynamic_code` (of the shape of `scales`), the scales of these, and the mean of `scales`.

  Args:
    mean: float32, where it is known already.
  """
  offset = np.float32(scales.mean(dtype=np.float64)) if mean is None else mean
  rest = scales.reshape(-1) - offset
  padded = np.pad(rest, (0, -rest.size % _SCALES)).reshape(-1, _SCALES)
  outer = np.abs(padded).max(-1)
  part = (padded * (np.float32(1) / np.maximum(outer, _LEAST))[:, None]).reshape(-1)[: rest.size]
  code = dynamic_code()
  places = np.searchsorted((code[:-1] + code[1:]) / np.float32(2), part).astype(np.uint8)
  return places.reshape(scales.shape), outer, np.asarray(offset)


def _rounded(product: jax.Array, number: jax.Array) -> jax.Array:
  """A product that is rounded before it is added to something, as bitsandbytes does.

  Compilers fuse the two into one operation with one rounding, across barriers too. The way through integers
  stops them: what is added there is 0, which they cannot know, since `number` might be no number.
  """
  zero = (number != number).astype(jnp.int32)
  return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(product, jnp.int32) + zero, jnp.float32)


def _lookup(table: np.ndarray, places: jax.Array) -> jax.Array:
  return jnp.asarray(table).at[places].get(mode="promise_in_bounds")
