"""The table of formats, and which kernels of a model are kept in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spatialvlm.config import ModelConfig, nearest
from spatialvlm.core.quantised import QuantisedParam
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft import select
from spatialvlm.peft.variables import axis_names
from spatialvlm.quantise.format import Format
from spatialvlm.quantise.ggml import Q4, Q8
from spatialvlm.quantise.int8 import Int8
from spatialvlm.quantise.nf4 import Nf4
from spatialvlm.types import UserError

FORMATS: dict[str, type[Format]] = {cls.name: cls for cls in (Nf4, Int8, Q4, Q8)}
_SETTING = "quantize_"
# Settings of `ModelConfig` that are a format's own options.
_OPTIONS = ("block", "double")

# A parameter in our layout, its variable, the mesh that it shall lie on -> what takes the variable's place.
Make = Callable[[np.ndarray, nnx.Variable, Mesh | None], nnx.Variable]


def chosen(model: ModelConfig) -> Format | None:
  """The format that the settings name, with its options; None for weights in full.

  Raises:
    UserError: there is none of that name, or an option that it does not have, or one without sense.
  """
  given = {name: getattr(model, _SETTING + name) for name in _OPTIONS}
  given = {name: value for name, value in given.items() if value is not None}
  if model.quantize is None:
    named = [*given, *(["target"] if model.quantize_target is not None else [])]
    if named:
      raise UserError(f"config.model.{_SETTING}{named[0]}: nothing is quantised; set model.quantize too")
    return None
  if model.quantize not in FORMATS:
    raise UserError(
      f"config.model.quantize: there is no {model.quantize!r}; {nearest(model.quantize, FORMATS)}"
    )
  cls = FORMATS[model.quantize]
  own = {field.name for field in dataclasses.fields(cls)}
  for name in given:
    if name not in own:
      others = [key for key, other in FORMATS.items() if name in other.__dataclass_fields__]
      raise UserError(
        f"config.model.{_SETTING}{name}: {cls.name} has no {name}; formats that do: {', '.join(others)}"
      )
  found = cls(**given)
  found.check()
  return found


def replacements(format: Format, target: str | tuple[str, ...] | None) -> Callable[[Vlm], Mapping[Any, Make]]:
  """A function from a model, which may be abstract, to the path of each kernel that `format` takes.

  Args:
    target: which linear layers, as `PeftConfig.target`; None for those of the decoder's blocks.

  The function raises a UserError for a pattern that names none, and for a kernel that cannot be kept so.
  """

  def make(kernel: np.ndarray, variable: nnx.Variable, mesh: Mesh | None) -> nnx.Variable:
    if not np.isfinite(kernel.astype(np.float32)).all():
      raise UserError(f"model.quantize={format.name}: a weight is not finite; the model's files are damaged")
    array, names = format.quantise(kernel), axis_names(variable)
    if mesh is None:
      array = jax.tree.map(lambda part: jnp.array(part, copy=True), array)
    else:
      places = array.shardings(variable.get_metadata().get("out_sharding") or (None, None), mesh)
      array = jax.tree.map(_on_mesh, array, places)
    return QuantisedParam(array, **names)

  def found(vlm: Vlm) -> dict[Any, Make]:
    linears = select.linear_paths(vlm)
    if target is None:
      names = [name for name, path in linears.items() if path[:2] == ("decoder", "stack")]
    else:
      names = select.match(target, linears, "config.model.quantize_target", select.older(vlm))
    for name in names:
      kernel = select.get(vlm, linears[name]).kernel
      if why := format.why_not(kernel.shape):
        raise UserError(
          f"config.model.quantize: {name} cannot be kept in {format.name}: {why}; or narrow"
          " model.quantize_target"
        )
    return {(*linears[name], "kernel"): make for name in names}

  return found


def _on_mesh(part: np.ndarray, place: jax.sharding.Sharding) -> jax.Array:
  return jax.make_array_from_callback(part.shape, place, lambda index: np.array(part[index], copy=True))
