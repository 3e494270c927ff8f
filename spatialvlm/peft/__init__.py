"""Parameter-efficient fine-tuning: LoRA surgery, Hugging Face PEFT folders in and out, merging."""

from spatialvlm.peft.io import load_adapter, save_adapter
from spatialvlm.peft.lora import FullParam, LoraLinear, LoraSpec, seed_dropout
from spatialvlm.peft.merge import merge
from spatialvlm.peft.surgery import apply, count_parameters, trainable_filter

__all__ = [
  "FullParam",
  "LoraLinear",
  "LoraSpec",
  "apply",
  "count_parameters",
  "load_adapter",
  "merge",
  "save_adapter",
  "seed_dropout",
  "trainable_filter",
]
