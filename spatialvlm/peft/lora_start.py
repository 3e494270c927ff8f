"""What LoRA's factors begin with.

Sources: PiSSA (Meng et al., arXiv 2404.02948) and OLoRA (Büyükakyüz, 2406.01775), with the numerics of
Hugging Face PEFT. Both begin with a part of the base's weight, which the layer then reads without it, so that
a fresh adapter changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from spatialvlm.core.quantised import QuantisedParam
from spatialvlm.peft import eva
from spatialvlm.peft.lora_layers import LoraSpec
from spatialvlm.peft.variables import host
from spatialvlm.types import UserError

Factors = tuple[np.ndarray, np.ndarray]


def _default(rng: np.random.Generator, d_in: int, rank: int) -> np.ndarray:
  """Uniform in +-1/sqrt(d_in), as PEFT draws it."""
  bound = 1.0 / math.sqrt(d_in)
  return rng.uniform(-bound, bound, (d_in, rank))


def _gaussian(rng: np.random.Generator, d_in: int, rank: int) -> np.ndarray:
  return rng.normal(size=(d_in, rank)) / rank


def _pissa(kernel: np.ndarray, rank: int, scale: float) -> Factors:
  """The largest singular values with their vectors, their roots in both factors."""
  left, values, right = np.linalg.svd(kernel, full_matrices=False)
  roots = np.sqrt(values[:rank] / scale)
  return left[:, :rank] * roots, roots[:, None] * right[:rank]


def _olora(kernel: np.ndarray, rank: int, scale: float) -> Factors:
  """The first columns and rows of the QR decomposition of the weight as PyTorch holds it, (d_out, d_in)."""
  q, r = np.linalg.qr(kernel.T)
  return r[:rank].T, q[:, :rank].T


# What draws A, beside a B of zero.
DRAWN: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
  "default": _default,
  "gaussian": _gaussian,
}
# What takes both from the base's weight (d_in, d_out).
OF_BASE: dict[str, Callable[[np.ndarray, int, float], Factors]] = {"pissa": _pissa, "olora": _olora}
# What makes A of the inputs that layers have in the run's data, with ranks for it (`eva.begin`).
OF_INPUTS = {"eva": eva.begin}
STARTS = (*DRAWN, *OF_BASE, *OF_INPUTS)


def check_rank(base: nnx.Linear, spec: LoraSpec, name: str) -> None:
  """Raises a UserError where a factor of this rank cannot be taken from the base's weight."""
  if spec.init in OF_BASE and isinstance(base.kernel, QuantisedParam):
    raise UserError(
      f"peft.init: {spec.init} takes a part of {name}, whose weight is quantised and only read; use"
      " init=default, or a base that is not"
    )
  if spec.init in OF_BASE and spec.rank > min(base.in_features, base.out_features):
    raise UserError(
      f"peft: rank {spec.rank} of {name}: {spec.init} takes it from a weight of {base.in_features} x"
      f" {base.out_features}, whose rank is smaller; lower the rank (rank_pattern for this layer alone)"
    )


def of_base(base: nnx.Linear, spec: LoraSpec, name: str) -> Factors | None:
  """A0 (d_in, r) and B0 (r, d_out) in float32, which the base holds too; None where B begins with zero.

  They follow from the base alone, so that they need no place in a file.

  Raises:
    UserError: the rank is larger than the weight's.
  """
  if spec.init not in OF_BASE:
    return None
  check_rank(base, spec, name)
  value = base.kernel.get_raw_value()
  if isinstance(value, jax.core.Tracer):  # only shapes are asked for
    return np.zeros((base.in_features, spec.rank)), np.zeros((spec.rank, base.out_features))
  # PEFT decomposes in float32; the more exact answer is nearer to it than two roundings are to each other
  a, b = OF_BASE[spec.init](host(base.kernel).astype(np.float64), spec.rank, spec.scale)
  return a.astype(np.float32), b.astype(np.float32)
