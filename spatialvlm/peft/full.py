"""Parameters trained in full, alone or beside an adapter, and PEFT's `modules_to_save` for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from spatialvlm.core import axes
from spatialvlm.core.quantised import QuantisedParam
from spatialvlm.hub import rules, tensors
from spatialvlm.models import registry
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import select
from spatialvlm.peft.variables import FullParam, host, replace_variable, set_value, trained_in_full
from spatialvlm.types import UserError

_EMBEDDING = "decoder.embed.embedding"


def train_in_full(vlm: nnx.Module, names: Iterable[str]) -> None:
  """Turns the named base parameters into float32 `FullParam`; shared variables stay shared."""
  paths = select.parameter_paths(vlm)
  for name in names:
    old = select.get(vlm, paths[name])
    if isinstance(old, QuantisedParam):
      raise UserError(
        f"peft.full: {name} is kept in {old.get_raw_value().format}, in which nothing is trained; narrow"
        " peft.full, or model.quantize_target"
      )
    if not isinstance(old, FullParam):
      replace_variable(vlm, old, trained_in_full(old))


def claims(vlm: nnx.Module) -> set[select.Path]:
  """Paths of what `train_in_full` trains; a method's own kinds of `FullParam` are the method's to claim."""
  return {path for path, variable in nnx.iter_graph(vlm) if type(variable) is FullParam}


def export(vlm: Vlm) -> tuple[list[str], dict[str, np.ndarray]]:
  """PEFT's `modules_to_save`, and the tensors of these modules by transformers' names.

  Raises:
    UserError: a PEFT folder has no place for one.
  """
  paths, trained = select.parameter_paths(vlm), claims(vlm)
  modules = sorted({name.rpartition(".")[0] for name, path in paths.items() if path in trained})
  arrays = {}
  for name, path in paths.items():
    if name.rpartition(".")[0] in modules:
      dotted = ".".join(map(str, path))
      if rules.to_module(dotted, vlm.config.family) is None:
        raise UserError(f"{dotted} was trained, but a PEFT folder of this family has no place for it")
      arrays[name] = rules.to_file(host(select.get(vlm, path)), dotted, vlm.config.family)
  if ties(vlm):  # peft wants both of a tied pair
    arrays[f"{head(vlm)}.weight"] = arrays[embedding_name(vlm)]
  return modules, arrays


def ties(vlm: Vlm) -> bool:
  """Whether a table that is both embedding and head is trained in full."""
  return vlm.config.tied and isinstance(vlm.decoder.embed.embedding, FullParam)


def restore(vlm: Vlm, arrays: dict[str, np.ndarray]) -> None:
  """Trains these parameters in full from here on, beginning with values in the file's layout."""
  paths = select.parameter_paths(vlm)
  train_in_full(vlm, arrays)
  for name, value in arrays.items():
    dotted = ".".join(map(str, paths[name]))
    set_value(select.get(vlm, paths[name]), rules.from_file(value, dotted, vlm.config.family))


def shapes(vlm: Vlm, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
  """Name -> shape in the file of the parameters named."""
  paths = select.parameter_paths(vlm)
  shape = lambda path: rules.file_shape(
    select.get(vlm, path).shape, ".".join(map(str, path)), vlm.config.family
  )
  return {name: tuple(shape(paths[name])) for name in names}


def embedding_name(vlm: Vlm) -> str:
  """transformers' name of the table of token embeddings."""
  return rules.to_module(_EMBEDDING, vlm.config.family)


def head(vlm: Vlm) -> str:
  """transformers' name of the module that gives the logits."""
  return rules.to_module(registry.family(vlm.config.family).head, vlm.config.family).removesuffix(".weight")


def join_or_untie(vlm: Vlm, entries: dict[str, tensors.Entry], repeats: Iterable[str] = ()) -> None:
  """Drops the head of a tied pair that was trained as one; unties `vlm` where an adapter parts the two.

  Args:
    repeats: endings of an adapter's tensors that a folder holds for either of the two.

  Raises:
    UserError: such tensors differ; or trained rows of the two, which are then apart.
  """
  if not vlm.config.tied:
    return
  embedding, top = embedding_name(vlm), head(vlm)
  for end in repeats:
    again = entries.pop(f"{top}{end}", None)
    first = entries.get(embedding.removesuffix(".weight") + end)
    if again and first and not (again.shape == first.shape and np.array_equal(again.read(), first.read())):
      raise UserError(f"{top}{end}: differs from the embedding's, and the model's head is its embedding")
  pair = [entries[name] for name in (embedding, f"{top}.weight") if name in entries]
  if len(pair) == 2 and pair[0].shape == pair[1].shape and np.array_equal(pair[0].read(), pair[1].read()):
    del entries[f"{top}.weight"]
  elif pair or any(name.startswith(f"{top}.") for name in entries):
    if any(".token_adapter." in name for name in entries):
      raise UserError(
        f"trainable_token_indices beside {top}, which the folder parts from the embeddings: not supported"
      )
    untie(vlm)


def untie(vlm: nnx.Module) -> None:
  """Gives a model with tied embeddings a head of its own, equal to the embedding at first."""
  embedding = vlm.decoder.embed.embedding
  own = nnx.eval_shape(
    lambda: nnx.Linear(
      embedding.shape[1],
      embedding.shape[0],
      use_bias=False,
      param_dtype=embedding.dtype,
      preferred_element_type=jnp.float32,
      rngs=nnx.Rngs(0),
    )
  )
  names = embedding.get_metadata().get("out_sharding") or ()
  own.kernel = nnx.Param(embedding[...].T, **(axes.logical(*names[::-1]) if names else {}))
  vlm.decoder.lm_head, vlm.decoder.tied = own, False
  vlm.config = dataclasses.replace(vlm.config, tied=False)
