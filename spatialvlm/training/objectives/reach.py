"""Whether anything that is trained has a part in what a term reads: else it teaches its head alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from spatialvlm.models.outputs import Wants
from spatialvlm.models.vlm import VlmConfig
from spatialvlm.training.objectives.objective import Objective
from spatialvlm.types import UserError

_BLOCK = re.compile(r"decoder\.stack\.layers\.(\d+)\.")
_BEFORE_IMAGE = ("vision.", "connector.", "priors.")
# Of the decoder, what stands behind its last block.
_BEHIND = ("decoder.norm.", "decoder.lm_head.")


def check_reach(
  terms: Mapping[str, tuple[float, Objective]], trained: Iterable[str], model: VlmConfig
) -> None:
  """Refuses a term that would teach its own head alone, or nothing.

  Args:
    terms: weights and objectives by name.
    trained: names of the trained parameters of the model, as `state.Split` has them.
    model: of the trained model.

  Raises:
    UserError: no trained parameter stands before what a term reads, and the term is to teach the model.
  """
  names = sorted(trained)
  for weight, objective in terms.values():
    if not weight or not objective.teaches or objective.wants == Wants():
      continue
    if not any(_reaches(name, objective, model.text.depth) for name in names):
      example = f" ({names[0]}, ...)" if names else ""
      raise UserError(
        f"{objective.where}: reads {_told(objective.wants)}, in which nothing that is trained{example} has a"
        " part, so that it would not teach the model; read what is made later (decoder_layers), train what"
        " stands before it (peft.full=model\\.connector\\..*), or leave it to its head (detach=true) where it"
        " has one"
      )


def _reaches(name: str, objective: Objective, depth: int) -> bool:
  """Whether a parameter of this name can change anything that the objective reads."""
  wants = objective.wants
  if wants.hidden or wants.logits or name.startswith(objective.names):
    return True
  if name.startswith("vision.") and wants.of_encoder:
    return True
  layers = [layer if layer >= 0 else layer + depth + 1 for layer in wants.decoder_layers + wants.attention]
  if name.startswith(_BEFORE_IMAGE):
    return wants.image or bool(layers)
  if name.startswith(_BEHIND):
    return False
  block = _BLOCK.match(name)
  # What is no block's is read with the first: the embedding, soft tokens, a learned past.
  return any(layer > int(block[1]) if block else True for layer in layers)


def _told(wants: Wants) -> str:
  said = [f"decoder layer {layer}" for layer in wants.decoder_layers]
  said += [f"the attention of decoder layer {layer}" for layer in wants.attention]
  said += [f"encoder layer {layer}" for layer in wants.encoder_layers]
  return ", ".join(said + ["the connector's image tokens"] * wants.image) or "the encoder"
