"""Prefix tuning: keys and values in every layer that stand before all tokens (Li and Liang, 2101.00190).

With the arithmetic of Hugging Face PEFT: keys as queries meet them, positions of the text behind them, and a
folder of one tensor (P, L * 2 * K * H), which holds what a projection made where there was one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.config import PeftConfig
from spatialvlm.core.rope import rope_angles, rotate
from spatialvlm.models.soft_prompts import LearnedPast
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import select, soft
from spatialvlm.peft.method import Export, Folder, Given
from spatialvlm.peft.prompt import TEXT
from spatialvlm.peft.soft import SoftMethod
from spatialvlm.peft.variables import host
from spatialvlm.types import Batch

_PATH = ("decoder", "learned_past")
_NAMES = (None, None, None, "heads", None)


@dataclasses.dataclass(frozen=True)
class PrefixOptions:
  """Prefix tuning's own settings.

  Attributes:
    tokens: keys and values of each layer; each takes a place of the context.
    init: first values: "text" for the keys and values of `text` as the model reads it, "zeros" or "random"
      (normal, of deviation 0.02).
    text: words that are repeated, or cut, to fill the places.
  """

  tokens: int = 20
  init: Literal["text", "zeros", "random"] = "text"
  text: str = TEXT


class Prefix(SoftMethod):
  """Prefix tuning; PEFT folders of type PREFIX_TUNING, with a projection or without."""

  name = "prefix"
  peft_type = "PREFIX_TUNING"
  Options = PrefixOptions

  def apply(self, vlm: Vlm, config: PeftConfig, options: PrefixOptions, given: Given) -> None:
    self.check_layers(vlm, config, options)
    shape = (options.tokens, *_shape(vlm))
    if options.init == "text":
      ids = np.resize(soft.text_ids(vlm, options.text, given, self.name), options.tokens)
      pairs = of_text(vlm, ids)
    elif options.init == "random":
      pairs = 0.02 * np.random.default_rng(config.seed).normal(size=shape)
    else:
      pairs = np.zeros(shape)
    _put(vlm, pairs)

  def wanted(self, vlm: Vlm, said: Mapping[str, Any], head: str) -> dict[str, tuple[int, ...]]:
    return {soft.TENSOR: (said["num_virtual_tokens"], int(np.prod(_shape(vlm))))}

  def restore(self, vlm: Vlm, folder: Folder, options: Any = None) -> None:
    flat = folder.arrays[soft.TENSOR]
    soft.check_room(vlm, len(flat), folder.path)
    soft.note_causal(vlm)
    _put(vlm, _turned(vlm, flat.reshape(len(flat), *_shape(vlm)), -1))

  def export(self, vlm: Vlm) -> Export:
    pairs = _turned(vlm, host(vlm.decoder.learned_past.pairs), 1)
    heads, size = pairs.shape[3:]
    soft.note_causal(vlm)
    config = self.config_of(vlm, len(pairs), heads * size, heads)  # of keys and values, as PEFT counts here
    return Export(
      config | {"prefix_projection": False, "encoder_hidden_size": None},
      {soft.TENSOR: pairs.reshape(len(pairs), -1)},
    )

  def claims(self, vlm: nnx.Module) -> set[select.Path]:
    past = getattr(getattr(vlm, "decoder", None), "learned_past", None)
    return set() if past is None else soft.claims_below(vlm, _PATH)


def of_text(vlm: Vlm, ids_P: np.ndarray) -> jax.Array:
  """(P, L, 2, K, H) float32: keys, rotated by their positions from 0 on, and values of these tokens."""
  graphdef, state = nnx.split(vlm)
  return jax.jit(_of_text, static_argnums=0)(graphdef, state, np.asarray(ids_P, np.int32))


def _of_text(graphdef: Any, state: Any, ids_P: jax.Array) -> jax.Array:
  vlm, P = nnx.merge(graphdef, state), len(ids_P)
  _, cache = vlm.prefill(Batch(tokens_BT=ids_P[None], valid_BT=jnp.ones((1, P), bool)), vlm.init_cache(1, P))
  keys_LPKH, values_LPKH = (jnp.stack([x[0] for x in found]) for found in (cache.keys, cache.values))
  return jnp.stack([keys_LPKH, values_LPKH], axis=2).swapaxes(0, 1).astype(jnp.float32)


def _turned(vlm: Vlm, pairs_PL2KH: np.ndarray, places: int) -> np.ndarray:
  """The keys turned on by so many places, where transformers counts positions from 1 (PaliGemma).

  Queries and keys of tokens do not show where one begins to count; keys that no position was applied to do.
  """
  if not vlm.config.prefix_lm:
    return pairs_PL2KH
  text = vlm.config.text
  places_PL = jnp.full(pairs_PL2KH.shape[:2], places)
  angles = rope_angles(places_PL, text.block.attention.head_dim, text.rope_theta, text.rope_scaling)
  keys_PLKH = np.asarray(rotate(jnp.asarray(pairs_PL2KH[:, :, 0], jnp.float32), angles))
  return np.stack([keys_PLKH, pairs_PL2KH[:, :, 1]], axis=2)


def _shape(vlm: Vlm) -> tuple[int, ...]:
  """(L, 2, K, H)."""
  attention = vlm.config.text.block.attention
  return vlm.config.text.depth, 2, attention.kv_heads, attention.head_dim


def _put(vlm: Vlm, pairs_PL2KH: Any) -> None:
  vlm.decoder.learned_past = LearnedPast(soft.learned(pairs_PL2KH, _NAMES, vlm.decoder.embed.embedding))
