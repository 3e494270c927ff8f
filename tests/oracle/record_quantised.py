"""Writes tests/fixtures/quantised/record.npz: weights, and what bitsandbytes' CPU backend makes of them.

  python -m tests.oracle.record_quantised    (in the root of the project)

`tests/quantise/test_formats.py` holds our formats to the record without PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import bitsandbytes as bnb
import numpy as np
import torch
from bitsandbytes import functional

FILE = Path(__file__).parents[1] / "fixtures" / "quantised" / "record.npz"
# name -> (shape (d_out, d_in), dtype, block). The second has more scales than one block of scales.
CASES = {
  "float32": ((48, 128), torch.float32, 64),
  "bfloat16": ((80, 256), torch.bfloat16, 32),
}


def weight_of(name: str, seed: int = 0) -> torch.Tensor:
  """Heavy-tailed values, as weights are; one row of zeros, and one of a single value."""
  shape, dtype, _ = CASES[name]
  weight = 0.05 * np.random.default_rng(seed).standard_t(4, shape)
  weight[1], weight[2] = 0.0, 0.25
  return torch.tensor(weight, dtype=dtype)


def exact(values: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, functional.QuantState]:
  """`quantize_blockwise` by bitsandbytes' formula, which its compiled kernel approximates by a table.

  The compiled kernels are for float32 and below; of float64 the backend computes every distance.
  """
  code = functional.create_dynamic_map()
  places, scales = torch.ops.bitsandbytes.quantize_blockwise.default(values.double(), code, blocksize)
  return places, functional.QuantState(scales, code=code, blocksize=blocksize, dtype=torch.float32)


def nf4(weight: torch.Tensor, block: int, double: bool):
  """Codes, state and decoded weights of `quantize_4bit`."""
  with mock.patch.object(functional, "quantize_blockwise", lambda a, blocksize: exact(a, blocksize)):
    codes, state = functional.quantize_4bit(
      weight, blocksize=block, compress_statistics=double, quant_type="nf4"
    )
  return codes, state, functional.dequantize_4bit(codes, state)


def int8(weight: torch.Tensor):
  """Weights and scales as `Linear8bitLt` keeps them, and the weights decoded."""
  kept = bnb.nn.Int8Params(weight.clone(), requires_grad=False).to("cpu")
  return kept.CB, kept.SCB, functional.int8_vectorwise_dequant(kept.CB, kept.SCB).to(weight.dtype)


def bits(tensor: torch.Tensor) -> np.ndarray:
  """NumPy has no bfloat16: its bits."""
  return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def main() -> None:
  out = {"bitsandbytes": np.array(bnb.__version__), "dynamic": functional.create_dynamic_map().numpy()}
  for name, (_, _, block) in CASES.items():
    weight = weight_of(name)
    out[f"{name}.weight"] = bits(weight)
    for double in (False, True):
      codes, state, decoded = nf4(weight, block, double)
      key = f"{name}.nf4.{double}"
      out |= {f"{key}.codes": codes.numpy(), f"{key}.scales": state.absmax.numpy()}
      out[f"{key}.decoded"] = bits(decoded)
      if double:
        out |= {f"{key}.outer": state.state2.absmax.numpy(), f"{key}.offset": state.offset.numpy()}
    codes, scales, decoded = int8(weight)
    out |= {f"{name}.int8.codes": codes.numpy(), f"{name}.int8.scales": scales.numpy()}
    out[f"{name}.int8.decoded"] = bits(decoded)
  FILE.parent.mkdir(exist_ok=True)
  np.savez_compressed(FILE, **out)
  print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
  main()
