"""What the path of a model may name: a model's folder or hub id, or that of an adapter, which has a base.

`find(ModelConfig, adapter) -> Found` resolves a path once: `name`, `base` and `folder` are known before
anything is loaded, so that commands can refuse first; `load(mesh)` puts the model on devices, and
`identity()` hashes all that it reads. Training runs are found by `training.runs.find`, which gives the same
`Found`: a command hands whichever it wants to what runs it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from spatialvlm import hub, peft, priors, quantise
from spatialvlm.config import ModelConfig, PriorConfig, to_dict
from spatialvlm.core.quantised import wrap
from spatialvlm.hub import contents, pictures
from spatialvlm.hub.foreign import quantised
from spatialvlm.hub.resolve import read_json
from spatialvlm.models.execution import Execution, apply
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class Found:
  """A model that was found and is not loaded yet.

  Attributes:
    name: as tables and the screen call it.
    base: the base's path or hub id.
    folder: the base's local folder, with the processor's files.
    load: puts the model on a mesh (None: the default device).
    identity: what the names stood for: hashes of everything that `load` reads.
    priors: those that the model has, by name, for its processor.
    trained: the settings that the model was trained with, where they are known, among them how it was shown
      pictures: of a training run, and of what one exported.
  """

  name: str
  base: str
  folder: Path
  load: Callable[[Mesh | None], Vlm]
  identity: Callable[[], dict[str, Any]]
  priors: Mapping[str, PriorConfig] = dataclasses.field(default_factory=dict)
  trained: ModelConfig | None = None

  def sizes(self) -> VlmConfig:
    """The base's config; no weights are read."""
    return hub.read_shape(str(self.folder))


def find(model: ModelConfig, adapter: str | None = None) -> Found:
  """Finds what `model.path` names.

  Args:
    adapter: PEFT folder or hub id that is laid over the model, None for the model alone.

  Raises:
    UserError: nothing there, an adapter whose base is not there, or two adapters.
  """
  quantise.chosen(model)  # what is wrong there is told first
  name = (
    model.path + (f" in {model.quantize}" if model.quantize else "") + (f" + {adapter}" if adapter else "")
  )
  model = hub.assembled(model)
  folder = hub.resolve(model.path, model.revision)
  if contents.has_adapter(folder):
    if adapter:
      raise UserError(
        f"config.model.path: {model.path} holds an adapter, and config.adapter is another; leave out one"
      )
    adapter = str(folder)
    if contents.has_model(folder):
      contents.note(f"{folder}: holds a model and an adapter for it; the one is loaded with the other")
    else:
      model, folder = _base(model, folder), None
    if others := contents.inside(Path(adapter), adapters=True):
      contents.note(f"{adapter}: the adapter at its top is taken; others are in {', '.join(others)}")
  else:
    contents.model_json(folder)
    contents.note_passed_by(folder)
  folder = folder or hub.resolve(model.path, model.revision)
  beside = _beside(folder, hub.resolve(adapter) if adapter else None)
  return Found(
    name=name,
    base=model.path,
    folder=folder,
    load=lambda mesh: _load(model, adapter, beside, mesh),
    identity=lambda: identity(model, adapter, beside),
    priors=priors.read(beside),
    trained=_trained(model, hub.resolve(adapter) if adapter else None, folder),
  )


def note_pictures(found: Found, model: ModelConfig) -> None:
  """Tells the user where a model is shown pictures otherwise than it was trained."""
  if found.trained is not None:
    pictures.note(found.name, found.trained.tiling, model.tiling)


def _trained(model: ModelConfig, adapter: Path | None, base: Path) -> ModelConfig | None:
  """As `Found.trained`: what lies beside the adapter, else beside the model."""
  said = next((said for folder in (adapter, base) if folder and (said := pictures.read(folder))), None)
  return None if said is None else dataclasses.replace(model, **pictures.OWN | said)


def _beside(base: Path, adapter: Path | None) -> Path:
  """The folder whose priors a model has: its adapter's, trained on from its base's, else its base's."""
  return adapter if adapter is not None and contents.has_priors(adapter) else base


def check_base(model: ModelConfig, folder: Path, resumes: bool) -> None:
  """Raises a UserError where `folder`, which `model` names, is nothing that a training run can start from.

  Args:
    resumes: whether the run goes on with an adapter that it names itself.
  """
  if contents.has_adapter(folder) and not contents.has_model(folder):
    base = read_json(folder / contents.ADAPTER_FILE).get("base_model_name_or_path")
    raise UserError(
      f"config.model.path: {model.path} is an adapter; to train it further, give its base ({base}) as "
      f"model.path, and the adapter as peft.resume_from={model.path}"
    )
  if contents.has_adapter(folder) and not resumes:
    raise UserError(
      f"config.model.path: {model.path} holds a model and an adapter for it; to train the adapter further, "
      f"set peft.resume_from={model.path}; to start from the model alone, move {contents.ADAPTER_FILE} away"
    )
  contents.model_json(folder)
  contents.note_passed_by(folder)


def load_base(model: ModelConfig, mesh: Mesh | None) -> Vlm:
  """The model of a folder or hub id, as the config says, without the priors that may lie there."""
  execution = Execution(attention=model.attention, scan=model.scan_layers)
  execution.check(model.dtype)
  few_bits = quantise.chosen(model)
  model = hub.assembled(model)
  vlm = hub.load_model(
    model.path,
    revision=model.revision,
    dtype=model.dtype,
    mesh=mesh,
    from_scratch=model.from_scratch,
    seed=model.seed,
    replacements=few_bits and quantise.replacements(few_bits, model.quantize_target),
    takes_priors=True,
  )
  wrap(vlm)
  return apply(vlm, execution)


def identity(model: ModelConfig, adapter: str | None = None, beside: Path | None = None) -> dict[str, Any]:
  """Hashes of the weights, of the adapter and of the priors in `beside`, and how the weights are
  quantised."""
  found: dict[str, Any] = {"model": {"from_scratch": True}}
  if not model.from_scratch:
    plain = hub.assembled(model)
    found["model"] = dict(hub.identity(plain.path, plain.revision))
    if model.encoders:  # where the assembled model lies may change
      found["model"] |= {"id": " + ".join([model.path, *model.encoders]), "revision": model.revision}
  if model.quantize:
    names = ("quantize", "quantize_block", "quantize_double", "quantize_target")
    found["model"] |= {name: to_dict(getattr(model, name)) for name in names}
  if adapter:
    folder = hub.resolve(adapter)
    found["adapter"] = hash_files(folder, sorted(folder.glob("adapter_*")))
  if beside is not None and contents.has_priors(beside):
    found["priors"] = hash_files(beside, sorted(beside.glob("priors.*")))
  return found


def hash_files(folder: Path, files: Sequence[Path]) -> str:
  """SHA-256 over names below `folder` and contents, in the order given."""
  digest = hashlib.sha256()
  for file in files:
    digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
  return digest.hexdigest()


def _load(model: ModelConfig, adapter: str | None, beside: Path, mesh: Mesh | None) -> Vlm:
  vlm = load_base(model, mesh)
  vlm = peft.load_adapter(vlm, adapter, takes_priors=True) if adapter else vlm
  return priors.attach_from(vlm, beside)


def _base(model: ModelConfig, folder: Path) -> ModelConfig:
  """The config of the base that an adapter names."""
  said: Mapping[str, Any] = read_json(folder / contents.ADAPTER_FILE)
  base, revision = said.get("base_model_name_or_path"), said.get("revision")
  way_out = f"give the base as config.model.path, and {model.path} as config.adapter"
  if not base or not isinstance(base, str):
    raise UserError(f"{folder / contents.ADAPTER_FILE}: names no base_model_name_or_path; {way_out}")
  try:
    found = hub.resolve(base, revision)
  except UserError as error:
    raise UserError(f"{model.path}: an adapter whose base is not found ({error}); {way_out}") from error
  contents.model_json(found)  # what is no model is said to be none
  if kind := quantised(found):
    raise UserError(
      f"{model.path}: an adapter whose base, {base}, is quantised ({kind}), which is not supported; give "
      f"the model that it was made from as config.model.path, and {model.path} as config.adapter"
    )
  return dataclasses.replace(model, path=base, revision=revision)
