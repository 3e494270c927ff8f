"""Published encoders by their sizes alone: as many parameters as transformers counts, nothing allocated.

tests/oracle/test_sizes.py finds the numbers in transformers itself.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from spatialvlm.models.encoders import VisionEncoder
from spatialvlm.models.registry import encoder_config
from spatialvlm.probing import cost

SMALL = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
SO400M = dict(hidden_size=1152, num_hidden_layers=27, num_attention_heads=16, intermediate_size=4304)


def _dino(width: int, depth: int, heads: int, **more) -> dict:
  sizes = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads)
  return dict(model_type="dinov2", image_size=518, patch_size=14, mlp_ratio=4) | sizes | more


def _dino3(sizes: dict) -> dict:
  return dict(model_type="dinov3_vit", image_size=224, patch_size=16, num_register_tokens=4) | sizes


def _siglip(image: int, patch: int, sizes: dict) -> dict:
  return dict(model_type="siglip_vision_model", image_size=image, patch_size=patch) | sizes


def _clip(image: int, patch: int, sizes: dict) -> dict:
  return dict(model_type="clip_vision_model", image_size=image, patch_size=patch) | sizes


# (config.json, parameters). SigLIP's without its pooling head, CLIP's without its projection.
PUBLISHED = {
  "dinov2-small": (_dino(384, 12, 6), 22_056_576),
  "dinov2-base": (_dino(768, 12, 12), 86_580_480),
  "dinov2-large": (_dino(1024, 24, 16), 304_368_640),
  "dinov2-giant": (_dino(1536, 40, 24, use_swiglu_ffn=True), 1_136_480_768),
  "dinov2-with-registers-base": (
    _dino(768, 12, 12, model_type="dinov2_with_registers", num_register_tokens=4),
    86_583_552,
  ),
  "dinov3-vits16": (_dino3(SMALL), 21_596_544),
  "dinov3-vitb16": (_dino3(BASE), 85_660_416),
  "dinov3-vitl16": (_dino3(LARGE), 303_129_600),
  "siglip-base-224": (_siglip(224, 16, BASE), 85_797_120),
  "siglip-base-512": (_siglip(512, 16, BASE), 86_433_024),
  "siglip-so400m-384": (_siglip(384, 14, SO400M), 412_987_248),
  "clip-vit-base-patch16": (_clip(224, 16, BASE), 85_799_424),
  "clip-vit-large-patch14": (_clip(224, 14, LARGE), 303_179_776),
  "clip-vit-large-patch14-336": (_clip(336, 14, LARGE), 303_507_456),
  "InternViT-300M": (
    dict(model_type="internvl_vision", image_size=[448, 448], patch_size=[14, 14], attention_bias=True)
    | LARGE,
    304_012_288,
  ),
}


def count(source: dict) -> int:
  config = encoder_config(source, dtype="float32", where="published")
  build = lambda: VisionEncoder(config.vision, dtype=jnp.float32, rngs=nnx.Rngs(0))
  model = nnx.eval_shape(build)
  assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
  return cost.parameters(model)


def by_depth(source: dict) -> int:
  """Counted with one block and with two, since all are alike: forty take seconds to write down."""
  one, two = (count(source | {"num_hidden_layers": depth}) for depth in (1, 2))
  return one + (source["num_hidden_layers"] - 1) * (two - one)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_encoders(name):
  source, wanted = PUBLISHED[name]
  assert by_depth(source) == wanted


def test_blocks_are_alike():
  source = PUBLISHED["dinov2-small"][0] | {"num_hidden_layers": 4}
  assert count(source) == by_depth(source)
