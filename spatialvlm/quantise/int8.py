"""int8: 8 bits a weight, one scale an output (the weights of LLM.int8(), Dettmers et al., arXiv 2208.07339).

The int8 weights and their scales are those that bitsandbytes' `Linear8bitLt` keeps, to the bit. What is
computed with them is not LLM.int8(): that also rounds activations to int8, all but those columns that hold an
outlier, so its outputs differ from these by its own rounding. Here activations stay in the model's numbers.
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
from spatialvlm.quantise.format import Format

# 1 / 127 as bitsandbytes writes it.
_STEP = np.float32(7.874015718698502e-3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Array(QuantisedArray):
  """A matrix in int8.

  Attributes:
    codes: int8 (d_in, d_out), -127 to 127: the transpose of bitsandbytes' weight.
    scales: float32 (d_out,), the largest absolute weight of each output.
    dtype: of the matrix.
  """

  codes: Any
  scales: Any
  dtype: Any = dataclasses.field(default=None, metadata={"static": True})

  format: ClassVar[str] = "int8"

  @property
  def shape(self) -> tuple[int, int]:
    return self.codes.shape

  def decoded(self) -> jax.Array:
    return (self.codes.astype(jnp.float32) * self.scales * _STEP).astype(self.dtype)

  def axes(self, d_in: str | None, d_out: str | None) -> Mapping[str, Names]:
    return {"codes": (d_in, d_out), "scales": (d_out,)}

  def spec(self) -> PartitionSpec:
    return PartitionSpec(*(*self.codes.sharding.spec, None, None)[:2])


@dataclasses.dataclass(frozen=True)
class Int8(Format):
  """8 bits a weight and a float32 scale an output."""

  name: ClassVar[str] = "int8"

  def quantise(self, kernel: np.ndarray) -> Int8Array:
    # Through float16, as bitsandbytes does whatever the model's numbers are.
    half = kernel.astype(np.float16)
    scales = np.abs(half).max(0).astype(np.float32)
    # In this order, which is PyTorch's of 127 / scale: ties depend on the last bit.
    factor = np.float32(1) / np.where(scales > 0, scales, np.float32(1)) * np.float32(127)
    codes = np.rint(half.astype(np.float32) * factor).astype(np.int8)
    return Int8Array(codes, scales, dtype=jnp.dtype(kernel.dtype))
