"""Surgery on a loaded model: adapters on linear layers, and parameters that are trained in full."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from spatialvlm.config import PeftConfig
from spatialvlm.core import axes
from spatialvlm.peft import select
from spatialvlm.peft.lora import FullParam, LoraLinear, LoraSpec
from spatialvlm.types import UserError


def apply(vlm: nnx.Module, config: PeftConfig) -> nnx.Module:
  """Makes `vlm` ready for training as `config` says, in place, and returns it.

  Linear layers that `config.target` names become `LoraLinear`; parameters that `config.full` names become
  float32 `FullParam`. A layer named by both is trained in full and gets no adapter, as in PEFT. With
  `config.resume_from` the adapter, its layers, ranks and scales come from that PEFT folder, and of `config`
  only `full`, `dropout` and `seed` are used.

  Raises:
    UserError: a pattern that matches nothing (near misses are shown), a bad rank or dropout, an unknown
      method, or a folder that does not fit.
  """
  check(config)
  if config.resume_from:
    from spatialvlm.peft import io  # io builds on this module

    io.load_adapter(vlm, config.resume_from, dropout=config.dropout)
  if config.full:
    names = select.parameter_paths(vlm)
    train_in_full(vlm, select.match_parameters(config.full, names, "peft.full"))
  if config.method == "lora" and not config.resume_from:
    attach(vlm, plan(vlm, config), config.seed)
  return vlm


def trainable_filter(vlm: nnx.Module, config: PeftConfig) -> nnx.filterlib.Filter:
  """The filter for `nnx.split(vlm, filter, ...)`: adapters and what is trained in full.

  Raises:
    UserError: nothing in `vlm` is trainable.
  """
  trainable = nnx.Any(nnx.LoRAParam, FullParam)
  if not jax.tree.leaves(nnx.state(vlm, trainable)):
    raise UserError(f"peft: nothing is trained with method {config.method!r}; name parameters in peft.full")
  return trainable


def count_parameters(vlm: nnx.Module, trainable: nnx.filterlib.Filter) -> tuple[int, int]:
  """Numbers (trainable, total) of the model's parameters, adapters counted in both."""
  count = lambda wanted: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(vlm, wanted)))
  return count(nnx.All(nnx.Param, trainable)), count(nnx.Param)


def plan(vlm: nnx.Module, config: PeftConfig) -> dict[str, LoraSpec]:
  """Hugging Face module name -> spec of every layer that `config` adapts."""
  full = {path[:-1] for path, v in nnx.iter_graph(vlm) if isinstance(v, FullParam)}
  linears = {name: path for name, path in select.linear_paths(vlm).items() if path not in full}
  targets = select.match(config.target, linears, "peft.target")
  for field in ("rank_pattern", "alpha_pattern"):
    for pattern in getattr(config, field):
      select.match(pattern, targets, f"peft.{field}")
  return {
    name: LoraSpec(
      rank=select.lookup(config.rank_pattern, name, config.rank),
      alpha=float(select.lookup(config.alpha_pattern, name, config.alpha)),
      rslora=config.rslora,
      dora=config.dora,
      dropout=config.dropout,
    )
    for name in targets
  }


def attach(vlm: nnx.Module, specs: Mapping[str, LoraSpec], seed: int) -> None:
  """Puts a fresh adapter on each named linear layer: A uniform in +-1/sqrt(d_in), B zero, as PEFT draws them.

  What a layer draws depends on `seed` and its name alone, not on the mesh or on the other layers.
  """
  paths = select.linear_paths(vlm)
  for name, spec in specs.items():
    base = select.get(vlm, paths[name])
    if isinstance(base, LoraLinear):
      raise UserError(f"peft: {name} already carries an adapter; merge it before another is added")
    number = layer_id(name)
    bound = 1.0 / math.sqrt(base.in_features)
    a = np.random.default_rng((seed, number)).uniform(-bound, bound, (base.in_features, spec.rank))
    b = np.zeros((spec.rank, base.out_features))
    select.put(vlm, paths[name], adapted(base, spec, a, b, None, number))


def layer_id(name: str) -> int:
  """A number of 31 bits that belongs to a layer's name, the same in every run."""
  return zlib.crc32(name.encode()) & 0x7FFFFFFF


def adapted(
  base: nnx.Linear, spec: LoraSpec, a: np.ndarray, b: np.ndarray, magnitude, number: int
) -> LoraLinear:
  """A LoraLinear around `base`, its factors float32 on the base's mesh, each axis split as the base's is.

  With DoRA and `magnitude` None, the magnitude is the base's own, so that a zero B changes nothing.
  """
  in_name, out_name = base.kernel.get_metadata().get("out_sharding") or (None, None)
  sharding = mesh_sharding(base.kernel.get_raw_value())
  in_mesh, out_mesh = (*sharding.spec, None, None)[:2] if sharding else (None, None)

  def factor(value, names, places):
    metadata = axes.logical(*names) if in_name or out_name else {}
    return nnx.LoRAParam(placed(value, sharding, PartitionSpec(*places)), **metadata)

  layer = LoraLinear(
    base,
    spec,
    factor(a, (in_name, None), (in_mesh, None)),
    factor(b, (None, out_name), (None, out_mesh)),
    None,
    number,
  )
  if spec.dora:
    if magnitude is None:
      out = sharding and NamedSharding(sharding.mesh, PartitionSpec(out_mesh))
      magnitude = jax.jit(_column_norms, out_shardings=out)(base.kernel[...])
    layer.magnitude = factor(magnitude, (out_name,), (out_mesh,))
  return layer


def train_in_full(vlm: nnx.Module, names: Iterable[str]) -> None:
  """Turns the named base parameters into float32 `FullParam`; shared variables stay shared."""
  paths = select.parameter_paths(vlm)
  for name in names:
    old = select.get(vlm, paths[name])
    if isinstance(old, FullParam):
      continue
    value = old.get_raw_value()
    new = FullParam(value.astype(jnp.float32), compute_dtype=str(value.dtype), **axis_names(old))
    replace_variable(vlm, old, new)


def axis_names(variable: nnx.Variable) -> dict[str, Any]:
  """The metadata that names the axes of `variable`, for another variable of its shape."""
  names = variable.get_metadata().get("out_sharding")
  return axes.logical(*names) if names else {}


def replace_variable(vlm: nnx.Module, old: nnx.Variable, new: nnx.Variable) -> None:
  """Puts `new` wherever `old` stands in the model."""
  for _, module in list(nnx.iter_modules(vlm)):
    for attribute, value in list(vars(module).items()):
      if value is old:
        setattr(module, attribute, new)


def untie(vlm: nnx.Module) -> None:
  """Gives a model with tied embeddings a head of its own, equal to the embedding at first."""
  embedding = vlm.decoder.embed.embedding
  head = nnx.eval_shape(
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
  head.kernel = nnx.Param(embedding[...].T, **(axes.logical(*names[::-1]) if names else {}))
  vlm.decoder.lm_head, vlm.decoder.tied = head, False
  vlm.config = dataclasses.replace(vlm.config, tied=False)


def check(config: PeftConfig) -> None:
  """Raises a UserError that names the setting where a value of `config` makes no sense."""
  if config.method not in ("lora", "none"):
    raise UserError(f"peft.method: {config.method!r} is not known; it is 'lora' or 'none'")
  for where, rank in {"rank": config.rank, **config.rank_pattern}.items():
    if rank < 1:
      raise UserError(f"peft: the rank of {where!r} is {rank}; it must be at least 1")
  if not 0.0 <= config.dropout < 1.0:
    raise UserError(f"peft.dropout: {config.dropout} is not in [0, 1)")


def mesh_sharding(array: jax.Array) -> NamedSharding | None:
  """Where `array` lies on a mesh; None on a single device, and for a value that is only traced."""
  sharding = None if isinstance(array, jax.core.Tracer) else array.sharding
  return sharding if isinstance(sharding, NamedSharding) else None


def placed(value: Any, sharding: NamedSharding | None, spec: PartitionSpec) -> jax.Array:
  """`value` in float32 on the mesh of `sharding`, split as `spec` says; each device gets its own part only.

  Copies, since an array that aliases NumPy's memory can never be donated.
  """
  if isinstance(value, jax.Array):
    return value
  if sharding is None:
    return jnp.array(value, jnp.float32, copy=True)
  return jax.make_array_from_callback(
    value.shape,
    NamedSharding(sharding.mesh, spec),
    lambda index: np.array(value[index], np.float32, copy=True),
  )


def _column_norms(kernel: jax.Array) -> jax.Array:
  return jnp.linalg.norm(kernel.astype(jnp.float32), axis=0)
