"""nf4 and int8 against bitsandbytes on the CPU: bits of weights, and outputs of adapters in transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from bitsandbytes import functional

from spatialvlm import loading, peft
from spatialvlm.config import ModelConfig, PeftConfig, from_config_dict
from spatialvlm.core.quantised import decode
from spatialvlm.quantise.int8 import Int8
from spatialvlm.quantise.nf4 import Nf4, blocks, dynamic_code, scales_quantised
from tests.models.support import batch_of, call
from tests.oracle import record_quantised as record
from tests.oracle import reference
from tests.oracle.test_peft import assert_close, moved, reload

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}


def kernel(weight):
  values = weight.float().numpy().T
  return values.astype(jnp.bfloat16) if weight.dtype == torch.bfloat16 else values


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("name", record.CASES)
def test_bits(name, block, seed):
  weight = record.weight_of(name, seed)
  for double in (False, True):
    made = Nf4(block, double).quantise(kernel(weight))
    codes, state, decoded = record.nf4(weight, block, double)
    assert np.array_equal(made.codes.reshape(-1), codes.numpy().reshape(-1))
    if double and made.offset != (theirs := state.offset.numpy()):  # the mean, summed in another order
      assert name == "float32" and np.abs(made.offset - theirs) <= 4 * np.spacing(made.offset)
      _, scales = blocks(np.ascontiguousarray(kernel(weight).T), block)
      places, outer, _ = scales_quantised(scales, theirs)
      made = dataclasses.replace(made, scales=places, outer=outer, offset=theirs)
    assert np.array_equal(made.scales.reshape(-1), state.absmax.numpy())
    ours = np.asarray(decode(jax.tree.map(jnp.asarray, made)).T.astype(jnp.float32))
    assert np.array_equal(ours, decoded.float().numpy())
  made, (codes, scales, _) = Int8().quantise(kernel(weight)), record.int8(weight)
  assert np.array_equal(made.codes.T, codes.numpy()) and np.array_equal(made.scales, scales.numpy())


def test_the_compiled_kernel_for_scales_is_the_formula_by_a_table():
  """All that sets its double quantisation apart: places are those of the middles of 65,536 steps."""
  values = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
  found, state = functional.quantize_blockwise(torch.tensor(values), blocksize=256)
  exact, _ = record.exact(torch.tensor(values), 256)
  code = dynamic_code()
  middles = (code[:-1] + code[1:]) / np.float32(2)
  steps = np.arange(65536, dtype=np.float32) / np.float32(65535) * np.float32(2) - np.float32(1)
  shares = values / state.absmax.numpy()[:, None]
  step = ((shares + np.float32(1)) * np.float32(0.5) * np.float32(65535) + np.float32(0.5)).astype(int)
  assert np.array_equal(np.searchsorted(middles, steps)[step], found.numpy())
  assert 0 < (found != exact).float().mean() < 0.005


@pytest.mark.parametrize("settings", [{"rank": 3}, {"rank": 2, "dora": True}, {"method": "ia3"}])
def test_an_adapter_gives_the_same_in_transformers(settings, tmp_path):
  """Theirs is loaded by transformers in nf4, and PEFT lays our folder over it."""
  config = transformers.LlamaConfig(**{**reference.SIZES, **SIZES})
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(config)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(torch.randn_like(parameter) * (1.5 / parameter.shape[-1] ** 0.5))
  model.save_pretrained(tmp_path / "model")
  few = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
  theirs = transformers.LlamaForCausalLM.from_pretrained(
    tmp_path / "model", quantization_config=few, device_map="cpu", dtype=torch.float32
  ).eval()
  for module in theirs.modules():  # its kernel for bfloat16 activations is another computation
    if hasattr(module, "support_avx512bf16_for_cpu"):
      module.support_avx512bf16_for_cpu = False
  vlm = loading.load_base(ModelConfig(str(tmp_path / "model"), quantize="nf4"), None)
  settings = {"target": r".*(q|v|down)_proj", **settings} if "method" not in settings else settings
  vlm = moved(peft.apply(vlm, from_config_dict(settings, PeftConfig)))
  ids = np.arange(20).reshape(2, 10) % 60
  ours = call(vlm, batch_of({"input_ids": ids, "attention_mask": ids >= 0}, -1))
  adapted = reload(theirs, peft.save_adapter(vlm, tmp_path / "adapter"))
  with torch.no_grad():
    expected = adapted(input_ids=torch.tensor(ids)).logits.numpy()
    plain = model(input_ids=torch.tensor(ids)).logits.numpy()
  assert np.abs(expected - plain).max() > 1e-2 * np.abs(plain).max()
  assert_close(ours, expected)
