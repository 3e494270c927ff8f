"""Parameter-efficient fine-tuning: few parameters trained beside, or in, a frozen model; PEFT folders.

- `METHODS` (`methods`) lists the methods: `lora`, `ia3`, `ln_tuning`, `prompt`, `prefix`,
  `p_tuning`, `none`;
  `method.Method` says what one is. A new one is a file with a subclass, and a line there.
- `apply(vlm, PeftConfig, Given) -> vlm`: surgery in place; prints nothing. `Given` is what first values may
  be made of, such as the tokenizer's words. `completed(PeftConfig)` writes out the method's defaults, and
  refuses what it does not know. `positions(PeftConfig)`: places of the context that a method takes.
- What is trained is marked once, by `Trained`: `AdapterParam`, which a method added, or `FullParam`, a
  float32 master of a base parameter that layers read in the base's dtype. Optimizers and checkpoints take the
  raw arrays of the state; `variable[...]` is for layers. `trainable_filter(vlm, PeftConfig)` is the nnx
  filter; `count_parameters(vlm, filter) -> (trainable, total)`.
- `check_claims(vlm, claimed)`: before the first step, whether all of the model can be written at the end.
- `seed_dropout(vlm, key)`: called by a step on the module it has just merged, since a key kept in the frozen
  tree would repeat one mask.
- `load_adapter(vlm, folder)`, `save_adapter(vlm, folder, base_id)`: Hugging Face PEFT folders, their method
  told by `peft_type`.
- `merge(vlm) -> vlm`: a new model of plain layers. `carries(vlm)` names the methods that a model carries.

An adapted layer keeps `kernel` and `bias` under their old paths. Imports go one way: variables,
select and foreign (PEFT's matching of names), method, a file for each method, methods, full and folder,
surgery and merge.
"""

from spatialvlm.peft.folder import load_adapter, save_adapter
from spatialvlm.peft.lora import LoraLinear, LoraSpec
from spatialvlm.peft.merge import merge
from spatialvlm.peft.method import Given
from spatialvlm.peft.methods import METHODS, carries, completed
from spatialvlm.peft.surgery import (
  apply,
  check_claims,
  check_layers,
  count_parameters,
  positions,
  seed_dropout,
  trainable_filter,
)
from spatialvlm.peft.variables import AdapterParam, FullParam, Trained

__all__ = [
  "METHODS",
  "AdapterParam",
  "FullParam",
  "Given",
  "LoraLinear",
  "LoraSpec",
  "Trained",
  "apply",
  "carries",
  "check_claims",
  "check_layers",
  "completed",
  "count_parameters",
  "load_adapter",
  "merge",
  "positions",
  "save_adapter",
  "seed_dropout",
  "trainable_filter",
]
