"""Models that objectives ask and no step trains: teachers, and the model itself as it began.

An objective names them in `Objective.asks`; `config.teachers` says what the names stand for, and `base` is
always known: the model without what training adds to it. Of a base whatever is frozen in the trained model is
the very same array (`state.Split`), so that beside adapters it takes no memory at all.

A teacher must have the model's tokenizer, so that a token means the same to both, and may have a larger
vocabulary, whose further ids are left out of account. Its weights lie on the run's mesh and in the run's
numbers, or on a mesh and in numbers of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from spatialvlm import hub, loading
from spatialvlm.config import ModelConfig, RunConfig, TeacherConfig, check_dtype, nearest
from spatialvlm.core import axes
from spatialvlm.data.augment.change import moves
from spatialvlm.data.augment.legality import TURNS
from spatialvlm.data.views import View, check_prompt, tells_depth
from spatialvlm.loading import Found
from spatialvlm.models.vlm import Vlm, VlmConfig
from spatialvlm.processing import alike
from spatialvlm.processing.processor import Processor, load_processor
from spatialvlm.training import runs, taught
from spatialvlm.training.objectives import Other, Terms, asks_of
from spatialvlm.training.phases.phase import Phase
from spatialvlm.types import UserError

# The name of the model itself without what training adds, and the path that says so; the path of the moving
# average of the model in training.
BASE, EMA = "base", "ema"
_OF_A_FOLDER = ("revision", "adapter", "dtype", "mesh")
_TILING = ("max_tiles", "longest_edge", "split_images", "layout")


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A model that is asked, found and not loaded yet.

  Attributes:
    found: where it is; None for the model itself without what training adds, and for its moving average.
    model: its configuration.
    cuts_alike: whether its image tokens show the same parts of pictures as the trained model's.
    view: how it reads examples; None where it reads the very tokens and pixels that the trained model reads.
    config: its settings.
    numbers: what its logits depend on beside weights, settings and examples, as JSON values.
  """

  found: Found | None
  model: VlmConfig
  cuts_alike: bool = True
  view: View | None = None
  config: TeacherConfig = TeacherConfig()
  numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def averaged(self) -> bool:
    """Whether it is the moving average of the model in training."""
    return self.config.path == EMA

  @property
  def other(self) -> Other:
    """What objectives are told of it."""
    return Other(self.model, self.view is None, self.cuts_alike, self.config.cache is not None)

  def identity(self) -> dict[str, Any]:
    """Hashes of its weights; empty for the model itself, whose own are known."""
    return self.found.identity() if self.found else {}


def find(config: RunConfig, terms: Terms, student: VlmConfig, processor: Processor) -> dict[str, Teacher]:
  """The teachers that the terms ask, by name.

  Args:
    student: of the model that is trained, and `processor` what it reads.

  Raises:
    UserError: a name that `config.teachers` lacks, or one that no term asks; a model that is not there; one
      of another tokenizer or of a smaller vocabulary; a prompt without its question; pictures or an average
      that the run does not have.
  """
  asks = asks_of(terms)
  configs = {BASE: TeacherConfig()} | dict(config.teachers)
  for name in asks:
    if name not in configs:
      term = next(objective for _, objective in terms.values() if name in objective.asks)
      raise UserError(
        f"{term.where}: asks a teacher {name!r}, but config.teachers has none; "
        f"{nearest(name, configs)}, or set config.teachers.{name}.path"
      )
  for name in config.teachers:
    if name not in asks:
      raise UserError(
        f"config.teachers.{name}: no loss asks it; name it in a loss's kwargs.teacher, or leave it out"
      )
    _check_run(f"config.teachers.{name}", config.teachers[name], config)
  return {name: _find(name, configs[name], config.model, student, processor) for name in sorted(asks)}


def meshes(teachers: Mapping[str, Teacher], mesh: Mesh) -> dict[str, Mesh]:
  """Where the weights of each lie, by name: on the run's `mesh`, or on one of their own of its devices.

  Raises:
    UserError: the sizes of a mesh do not multiply to the number of devices, or count processors.
  """
  return {name: _mesh(f"config.teachers.{name}.mesh", t.config, mesh) for name, t in teachers.items()}


def _mesh(where: str, teacher: TeacherConfig, mesh: Mesh) -> Mesh:
  if teacher.mesh is None:
    return mesh
  if teacher.mesh.cpu_devices:
    raise UserError(f"{where}.cpu_devices: the devices are the run's; set config.mesh.cpu_devices")
  if teacher.mesh.whole:
    raise UserError(f"{where}.whole: a teacher's weights are all split alike; leave it out")
  try:
    return axes.spread_anew(mesh, teacher.mesh)
  except UserError as error:
    raise UserError(f"{where}: {error}") from None


def load(teachers: Mapping[str, Teacher], base: Vlm, meshes: Mapping[str, Mesh]) -> dict[str, nnx.Module]:
  """The models, on their meshes.

  Args:
    base: the model before anything is added to it.
  """
  return {
    name: plain(base) if teacher.found is None else teacher.found.load(meshes[name])
    for name, teacher in teachers.items()
    if teacher.config.cache is None and not teacher.averaged
  }


def stores(config: RunConfig, teachers: Mapping[str, Teacher]) -> dict[str, taught.Store]:
  """The logits of those that are cached, by name.

  Raises:
    UserError: a folder is of another teacher.
  """
  return {name: store(config, name, t) for name, t in teachers.items() if t.config.cache is not None}


def store(config: RunConfig, name: str, teacher: Teacher) -> taught.Store:
  """The logits of a teacher with a cache, as far as they are there already.

  Raises:
    UserError: the folder is of another teacher.
  """
  where, said = f"config.teachers.{name}.cache", teacher.config
  base = loading.identity(config.model) | {"seed": config.model.seed if config.model.from_scratch else None}
  identity = {
    "teacher": teacher.identity() or base,
    "top": min(said.top, teacher.numbers["vocabulary"]),
    "prompt": said.prompt,
    **teacher.numbers,
  }
  told = {"told": "{facts}" in said.prompt, "depth": tells_depth(said.prompt)}
  return taught.Store(said.cache, identity, **told, where=where)


def check_phases(asked: Mapping[str, Teacher], made: Iterable[Phase]) -> None:
  """Raises a UserError where a phase's answers are none that a teacher was asked about."""
  for phase in made:
    for name, teacher in asked.items():
      if phase.answers and teacher.config.cache is not None:
        raise UserError(
          f"config.teachers.{name}.cache: {phase.where} samples answers, of which no cache can know; leave it"
          " out, so that the teacher is there to be asked"
        )


def plain(vlm: Vlm) -> Vlm:
  """A module of its own of the same arrays, which surgery on the other leaves as it is."""
  graph, state = nnx.split(vlm)
  return nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))


def own_eyes(teachers: Mapping[str, Teacher], terms: Terms) -> frozenset[str]:
  """Names of those that need pixels where the trained model takes features of a frozen tower."""
  asks = asks_of(terms)
  own = lambda t: t.found is not None or bool(t.view and t.view.pictures)
  return frozenset(name for name, wants in asks.items() if own(teachers[name]) or wants.of_encoder)


def told_depth(teachers: Mapping[str, Teacher]) -> bool:
  """Whether one is told the depth of pictures, which are then all made, with their maps."""
  return any(tells_depth(t.config.prompt) for t in teachers.values())


def views(teachers: Mapping[str, Teacher]) -> dict[str, View]:
  """How those read examples that read them in a way of their own, by name."""
  return {name: t.view for name, t in teachers.items() if t.view and t.config.cache is None}


def _check_run(where: str, teacher: TeacherConfig, run: RunConfig) -> None:
  """Raises a UserError where a run has not what a teacher needs of it."""
  if teacher.plain and run.data.augment is None:
    raise UserError(
      f"{where}.plain: config.data.augment is not set, so that all pictures are plain; set it, or leave this"
      " out"
    )
  moved = moves(run.data.augment)
  if teacher.plain and moved:
    raise UserError(
      f"{where}.plain: config.data.augment.{moved[0]} moves what the pictures show, so that a teacher of the"
      " plain ones would speak of other places; leave one of them out"
    )
  if "{facts}" in teacher.prompt and (turned := [name for name in moved if name in TURNS]):
    raise UserError(
      f"{where}.prompt: has {{facts}}, of which nobody knows what they are for a camera turned by"
      f" config.data.augment.{turned[0]}; leave one of them out"
    )
  if teacher.cache is not None and run.data.augment is not None:
    raise UserError(
      f"{where}.cache: config.data.augment changes pictures anew each time, of which no cache can know; leave"
      " one of them out"
    )
  if teacher.path == EMA and not run.optim.ema:
    raise UserError(f"{where}.path: 'ema' is the moving average of the run, which keeps none; set optim.ema")
  if teacher.path == EMA and teacher.cache is not None:
    raise UserError(f"{where}.cache: the moving average changes with every step; leave the cache out")


def _find(
  name: str, config: TeacherConfig, model: ModelConfig, student: VlmConfig, processor: Processor
) -> Teacher:
  where = f"config.teachers.{name}"
  check_prompt(config.prompt, f"{where}.prompt")
  if config.top < 1:
    raise UserError(f"{where}.top: {config.top}; one token at least")
  own_tiling = {key: getattr(config, key) for key in _TILING if getattr(config, key) is not None}
  tiling = model.tiling | own_tiling
  if config.path in (BASE, EMA):
    for key in _OF_A_FOLDER:
      if getattr(config, key) is not None:
        raise UserError(f"{where}.{key}: with path {config.path!r} it is the run's own model; leave it out")
    built = hub.assembled(model)
    folder, found, own = hub.resolve(built.path, built.revision), None, student
  else:
    found, own = _found(where, config, model, tiling)
    folder = found.folder
    _check_vocabulary(where, config.path, own, student)
  reads = processor if found is None and not own_tiling else load_processor(folder, **tiling)
  if differs := "" if found is None else alike.other_tokens(processor.tokenizer, reads.tokenizer):
    raise UserError(
      f"{where}.path: {config.path} has another tokenizer than the model ({differs}), so that its"
      " probabilities are of other tokens; use a teacher of the same tokenizer"
    )
  numbers = {
    "dtype": own.dtype,
    "vocabulary": student.text.vocab_size,
    "tokenizer": hashlib.sha256(reads.tokenizer.to_str().encode()).hexdigest() if config.cache else "",
    "tiles": [repr(reads.tiler), reads.tokens_per_tile],
  }
  view, cuts_alike = None, alike.see_alike(processor, reads)
  if config.prompt != "{prompt}" or config.plain or not alike.read_alike(processor, reads):
    view = View(reads, config.prompt, config.plain or not cuts_alike, config.plain, f"{where}.prompt")
  return Teacher(found, own, cuts_alike, view, config, numbers)


def _found(
  where: str, config: TeacherConfig, model: ModelConfig, tiling: Mapping[str, Any]
) -> tuple[Found, VlmConfig]:
  """Where the model of a path is, and its configuration."""
  dtype = model.dtype if config.dtype is None else config.dtype
  check_dtype(dtype, f"{where}.dtype")
  ways = {"attention": model.attention, "scan_layers": model.scan_layers}
  asked = ModelConfig(config.path, config.revision, dtype=dtype, **ways, **tiling)
  try:
    found = runs.find(asked, config.adapter)
    return found, hub.read_config(found.folder, dtype=dtype)
  except UserError as error:
    text = str(error).replace("config.model.", f"{where}.").replace("config.adapter", f"{where}.adapter")
    raise UserError(f"{where}: {text}") from None


def _check_vocabulary(where: str, path: str, teacher: VlmConfig, student: VlmConfig) -> None:
  if teacher.text.vocab_size < student.text.vocab_size:
    raise UserError(
      f"{where}.path: {path} has a vocabulary of {teacher.text.vocab_size:,}, smaller than the"
      f" {student.text.vocab_size:,} of the model that it shall teach; use a teacher of the same tokenizer"
    )
