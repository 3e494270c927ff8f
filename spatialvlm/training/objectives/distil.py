"""Knowledge distillation (Hinton et al., arXiv 1503.02531): the distribution of every supervised token.

The divergences are those of generalised knowledge distillation (GKD, Agarwal et al., arXiv 2306.13649) with
the definitions of TRL's `GKDTrainer.generalized_jsd_loss`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.training.objectives.objective import Metrics, Models, Objective, Other
from spatialvlm.types import Batch, UserError

# Arrays of `Batch.extra` that the phase `on_policy` gives: of each sample whether the student drew its
# answer, and whether the limit cut that off (1 or 0).
SAMPLED, CUT_OFF = "on_policy.sampled", "on_policy.cut_off"
# Least probability that a cached teacher is taken to leave to all tokens but its likeliest: what float32
# cannot tell from none, and whose logarithm is finite.
LEAST = 1e-7
# Logits (..., V) of hidden states (..., D).
Unembed = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class DistilSettings:
  """Whose distribution, and how far from it.

  Attributes:
    teacher: a name of `config.teachers`; "base", always known, is the model itself as training found it.
    beta: 0: the forward divergence KL(teacher, student), which covers all that the teacher may say; 1: the
      reverse one, KL(student, teacher), which keeps to what it likes most; between: the generalised
      Jensen-Shannon divergence beta KL(teacher, m) + (1 - beta) KL(student, m) of the mixture
      m = beta teacher + (1 - beta) student. It goes to 0, not to either of them, as beta goes to 0 or 1.
    temperature: both models' logits are divided by it. There is no factor of its square, as in TRL: with it
      the gradient shrinks as 1 / temperature^2, which `weight` makes good.
    chunk: supervised positions of a row whose logits lie in memory at once, those of the backward pass
      included; 0 for all.
  """

  teacher: str = "teacher"
  beta: float = 0.0
  temperature: float = 1.0
  chunk: int = 8


class Distil(Objective):
  """Mean divergence over the supervised tokens, in float32.

  Both models' logits are made a few positions at a time, and again in the backward pass, so that memory does
  not grow with the number of targets. Of a teacher with a larger vocabulary the student's part counts.
  Of one that is cached its likeliest tokens are known (`of_likeliest`). Metrics:
  `agreement`, how often both find the same token likeliest; `teacher_accuracy`, how often the
  teacher finds the target so. Where a phase samples answers (`training.phases.on_policy`), of all answers
  also `sampled`, the share that the student drew, `truncated`, the share that it drew and the limit cut off,
  and `length` in tokens.
  """

  Settings = DistilSettings
  wants = Wants(hidden=True)

  def __init__(self, settings: DistilSettings | None = None, where: str = "config.losses"):
    super().__init__(settings, where)
    settings = self.settings
    if not 0 <= settings.beta <= 1 or settings.temperature <= 0 or settings.chunk < 0:
      raise UserError(f"{where}.kwargs: beta must be in [0, 1], temperature above 0, chunk at least 0")
    self.asks = {settings.teacher: Wants(hidden=True)}

  def meet(self, others: Mapping[str, Other]) -> None:
    if not others[self.settings.teacher].cached:
      return
    if self.settings.beta and self.settings.temperature != 1:
      raise UserError(
        f"{self.where}.kwargs.temperature: a cache holds the teacher's likeliest tokens alone, and how likely"
        f" all others are together at temperature 1; with beta={self.settings.beta:g} use 1, or beta=0"
      )
    self.asks, self.extra = {}, taught_names(self.settings.teacher)

  def __call__(self, outputs: Outputs, models: Models, batch: Batch, key: jax.Array):
    del key
    index_BK = batch.target_index_BK
    weight_BK = (index_BK > 0).astype(jnp.float32)
    told = self._of_teacher(models, batch) | {
      "student": before_targets(outputs.hidden, index_BK),
      "target": jnp.take_along_axis(batch.tokens_BT, jnp.maximum(index_BK, 0), axis=1),
      "weight": weight_BK,
    }

    def part(told: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
      student_BKV = models.vlm.unembed(told["student"])
      apart_BK, likeliest_BK = self._compared(models, student_BKV, told)
      found = {
        "divergence": apart_BK,
        "agreement": student_BKV.argmax(-1) == likeliest_BK,
        "teacher_accuracy": likeliest_BK == told["target"],
      }
      return {name: (value * told["weight"]).sum() for name, value in found.items()}

    sums, weight = chunked(part, told, self.settings.chunk), weight_BK.sum()
    total = sums.pop("divergence")
    return total, weight, {name: (value, weight) for name, value in sums.items()} | _drawn(batch, weight)

  def _of_teacher(self, models: Models, batch: Batch) -> dict[str, jax.Array]:
    """What is known of the teacher at each target, (B, K, ...)."""
    name = self.settings.teacher
    if not self.asks:
      ids_BKN, logits_BKN = (batch.extra[array].array for array in self.extra)
      # Where there is no target nothing is given, and NaN times a weight of 0 is NaN.
      return {"ids": jnp.maximum(ids_BKN, 0), "logits": jnp.where(ids_BKN < 0, 0, logits_BKN)}
    index_BK = batch.view(name).target_index_BK
    return {"teacher": before_targets(models.asked[name].hidden, index_BK)}

  def _compared(
    self, models: Models, student_BKV: jax.Array, told: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """Divergence and the token that the teacher finds likeliest, (B, K) each."""
    settings = self.settings
    if "ids" in told:
      apart_BK = of_likeliest(student_BKV, told["ids"], told["logits"], settings.temperature, settings.beta)
      return apart_BK, told["ids"][..., 0]
    unembed = models.others[settings.teacher].unembed
    teacher_BKV = unembed(told["teacher"])[..., : student_BKV.shape[-1]]
    return divergence(student_BKV, teacher_BKV, settings.beta, settings.temperature), teacher_BKV.argmax(-1)


def _drawn(batch: Batch, tokens: jax.Array) -> Metrics:
  """What is shown of sampled answers, `tokens` of them in all; nothing where no phase samples."""
  if SAMPLED not in batch.extra:
    return {}
  sampled_B, cut_B = batch.extra[SAMPLED].array, batch.extra[CUT_OFF].array
  count = jnp.float32(sampled_B.size)
  return {"sampled": (sampled_B.sum(), count), "truncated": (cut_B.sum(), count), "length": (tokens, count)}


def before_targets(hidden_BTD: jax.Array, target_index_BK: jax.Array) -> jax.Array:
  """(B, K, D): the hidden states from which the targets are predicted; those of position 0 where is none."""
  before_BK = jnp.maximum(target_index_BK - 1, 0)
  return jnp.take_along_axis(hidden_BTD, before_BK[..., None], axis=1)


def divergence(student: jax.Array, teacher: jax.Array, beta: float, temperature: float) -> jax.Array:
  """Float32 (...): divergence of the distributions of logits (..., V), as `DistilSettings.beta` says."""
  log_s = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
  log_t = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
  return _apart(log_s, log_t, beta)


def of_likeliest(
  student: jax.Array, ids: jax.Array, logits: jax.Array, temperature: float, beta: float = 0.0
) -> jax.Array:
  """Float32 (...): divergence, the teacher known by its likeliest tokens `ids` (..., N) alone.

  With `beta` 0 its probabilities are among these tokens, the student's among all of its logits (..., V).
  Else, where the student's other tokens count too, all others are taken together as one more outcome, of
  which both probabilities are known. That is never more than the whole divergence, and less by what both
  models would tell apart among the others: nothing where these are all tokens.

  Args:
    logits: of the teacher, (..., N); with a `beta` logarithms of its probabilities among all tokens, and
      `temperature` must be 1.
  """
  log_s = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
  picked = jnp.take_along_axis(log_s, ids, axis=-1)
  if beta == 0:
    return _kl(jax.nn.log_softmax(logits / temperature), picked)
  if ids.shape[-1] == log_s.shape[-1]:
    return _apart(picked, jax.nn.log_softmax(logits), beta)
  others = jnp.put_along_axis(log_s, ids, -jnp.inf, axis=-1, inplace=False)
  rest_s = jax.nn.logsumexp(others, axis=-1, keepdims=True)
  rest_t = jnp.log(jnp.maximum(1 - jnp.exp(logits).sum(-1, keepdims=True), LEAST))
  return _apart(jnp.concatenate([picked, rest_s], -1), jnp.concatenate([logits, rest_t], -1), beta)


def _apart(log_s: jax.Array, log_t: jax.Array, beta: float) -> jax.Array:
  """The divergence of logarithms of probabilities."""
  if beta == 0:
    return _kl(log_t, log_s)
  if beta == 1:
    return _kl(log_s, log_t)
  log_m = jnp.logaddexp(log_s + math.log1p(-beta), log_t + math.log(beta))
  return beta * _kl(log_t, log_m) + (1 - beta) * _kl(log_s, log_m)


def taught_names(teacher: str) -> tuple[str, str]:
  """What `Batch.extra` calls the ids and the logits, (B, K, N) both, of a teacher that is cached."""
  return f"taught.{teacher}.ids", f"taught.{teacher}.logits"


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def chunked(
  part: Callable[[Mapping[str, jax.Array]], dict[str, jax.Array]],
  arrays: Mapping[str, jax.Array],
  size: int,
) -> dict[str, jax.Array]:
  """Sums that `part` gives of arrays (B, K, ...), of `size` of the K at a time; 0 for all at once.

  What `part` makes on the way is made again in the backward pass, and never kept of more than one chunk. K is
  filled up by zeros, to which `part` must give no weight. The cut is along K, which no mesh divides.
  """
  K = next(iter(arrays.values())).shape[1]
  part = jax.checkpoint(part)
  if not 0 < size < K:
    return part(arrays)
  count = -(-K // size)

  def cut(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, [(0, 0), (0, count * size - K)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

  add = lambda sums, chunk: (jax.tree.map(jnp.add, sums, part(chunk)), None)
  chunks = {name: cut(x) for name, x in arrays.items()}
  first = jax.eval_shape(part, {name: x[0] for name, x in chunks.items()})
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), first)
  return jax.lax.scan(add, zeros, chunks)[0]
