"""EVA: LoRA's A begins with the directions in which a layer's inputs vary most, and the ranks follow them.

Source: Explained Variance Adaptation (Paischer et al., arXiv 2410.07170), with the numerics of Hugging Face
PEFT: principal components of what each layer reads at the positions of answers, one decomposition for layers
that read the same, ranks by the share of the variance that a direction explains, alpha in proportion to them.
PEFT cycles over its data until directions stand still, and finds them by random sketches; here a fixed number
of batches is read once, and each decomposition is exact, so that a run is the same whenever it begins.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.peft import linear, select
from spatialvlm.peft.lora_layers import LoraSpec
from spatialvlm.peft.method import Given, Site
from spatialvlm.types import Batch, UserError

Started = tuple[dict[str, LoraSpec], dict[str, np.ndarray]]
_RHO, _BATCHES = 2.0, 8
# So many times the directions that are asked for are kept between batches, so that little is lost.
_MARGIN = 2


def check(chosen: bool, rho: float, batches: int) -> None:
  """Raises a UserError for settings that make no sense, or that count for nothing."""
  if rho < 1 or batches < 1:
    raise UserError(f"peft.eva_rho, peft.eva_batches: {rho} and {batches}; both must be at least 1")
  if not chosen and (rho, batches) != (_RHO, _BATCHES):
    raise UserError(
      "peft.eva_rho, peft.eva_batches: they count with peft.init=eva alone; set it, or leave them"
    )


def check_layers(sites: Mapping[str, Site], specs: Mapping[str, LoraSpec], rho: float) -> None:
  """Raises a UserError for a layer that reads no answers, or has not as many directions as are asked for."""
  for name, site in sites.items():
    if site.path[0] != "decoder":
      raise UserError(
        f"peft.init: eva is made of the positions of answers, and {name} reads none; narrow peft.target to"
        " the decoder"
      )
    most = _most(specs[name], rho)
    if most > site.module.in_features:
      raise UserError(
        f"peft: rank {specs[name].rank} of {name}: eva asks for {most} directions, of"
        f" {site.module.in_features} inputs; lower the rank (rank_pattern for this layer alone) or eva_rho"
      )


def begin(
  vlm: nnx.Module,
  sites: Mapping[str, Site],
  specs: Mapping[str, LoraSpec],
  rho: float,
  batches: int,
  given: Given,
) -> Started:
  """The specs with their new ranks, layers of rank 0 left out, and A (d_in, r) float32 of each layer.

  `vlm` is left as it is. Where it is only traced, ranks stay and A is zero.

  Raises:
    UserError: no data is given, or too little.
  """
  if any(isinstance(site.module.kernel.get_raw_value(), jax.core.Tracer) for site in sites.values()):
    return dict(specs), {n: np.zeros((sites[n].module.in_features, s.rank)) for n, s in specs.items()}
  if given.batches is None:
    raise UserError(
      "peft.init: eva begins from the run's data, which `peft.apply` needs: pass"
      " given=peft.Given(batches=...), or choose another init"
    )
  most = {name: _most(spec, rho) for name, spec in specs.items()}
  listen, leader, found = _Listener(vlm, sites), {}, {}
  for batch in given.batches(batches):
    inputs, leader = listen(batch)
    for name, rows_ND in inputs.items():
      shared = [most[other] for other, first in leader.items() if first == name]
      found.setdefault(name, Directions(max(shared))).add(rows_ND)
  for directions in found.values():
    if directions.seen <= directions.most:
      raise UserError(
        f"peft.eva_batches: {batches} batches hold {directions.seen} positions of answers, too few for"
        f" {directions.most} directions; read more of them, or lower peft.rank or peft.eva_rho"
      )
  ranks = shared_out({name: spec.rank for name, spec in specs.items()}, leader, found)
  kept = {
    name: dataclasses.replace(spec, rank=ranks[name], alpha=spec.alpha * (ranks[name] / spec.rank))
    for name, spec in specs.items()
    if ranks[name]
  }
  first = {name: found[leader[name]].axes_KD[: spec.rank].T.astype(np.float32) for name, spec in kept.items()}
  return kept, first


class Directions:
  """Principal components of rows that come in parts, as scikit-learn's IncrementalPCA finds them, in float64.

  Attributes:
    most: components that are asked for; some more are kept.
    seen: rows so far.
    axes_KD: unit vectors, the entry of largest size positive; values_K: singular values, largest first.
    total: squared distances of all rows from their mean, summed.
  """

  def __init__(self, most: int):
    self.most, self.seen, self.total = most, 0, 0.0
    self.mean_D = self.axes_KD = self.values_K = None

  def add(self, rows_ND: np.ndarray) -> None:
    """Takes N more rows."""
    rows_ND = np.asarray(rows_ND, np.float64)
    count = len(rows_ND)
    if not count:
      return
    mean_D = rows_ND.mean(0)
    parts = [rows_ND - mean_D]
    together = self.seen + count
    if self.seen:
      shift_D = np.sqrt(self.seen * count / together) * (self.mean_D - mean_D)
      parts = [self.values_K[:, None] * self.axes_KD, *parts, shift_D[None]]
      self.total += float(shift_D @ shift_D)
      mean_D = (self.seen * self.mean_D + count * mean_D) / together
    self.total += float(np.square(rows_ND - rows_ND.mean(0)).sum())
    _, values_K, axes_KD = np.linalg.svd(np.concatenate(parts), full_matrices=False)
    signs_K = np.sign(np.take_along_axis(axes_KD, np.abs(axes_KD).argmax(1)[:, None], 1))
    kept = _MARGIN * self.most
    self.values_K, self.axes_KD = values_K[:kept], (signs_K * axes_KD)[:kept]
    self.mean_D, self.seen = mean_D, together

  def explained(self) -> np.ndarray:
    """(most,), the share of the rows' variance along each direction."""
    return np.square(self.values_K[: self.most]) / self.total


def shared_out(
  ranks: Mapping[str, int],
  leader: Mapping[str, str],
  found: Mapping[str, Directions],
) -> dict[str, int]:
  """The ranks shared out anew: the same number in all, to the directions that explain most of their layer.

  Args:
    ranks: by layer, as the settings have them.
    leader: by layer, the first one that reads the same; in the order in which the model calls them.
    found: by leader.
  """
  firsts = [name for name in leader if leader[name] == name]
  order = [*firsts, *(name for name in leader if leader[name] != name)]
  pairs = [(name, share) for name in order for share in found[leader[name]].explained()]
  best = np.argsort([-share for _, share in pairs], kind="stable")[: sum(ranks.values())]
  counts = Counter(pairs[i][0] for i in best)
  return {name: counts[name] for name in leader}


def _most(spec: LoraSpec, rho: float) -> int:
  return round(spec.rank * rho)


class _Heard(linear.AroundLinear):
  """A linear layer that hands on what it is given, while a program is traced."""

  def __init__(self, base: nnx.Linear, hand_on: Callable[[jax.Array], None]):
    super().__init__(base)
    self.hand_on = hand_on

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    self.hand_on(inputs)
    return super().__call__(inputs, out_sharding)


class _Listener:
  """What linear layers of a model read at the positions of answers; one program for each shape of a batch."""

  def __init__(self, vlm: nnx.Module, sites: Mapping[str, Site]):
    heard = nnx.clone(vlm, variables=True)  # the arrays are shared
    for name, site in sites.items():
      layer = _Heard(select.get(heard, site.path), lambda x, name=name: self._inputs.setdefault(name, x))
      select.put(heard, site.path, layer)
    self._graph, self._state = nnx.split(heard)
    self._inputs: dict[str, jax.Array] = {}
    self._leader: dict[str, str] = {}
    self._read = jax.jit(self._traced)

  def __call__(self, batch: Batch) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Rows (N, D) by the first of the layers that read them, and that first one by layer."""
    rows = jax.device_get(self._read(self._state, batch))
    answers_BK = batch.valid_BT if batch.target_index_BK is None else batch.target_index_BK >= 0
    kept_BK = np.asarray(answers_BK)
    return {name: np.asarray(x, np.float32)[kept_BK] for name, x in rows.items()}, self._leader

  def _traced(self, state: nnx.State, batch: Batch) -> dict[str, jax.Array]:
    self._inputs.clear()
    nnx.merge(self._graph, state)(batch)  # nobody reads the logits, so that the compiler leaves them out
    firsts: dict[int, str] = {}
    self._leader = {name: firsts.setdefault(id(x), name) for name, x in self._inputs.items()}
    rows = {name: _at_answers(self._inputs[name], batch) for name in firsts.values()}
    self._inputs.clear()
    return rows


def _at_answers(x_BTD: jax.Array, batch: Batch) -> jax.Array:
  """(B, K, D) at the supervised positions, of those that are none something else; without any, all of x."""
  if batch.target_index_BK is None:
    return x_BTD
  places_BK = jnp.maximum(batch.target_index_BK, 0)
  return jnp.take_along_axis(x_BTD, places_BK[..., None], axis=1)
