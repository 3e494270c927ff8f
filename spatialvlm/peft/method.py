"""What a method of parameter-efficient fine-tuning is: `Method`; `LayerMethod`, if it changes layers.

A method is one file with a subclass and one line in `methods.METHODS`. It marks what it trains as `Trained`
variables; everything else (the optimizer, checkpoints, meshes, resumption, the folder's reading and writing,
merging, the command line) follows from that and from the functions here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from spatialvlm.config import PeftConfig
from spatialvlm.peft import foreign, full, select
from spatialvlm.peft.variables import AdapterParam, FullParam, layer_id
from spatialvlm.types import Batch, UserError

Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NoOptions:
  """A method without settings of its own."""


@dataclasses.dataclass(frozen=True)
class LayerOptions:
  """Which layers beside `PeftConfig.target`, by PEFT's names; settings of every method that changes layers.

  Attributes:
    exclude_modules: layers that are left out: a regex, or a list of ends of names, as `target`.
    layers_to_transform: numbers of the blocks whose layers are adapted; empty for all.
    layers_pattern: name of the list of blocks that these numbers count, such as "layers", where a name holds
      several numbers; empty for the first number that a name holds.
  """

  exclude_modules: str | tuple[str, ...] = ""
  layers_to_transform: tuple[int, ...] = ()
  layers_pattern: str | tuple[str, ...] = ""


@dataclasses.dataclass(frozen=True)
class Folder:
  """An adapter that was read from a PEFT folder.

  Attributes:
    path: for messages. said: adapter_config.json. head: name of what "all-linear" leaves out.
    arrays: float32 tensors by transformers' names, in the file's layout; those of this method alone.
  """

  path: str
  said: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]
  head: str


@dataclasses.dataclass(frozen=True)
class Export:
  """What a method puts into a PEFT folder.

  Attributes:
    config: its part of adapter_config.json. arrays: float32 tensors, as in `Folder`.
  """

  config: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Given:
  """What a fresh adapter may begin from, beside the model's weights and its settings.

  Attributes:
    words: token ids of a text, without any that the tokenizer adds by itself.
    batches: the first so many batches of the run's training data, on the model's mesh, in one process.
  """

  words: Callable[[str], Sequence[int]] | None = None
  batches: Callable[[int], Iterable[Batch]] | None = None


NOTHING = Given()


class Method:
  """One way to train few parameters beside, or in, a frozen model.

  Attributes:
    name: its key in `METHODS` and in `--config.peft.method`.
    peft_type: what adapter_config.json calls it; None where PEFT knows no such folder.
    reads: all types of folders that it restores; None for `peft_type` alone.
    Options: frozen dataclass of its own settings; their names stand beside those of `PeftConfig`.
    target: the default of `PeftConfig.target`.
    fields: what it reads of adapter_config.json.
    kinds: what stands between a layer's name and an adapter's in names of tensors, such as `lora_A`.
    ties: whether such a folder can hold a tied embedding that is trained in full.
    repeats: endings of tensors that such a folder holds for the embedding and again for a head tied to it.
    mergeable: whether plain layers can compute what the adapted ones do.
    prefix: what stands before transformers' names in its folders; `bare`: names of tensors without it.
    packing: whether it can be trained on rows that hold several conversations.
  """

  name: ClassVar[str]
  peft_type: ClassVar[str | None] = None
  reads: ClassVar[Names | None] = None
  Options: ClassVar[type] = NoOptions
  target: ClassVar[str] = ""
  fields: ClassVar[foreign.Fields] = foreign.Fields()
  kinds: ClassVar[Names] = ()
  ties: ClassVar[bool] = False
  repeats: ClassVar[Names] = ()
  mergeable: ClassVar[bool] = True
  prefix: ClassVar[str] = "base_model.model."
  bare: ClassVar[Names] = ()
  packing: ClassVar[bool] = True

  def check(self, options: Any) -> None:
    """Raises a UserError that names the setting where a value makes no sense, before a model is there."""

  def check_layers(self, vlm: nnx.Module, config: PeftConfig, options: Any) -> None:
    """Raises a UserError for a pattern that names nothing in `vlm`, which may be abstract."""

  def positions(self, options: Any, said: Mapping[str, Any] | None = None) -> int:
    """Places of the model's context that it takes, of a run's settings or of an adapter_config.json."""
    return 0

  def of_batches(self, options: Any) -> bool:
    """Whether `apply` makes its start of the run's data, so that the run must keep it, to go on."""
    return False

  def apply(self, vlm: nnx.Module, config: PeftConfig, options: Any, given: Given) -> None:
    """Surgery in place: adds `Trained` variables; those of layers leave what `vlm` computes as it was.

    Raises:
      UserError: a pattern that names nothing, or nothing to begin from.
    """

  def refused(self, said: Mapping[str, Any]) -> list[str]:
    """`field=value` for what an adapter_config.json asks in `fields` and this method cannot do."""
    return []

  def wanted(self, vlm: nnx.Module, said: Mapping[str, Any], head: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape in the file of every tensor that a folder with this config must hold."""
    raise NotImplementedError

  def restore(self, vlm: nnx.Module, folder: Folder, options: Any = None) -> None:
    """Surgery in place with the layers and values of a folder whose tensors are those that are `wanted`.

    Args:
      options: of the run that trains it further; None for the folder's own.
    """
    raise NotImplementedError

  def export(self, vlm: nnx.Module) -> Export:
    """What this method has trained in `vlm`."""
    raise NotImplementedError

  def claims(self, vlm: nnx.Module) -> set[select.Path]:
    """Paths of the trained variables that `export` writes; empty where `vlm` carries nothing of it."""
    return set()

  def merged(self, vlm: nnx.Module) -> dict[select.Path, Any]:
    """Path -> plain module in place of each that this method adapted; called where it is `mergeable`.

    Parameters of kind `FullParam` need not be named; they become plain ones by themselves.
    """
    return {}

  def why_unmapped(self, vlm: nnx.Module, name: str, parameters: Mapping[str, Any]) -> str:
    """Why a tensor of a folder has no place in the model."""
    return (
      "modules_to_save does not name its module" if name in parameters else "the model has no such parameter"
    )

  def reseed(self, model: nnx.Module, key: jax.Array) -> None:
    """Lays keys for one training step into the model, where the method draws anything in training."""


@dataclasses.dataclass(frozen=True)
class Site:
  """A layer that may be adapted: its name in transformers, path in the model, the module itself."""

  name: str
  path: select.Path
  module: nnx.Module
  family: str

  @property
  def number(self) -> int:
    """Belongs to the name, so that what is drawn for a layer depends on no other layer."""
    return layer_id(self.name)


class LayerMethod(Method):
  """A method that changes single layers, each by itself: a subclass says how one of them is changed.

  `spec` stands for whatever the subclass needs to know of one layer (a frozen dataclass).

  Attributes:
    endings: what follows a layer's name in the names of its tensors.
    layers: what its layers are, for messages: several, and one.
  """

  Options: ClassVar[type] = LayerOptions
  endings: ClassVar[Names] = ()
  layers: ClassVar[tuple[str, str]] = ("linear", "linear layer")

  def __init_subclass__(cls) -> None:
    cls.kinds = tuple(dict.fromkeys(ending.split(".")[1] for ending in cls.endings))

  def sites(self, vlm: nnx.Module) -> dict[str, Site]:
    """Name -> layer, adapted ones included: all linear layers, unless a subclass says otherwise."""
    return sites_at(vlm, select.linear_paths(vlm))

  def spec_of(self, site: Site) -> Any | None:
    """How a layer is adapted; None where it is not, or by another method."""
    raise NotImplementedError

  def specs(self, config: PeftConfig, options: Any, names: list[str]) -> dict[str, Any]:
    """Name -> spec for the layers that the run's settings adapt."""
    raise NotImplementedError

  def said_specs(self, said: Mapping[str, Any], names: list[str], options: Any) -> dict[str, Any]:
    """Name -> spec for the layers that an adapter_config.json adapts."""
    raise NotImplementedError

  def said_config(self, specs: Mapping[str, Any]) -> dict[str, Any]:
    """The method's part of adapter_config.json."""
    raise NotImplementedError

  def fresh(self, site: Site, spec: Any, seed: int) -> nnx.Module:
    """The adapted layer before training, computing what it did."""
    raise NotImplementedError

  def shapes(self, site: Site, spec: Any) -> dict[str, tuple[int, ...]]:
    """Ending of a tensor's name -> its shape in the file."""
    raise NotImplementedError

  def restored(self, site: Site, spec: Any, arrays: Mapping[str, np.ndarray]) -> nnx.Module:
    """The adapted layer with a file's values, by the endings of their names."""
    raise NotImplementedError

  def tensors(self, site: Site) -> dict[str, np.ndarray]:
    """The inverse of `restored`."""
    raise NotImplementedError

  def plain(self, site: Site) -> nnx.Module:
    """An ordinary layer that computes what the adapted one does."""
    raise NotImplementedError

  # What follows is the same for all of them.

  def plan(self, vlm: nnx.Module, config: PeftConfig, options: Any) -> dict[str, Any]:
    """Name -> spec of every layer that a run adapts.

    Raises:
      UserError: the pattern matches nothing, or a layer of which something is trained in full. PEFT would
        leave the adapter out; but where two settings claim a weight, one of them is a mistake.
    """
    sites = self.sites(vlm)
    found = self.chosen(vlm, target_of(self, config), sites, options)
    twice = [name for name in found if _in_full(sites[name].module)]
    if twice:
      more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
      raise UserError(
        f"peft: {twice[0]}{more} is named by peft.full and by peft.target; a weight is trained in one way:"
        " narrow one of the two patterns"
      )
    return self.specs(config, options, found)

  def check_layers(self, vlm: nnx.Module, config: PeftConfig, options: Any) -> None:
    self.plan(vlm, config, options)

  def apply(self, vlm: nnx.Module, config: PeftConfig, options: Any, given: Given) -> None:
    sites = self.sites(vlm)
    for name, spec in self.plan(vlm, config, options).items():
      select.put(vlm, sites[name].path, self.fresh(sites[name], spec, config.seed))

  def chosen(
    self, vlm: nnx.Module, target: str | tuple[str, ...], sites: Mapping[str, Site], options: LayerOptions
  ) -> list[str]:
    """Names of the layers that `target` names and the options do not leave out.

    Raises:
      UserError: one of them names nothing, or nothing is left.
    """
    older = select.older(vlm)
    if isinstance(target, str) and target.lower() == "all-linear":
      found = [name for name, site in sites.items() if foreign.is_linear(site.module, name, full.head(vlm))]
      if not found:
        raise UserError(f"peft.target: 'all-linear' names linear layers, and {self.name!r} adapts none")
    else:
      found = select.match(target, sites, "peft.target", older)
    if options.exclude_modules:
      out = set(select.match(options.exclude_modules, sites, "peft.exclude_modules", older))
      found = [name for name in found if name not in out]
    blocks = options.layers_to_transform
    if options.layers_pattern and not blocks:
      raise UserError("peft.layers_pattern: says what peft.layers_to_transform counts, which is empty")
    numbers = {name: foreign.block_number(options.layers_pattern, name) for name in found if blocks}
    for number in blocks:
      if number not in numbers.values():
        there = sorted({n for n in numbers.values() if n is not None})
        raise UserError(
          f"peft.layers_to_transform: no layer of peft.target is of block {number}; blocks: {there}"
        )
    found = [name for name in found if not blocks or numbers[name] in blocks]
    if not found:
      raise UserError("peft.exclude_modules: leaves out every layer that peft.target names")
    return found

  def specs_of_folder(
    self,
    said: Mapping[str, Any],
    sites: Mapping[str, Site],
    head: str,
    options: Any = None,
    older: Callable[[str], Iterable[str]] = lambda name: (),
  ) -> dict[str, Any]:
    """Name -> spec for those of the layers `sites` that an adapter_config.json adapts.

    `older` gives other spellings of a name.
    """
    names = [
      name
      for name, site in sites.items()
      if foreign.targets(said, name, foreign.is_linear(site.module, name, head), older(name))
    ]
    return self.said_specs(said, names, options)

  def wanted(self, vlm: nnx.Module, said: Mapping[str, Any], head: str) -> dict[str, tuple[int, ...]]:
    sites = self.sites(vlm)
    specs = self.specs_of_folder(said, sites, head, None, select.older(vlm))
    return {n + end: s for n, spec in specs.items() for end, s in self.shapes(sites[n], spec).items()}

  def restore(self, vlm: nnx.Module, folder: Folder, options: Any = None) -> None:
    sites = self.sites(vlm)
    older = select.older(vlm)
    for name, spec in self.specs_of_folder(folder.said, sites, folder.head, options, older).items():
      arrays = {end: folder.arrays[name + end] for end in self.shapes(sites[name], spec)}
      select.put(vlm, sites[name].path, self.restored(sites[name], spec, arrays))

  def export(self, vlm: nnx.Module) -> Export:
    found = self.adapted_sites(vlm)
    arrays = {
      name + end: value for name, (site, _) in found.items() for end, value in self.tensors(site).items()
    }
    return Export(self.said_config({name: spec for name, (_, spec) in found.items()}), arrays)

  def claims(self, vlm: nnx.Module) -> set[select.Path]:
    return {
      (*site.path, *path)
      for site, _ in self.adapted_sites(vlm).values()
      for path, variable in nnx.iter_graph(site.module)
      if self.owns(variable)
    }

  def owns(self, variable: Any) -> bool:
    """Whether a variable of an adapted layer is this method's."""
    return isinstance(variable, AdapterParam)

  def merged(self, vlm: nnx.Module) -> dict[select.Path, nnx.Module]:
    return {site.path: self.plain(site) for site, _ in self.adapted_sites(vlm).values()}

  def why_unmapped(self, vlm: nnx.Module, name: str, parameters: Mapping[str, Any]) -> str:
    end = next((end for end in self.endings if name.endswith(end)), None)
    if end is None:
      return super().why_unmapped(vlm, name, parameters)
    layer = name.removesuffix(end)
    if layer in self.sites(vlm):
      return "target_modules does not name this layer"
    if ".lora_embedding_" in end:
      return "adapters on embeddings other than the decoder's, as embeddings of positions, are not supported"
    if f"{layer}.weight" in parameters:
      return f"adapters on layers that are not {self.layers[0]} are not supported"
    return f"the model has no such {self.layers[1]}"

  def adapted_sites(self, vlm: nnx.Module) -> dict[str, tuple[Site, Any]]:
    """Name -> (layer, spec) of what the model carries of this method."""
    found = ((name, site, self.spec_of(site)) for name, site in self.sites(vlm).items())
    return {name: (site, spec) for name, site, spec in found if spec is not None}


def target_of(method: Method, config: PeftConfig) -> str | tuple[str, ...]:
  """Which layers, as `select.match` reads it: what the settings say, else the method's own default."""
  return method.target if config.target is None else config.target


def sites_at(vlm: nnx.Module, paths: Mapping[str, select.Path]) -> dict[str, Site]:
  """The layers at some paths, by transformers' names of them."""
  return {n: Site(n, path, select.get(vlm, path), vlm.config.family) for n, path in paths.items()}


def _in_full(module: nnx.Module) -> bool:
  return any(isinstance(v, FullParam) for v in vars(module).values())
