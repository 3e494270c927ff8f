"""What a format of few bits is: `Format`, its options; the arrays it makes are a `QuantisedArray`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from spatialvlm.core.quantised import QuantisedArray


@dataclasses.dataclass(frozen=True)
class Format:
  """A way to keep kernels in few bits; its fields are its options.

  Attributes:
    name: its key in `FORMATS` and in `--config.model.quantize`.
  """

  name: ClassVar[str]

  def check(self) -> None:
    """Raises a UserError that names the setting where a value makes no sense, before a model is there."""

  def why_not(self, shape: tuple[int, int]) -> str:
    """Why a kernel (d_in, d_out) cannot be kept so; empty where it can."""
    return ""

  def quantise(self, kernel: np.ndarray) -> QuantisedArray:
    """A kernel (d_in, d_out), of the dtype in which it would be loaded, as an array of NumPy's arrays."""
    raise NotImplementedError
