"""From a Hugging Face folder to a `Vlm`, each tensor read, cast and put on its shards in turn."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spatialvlm.config import check_dtype
from spatialvlm.core.axes import create_sharded, sharding_of
from spatialvlm.hub import contents, foreign, rules
from spatialvlm.hub.resolve import read_entries, resolve, weight_files
from spatialvlm.hub.save import whole
from spatialvlm.hub.tensors import DTYPES, Entry
from spatialvlm.models import registry
from spatialvlm.models.encoders import EncoderConfig, VisionEncoder
from spatialvlm.models.families import CLASSIFIER, FAMILIES
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.types import UserError

Model = TypeVar("Model")
# Path of a parameter -> what makes the variable that takes its place.
Replacements = Mapping[tuple[Any, ...], Callable[[np.ndarray, nnx.Variable, Mesh | None], nnx.Variable]]
_FLOATS = ("F64", "F32", "F16", "BF16")


def load_model(
  path_or_id: str | Path,
  *,
  revision: str | None = None,
  dtype: str = "float32",
  mesh: Mesh | None = None,
  from_scratch: bool = False,
  seed: int = 0,
  replacements: Callable[[Vlm], Replacements] | None = None,
  takes_priors: bool = False,
) -> Vlm:
  """Loads a vision-language model, or a language model by itself, from a local folder or a hub id.

  Args:
    dtype: "float32" or "bfloat16", of weights and activations; files of either are cast.
    mesh: where the parameters lie, by their logical axes; None for the default device.
    from_scratch: draw the weights from `seed`; the folder needs only its config.json.
    replacements: gives the parameters of the abstract model in whose place something else is to stand, by
      their paths, and what makes it: of the parameter in our layout and dtype, its variable and the mesh.
    takes_priors: whether the caller reads the priors that lie beside the model (`priors.attach_from`).

  Raises:
    UserError: the model cannot be found or read, or its tensors do not fit; all misfits are listed; priors
      lie beside it, which nobody takes.
  """
  check_dtype(dtype, "dtype")
  folder = resolve(path_or_id, revision)
  if not takes_priors:
    contents.refuse_priors(folder)
  config = read_config(folder, dtype=dtype)
  if from_scratch:
    vlm = create_sharded(lambda: Vlm(config, rngs=nnx.Rngs(seed)), mesh)
    for path, make in (replacements(vlm) if replacements else {}).items():
      variable = _get(vlm, path)
      _put(vlm, path, make(whole(variable), variable, mesh))
    return vlm
  entries, doubled = read_entries(weight_files(folder))
  config = tied_as(config, entries)
  build = lambda: Vlm(config, rngs=nnx.Rngs(0))
  return _filled(build, entries, doubled, config.family, folder, mesh, replacements)


def load_encoder(
  path_or_id: str | Path,
  *,
  revision: str | None = None,
  dtype: str = "float32",
  mesh: Mesh | None = None,
) -> tuple[VisionEncoder, EncoderConfig]:
  """Loads a vision encoder that stands alone, or the vision tower of a vision-language model.

  Args and errors are those of `load_model`; of a model with other encoders none is taken.
  """
  check_dtype(dtype, "dtype")
  folder = resolve(path_or_id, revision)
  source = contents.model_json(folder, "an encoder")
  if contents.has_adapter(folder):
    contents.note(f"{folder}: an adapter lies beside the model; the encoder is taken without it")
  if source.get("model_type") == registry.JOINED:
    raise UserError(f"{folder}: a model whose encoder was replaced or joined; load the encoder's own folder")
  if source.get("model_type") in FAMILIES:
    whole = read_config(folder, dtype=dtype)
    if whole.vision is None:
      raise UserError(f"{folder}: a language model by itself ({whole.family}), which has no vision encoder")
    config = EncoderConfig(f"{whole.family}/vision", whole.vision, dtype, source)
  else:
    where = str(folder / "config.json")
    config = registry.encoder_config(source, dtype=dtype, where=where)
  entries, doubled = read_entries(weight_files(folder))
  if left := [name for name in entries if re.fullmatch(CLASSIFIER, name)]:
    contents.note(f"{folder}: an image classifier; its encoder is taken, without {', '.join(sorted(left))}")
  build = lambda: VisionEncoder(config.vision, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
  return _filled(build, entries, doubled, config.family, folder, mesh), config


def _filled(
  build: Callable[[], Model],
  entries: dict[str, Entry],
  doubled: list[str],
  family: str,
  folder: Path,
  mesh: Mesh | None,
  replacements: Callable[[Model], Replacements] | None = None,
) -> Model:
  """A model with the tensors of a folder's files in their places."""
  if kind := foreign.quantised_tensors(entries):
    raise UserError(foreign.refusal(folder, kind))
  shells = nnx.eval_shape(build)
  makers = replacements(shells) if replacements else {}
  graphdef, abstract = nnx.split(shells)
  variables = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(abstract)}
  shapes = {name: tuple(v.shape) for name, (_, v) in variables.items()}
  plan = match(entries, doubled, shapes, family, folder)
  state, replaced = [], {}
  for name, (path, variable) in variables.items():
    tensor = _read(plan[name], name, variable, family)
    if path in makers:
      replaced[path] = makers[path](tensor, variable, mesh)
    else:
      variable = variable.replace(_place(tensor, variable, mesh))
    state.append((path, variable))
  model = nnx.merge(graphdef, nnx.from_flat_state(state))
  for path, variable in replaced.items():
    _put(model, path, variable)
  return model


def read_config(folder: Path, *, dtype: str = "float32") -> VlmConfig:
  """The config of the model in a folder; its weights are not looked at."""
  file, source = folder / "config.json", contents.model_json(folder)
  family = registry.family(registry.family_of(source, str(file)))
  return family.parse_config(source, dtype=dtype, where=str(file))


def tied_as(config: VlmConfig, entries: Mapping[str, Entry]) -> VlmConfig:
  """The config of a model whose files hold these tensors: its head is its table's where they hold none."""
  head = registry.family(config.family).head
  heads = [name for name in entries if rules.to_ours(name, config.family) == head]
  return dataclasses.replace(config, tied=not heads)


def match(
  entries: dict[str, Entry],
  doubled: list[str],
  shapes: dict[str, tuple[int, ...]],
  family: str,
  folder: Path,
) -> dict[str, Entry]:
  """Finds the tensor of every parameter.

  Args:
    shapes: of the parameters, by our dotted path.

  Raises:
    UserError: lists every tensor that is unmapped, doubled or mis-shaped, and every parameter without one.
  """
  plan: dict[str, Entry] = {}
  problems = [f"{name}: stands in two files" for name in doubled]
  for name, entry in entries.items():
    if rules.ignored(name, family) or 0 in entry.shape:
      continue
    paths = [path for path in rules.all_ours(name, family) if path in shapes]
    if not paths:
      problems.append(f"{name}: no place for it in this model")
    elif paths[0] in plan:
      problems.append(f"{name}: a second tensor for {paths[0]}")
    else:
      plan |= dict.fromkeys(paths, entry)
      wanted = rules.file_shape(shapes[paths[0]], paths[0], family)
      if entry.shape != wanted:
        problems.append(f"{name}: shape {list(entry.shape)}, wanted {list(wanted)}")
      elif entry.dtype not in _FLOATS:
        problems.append(f"{name}: dtype {entry.dtype}, wanted a floating-point one")
  problems += [f"{rules.to_hf(path, family)}: missing" for path in shapes if path not in plan]
  if problems:
    raise UserError(f"{folder}: {len(problems)} tensor(s) do not fit config.json: " + "; ".join(problems))
  return plan


def _read(entry: Entry, path: str, variable: nnx.Variable, family: str) -> np.ndarray:
  host = entry.read()
  if DTYPES[entry.dtype] != variable.dtype:
    host = host.astype(variable.dtype)
  return rules.from_file(host, path, family)


def _place(host: np.ndarray, variable: nnx.Variable, mesh: Mesh | None) -> jax.Array:
  if mesh is None:
    # A copy, since an array that aliases NumPy's memory can never be donated.
    return jnp.array(host, copy=True)
  sharding = sharding_of(variable, mesh)
  return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))


def _get(model: nnx.Module, path: tuple[Any, ...]) -> Any:
  for part in path:
    model = model[part] if isinstance(part, int) else getattr(model, part)
  return model


def _put(model: nnx.Module, path: tuple[Any, ...], variable: nnx.Variable) -> None:
  setattr(_get(model, path[:-1]), path[-1], variable)
