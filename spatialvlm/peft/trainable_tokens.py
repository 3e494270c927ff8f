"""Training of single rows of the token embeddings, such as those of words that are new to the model.

The rows replace the table's own; where the head is the table's transpose, they are the head's rows too, as in
Hugging Face PEFT, whose folders hold the finished rows (called `trainable_tokens_delta` there).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from spatialvlm.config import PeftConfig
from spatialvlm.core.products import einsum
from spatialvlm.models.decoder import Embed
from spatialvlm.peft import foreign, full
from spatialvlm.peft.method import Export, LayerMethod, LayerOptions, Site, sites_at
from spatialvlm.peft.variables import AdapterParam, axis_names, host, mesh_sharding, placed
from spatialvlm.types import UserError

_END = ".trainable_tokens_delta"


@dataclasses.dataclass(frozen=True)
class TokenOptions(LayerOptions):
  """Which rows.

  Attributes:
    token_indices: ids of the tokens whose rows are trained.
  """

  token_indices: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class TokenSpec:
  """Ids of the tokens, in the order of the rows."""

  tokens: tuple[int, ...]


class TokenEmbed(Embed):
  """A table of embeddings of which some rows are trained.

  Attributes:
    rows: (K, D) float32, the rows of `spec.tokens`.
  """

  def __init__(self, base: Embed, spec: TokenSpec, rows: np.ndarray):
    self.take_over(base)
    self.spec = spec
    sharding = mesh_sharding(base.embedding.get_raw_value())
    self.rows = AdapterParam(placed(rows, sharding, PartitionSpec()))

  def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
    x = super().__call__(inputs, out_sharding)
    own, which = self._own(inputs)
    return jnp.where(own[..., None], self.rows[...].astype(x.dtype)[which], x)

  def logits(self, x: jax.Array, ids: jax.Array | None = None) -> jax.Array:
    lead = "BTK"[: x.ndim - 1]
    found = super().logits(x, ids)
    trained = einsum(f"{lead}D,VD->{lead}V", x, self.rows[...].astype(x.dtype))
    if ids is None:
      return found.at[..., jnp.asarray(self.spec.tokens)].set(trained)
    own, which = self._own(ids)
    return jnp.where(own, trained[..., which], found)

  def _own(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each id is one of the trained tokens, and of which row."""
    same = ids[..., None] == jnp.asarray(self.spec.tokens)
    return same.any(-1), jnp.argmax(same, -1)


def distinct(ids: Any) -> bool:
  """Whether these are different numbers from 0 on."""
  whole = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
  return whole and len(set(ids)) == len(ids)


def check_range(vlm: nnx.Module, ids: Any, where: str) -> None:
  """Raises a UserError where there is no row of a token."""
  rows = vlm.decoder.embed.num_embeddings
  if beyond := [i for i in ids if i >= rows]:
    raise UserError(f"{where}: {beyond} are beyond the {rows} rows of the model's embeddings")


def first_rows(base: Embed, tokens: Sequence[int]) -> np.ndarray:
  """(K, D) float32, the table's own rows of these tokens."""
  if isinstance(base.embedding.get_raw_value(), jax.core.Tracer):  # only shapes are asked for
    return np.zeros((len(tokens), base.features), np.float32)
  return host(base.embedding)[list(tokens)]


def plain_table(layer: TokenEmbed) -> Embed:
  """An ordinary table with the trained rows in it."""
  table, tokens = layer.embedding, jnp.asarray(layer.spec.tokens)
  made = nnx.eval_shape(
    lambda: Embed(layer.num_embeddings, layer.features, param_dtype=layer.param_dtype, rngs=nnx.Rngs(0))
  )
  write = jax.jit(
    lambda table, rows: table.at[tokens].set(rows.astype(table.dtype)),
    out_shardings=mesh_sharding(table.get_raw_value()),
  )
  made.embedding = nnx.Param(write(table[...], layer.rows[...]), **axis_names(table))
  return made


class TrainableTokens(LayerMethod):
  """Rows of the decoder's embeddings; PEFT folders of type TRAINABLE_TOKENS."""

  name = "trainable_tokens"
  peft_type = "TRAINABLE_TOKENS"
  Options = TokenOptions
  target = r".*embed_tokens"
  layers = ("embeddings", "table of embeddings")
  fields = foreign.Fields(
    reads=("token_indices", "init_weights"),
    needs=("token_indices",),
    fits={"token_indices": lambda ids: isinstance(ids, list) and bool(ids) and distinct(ids)},
  )
  endings = (_END,)
  repeats = (_END,)

  def check(self, options: TokenOptions) -> None:
    if not distinct(options.token_indices):
      raise UserError(f"peft.token_indices: {options.token_indices} are not different numbers from 0 on")

  def sites(self, vlm: nnx.Module) -> dict[str, Site]:
    return sites_at(vlm, {full.embedding_name(vlm).removesuffix(".weight"): ("decoder", "embed")})

  def plan(self, vlm: nnx.Module, config: PeftConfig, options: TokenOptions) -> dict[str, TokenSpec]:
    if not options.token_indices:
      raise UserError("peft.token_indices: empty; name the ids of the tokens whose rows are trained")
    check_range(vlm, options.token_indices, "peft.token_indices")
    return super().plan(vlm, config, options)

  def spec_of(self, site: Site) -> TokenSpec | None:
    return site.module.spec if type(site.module) is TokenEmbed else None  # not rows of another method's

  def specs(self, config: PeftConfig, options: TokenOptions, names: list[str]) -> dict[str, TokenSpec]:
    return dict.fromkeys(names, TokenSpec(tuple(options.token_indices)))

  def said_specs(self, said: Mapping[str, Any], names: list[str], options: Any) -> dict[str, TokenSpec]:
    return dict.fromkeys(names, TokenSpec(tuple(said["token_indices"])))

  def said_config(self, specs: Mapping[str, TokenSpec]) -> dict[str, Any]:
    (name, spec), *_ = specs.items()
    return {"target_modules": name, "token_indices": list(spec.tokens), "init_weights": True}

  def wanted(self, vlm: nnx.Module, said: Mapping[str, Any], head: str) -> dict[str, tuple[int, ...]]:
    check_range(vlm, said["token_indices"], "adapter_config.json: token_indices")
    return super().wanted(vlm, said, head)

  def fresh(self, site: Site, spec: TokenSpec, seed: int) -> TokenEmbed:
    return TokenEmbed(site.module, spec, first_rows(site.module, spec.tokens))

  def shapes(self, site: Site, spec: TokenSpec) -> dict[str, tuple[int, ...]]:
    return {_END: (len(spec.tokens), site.module.embedding.shape[1])}

  def restored(self, site: Site, spec: TokenSpec, arrays: Mapping[str, np.ndarray]) -> TokenEmbed:
    return TokenEmbed(site.module, spec, arrays[_END])

  def tensors(self, site: Site) -> dict[str, np.ndarray]:
    return {_END: host(site.module.rows)}

  def export(self, vlm: nnx.Module) -> Export:
    """The rows stand twice where the head is tied, as PEFT writes and wants them."""
    found = super().export(vlm)
    (rows,) = found.arrays.values()
    return Export(
      found.config, {**found.arrays, **({full.head(vlm) + _END: rows} if vlm.config.tied else {})}
    )

  def plain(self, site: Site) -> Embed:
    return plain_table(site.module)
