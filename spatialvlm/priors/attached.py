"""Priors on a model: fresh ones that change nothing, theirs on disk, and a model without them.

On disk a model's priors are two files beside its adapter or weights: priors.safetensors, float32 tensors
NAME.PART by the prior's name (`into.kernel` (E, W), `into.bias` (W,), `out.kernel` (W, D)), and
priors.json, {"format": "spatialvlm-priors-1", "priors": {NAME: {"kind": ..., "kwargs": {...}, "missing":
...}}}.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from spatialvlm import workdir
from spatialvlm.config import PriorConfig, from_config_dict, to_dict
from spatialvlm.hub import contents, tensors
from spatialvlm.hub.resolve import read_json
from spatialvlm.models.vlm import Vlm
from spatialvlm.peft.variables import AdapterParam, host, mesh_sharding, placed, set_value
from spatialvlm.priors.prior import Prior
from spatialvlm.priors.table import make_prior, make_priors
from spatialvlm.types import UserError

FORMAT = "spatialvlm-priors-1"
WEIGHTS = "priors.safetensors"


class PriorParam(AdapterParam):
  """What a prior adds to a model and training changes; the base's checkpoints have no place for it."""


class Dense(nnx.Module):
  """x W + b in float32. `bias` is None where there is none."""

  def __init__(self, kernel: PriorParam, bias: PriorParam | None = None):
    self.kernel, self.bias = kernel, nnx.data(bias)

  def __call__(self, x: jax.Array) -> jax.Array:
    y = x @ self.kernel[...]
    return y if self.bias is None else y + self.bias[...]


class Attached(nnx.Module):
  """A prior's features through a layer, a GELU and a projection that starts at zero.

  Attributes:
    prior: what makes the features; config: as it was asked for.
  """

  def __init__(self, prior: Prior, config: PriorConfig, into: Dense, out: Dense):
    self.prior, self.config = prior, _Config(config)
    self.into, self.out = into, out

  def __call__(self, x_NPC: jax.Array) -> jax.Array:
    """(N, P, D) float32, to be added to image tokens: exactly 0 where a token knows nothing."""
    features_NPE, known_NP = self.prior.embed(x_NPC.astype(jnp.float32))
    y_NPD = self.out(jax.nn.gelu(self.into(features_NPE), approximate=False))
    return jnp.where(known_NP[..., None], y_NPD, 0.0)


class _Config:
  """A config as a static part of a module, by what it says."""

  def __init__(self, config: PriorConfig):
    self.said = config
    self._key = repr(to_dict(config))

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Config) and self._key == other._key

  def __hash__(self) -> int:
    return hash(self._key)

  def __repr__(self) -> str:
    return self._key


def attach(vlm: Vlm, configs: Mapping[str, PriorConfig], seed: int = 0, start: Path | None = None) -> Vlm:
  """Puts priors on a model, in place, and returns it; fresh ones leave every number of it as it is.

  Args:
    configs: by name; of none the model stays as it is.
    seed: of fresh layers; what is drawn for a prior depends on its name alone.
    start: folder of priors that take their values from there.

  Raises:
    UserError: a model that reads no images or has priors already; as `make_priors`; or priors in `start` that
      are others than `configs` says.
  """
  if not configs:
    return vlm
  if vlm.vision is None:
    raise UserError("config.priors: a language model by itself reads no images; leave them out")
  if vlm.priors:
    raise UserError(f"the model has priors already ({', '.join(vlm.priors)}); load its base")
  made, width = make_priors(configs), vlm.config.text.block.width
  beside = jax.tree.leaves(nnx.state(vlm.connector))[0]
  sharding = mesh_sharding(beside) if isinstance(beside, jax.Array) else None
  param = lambda value: PriorParam(placed(np.asarray(value, np.float32), sharding, PartitionSpec()))
  found = {}
  for name, prior in made.items():
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    into = rng.normal(size=(prior.features, prior.width)) / np.sqrt(prior.features)
    found[name] = Attached(
      prior,
      configs[name],
      Dense(param(into), param(np.zeros(prior.width))),
      Dense(param(np.zeros((prior.width, width)))),
    )
  vlm.priors = nnx.Dict(found)
  if start is not None and contents.has_priors(start):
    check_start(configs, start)
    _fill(vlm, start)
  return vlm


def attach_from(vlm: Vlm, folder: Path) -> Vlm:
  """Puts the priors that lie in a folder on a model, in place; of a folder without any it stays as it is.

  Raises:
    UserError: they are damaged, or not of this model.
  """
  return attach(vlm, read(folder), start=folder)


def configs_of(vlm: Vlm) -> dict[str, PriorConfig]:
  """The priors of a model as they were asked for, by name."""
  return {name: module.config.said for name, module in (vlm.priors or {}).items()}


def claims(vlm: Vlm) -> set[tuple[Any, ...]]:
  """Paths of the variables that `save` writes."""
  return {path for path, variable in nnx.iter_graph(vlm) if isinstance(variable, PriorParam)}


def without(vlm: Vlm) -> Vlm:
  """A model of the same arrays without its priors; `vlm` itself is left as it is."""
  if not vlm.priors:
    return vlm
  plain = nnx.merge(*nnx.split(vlm))
  plain.priors = nnx.data(None)
  return plain


def save(vlm: Vlm, folder: Path) -> None:
  """Writes both files into a folder, the description last.

  Of a model without priors nothing is written, and those of another that lie there go: they would be taken
    for
  its own. Every process of a run must call this; the first one writes.

  Raises:
    UserError: the disk is full or not writable.
  """
  folder = Path(folder).expanduser()
  if not vlm.priors:
    for name in (contents.PRIORS_FILE, WEIGHTS) if not jax.process_index() else ():
      (folder / name).unlink(missing_ok=True)
    return
  arrays = {path: host(variable) for path, variable in _variables(vlm).items()}
  if jax.process_index():
    return
  file = folder / WEIGHTS
  with workdir.writing(file):
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    tensors.write(part, {path: tensors.lazy(array) for path, array in arrays.items()})
    part.replace(file)
  said = {name: to_dict(config) for name, config in configs_of(vlm).items()}
  workdir.write_json(folder / contents.PRIORS_FILE, {"format": FORMAT, "priors": said})


def read(folder: Path) -> dict[str, PriorConfig]:
  """The priors that lie in a folder, by name; none where there are none.

  Raises:
    UserError: a description of another format.
  """
  file = folder / contents.PRIORS_FILE
  if not contents.has_priors(folder):
    return {}
  said = read_json(file)
  if said.get("format") != FORMAT or not isinstance(said.get("priors"), dict):
    raise UserError(f"{file}: describes no priors of this version ({FORMAT})")
  found = {}
  for name, values in sorted(said["priors"].items()):
    found[name] = from_config_dict(values, PriorConfig, f"{file}: {name}")
    make_prior(found[name], f"{file}.{name}")
  return found


def check_start(configs: Mapping[str, PriorConfig], folder: Path) -> None:
  """Raises a UserError where a run's priors are not those of the folder that it starts from."""
  for name, config in read(folder).items():
    kind = configs[name].kind if name in configs else None
    if kind is None:
      raise UserError(
        f"{folder}: a model with a prior {name!r} of kind {config.kind!r}, which config.priors lacks; set"
        f" config.priors.{name}.kind={config.kind}, or start from its base"
      )
    ours, theirs = make_prior(configs[name], f"config.priors.{name}"), make_prior(config, f"{folder}.{name}")
    if ours != theirs:
      raise UserError(f"config.priors.{name}: {ours}, but in {folder} it is {theirs}; make them the same")


def _fill(vlm: Vlm, folder: Path) -> None:
  """Gives priors the values of a folder; those that it has not stay as they are."""
  file, there = folder / WEIGHTS, read(folder)
  if not file.is_file():
    raise UserError(f"{file}: missing, though {contents.PRIORS_FILE} names it; copy it beside")
  entries = tensors.read_header(file)
  variables = {path: v for path, v in _variables(vlm).items() if path.partition(".")[0] in there}
  wanted = {path: tuple(v.shape) for path, v in variables.items()}
  shapes = {path: entry.shape for path, entry in entries.items()}
  if wanted != shapes:
    wrong = sorted(name for name in wanted.keys() | shapes if wanted.get(name) != shapes.get(name))
    said = "; ".join(f"{n}: {shapes.get(n, 'missing')}, wanted {wanted.get(n, 'none')}" for n in wrong)
    raise UserError(f"{file}: {len(wrong)} tensor(s) do not fit the model: {said}")
  for path, variable in variables.items():
    set_value(variable, entries[path].read().astype(np.float32))


def _variables(vlm: Vlm) -> dict[str, nnx.Variable]:
  """NAME.PART -> variable, in order."""
  found = nnx.state(vlm.priors, PriorParam).flat_state()
  return dict(sorted((".".join(map(str, path)), variable) for path, variable in found))
