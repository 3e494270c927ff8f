"""Prompt tuning: rows of embeddings that are read with every sequence (Lester et al., arXiv 2104.08691).

With the arithmetic of Hugging Face PEFT: the rows stand before everything, positions count them, and rows of
padding are no part of a sequence, so that a batch gives what its samples give alone. (PEFT puts the rows
before the padding, and counts it: of a batch that is padded on the left it gives other numbers.)
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.config import PeftConfig
from spatialvlm.models.soft_prompts import AFTER_IMAGE, START, SoftTokens
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import select, soft
from spatialvlm.peft.method import Export, Folder, Given
from spatialvlm.peft.soft import SoftMethod
from spatialvlm.peft.variables import host
from spatialvlm.types import Note

TEXT = "Look where each thing stands, how many there are, how large and how far away they are."
# PEFT has no word for this place: such folders have a type of their own, which it refuses to read.
_AFTER_IMAGE_TYPE = "SPATIALVLM_PROMPT_AFTER_IMAGE"
PATH = ("soft_tokens",)


@dataclasses.dataclass(frozen=True)
class PromptOptions:
  """Prompt tuning's own settings.

  Attributes:
    tokens: rows of the prompt; each takes a place of the context.
    place: "start", before everything, or "after_image", behind the last image token of a sample (before
      everything where it shows none), which PEFT cannot read.
    init: first values: "text" for the embeddings of `text`, "vocabulary" for those of tokens that are drawn,
      "random" for numbers that spread as all embeddings do.
    text: words that are repeated, or cut, to fill the rows.
  """

  tokens: int = 20
  place: Literal["start", "after_image"] = START
  init: Literal["text", "vocabulary", "random"] = "text"
  text: str = TEXT


class Prompt(SoftMethod):
  """Prompt tuning; PEFT folders of type PROMPT_TUNING, and P_TUNING, which hold what the encoder gave."""

  name = "prompt"
  peft_type = "PROMPT_TUNING"
  reads = ("PROMPT_TUNING", "P_TUNING", _AFTER_IMAGE_TYPE)
  Options = PromptOptions
  packing = False

  def apply(self, vlm: Vlm, config: PeftConfig, options: PromptOptions, given: Given) -> None:
    self.check_layers(vlm, config, options)
    vlm.soft_tokens = tokens_of(vlm, first_rows(vlm, config, options, given, self.name), options.place)

  def wanted(self, vlm: Vlm, said: Mapping[str, Any], head: str) -> dict[str, tuple[int, ...]]:
    return {soft.TENSOR: (said["num_virtual_tokens"], vlm.config.text.block.width)}

  def restore(self, vlm: Vlm, folder: Folder, options: Any = None) -> None:
    rows = folder.arrays[soft.TENSOR]
    soft.check_room(vlm, len(rows), folder.path)
    soft.note_causal(vlm)
    behind = folder.said["peft_type"] == _AFTER_IMAGE_TYPE
    vlm.soft_tokens = tokens_of(vlm, rows, AFTER_IMAGE if behind else START)

  def export(self, vlm: Vlm) -> Export:
    return export(self, vlm, vlm.soft_tokens.place, host(vlm.soft_tokens.rows))

  def claims(self, vlm: nnx.Module) -> set[select.Path]:
    own = type(getattr(vlm, "soft_tokens", None)) is SoftTokens
    return soft.claims_below(vlm, PATH) if own else set()


def tokens_of(vlm: Vlm, rows_PD: Any, place: str) -> SoftTokens:
  """Soft tokens of these values, to be trained."""
  return SoftTokens(soft.learned(rows_PD, (None, "embed"), vlm.decoder.embed.embedding), place)


def first_rows(vlm: Vlm, config: PeftConfig, options: Any, given: Given, name: str) -> jnp.ndarray:
  """(P, D) float32 as `options.init` says.

  Raises:
    UserError: as `soft.text_ids`.
  """
  decoder, size = vlm.decoder, vlm.config.text.vocab_size
  rng = np.random.default_rng(config.seed)
  if options.init == "random":
    spread = jnp.std(decoder.embed.embedding[...].astype(jnp.float32)) * vlm.config.text.embed_scale
    return spread * jnp.asarray(rng.normal(size=(options.tokens, vlm.config.text.block.width)), jnp.float32)
  if options.init == "text":
    ids = np.resize(soft.text_ids(vlm, options.text, given, name), options.tokens)
  else:
    words = np.setdiff1d(
      np.arange(size), [-1 if vlm.config.image_token_id is None else vlm.config.image_token_id]
    )
    ids = rng.choice(words, options.tokens, replace=options.tokens > len(words))
  return decoder.embed_tokens(jnp.asarray(ids, jnp.int32)).astype(jnp.float32)


def export(method: SoftMethod, vlm: Vlm, place: str, rows_PD: np.ndarray) -> Export:
  """Rows as a folder of prompt tuning; says so where PEFT cannot read it, or reads it otherwise."""
  kind = method.peft_type
  if place == AFTER_IMAGE:
    kind = _AFTER_IMAGE_TYPE
    warnings.warn(
      Note(
        f"peft knows no soft tokens behind the image: the folder is of type {kind}, which this project reads"
      ),
      stacklevel=2,
    )
  soft.note_causal(vlm)
  heads = vlm.config.text.block.attention.heads
  config = method.config_of(vlm, *rows_PD.shape, heads) | {
    "peft_type": kind,
    "prompt_tuning_init": "RANDOM",
    "prompt_tuning_init_text": None,
    "tokenizer_name_or_path": None,
  }
  return Export(config, {soft.TENSOR: rows_PD})
