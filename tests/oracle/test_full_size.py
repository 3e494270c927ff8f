"""Full shapes with random weights: logits and tokens against transformers, and memory of the load."""

import gc
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from spatialvlm import hub, load_encoder
from tests.models.support import batch_of
from tests.models.test_sizes import PUBLISHED
from tests.oracle import reference
from tests.oracle.test_sizes import CLASSES

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


def internvl3_1b():
  text = {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864}
  text |= {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151674}
  text |= {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}}
  config = transformers.InternVLConfig(
    text_config=text, vision_config={"attention_bias": True}, tie_word_embeddings=False
  )
  return transformers.InternVLForConditionalGeneration(config)


def paligemma_3b(second: bool):
  text = {"model_type": "gemma2" if second else "gemma", "vocab_size": 257216}
  if not second:
    text |= {"hidden_size": 2048, "num_hidden_layers": 18, "intermediate_size": 16384}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 1}
  vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
  vision |= {"num_attention_heads": 16, "patch_size": 14, "image_size": 224, "vision_use_head": False}
  config = transformers.PaliGemmaConfig(
    text_config=text,
    vision_config={"model_type": "siglip_vision_model", **vision},
    image_token_index=257152,
    projection_dim=2304 if second else 2048,
  )
  config._attn_implementation = "eager"
  return transformers.PaliGemmaForConditionalGeneration(config)


# (builder, parameters, side of a tile, image token, GiB that both sides need, one after the other)
OTHERS = {
  "internvl3-1b": (internvl3_1b, 938_193_024, 448, 151667, 8),
  "paligemma-3b": (lambda: paligemma_3b(False), 2_923_466_480, 224, 257152, 15),
  "paligemma2-3b": (lambda: paligemma_3b(True), 3_032_242_416, 224, 257152, 16),
}


def free_gib() -> float:
  (line,) = [x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable")]
  return int(line.split()[1]) / 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=[pytest.mark.large] if OTHERS[n][-1] > 12 else []) for n in OTHERS]
)
def test_logits_of_other_families(name, tmp_path):
  """An image of 256 tokens, and text, part of it causal where the prompt is not."""
  build, count, side, image, needed = OTHERS[name]
  if free_gib() < needed:
    pytest.skip(f"needs {needed} GiB of free memory, {free_gib():.0f} are free")
  theirs = build().eval()
  reference.randomise(theirs, seed=0)
  assert sum(p.numel() for p in theirs.parameters()) == count
  theirs.save_pretrained(tmp_path)
  ids = np.random.default_rng(0).integers(3, 100_000, (1, 280))
  ids[0, 2:258] = image
  pixels = np.random.default_rng(1).uniform(-1, 1, (1, 1, 3, side, side)).astype(np.float32)
  case = {"input_ids": ids, "attention_mask": np.ones_like(ids), "pixel_values": pixels}
  if name.startswith("pali"):
    case = reference.typed(case, 6)
  with torch.no_grad():
    wanted = theirs(**reference.tensors(reference.flat(case)), logits_to_keep=24).logits.numpy()
  del theirs
  gc.collect()
  ours = hub.load_model(tmp_path)
  graphdef, state = nnx.split(ours)

  @jax.jit
  def last(state, batch):
    vlm = nnx.merge(graphdef, state)
    return vlm.unembed(vlm.hidden(batch)[:, -24:])

  got = np.asarray(last(state, batch_of(case, image)))
  assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max() / 10)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=[pytest.mark.large] if PUBLISHED[n][1] > 1e8 else []) for n in PUBLISHED]
)
def test_tokens_of_encoders(name, tmp_path):
  """Every published shape on one image of 224 pixels, so positions of many are resampled, or its own size."""
  source, count = PUBLISHED[name]
  config_class, model_class, more = CLASSES[source["model_type"]]
  settings = {key: value for key, value in source.items() if key != "model_type"}
  theirs = model_class(config_class(**settings, **more)).eval()
  reference.randomise(theirs, seed=0)
  assert sum(p.numel() for p in theirs.parameters()) == count
  theirs.save_pretrained(tmp_path)
  side = 224 if source["model_type"].startswith("dino") else np.ravel(source["image_size"])[0]
  pixels = np.random.default_rng(1).uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
  with torch.no_grad():
    wanted = theirs(torch.tensor(pixels)).last_hidden_state.numpy()
  del theirs
  gc.collect()
  got = np.asarray(load_encoder(tmp_path)(pixels))
  assert got.shape == wanted.shape
  assert np.abs(got - wanted).max() <= 2e-5 * max(1.0, np.abs(wanted).max() / 10)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, stored", [("float32", "float32"), ("bfloat16", "float32")])
def test_memory_of_loading(dtype, stored):
  spec = importlib.util.spec_from_file_location("load_memory", ROOT / "benchmarks" / "load_memory.py")
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  seen = script.measure(dtype, stored)
  assert seen["weights"] <= seen["rise"] * 1.05  # the measurement saw the weights at all
  assert seen["rise"] <= seen["limit"], seen
