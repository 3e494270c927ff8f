"""What prompt tuning, P-tuning and prefix tuning share: a learned prompt, and no layer that is changed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from spatialvlm.config import PeftConfig
from spatialvlm.core import axes
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import foreign, select
from spatialvlm.peft.method import Given, Method
from spatialvlm.peft.variables import AdapterParam, mesh_sharding
from spatialvlm.types import Note, UserError

TENSOR = "prompt_embeddings"


class SoftMethod(Method):
  """A method that learns what is read with every sequence; a subclass says what that is.

  PEFT keeps one tensor of it, and reads such folders for `task_type` CAUSAL_LM alone. No plain layers compute
  the same, so that nothing can be merged.
  """

  fields: ClassVar[foreign.Fields] = foreign.Fields(
    reads=(
      "num_virtual_tokens",
      "num_transformer_submodules",
      # Sizes, which the tensor itself tells, and how it began or was made.
      "token_dim",
      "num_layers",
      "num_attention_heads",
      "prompt_tuning_init",
      "prompt_tuning_init_text",
      "tokenizer_name_or_path",
      "tokenizer_kwargs",
      "init_weights",
      "encoder_reparameterization_type",
      "encoder_hidden_size",
      "encoder_num_layers",
      "encoder_dropout",
      "prefix_projection",
    ),
    needs=("num_virtual_tokens",),
    fits={"num_virtual_tokens": foreign.is_positive},
    layers=False,
  )
  prefix = "base_model."
  bare = (TENSOR,)
  mergeable = False

  def check(self, options: Any) -> None:
    if options.tokens < 1:
      raise UserError(f"peft.tokens: {options.tokens}; a soft prompt has at least 1")

  def check_layers(self, vlm: Vlm, config: PeftConfig, options: Any) -> None:
    if config.target:
      raise UserError(
        f"peft.target: method {self.name!r} changes no layers, but {config.target!r} names some; leave it out"
      )
    check_room(vlm, options.tokens)

  def positions(self, options: Any, said: Mapping[str, Any] | None = None) -> int:
    return options.tokens if said is None else said["num_virtual_tokens"]

  def refused(self, said: Mapping[str, Any]) -> list[str]:
    parts = said.get("num_transformer_submodules")
    return [] if parts in (None, 1) else [f"num_transformer_submodules={parts!r}"]

  def config_of(self, vlm: Vlm, length: int, width: int, heads: int) -> dict[str, Any]:
    """The fields that all folders of soft prompts have."""
    return {
      "task_type": "CAUSAL_LM",
      "num_virtual_tokens": length,
      "token_dim": width,
      "num_layers": vlm.config.text.depth,
      "num_attention_heads": heads,
      "num_transformer_submodules": 1,
    }


def check_room(vlm: Vlm, tokens: int, where: str = "peft.tokens") -> None:
  """Raises a UserError where a soft prompt leaves nothing of the context."""
  most = vlm.config.text.max_length
  if tokens >= most:
    raise UserError(f"{where}: a soft prompt of {tokens} leaves no room in the model's context of {most}")


def note_causal(vlm: Vlm) -> None:
  """Says where PEFT gives other numbers: it drops what tells a bidirectional prompt from its answer."""
  if vlm.config.prefix_lm:
    warnings.warn(
      Note(
        f"peft reads prompts of {vlm.config.family} causally where a soft prompt stands before them; here"
        " they are bidirectional, as the model was trained, so that the two give different answers"
      ),
      stacklevel=2,
    )


def text_ids(vlm: Vlm, text: str, given: Given, name: str) -> np.ndarray:
  """int32 ids of the words that a prompt begins from.

  Raises:
    UserError: nothing there tells words apart, the text is empty or holds the mark of an image.
  """
  if given.words is None:
    raise UserError(
      f"peft: method {name!r} begins from the words of peft.text, for which `peft.apply` needs the tokenizer:"
      " pass given=peft.Given(words=processor.word_ids), or choose another peft.init"
    )
  ids = np.asarray(given.words(text), np.int32)
  if not len(ids):
    raise UserError("peft.text: there are no words in it; write some, or choose another peft.init")
  if vlm.config.image_token_id in ids:
    raise UserError(f"peft.text: {text!r} holds the token of images, which stands for no word; leave it out")
  return ids


def learned(
  value: jax.Array | np.ndarray, names: tuple[str | None, ...], beside: nnx.Variable
) -> AdapterParam:
  """A float32 variable with named axes, on the mesh where `beside` lies, split where that pays
  (`core.axes.unsplit`)."""
  value, names = jnp.asarray(value, jnp.float32), axes.unsplit(*names)
  sharding = mesh_sharding(beside.get_raw_value())
  if sharding is not None:
    place = NamedSharding(sharding.mesh, axes.spec(names, value.shape, sharding.mesh))
    value = jax.jit(lambda x: x, out_shardings=place)(value)
  return AdapterParam(value, **axes.logical(*names))


def claims_below(vlm: nnx.Module, path: select.Path) -> set[select.Path]:
  """Paths of what is learned in the module at `path`."""
  found = nnx.iter_graph(select.get(vlm, path))
  return {(*path, *below) for below, variable in found if isinstance(variable, AdapterParam)}
