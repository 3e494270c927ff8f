"""Language models by themselves: Llama (and SmolLM2), Qwen2, Gemma, Gemma 2, as decoders without an encoder.

No layers live here: a language model is the `Vlm` whose vision tower and connector are None. Defaults of
omitted fields are those of transformers' configuration classes, since published configs rely on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spatialvlm.models import texts
from spatialvlm.models.fields import Rule, under
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.types import UserError

# transformers' class of each `model_type`, and whether embeddings are tied where a config does not say so.
CLASSES: dict[str, tuple[str, bool]] = {
  "llama": ("LlamaForCausalLM", False),
  "qwen2": ("Qwen2ForCausalLM", False),
  "gemma": ("GemmaForCausalLM", True),
  "gemma2": ("Gemma2ForCausalLM", True),
}
# A base model saved without its head has no `model.` prefix.
ALIASES: tuple[tuple[str, str], ...] = ((r"^(embed_tokens|layers|norm)\.", r"model.\1."),)
IGNORED: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)


def rules(kind: str) -> tuple[Rule, ...]:
  """Names of the tensors, as transformers' causal language models have them."""
  return (
    *under("model.", "decoder.", texts.rules(out_norms=kind == "gemma2")),
    ("lm_head.weight", "decoder.lm_head.kernel", "transpose"),
  )


def parse_config(source: Mapping[str, Any], *, dtype: str, where: str) -> VlmConfig:
  """Reads the config.json of a language model.

  Raises:
    UserError: a setting that these layers do not compute or that makes no sense, by its name.
  """
  kind = source["model_type"]
  if source.get("use_bidirectional_attention"):
    raise UserError(f"{where}: use_bidirectional_attention is not computed here: every layer is causal")
  return VlmConfig(
    family=kind,
    vision=None,
    text=texts.parse(source, (kind,), where),
    connector=None,
    image_token_id=None,
    tied=bool(source.get("tie_word_embeddings", CLASSES[kind][1])),
    dtype=dtype,
    source=source,
  )
