"""Small models of transformers with all parameters random, inputs of every layout of a prompt, and checks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from spatialvlm.hub import rules
from spatialvlm.models.outputs import Wants
from tests.models.support import answer_loss, batch_of, jit

IMAGE = 60  # image_token_id of the small vocabularies here
SIZES = {
  "vocab_size": 64,
  "hidden_size": 24,
  "intermediate_size": 40,
  "num_hidden_layers": 3,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "max_position_embeddings": 256,
  "rms_norm_eps": 1e-5,
  "rope_theta": 1e4,
  "pad_token_id": 2,
}
CLASSES = {
  "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration),
  "idefics3": (transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration),
}
_VISION = {
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "image_size": 24,
}


def build_internvl(
  *,
  qk_norm: bool = False,
  feature_layer: int = -1,
  text: dict | None = None,
  vision: dict | None = None,
  seed: int = 0,
):
  """InternVL with Qwen2; `qk_norm`: the variant of the large vision tower, here tied too, and with Llama.

  The published ones have a rotation that slows down beyond their context.
  """
  dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
  config = transformers.InternVLConfig(
    text_config={
      **SIZES,
      "model_type": "llama" if qk_norm else "qwen2",
      "rope_parameters": dynamic,
      **(text or {}),
    },
    vision_config={
      **_VISION,
      "model_type": "internvl_vision",
      "patch_size": 4,
      "attention_bias": not qk_norm,
      "use_qk_norm": qk_norm,
      "norm_type": "rms_norm" if qk_norm else "layer_norm",
      **(vision or {}),
    },
    image_token_id=IMAGE,
    tie_word_embeddings=qk_norm,
    vision_feature_layer=feature_layer,
  )
  model = transformers.InternVLForConditionalGeneration(config).eval()
  randomise(model, seed)
  return model


def build_paligemma(second: bool, *, text: dict | None = None, seed: int = 0):
  """PaliGemma, or PaliGemma 2 with windows shorter than the prompts; eager, since others leave out bounds."""
  kinds = {"model_type": "gemma"}
  if second:
    kinds = {"model_type": "gemma2", "sliding_window": 5, "query_pre_attn_scalar": 12}
    kinds |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
  config = transformers.PaliGemmaConfig(
    text_config={**SIZES, "num_attention_heads": 4, **kinds, **(text or {})},
    vision_config={**_VISION, "model_type": "siglip_vision_model", "patch_size": 8, "vision_use_head": False},
    image_token_index=IMAGE,
    projection_dim=24,
  )
  config._attn_implementation = "eager"
  model = transformers.PaliGemmaForConditionalGeneration(config).eval()
  randomise(model, seed)
  return model


def build_language(kind: str, *, tied: bool = False, text: dict | None = None, seed: int = 0):
  """A causal language model by itself; eager, since others leave out Gemma 2's bounds."""
  more = {}
  if kind == "gemma2":
    more = {"sliding_window": 5, "query_pre_attn_scalar": 12}
    more |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
  sizes = {**SIZES, "num_attention_heads": 4, **more, "tie_word_embeddings": tied, **(text or {})}
  config = transformers.AutoConfig.for_model(kind, **sizes)
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
  randomise(model, seed)
  return model


def typed(case: dict[str, np.ndarray], suffix: int) -> dict[str, np.ndarray]:
  """The case with the last `suffix` tokens of each sample causal, the others bidirectional."""
  mask = case["attention_mask"]
  left = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # real tokens from here to the end
  return {**case, "token_type_ids": ((left <= suffix) & (mask == 1)).astype(np.int64)}


def flat(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """As the other families take it: real tiles one after the other, and no mask of pixels."""
  case = {name: value for name, value in case.items() if name != "pixel_attention_mask"}
  if "pixel_values" in case:
    tiles = case["pixel_values"].reshape(-1, *case["pixel_values"].shape[2:])
    case["pixel_values"] = tiles[tiles.any(axis=(1, 2, 3))]
  return case


def build(family: str, *, tied: bool, seed: int = 0, text: dict | None = None):
  """A model in evaluation mode whose every parameter, norms and biases too, is random."""
  config_class, model_class = CLASSES[family]
  config = config_class(
    text_config={"model_type": "llama", **SIZES, "tie_word_embeddings": tied, **(text or {})},
    vision_config={
      "hidden_size": 16,
      "intermediate_size": 24,
      "num_hidden_layers": 2,
      "num_attention_heads": 2,
      "image_size": 24,
      "patch_size": 4,
    },
    scale_factor=2,
    image_token_id=IMAGE,
    tie_word_embeddings=tied,
  )
  model = model_class(config).eval()
  randomise(model, seed)
  return model


def randomise(model: torch.nn.Module, seed: int, scale: float = 1.0) -> None:
  """Matrices of deviation scale / sqrt(fan in), vectors around 0.5, so that nothing is 0 or 1 by chance."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if parameter.ndim > 1:
        parameter.copy_(noise * scale / parameter[0].numel() ** 0.5)
      else:
        parameter.copy_(0.5 + 0.3 * noise)


def prompt(tiles: int, length: int, rng: np.random.Generator, tokens_per_tile: int = 9) -> np.ndarray:
  """Text ids with `tiles` runs of image tokens, split by text as a processor splits tiles."""
  ids = rng.integers(3, IMAGE - 1, length)
  for tile in range(tiles):
    start = 2 + tile * (tokens_per_tile + 2)
    ids[start : start + tokens_per_tile] = IMAGE
  return ids


def cases(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
  """Inputs by name, in the layout of transformers' processors. Padding images are all zero."""
  rng = np.random.default_rng(seed)
  pixels = lambda *shape: rng.normal(size=(*shape, 3, 24, 24)).astype(np.float32)
  out = {}

  ids = np.stack([prompt(1, 16, rng), prompt(1, 16, rng)])
  out["plain"] = {"input_ids": ids, "attention_mask": np.ones_like(ids), "pixel_values": pixels(2, 1)}

  # Several tiles in one sample, one in the next, none in the last; padded on the right.
  ids = np.stack([prompt(3, 40, rng), prompt(1, 40, rng), prompt(0, 40, rng)])
  mask = np.ones_like(ids)
  mask[1, 20:], mask[2, 7:] = 0, 0
  ids[mask == 0] = 2
  tiles = pixels(3, 3)
  tiles[1, 1:], tiles[2] = 0, 0
  out["right"] = {"input_ids": ids, "attention_mask": mask, "pixel_values": tiles}

  left_ids, left_mask = ids.copy(), mask.copy()
  for row, count in enumerate(mask.sum(1)):
    left_ids[row], left_mask[row] = np.roll(ids[row], 40 - count), np.roll(mask[row], 40 - count)
  out["left"] = {"input_ids": left_ids, "attention_mask": left_mask, "pixel_values": tiles}

  # Images that fill their canvas partly, one of them in both directions.
  pixel_mask = np.ones((3, 3, 24, 24), np.int64)
  pixel_mask[0, 0, 15:], pixel_mask[0, 1, :, 9:], pixel_mask[1, 0, 10:, 18:] = 0, 0, 0
  pixel_mask[1, 0, 10:] = 0
  out["masked"] = {**out["right"], "pixel_attention_mask": pixel_mask}

  ids = rng.integers(3, IMAGE - 1, (2, 10))
  mask = np.ones_like(ids)
  mask[1, :4] = 0
  out["text"] = {"input_ids": ids, "attention_mask": mask}
  return out


def labels_of(case: dict[str, np.ndarray]) -> np.ndarray:
  """The ids themselves on text that real text stands before, -100 elsewhere."""
  real = case["attention_mask"] == 1
  keep = real & np.roll(real, 1, axis=1) & (case["input_ids"] != IMAGE)
  return np.where(keep, case["input_ids"], -100)


def tensors(case: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
  return {name: torch.tensor(value) for name, value in case.items()}


def logits(model, case: dict[str, np.ndarray]) -> np.ndarray:
  with torch.no_grad():
    return model(**tensors(case)).logits.numpy()


def assert_close(ours, theirs, relative=1e-5):
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape
  assert np.abs(ours - theirs).max() <= relative * np.abs(theirs).max()


def real(case):
  return case["attention_mask"].astype(bool)


def assert_loss_and_gradients(theirs, ours, given, case, labels) -> None:
  """The loss, and the gradient of every parameter, by the names of transformers' modules.

  Args:
    given, case: the same arrays as theirs and as ours take them.
  """
  theirs.zero_grad()
  wanted = theirs(**tensors(given), labels=torch.tensor(labels)).loss
  wanted.backward()
  graphdef, params = nnx.split(ours)
  batch = batch_of(case, IMAGE)
  loss = lambda params: answer_loss(nnx.merge(graphdef, params)(batch), jnp.asarray(labels))
  got, grads = jit(jax.value_and_grad(loss))(params)
  assert float(got) == pytest.approx(float(wanted.detach()), rel=1e-5)
  family = ours.config.family
  reached = dict(theirs.named_parameters())
  flat = {".".join(map(str, path)): value for path, value in nnx.to_flat_state(grads)}
  assert {rules.to_module(path, family) for path in flat} == set(reached)
  largest = max(float(p.grad.abs().max()) for p in reached.values() if p.grad is not None)
  for path, value in flat.items():
    theirs_grad = reached[rules.to_module(path, family)].grad
    ours_grad = rules.to_file(np.asarray(value[...]), path, family)
    if theirs_grad is None:
      assert not ours_grad.any(), path
      continue
    scale = max(float(theirs_grad.abs().max()), 1e-3 * largest)
    assert np.abs(ours_grad - theirs_grad.numpy()).max() <= 1e-4 * scale, path


def assert_hidden_states(theirs, ours, given, case) -> None:
  """`Vlm.read`'s layers are `output_hidden_states` of both towers.

  Args:
    given, case: the same arrays as theirs and as ours take them.
  """
  batch = batch_of(case, IMAGE)
  depths = ours.config.vision.depth, ours.config.text.depth
  wants = Wants(hidden=True, encoder_layers=range(depths[0] + 1), decoder_layers=range(depths[1] + 1))
  graphdef, state = nnx.split(ours)
  out = jit(lambda state, batch: nnx.merge(graphdef, state).read(batch, wants))(state, batch)
  with torch.no_grad():
    *streams, last = theirs(**tensors(given), output_hidden_states=True).hidden_states
    tower = theirs.model.vision_model if hasattr(theirs.model, "vision_model") else theirs.model.vision_tower
    pixels = torch.tensor(np.asarray(batch.pixels_NHWC).transpose(0, 3, 1, 2))
    patches = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
  for layer, wanted in enumerate(streams):
    assert_close(np.asarray(out.decoder_layers[layer])[real(case)], wanted.numpy()[real(case)])
  assert_close(np.asarray(out.hidden)[real(case)], last.numpy()[real(case)])
  assert len(patches) == len(out.encoder_layers)
  for layer, wanted in enumerate(patches):
    assert_close(out.encoder_layers[layer], wanted[:, ours.config.vision.prefix :])


def assert_attention(theirs, ours, case, relative=1e-5, given=None) -> None:
  """`Vlm.read`'s probabilities are `output_attentions` of both towers, computed eagerly.

  Args:
    given: the case as theirs takes it, where that is another.
  """
  theirs.set_attn_implementation("eager")
  given = case if given is None else given
  batch = batch_of(case, IMAGE)
  depths = ours.config.vision.depth, ours.config.text.depth
  wants = Wants(encoder_attention=range(1, depths[0] + 1), attention=range(1, depths[1] + 1))
  graphdef, state = nnx.split(ours)
  out = jit(lambda state, batch: nnx.merge(graphdef, state).read(batch, wants))(state, batch)
  with torch.no_grad():
    looks = theirs(**tensors(given), output_attentions=True).attentions
    tower = theirs.model.vision_model if hasattr(theirs.model, "vision_model") else theirs.model.vision_tower
    pixels = torch.tensor(np.asarray(batch.pixels_NHWC).transpose(0, 3, 1, 2))
    inner = tower(pixel_values=pixels, output_attentions=True).attentions
  assert len(looks) == len(out.attention) and len(inner) == len(out.encoder_attention)
  for layer, wanted in enumerate(looks, 1):
    ours_BTNS, theirs_BTNS = (np.asarray(x).swapaxes(1, 2) for x in (out.attention[layer], wanted))
    assert_close(ours_BTNS[real(case)], theirs_BTNS[real(case)], relative)
  for layer, wanted in enumerate(inner, 1):
    assert_close(out.encoder_attention[layer], wanted, relative)


def assert_attention_gradient(theirs, ours, case, given=None, relative=1e-5) -> None:
  """`Vlm.read`'s traces are what autograd gives of eager attention: mean over heads of max(0, dy/dp * p).

  Args:
    given: the case as theirs takes it, where that is another.
  """
  theirs.set_attn_implementation("eager")
  batch = batch_of(case, IMAGE)
  B, T = batch.tokens_BT.shape
  at_B, token = T - 2 - np.argmax(real(case)[:, ::-1], axis=1), 7
  out = theirs(**tensors(case if given is None else given), output_attentions=True)
  value = out.logits[torch.arange(B), torch.tensor(at_B), token].sum()
  slopes = torch.autograd.grad(value, out.attentions)
  targets = dataclasses.replace(batch, target_index_BK=jnp.asarray(at_B[:, None] + 1, jnp.int32))
  graphdef, state = nnx.split(ours)
  read = lambda traces: nnx.merge(graphdef, state).read(targets, Wants(logits=True), traces=traces)
  zeros = {layer: jnp.zeros((B, T, T)) for layer in range(1, ours.config.text.depth + 1)}
  found = jit(jax.grad(lambda traces: read(traces).logits[:, 0, token].sum()))(zeros)
  for layer, (p, slope) in enumerate(zip(out.attentions, slopes, strict=True), 1):
    wanted = np.maximum((p * slope).detach().numpy(), 0).mean(1)
    assert wanted.max() > 0
    assert_close(np.asarray(found[layer])[real(case)], wanted[real(case)], relative)
