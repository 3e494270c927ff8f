"""Parameter-efficient fine-tuning: few parameters trained beside, or in, a frozen model; PEFT folders.

- `METHODS` (`methods`) lists the methods, `lora` and others; `method.Method` says what one is. A
  new one is a file with a subclass, and a line there.
- `apply(vlm, PeftConfig, Given) -> vlm`: surgery in place; prints nothing. `Given` is what first values may
  be made of: the tokenizer's words, the run's first batches (`of_batches(PeftConfig)`: whether they are).
  `completed(PeftConfig)` writes out the method's defaults, and refuses what it does not know.
  `positions(PeftConfig)`: places of the context that a method takes.
- What is trained is marked once, by `Trained`: `AdapterParam`, which a method added, or `FullParam`, a
  float32 master of a base parameter that layers read in the base's dtype. Optimizers and checkpoints take the
  raw arrays of the state; `variable[...]` is for layers. `trainable_filter(vlm, PeftConfig)` is the nnx
  filter; `count_parameters(vlm, filter) -> (trainable, total)`.
- `check_claims(vlm, claimed)`: before the first step, whether all of the model can be written at the end.
- `seed_dropout(vlm, key)`: called by a step on the module it has just merged, since a key kept in the frozen
  tree would repeat one mask.
- `load_adapter(vlm, folder)`, `save_adapter(vlm, folder, base_id)`: Hugging Face PEFT folders, their method
  told by `peft_type`.
- `Adapters(vlm)`: several by name on one base; `weighted_sum`, `as_plain_lora` make one of others.
- `merge(vlm) -> vlm`: a new model of plain layers. `carries(vlm)` names the methods that a model carries.

An adapted layer keeps `kernel` and `bias` under their old paths. Imports go one way: variables,
select and foreign (PEFT's matching of names), method, a file for each method, methods, full and folder,
surgery, merge and several.
"""

from spatialvlm.peft.folder import load_adapter, save_adapter
from spatialvlm.peft.lora_layers import LoraLinear, LoraSpec
from spatialvlm.peft.merge import merge
from spatialvlm.peft.method import Given
from spatialvlm.peft.methods import METHODS, carries, completed
from spatialvlm.peft.several import Adapters, WithAdapters, as_plain_lora, weighted_sum
from spatialvlm.peft.surgery import (
  apply,
  check_claims,
  check_layers,
  count_parameters,
  of_batches,
  positions,
  seed_dropout,
  trainable_filter,
)
from spatialvlm.peft.variables import AdapterParam, FullParam, Trained

__all__ = [
  "METHODS",
  "AdapterParam",
  "Adapters",
  "FullParam",
  "Given",
  "LoraLinear",
  "LoraSpec",
  "Trained",
  "WithAdapters",
  "apply",
  "as_plain_lora",
  "carries",
  "check_claims",
  "check_layers",
  "completed",
  "count_parameters",
  "load_adapter",
  "merge",
  "of_batches",
  "positions",
  "save_adapter",
  "seed_dropout",
  "trainable_filter",
  "weighted_sum",
]
