"""Online hard example mining (Shrivastava et al., arXiv 1604.03540): of a larger batch train on the hardest.

More examples are read than a step takes. The model as it stands, without dropout, reads all of them once, and
those whose answers it finds least likely are trained on, in the order they came in.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from spatialvlm.models.outputs import Wants
from spatialvlm.training import step as step_lib
from spatialvlm.training.objectives import Answer, Terms
from spatialvlm.training.objectives.answer import token_losses
from spatialvlm.training.phases.phase import Phase, PhaseParts, Prepare
from spatialvlm.types import Batch, UserError


@dataclasses.dataclass(frozen=True)
class HardExamplesSettings:
  """How many are left out.

  Attributes:
    keep: share of the examples read that is trained on, in (0, 1]; `train.batch_size / keep` is read.
  """

  keep: float = 0.5


class HardExamples(Phase):
  """Hardness is the mean negative log-likelihood of an example's supervised tokens.

  The choice is over the whole step, not within shards or microbatches, so it depends on neither; examples are
  moved between devices for it. Memory: a forward pass of 1 / keep times a microbatch.
  """

  Settings = HardExamplesSettings

  def __init__(self, settings: HardExamplesSettings, where: str = "config.phases"):
    super().__init__(settings, where)
    if not 0 < settings.keep <= 1:
      raise UserError(f"{where}.kwargs.keep: {settings.keep} is no share; use a number in (0, 1]")

  def check(self, terms: Terms) -> None:
    if not any(isinstance(objective, Answer) for _, objective in terms.values()):
      raise UserError(f"{self.where}: examples are ranked by their answers, but no loss is of kind 'answer'")

  def reads(self, size: int) -> int:
    read = round(size / self.settings.keep)
    if abs(read * self.settings.keep - size) > 1e-6 * size:
      raise UserError(
        f"{self.where}.kwargs.keep: a step of {size} examples out of {size / self.settings.keep:.2f} is no "
        f"whole number; use a share such as {size / read:.4f}"
      )
    return read

  def start(self, parts: PhaseParts) -> Prepare:
    programs = step_lib.Programs(
      lambda state, frozen, batch: hardest(parts, state.params, frozen, batch),
      parts.mesh,
      donate=False,
      out_shardings=step_lib.batch_sharding(parts.mesh, parts.accumulation),
    )

    def prepare(state, frozen, batch, info, key):
      del info, key  # nothing is drawn
      return programs.get(state, frozen, batch)[0].run(state, frozen, batch)

    return prepare


def hardest(parts: PhaseParts, params, frozen, batch: Batch) -> Batch:
  """The `parts.gives` hardest examples of a batch, in its order; traced."""
  vlm = parts.split.model(params, frozen)

  def hardness(part: Batch) -> jax.Array:
    logits_BKV = vlm.read(part, Wants(logits=True)).logits.astype(jnp.float32)
    nll_BK, *_ = token_losses(logits_BKV, part)
    weight_BK = (part.target_index_BK > 0).astype(jnp.float32)
    mean_B = (nll_BK * weight_BK).sum(1) / jnp.maximum(weight_BK.sum(1), 1)
    return mean_B if part.example_mask_B is None else jnp.where(part.example_mask_B, mean_B, -jnp.inf)

  several = parts.accumulation > 1
  hard = jax.lax.map(hardness, batch).reshape(-1) if several else hardness(batch)
  rows = jnp.sort(jax.lax.top_k(hard, parts.gives)[1])

  def chosen(x: jax.Array) -> jax.Array:
    """All arrays of a batch count by samples first, tiles and targets within them."""
    rest = x.shape[2:] if several else x.shape[1:]
    of_samples = x.reshape(hard.shape[0], -1, *rest)[rows]
    return of_samples.reshape(*(parts.accumulation, -1) if several else (-1,), *rest)

  return jax.tree.map(chosen, batch)
