"""A small step by the TPU's own compiler, for a slice that is not here: what its devices send each other.

SmolVLM's layers at a tenth of their width, LoRA, over data=4 x fsdp=2. Needs libtpu (`pip install
"spatialvlm[plan]"`), which takes no device.
"""

import dataclasses
import json

import pytest

from spatialvlm.config import MeshConfig, PeftConfig
from spatialvlm.configs import lora
from spatialvlm.plan import run, targets
from spatialvlm.types import UserError

WIDTH, HIDDEN, KEYS, WORDS, RANK, DEPTH = 256, 512, 128, 1024, 4, 2
TEXT = dict(
  model_type="llama",
  hidden_size=WIDTH,
  intermediate_size=HIDDEN,
  num_hidden_layers=DEPTH,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=64,
  vocab_size=WORDS,
)
VISION = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2)
SHAPE = dict(
  model_type="idefics3",
  image_token_id=1000,
  scale_factor=4,
  tie_word_embeddings=False,
  text_config=TEXT,
  vision_config=VISION | dict(image_size=64, patch_size=16),
)
# (d_in, d_out) of a block's linear layers.
LAYERS = [(WIDTH, WIDTH)] * 2 + [(WIDTH, KEYS)] * 2 + [(WIDTH, HIDDEN)] * 2 + [(HIDDEN, WIDTH)]

needs_libtpu = pytest.mark.skipif(
  bool(targets.find("v5e:2x4").missing()), reason=targets.find("v5e:2x4").missing()
)


def config_of(tmp_path, **mesh):
  (tmp_path / "config.json").write_text(json.dumps(SHAPE))
  config = lora.get_config()
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, path=str(tmp_path)),
    peft=PeftConfig("lora", target=lora.EVERY_LINEAR, options=dict(rank=RANK)),
    mesh=MeshConfig(**mesh),
  )


@needs_libtpu
@pytest.mark.slow
def test_what_a_step_sends_on_a_slice(tmp_path):
  target = targets.find("v5e:2x4")
  (plan,) = run.plan(config_of(tmp_path, data=4, fsdp=2), target, ["train"], tiles=1, tokens=128)
  trained = DEPTH * sum(RANK * (d_in + d_out) for d_in, d_out in LAYERS)
  matrices = 2 * DEPTH * sum(d_in * d_out for d_in, d_out in LAYERS)
  table = 2 * WIDTH * WORDS
  assert plan.devices == 8 and plan.fits and plan.device == "TPU v5e"
  assert set(plan.collectives) <= {"all-gather", "all-reduce", "all-to-all"}
  # Every matrix at most twice, forwards and backwards, the table of embeddings once; a few activations.
  assert matrices < plan.collectives["all-gather"]["bytes"] <= 2 * matrices + table + 100_000
  gathered = {
    one["shape"].partition("[")[2]: one["number"] for one in plan.commonest if one["kind"] == "all-gather"
  }
  assert gathered[f"{WIDTH},{HIDDEN}]"] <= 2 * 2 * DEPTH and gathered[f"{HIDDEN},{WIDTH}]"] <= 2 * DEPTH
  # No factor is, nor the head, and most of the rest beside products.
  factors = {f"{d_in},{RANK}]" for d_in, _ in LAYERS} | {f"{RANK},{d_out}]" for _, d_out in LAYERS}
  assert not (factors | {f"{WIDTH},{WORDS}]"}) & gathered.keys()
  assert plan.collectives["all-gather"]["overlapped"] >= plan.collectives["all-gather"]["times"] / 2
  # Gradients of the factors, in the dtype that they are used in, logits of two positions a row, and a little.
  logits = 4 * 8 * 2 * WORDS
  assert 2 * trained <= plan.collectives["all-reduce"]["bytes"] <= 2 * trained + logits + 100_000
  # Parameters and moments take each other's places.
  assert plan.held["trained"] == 4 * trained and plan.held["optimizer"] >= 8 * trained
  assert plan.donated >= plan.held["trained"] + plan.held["optimizer"] - 64
  assert plan.needed >= sum(plan.held.values())


@needs_libtpu
def test_a_mesh_that_does_not_fit_a_slice_is_one_line(tmp_path):
  with pytest.raises(UserError, match=r"mesh data=3, fsdp=2, tensor=1 does not fit 8 device"):
    list(run.plan(config_of(tmp_path, data=3, fsdp=2), targets.find("v5e:2x4"), ["train"]))
  with pytest.raises(UserError, match=r"--topology=v5e:3x5: the compiler for TPU v5e refuses it"):
    list(run.plan(config_of(tmp_path), targets.find("v5e:3x5"), ["train"]))


@needs_libtpu
@pytest.mark.slow
def test_a_step_whose_attention_writes_no_scores_out_on_a_slice(tmp_path):
  """Of 1,024 tokens, 8 rows and 4 heads: 16 MB of scores a device and block."""
  config, target = config_of(tmp_path, data=4, fsdp=2), targets.find("v5e:2x4")
  asked = lambda attention: dataclasses.replace(
    config, model=dataclasses.replace(config.model, attention=attention)
  )
  (whole,), (splash,) = (
    run.plan(asked(attention), target, ["train"], tiles=1, tokens=1024) for attention in ("xla", "splash")
  )
  assert splash.fits and splash.temporaries < whole.temporaries
  assert splash.collectives["all-gather"]["bytes"] <= 1.01 * whole.collectives["all-gather"]["bytes"]
