"""The full shape of SmolVLM-500M with random weights: logits against transformers, and memory of the load."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from spatialvlm import hub
from tests.models.support import batch_of
from tests.oracle import reference

ROOT = Path(__file__).parents[2]
SHAPE = ROOT / "benchmarks" / "smolvlm-500m"
IMAGE = 49190


@pytest.mark.slow
def test_logits_of_the_full_shape(tmp_path):
  """A split prompt of two tiles and text; every parameter random."""
  config = transformers.AutoConfig.from_pretrained(SHAPE)
  theirs = transformers.AutoModelForImageTextToText.from_config(config).eval()
  reference.randomise(theirs, seed=0)
  assert sum(p.numel() for p in theirs.parameters()) == 507_482_304
  theirs.save_pretrained(tmp_path)
  ids = np.random.default_rng(0).integers(3, 49000, (1, 160))
  ids[0, 3:67] = ids[0, 70:134] = IMAGE
  pixels = np.random.default_rng(1).uniform(-1, 1, (1, 2, 3, 512, 512)).astype(np.float32)
  case = {"input_ids": ids, "attention_mask": np.ones_like(ids), "pixel_values": pixels}
  with torch.no_grad():
    wanted = theirs(**reference.tensors(case)).logits.numpy()
  del theirs
  ours = hub.load_model(tmp_path)
  graphdef, state = nnx.split(ours)
  got = np.asarray(
    jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))(state, batch_of(case, IMAGE))
  )
  assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max() / 10)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, stored", [("float32", "float32"), ("bfloat16", "float32")])
def test_memory_of_loading(dtype, stored):
  spec = importlib.util.spec_from_file_location("load_memory", ROOT / "benchmarks" / "load_memory.py")
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  seen = script.measure(dtype, stored)
  assert seen["weights"] <= seen["rise"] * 1.05  # the measurement saw the weights at all
  assert seen["rise"] <= seen["limit"], seen
