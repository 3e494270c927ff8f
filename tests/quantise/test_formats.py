"""nf4 and int8 against what bitsandbytes made of the same weights (tests/oracle/record_quantised.py)."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialvlm.config import ModelConfig
from spatialvlm.core.quantised import decode
from spatialvlm.quantise import FORMATS, chosen
from spatialvlm.quantise.int8 import Int8
from spatialvlm.quantise.nf4 import Nf4, dynamic_code, scales_quantised
from spatialvlm.types import UserError

RECORD = dict(np.load(Path(__file__).parents[1] / "fixtures/quantised/record.npz"))
BLOCKS = {"float32": 64, "bfloat16": 32}


def array(name: str, dtype: str) -> np.ndarray:
  found = RECORD[name]
  return found.view(jnp.bfloat16) if found.dtype == np.int16 and dtype == "bfloat16" else found


def bits(values) -> np.ndarray:
  values = np.ascontiguousarray(values)
  return values.view(np.uint16 if values.dtype.itemsize == 2 else np.uint32)


def test_the_numbers_of_double_quantisation():
  assert np.array_equal(dynamic_code(), RECORD["dynamic"])


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", BLOCKS)
def test_nf4_is_that_of_bitsandbytes_to_the_bit(dtype, double):
  """The mean of float32 scales is theirs here: they sum in float32, in an order that is their machine's."""
  weight, key = array(f"{dtype}.weight", dtype), f"{dtype}.nf4.{double}"
  made = Nf4(BLOCKS[dtype], double).quantise(weight.T)
  assert np.array_equal(made.codes.reshape(-1), RECORD[f"{key}.codes"].reshape(-1))
  if double:
    offset = RECORD[f"{key}.offset"]
    assert np.abs(made.offset - offset) <= 4 * np.spacing(offset) and (
      dtype == "float32" or made.offset == offset
    )
    if made.offset != offset:
      places, outer, _ = scales_quantised(
        RECORD[f"{dtype}.nf4.False.scales"].reshape(made.scales.shape), offset
      )
      made = dataclasses.replace(made, scales=places, outer=outer, offset=offset)
    assert np.array_equal(made.outer, RECORD[f"{key}.outer"])
  assert np.array_equal(made.scales.reshape(-1), RECORD[f"{key}.scales"])
  decoded = decode(jax.tree.map(jnp.asarray, made))
  assert decoded.dtype == dtype and decoded.shape == weight.T.shape == made.shape
  assert np.array_equal(bits(decoded.T), bits(array(f"{key}.decoded", dtype)))


@pytest.mark.parametrize("dtype", BLOCKS)
def test_int8_weights_are_those_of_bitsandbytes_to_the_bit(dtype):
  made = Int8().quantise(array(f"{dtype}.weight", dtype).T)
  assert np.array_equal(made.codes.T, RECORD[f"{dtype}.int8.codes"])
  assert np.array_equal(made.scales, RECORD[f"{dtype}.int8.scales"])
  decoded = decode(jax.tree.map(jnp.asarray, made))
  assert np.array_equal(bits(decoded.T), bits(array(f"{dtype}.int8.decoded", dtype)))


def test_memory():
  kernel = np.random.default_rng(0).normal(size=(1024, 512)).astype(np.float32)
  weights = kernel.size
  assert Nf4().quantise(kernel).nbytes == weights // 2 + 4 * weights // 64
  assert (
    Nf4(double=True).quantise(kernel).nbytes == weights // 2 + weights // 64 + 4 * weights // 64 // 256 + 4
  )
  assert Int8().quantise(kernel).nbytes == weights + 4 * 512


def test_a_row_of_zeros_stays_one():
  kernel = np.zeros((64, 3), np.float32)
  for format in (Nf4(), Nf4(double=True), Int8()):
    assert not np.asarray(decode(jax.tree.map(jnp.asarray, format.quantise(kernel)))).any()


def test_the_settings():
  assert chosen(ModelConfig()) is None
  assert chosen(ModelConfig(quantize="nf4", quantize_double=True)) == Nf4(64, True)
  assert chosen(ModelConfig(quantize="int8")) == Int8()
  assert all(name == format.name for name, format in FORMATS.items())


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"quantize": "nf"}, r"model\.quantize: there is no 'nf'; did you mean 'nf4'\?"),
    ({"quantize": "nf4", "quantize_block": 48}, r"quantize_block: 48 is not one of 32, 64, 128"),
    ({"quantize": "int8", "quantize_block": 64}, r"quantize_block: int8 has no block; formats that do: nf4"),
    ({"quantize": "int8", "quantize_double": False}, r"quantize_double: int8 has no double"),
    ({"quantize_double": True}, r"quantize_double: nothing is quantised; set model\.quantize too"),
    ({"quantize_target": ".*"}, r"quantize_target: nothing is quantised"),
  ],
)
def test_settings_that_cannot_be(settings, message):
  with pytest.raises(UserError, match=message):
    chosen(ModelConfig(**settings))


def test_blocks_that_do_not_divide_the_inputs():
  assert Nf4(32).why_not((96, 7)) == ""
  assert Nf4(64).why_not((96, 7)).endswith("no multiple of a block of 64 (model.quantize_block=32 fits it)")
  assert "no block fits it" in Nf4(64).why_not((4304, 64))
