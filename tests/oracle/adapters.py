"""Adapters made by Hugging Face peft: every option that is read here, with all trained values random.

`CASES` are LoRA's; `OTHERS` those of the other methods of layers, by the class of their config, and `SOFT`
those of soft prompts.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import torch

from tests.oracle import reference

# name -> (options of LoraConfig, family of the base: smolvlm has a head of its own, idefics3 a tied one)
CASES: dict[str, tuple[dict[str, Any], str]] = {
  "suffixes": ({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "fc1"]}, "smolvlm"),
  "regex": (
    {
      "r": 3,
      "lora_alpha": 5,
      "use_rslora": True,
      "target_modules": r"model\.text_model\..*\.(q|k|v|o)_proj|lm_head|model\.connector\..*\.proj",
    },
    "smolvlm",
  ),
  "patterns": (
    {
      "r": 4,
      "lora_alpha": 4,
      "target_modules": ["q_proj", "down_proj", "fc2"],
      "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2, "fc2": 5},
      "alpha_pattern": {"down_proj": 12, r"^model\.text_model\.layers\.1\..*q_proj": 9},
    },
    "smolvlm",
  ),
  "dora": ({"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": "all-linear"}, "smolvlm"),
  "saved": (
    {
      "r": 2,
      "use_dora": True,
      "use_rslora": True,
      "target_modules": ["q_proj", "o_proj", "proj"],
      # by their ends, so `norm` names input_layernorm as well; the connector's proj is in both lists
      "modules_to_save": ["lm_head", "embed_tokens", "norm", "connector", "patch_embedding"],
    },
    "smolvlm",
  ),
  "layers": (
    {
      "r": 2,
      "target_modules": ["q_proj", "k_proj", "up_proj"],
      "layers_to_transform": [1],
      "layers_pattern": "layers",
      "exclude_modules": ["text_model.layers.1.self_attn.k_proj"],
    },
    "smolvlm",
  ),
  "tied": (
    {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "idefics3",
  ),
  "parted": ({"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, "idefics3"),
  "parted_both": (
    {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "idefics3",
  ),
  "parted_head": ({"r": 2, "target_modules": ["lm_head", "q_proj"]}, "idefics3"),
  "bias_all": ({"r": 2, "target_modules": ["q_proj", "fc1"], "bias": "all"}, "smolvlm"),
  "bias_only": (
    {"r": 2, "target_modules": ["v_proj", "fc1"], "bias": "lora_only", "use_dora": True},
    "smolvlm",
  ),
  "lora_bias": (
    {"r": 2, "lora_alpha": 6, "target_modules": r".*vision_model.*(q_proj|fc2)", "lora_bias": True},
    "smolvlm",
  ),
  "embedding": ({"r": 3, "target_modules": ["embed_tokens", "v_proj"], "use_rslora": True}, "smolvlm"),
  "embedding_tied": ({"r": 2, "target_modules": ["embed_tokens"]}, "idefics3"),
  "token_rows": (
    {"r": 2, "target_modules": ["q_proj", "lm_head"], "trainable_token_indices": [40, *range(30)]},
    "smolvlm",
  ),
  "token_rows_tied": (
    {"r": 2, "target_modules": ["v_proj"], "trainable_token_indices": {"embed_tokens": [*range(30)]}},
    "idefics3",
  ),
  "eva": (
    {"r": 3, "lora_alpha": 5, "target_modules": r".*text_model.*_proj", "init_lora_weights": "eva"},
    "smolvlm",
  ),
  "pissa": (
    {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa"},
    "smolvlm",
  ),
  "olora": (
    {"r": 4, "target_modules": ["v_proj", "fc1"], "init_lora_weights": "olora", "use_rslora": True},
    "smolvlm",
  ),
  "pissa_dora": (
    {"r": 2, "target_modules": ["q_proj", "fc1"], "init_lora_weights": "pissa", "use_dora": True},
    "smolvlm",
  ),
}


# name -> (class of the config, its options); names of layers are those that all families share
OTHERS: dict[str, tuple[type, dict[str, Any]]] = {
  "ia3_suffixes": (
    peft.IA3Config,
    {"target_modules": ["k_proj", "v_proj", "down_proj", "fc2"], "feedforward_modules": ["down_proj", "fc2"]},
  ),
  # a bare end of a name, as peft matches it: every layer here is then a feed-forward one
  "ia3_ends": (peft.IA3Config, {"target_modules": ["q_proj", "proj"], "feedforward_modules": ["proj"]}),
  "ia3_regex": (
    peft.IA3Config,
    {
      "target_modules": r".*\.(v_proj|up_proj|fc1|fc2)|lm_head",
      "feedforward_modules": r".*fc1|.*layers\.0.*up_proj",
      "modules_to_save": ["norm"],
    },
  ),
  "ln_suffixes": (peft.LNTuningConfig, {"target_modules": ["input_layernorm", "layer_norm1", "norm"]}),
  # without the norms of queries and keys, which are none in most models: peft stumbles over nn.Identity
  "ln_regex": (
    peft.LNTuningConfig,
    {
      "target_modules": r".*\.(norm|layer_norm\d?|layernorm_before|post(_attention)?_layernorm)",
      "modules_to_save": ["lm_head"],
    },
  ),
  "loha": (peft.LoHaConfig, {"r": 3, "alpha": 5, "target_modules": ["q_proj", "fc1", "lm_head"]}),
  "lokr": (peft.LoKrConfig, {"r": 2, "alpha": 6, "target_modules": ["q_proj", "fc1", "down_proj"]}),
  "lokr_both": (
    peft.LoKrConfig,
    {"r": 2, "target_modules": ["v_proj", "fc2"], "decompose_both": True, "decompose_factor": 5},
  ),
  "vera": (peft.VeraConfig, {"r": 20, "target_modules": ["q_proj", "fc1", "down_proj", "lm_head"]}),
  "tokens": (peft.TrainableTokensConfig, {"token_indices": [*range(30), 41, 33]}),
}


_PROMPT = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
SOFT: dict[str, tuple[type, dict[str, Any]]] = {
  "prompt": (peft.PromptTuningConfig, _PROMPT),
  "p_tuning_mlp": (peft.PromptEncoderConfig, {**_PROMPT, "encoder_hidden_size": 10}),
  "p_tuning_lstm": (
    peft.PromptEncoderConfig,
    {**_PROMPT, "encoder_hidden_size": 10, "encoder_reparameterization_type": "LSTM"},
  ),
  "prefix": (peft.PrefixTuningConfig, _PROMPT),
  "prefix_projected": (
    peft.PrefixTuningConfig,
    {**_PROMPT, "prefix_projection": True, "encoder_hidden_size": 10},
  ),
}


def config_of(name: str) -> peft.PeftConfig:
  """The config of one of `OTHERS` or `SOFT`."""
  kind, options = (OTHERS | SOFT)[name]
  return kind(**options)


def adapt(base: torch.nn.Module, config: dict[str, Any] | peft.PeftConfig, seed: int = 1) -> peft.PeftModel:
  """A PeftModel around a copy of `base`, whose every trained value has moved from its start.

  Args:
    config: options of LoraConfig, or a config.
  """
  config = peft.LoraConfig(**config) if isinstance(config, dict) else config
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # peft advises on tied weights
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    if getattr(config, "init_lora_weights", None) == "eva":
      begin_from_data(model)
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
  return model


def begin_from_data(model: peft.PeftModel) -> None:
  """EVA's start, of one batch that peft reads until its directions stand still."""
  case = reference.cases()["right"]
  batch = reference.tensors(case | {"labels": reference.labels_of(case)})
  peft.initialize_lora_eva_weights(model, [batch], show_progress_bar=False)


def save(model: peft.PeftModel, folder: str | Path) -> Path:
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model.save_pretrained(folder)
  return Path(folder)
