"""Published encoders and models by their sizes alone: parameters counted on torch's meta device."""

import pytest
import torch
import transformers
from flax import nnx

from spatialvlm.models.families import FAMILIES
from spatialvlm.models.registry import family_of
from spatialvlm.models.vlm import Vlm
from spatialvlm.probing import cost
from tests.models.test_sizes import BASE, LARGE, PUBLISHED, SO400M

CLASSES = {
  "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model, {}),
  "dinov2_with_registers": (
    transformers.Dinov2WithRegistersConfig,
    transformers.Dinov2WithRegistersModel,
    {},
  ),
  "dinov3_vit": (transformers.DINOv3ViTConfig, transformers.DINOv3ViTModel, {}),
  "siglip_vision_model": (
    transformers.SiglipVisionConfig,
    transformers.SiglipVisionModel,
    {"vision_use_head": False},
  ),
  "clip_vision_model": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel, {}),
  "internvl_vision": (transformers.InternVLVisionConfig, transformers.InternVLVisionModel, {}),
}


def _text(
  kind: str, width: int, depth: int, heads: tuple[int, int], mlp: int, vocabulary: int, **more
) -> dict:
  sizes = dict(model_type=kind, hidden_size=width, num_hidden_layers=depth, intermediate_size=mlp)
  sizes |= dict(num_attention_heads=heads[0], num_key_value_heads=heads[1], vocab_size=vocabulary)
  return sizes | more


def _smolvlm(vision: dict, patch: int, image: int, scale: int, text: dict, kind: str = "idefics3") -> dict:
  vision = vision | dict(model_type=f"{kind}_vision", patch_size=patch, image_size=image)
  parts = dict(vision_config=vision, text_config=text, scale_factor=scale)
  return dict(model_type=kind, tie_word_embeddings=False) | parts


def _internvl(text: dict, tied: bool) -> dict:
  vision = LARGE | dict(model_type="internvl_vision", attention_bias=True)
  parts = dict(vision_config=vision, text_config=text)
  return dict(model_type="internvl", tie_word_embeddings=tied) | parts


def _paligemma(image: int, text: dict) -> dict:
  vision = SO400M | dict(model_type="siglip_vision_model", patch_size=14, image_size=image)
  vision |= dict(vision_use_head=False)
  parts = dict(vision_config=vision, text_config=text, projection_dim=text["hidden_size"])
  return dict(model_type="paligemma", image_token_index=257152) | parts


_GEMMA = _text("gemma", 2048, 18, (8, 1), 16384, 257216)
# (config.json, parameters).
MODELS = {
  "SmolVLM-256M": (_smolvlm(BASE, 16, 512, 4, _text("llama", 576, 30, (9, 3), 1536, 49280)), 256_484_928),
  "SmolVLM-500M": (_smolvlm(BASE, 16, 512, 4, _text("llama", 960, 32, (15, 5), 2560, 49280)), 507_482_304),
  "SmolVLM-2.2B": (
    _smolvlm(SO400M, 14, 384, 3, _text("llama", 2048, 24, (32, 32), 8192, 49155)),
    2_246_272_880,
  ),
  "Idefics3-8B": (
    _smolvlm(SO400M, 14, 364, 2, _text("llama", 4096, 32, (32, 8), 14336, 128259)),
    8_462_086_384,
  ),
  "InternVL3-1B": (_internvl(_text("qwen2", 896, 24, (14, 2), 4864, 151674), False), 938_193_024),
  "InternVL3-2B": (_internvl(_text("qwen2", 1536, 28, (12, 2), 8960, 151674), False), 2_088_957_440),
  "PaliGemma-3B-224": (_paligemma(224, _GEMMA), 2_923_466_480),
  "PaliGemma-3B-448": (_paligemma(448, _GEMMA), 2_924_351_216),
  "PaliGemma-3B-896": (_paligemma(896, _GEMMA), 2_927_890_160),
  "PaliGemma2-3B-224": (
    _paligemma(224, _text("gemma2", 2304, 26, (8, 4), 9216, 257216)),
    3_032_242_416,
  ),
}
_TIED = dict(tie_word_embeddings=True)
LANGUAGE = {
  "SmolLM2-135M": (_text("llama", 576, 30, (9, 3), 1536, 49152, **_TIED), 134_515_008),
  "SmolLM2-360M": (_text("llama", 960, 32, (15, 5), 2560, 49152, **_TIED), 361_821_120),
  "SmolLM2-1.7B": (_text("llama", 2048, 24, (32, 32), 8192, 49152, **_TIED), 1_711_376_384),
  "Llama-3.2-1B": (_text("llama", 2048, 16, (32, 8), 8192, 128256, **_TIED), 1_235_814_400),
  "Qwen2.5-0.5B": (_text("qwen2", 896, 24, (14, 2), 4864, 151936, **_TIED), 494_032_768),
  "Gemma-2B": (_text("gemma", 2048, 18, (8, 1), 16384, 256000), 2_506_172_416),
  "Gemma-2-2B": (_text("gemma2", 2304, 26, (8, 4), 9216, 256000), 2_614_341_888),
}


def count_model(source: dict) -> int:
  config = FAMILIES[family_of(source, "published")].parse_config(source, dtype="float32", where="published")
  return cost.parameters(nnx.eval_shape(lambda: Vlm(config, rngs=nnx.Rngs(0))))


def model_by_depth(source: dict) -> int:
  """Counted with one block and with two, of each part."""
  parts = ("vision_config", "text_config")
  depths = {part: source[part]["num_hidden_layers"] for part in parts}
  with_depth = lambda **given: count_model(
    source | {part: source[part] | {"num_hidden_layers": given.get(part, 1)} for part in parts}
  )
  one = with_depth()
  return one + sum((depths[part] - 1) * (with_depth(**{part: 2}) - one) for part in parts)


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_counts_the_same(name):
  source, wanted = PUBLISHED[name]
  config_class, model_class, more = CLASSES[source["model_type"]]
  settings = {key: value for key, value in source.items() if key != "model_type"}
  with torch.device("meta"):
    model = model_class(config_class(**settings, **more))
  assert sum(parameter.numel() for parameter in model.parameters()) == wanted


@pytest.mark.parametrize("name", MODELS)
def test_transformers_counts_the_same_in_models(name):
  source, wanted = MODELS[name]
  config = transformers.AutoConfig.for_model(**source)
  with torch.device("meta"):
    model = transformers.AutoModelForImageTextToText.from_config(config)
  assert sum(parameter.numel() for parameter in model.parameters()) == wanted


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_published_models(name):
  source, wanted = MODELS[name]
  assert model_by_depth(source) == wanted


@pytest.mark.parametrize("name", LANGUAGE)
def test_parameters_of_published_language_models(name):
  source, wanted = LANGUAGE[name]
  counts = [count_model(source | {"num_hidden_layers": depth}) for depth in (1, 2)]
  assert counts[0] + (source["num_hidden_layers"] - 1) * (counts[1] - counts[0]) == wanted
  with torch.device("meta"):
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**source))
  assert sum(parameter.numel() for parameter in model.parameters()) == wanted
