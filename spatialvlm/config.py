"""The typed configuration of a run, and the only way into it from an `ml_collections.ConfigDict`."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from spatialvlm.types import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Which model, and in which numbers it computes.

  Attributes:
    path: local folder or hub id, in Hugging Face's format.
    revision: hub revision, None for the default branch.
    dtype: "float32" or "bfloat16", of base weights and activations.
    from_scratch: ignore the folder's weights (it need not have any) and draw them from `seed`.
    seed: of drawn weights.
    attention: "xla" or "cudnn".
    max_tiles: tile budget of an image, the global view counted; None for the checkpoint's own.
    longest_edge: images are resized to this longest edge before they are split; None for the checkpoint's.
    split_images: None for the checkpoint's own choice.
    enlarge: false: a small image is not enlarged to more tiles than it fills by itself. The published models
      were trained with true.
  """

  path: str = "checkpoints/smolvlm-tiny"
  revision: str | None = None
  dtype: str = "float32"
  from_scratch: bool = False
  seed: int = 0
  attention: str = "xla"
  max_tiles: int | None = None
  longest_edge: int | None = None
  split_images: bool | None = None
  enlarge: bool = True

  @property
  def tiling(self) -> dict[str, Any]:
    """How images are cut, as keyword arguments of `data.processor.load_processor`."""
    names = ("max_tiles", "longest_edge", "split_images", "enlarge")
    return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class PeftConfig:
  """What is trained. Patterns are regexes over Hugging Face module names, matched in full.

  Attributes:
    method: "lora", or "none" (only what `full` names is trained).
    target: linear layers that receive an adapter.
    rank_pattern, alpha_pattern: regex -> value, overriding `rank` and `alpha`.
    dropout: of the adapters' input, in training.
    rslora: scale by alpha / sqrt(rank) instead of alpha / rank.
    dora: train each output's magnitude beside its direction.
    full: parameters trained in full, beside adapters (PEFT's modules_to_save): regex over names of
      parameters, or of modules at any height.
    resume_from: PEFT folder whose adapter is the start, None for a fresh one. Its layers, ranks and scales
      then hold, and of these settings `full`, `dropout` and `seed`.
    seed: of the factors' first values.
  """

  method: str = "lora"
  target: str = r".*text_model.*\.(q|k|v|o)_proj"
  rank: int = 8
  alpha: float = 16.0
  dropout: float = 0.0
  rslora: bool = False
  dora: bool = False
  rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
  full: str = ""
  resume_from: str | None = None
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One data source of a mixture.

  Attributes:
    kind: "scenes", "skills", "cvbench", "llava" or "hf".
    path: folder, file or hub id, where the kind reads one.
    split: split name of a hub data set.
    weight: relative share of the mixture.
    columns: names in the data set by our names (image, images, question, choices, answer, messages).
    tasks: kinds of question, or skills, that are drawn, with weights; empty for all alike.
    seed: of rendered worlds. Held-out worlds have another seed than trained ones.
    size: number of examples; 0 for all that there are.
    image_size: pixels of rendered images.
    turns: questions asked about one image in one conversation.
    image_root: folder of images named by a jsonl file.
  """

  kind: str = "scenes"
  path: str = ""
  split: str = "train"
  revision: str | None = None
  weight: float = 1.0
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seed: int = 0
  size: int = 0
  image_size: int = 96
  turns: int = 1
  image_root: str = ""


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The training stream.

  Attributes:
    sources: by name, mixed by weight.
    validation: by name; a fixed held-out stream for the validation loss.
    lengths: sequence buckets, ascending; a longer example is refused.
    tiles: buckets of tiles per sample, ascending.
    targets: supervised positions kept per sample: the bucket grows by powers of two from this.
    shuffle: whether sources with an end are shuffled (each epoch anew).
    workers: threads that read and preprocess.
  """

  sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
  validation: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
  validation_size: int = 256
  lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
  tiles: tuple[int, ...] = (1, 5, 13, 17)
  targets: int = 8
  shuffle: bool = True
  seed: int = 0
  workers: int = 2
  prefetch: int = 4


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Optimizer and schedule.

  Attributes:
    name: a key of `training.optim.OPTIMIZERS`: adamw, adafactor, lion, muon, schedule_free_adamw, sgd...
    schedule: "cosine", "wsd" (warm-up, stable, linear decay) or "constant".
    schedule_steps: length of the schedule, 0 for `train.steps`. A longer one ends the run before the rate has
      come down, for a later run to go on from.
    decay_fraction: share of the steps in which WSD decays.
    weight_decay_mask: regex over parameter names that decay; "matrices" for all of two or more axes.
    ema: decay of an exponential moving average of the trainables, 0 for none. Where it is kept, it is what
      is validated, evaluated and exported.
    kwargs: further arguments of the optax optimizer.
  """

  name: str = "adamw"
  learning_rate: float = 1e-4
  schedule: str = "cosine"
  schedule_steps: int = 0
  warmup_steps: int = 20
  decay_fraction: float = 0.2
  final_fraction: float = 0.0
  weight_decay: float = 0.0
  weight_decay_mask: str = "matrices"
  clip_norm: float = 1.0
  ema: float = 0.0
  kwargs: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """One weighted term of the objective: `kind` is a key of `training.losses.LOSSES`.

  Attributes:
    target: which map of `Batch.dense` a dense loss predicts.
  """

  kind: str = "answer"
  target: str = ""
  weight: float = 1.0
  kwargs: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop.

  Attributes:
    batch_size: examples of one optimizer step, over all devices and microbatches.
    accumulation: microbatches that one step is divided into.
    log_every, validate_every, evaluate_every, checkpoint_every: in steps, 0 for never. Where there is
      validation, the last step is validated too; the last step, and one that a signal stops, is always saved.
    keep: last checkpoints that stay, beside the best by validation loss.
    patience: validations without a better loss before training stops early, 0 for never.
    remat: recompute activations of decoder layers in the backward pass.
  """

  steps: int = 100
  batch_size: int = 8
  accumulation: int = 1
  log_every: int = 10
  validate_every: int = 0
  evaluate_every: int = 0
  checkpoint_every: int = 100
  keep: int = 2
  patience: int = 0
  remat: bool = False
  export: bool = True


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the device mesh's axes; -1 in one of them takes the devices that remain."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
  """How multiple-choice questions are scored.

  Attributes:
    batch_size: prompts of one batch.
    limit: only the first so many questions, 0 for all.
    protocols: keys of `evaluation.protocols.PROTOCOLS`; the first is the headline.
    controls: keys of `evaluation.controls.CONTROLS`, under which the headline is asked again.
    new_tokens: cuts generated answers shorter than the protocols' own limits do; 0 for theirs alone.
    lengths: buckets of the text behind an image, in tokens, ascending; a longer text is refused.
    tiles: buckets of tiles per question, ascending.
    pool_tiles: encoded tiles kept on the device for further prompts with the same images; the least
      recently used go first.
    pool_prefixes: keys and values of images' prefixes kept on the device for further prompts, of each length
      apart; 0 for two batches.
    bootstrap: resamples of the intervals.
    text_forest: trees of the prior that is fitted on the texts (`evaluation.forest`), 0 for none.
    seed: of the resamples, folds and trees.
  """

  batch_size: int = 32
  limit: int = 0
  protocols: tuple[str, ...] = ("native",)
  controls: tuple[str, ...] = ()
  new_tokens: int = 0
  lengths: tuple[int, ...] = (32, 64, 96, 128, 192, 256, 512, 1024, 2048)
  tiles: tuple[int, ...] = (1, 5, 13, 17)
  pool_tiles: int = 1024
  pool_prefixes: int = 0
  bootstrap: int = 2000
  text_forest: int = 0
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class EvalConfig(ScoreConfig):
  """The evaluation that belongs to a training run.

  Attributes:
    source: where the questions come from: kind "cvbench" (parquet of its schema, or the hub) or "scenes".
    before: whether training scores the untrained model as well.
  """

  source: SourceConfig = SourceConfig(kind="scenes", split="test", seed=1_000_000, size=1000)
  before: bool = True


@dataclasses.dataclass(frozen=True)
class LogConfig:
  tensorboard: bool = True
  wandb: bool = False
  wandb_project: str = "spatialvlm"


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """Everything that defines a run. Two runs of equal configs on equal machines give equal results.

  `eval` None means that no questions are scored.
  """

  name: str = "run"
  seed: int = 0
  model: ModelConfig = ModelConfig()
  peft: PeftConfig = PeftConfig()
  data: DataConfig = DataConfig()
  optim: OptimConfig = OptimConfig()
  losses: Mapping[str, LossConfig] = dataclasses.field(default_factory=lambda: {"answer": LossConfig()})
  train: TrainConfig = TrainConfig()
  mesh: MeshConfig = MeshConfig()
  eval: EvalConfig | None = None
  log: LogConfig = LogConfig()


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """An evaluation on its own (`launch/evaluate.py`).

  Attributes:
    adapter: PEFT folder that is laid over the model, None for the model alone.
    data: where the questions come from, kind "cvbench" or "scenes".
    published: numbers in percent that others gave, by their names, set beside each protocol's.
  """

  name: str = "evaluate"
  model: ModelConfig = ModelConfig()
  adapter: str | None = None
  data: SourceConfig = SourceConfig(kind="cvbench", split="test")
  score: ScoreConfig = ScoreConfig()
  published: Mapping[str, float] = dataclasses.field(default_factory=dict)
  mesh: MeshConfig = MeshConfig()


T = typing.TypeVar("T")


def from_config_dict(config: Mapping[str, Any], cls: type[T] = RunConfig) -> T:
  """Reads a ConfigDict (or any nested mapping) into a RunConfig, or into another config class.

  Raises:
    UserError: an unknown key (with the nearest known one) or a value of the wrong type, by its full name.
  """
  if hasattr(config, "to_dict"):
    config = config.to_dict()
  return _build(cls, config, "config")


def override(values: dict[str, Any], key: str, text: str, cls: type = RunConfig) -> None:
  """Sets one dotted key of a nested dict of settings from the text of a command line, in place.

  A string stands as it is; other values are written as in Python (`true` and `false` are taken too). A group
  that a recipe leaves out begins with its defaults.

  Raises:
    UserError: an unknown key (with the nearest known one), or text of the wrong type.
  """
  hint, where, parts = cls, "config", key.split(".")
  for i, part in enumerate(parts):
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
      hints = typing.get_type_hints(hint)
      if part not in hints:
        raise UserError(f"{where}.{part}: unknown key; {nearest(part, hints)}")
      full = hints[part]
    elif origin is not None and issubclass(origin, Mapping):
      full = typing.get_args(hint)[1]
    else:
      raise UserError(f"{where}.{part}: unknown key; {where} is a single value")
    hint, where = _without_none(full), f"{where}.{part}"
    if i + 1 < len(parts):
      if values.get(part) is None:
        values[part] = {}
      values = values[part]
  values[parts[-1]] = _literal(hint, text, optional=hint is not full)


def _without_none(hint: Any) -> Any:
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
  return hint


def _literal(hint: Any, text: str, optional: bool) -> Any:
  """Text as a value; what is no literal stays text, and is refused later if it should be something else."""
  if text in ("None", "none") and (optional or hint is not str):
    return None
  if hint is str:
    return text
  if text in ("true", "false"):
    return text == "true"
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def to_dict(config: Any) -> Any:
  """The plain nested dict of a config, ready for JSON: the inverse of `from_config_dict`."""
  if dataclasses.is_dataclass(config):
    return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
  if isinstance(config, Mapping):
    return {k: to_dict(v) for k, v in config.items()}
  if isinstance(config, tuple):
    return [to_dict(v) for v in config]
  return config


def fingerprint(config: Any) -> str:
  """Eight hex digits that name a config: equal configs, equal fingerprint, on any machine."""
  text = json.dumps(to_dict(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def nearest(word: str, known: typing.Iterable[str]) -> str:
  """` (did you mean 'x'?)`, or the list of what is known where nothing is near."""
  known = sorted(known)
  near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _build(cls: type, values: Any, where: str) -> Any:
  if not isinstance(values, Mapping):
    raise UserError(f"{where}: expected a group of settings, got {values!r}")
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      raise UserError(f"{where}.{key}: unknown key; {nearest(str(key), hints)}")
  return cls(**{k: _value(hints[k], v, f"{where}.{k}") for k, v in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
  """Converts `value` to what `hint` says, or raises a UserError that names the place."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, where)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    (hint,) = [a for a in args if a is not type(None)]
    return _value(hint, value, where)
  if origin is Literal:
    if value in args:
      return value
    raise UserError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
  if origin is tuple and isinstance(value, (tuple, list)):
    return tuple(_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
  if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
    return {str(k): _value(args[1], v, f"{where}.{k}") for k, v in value.items()}
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(hint, type) and type(value) is hint:
    return value
  wanted = getattr(origin or hint, "__name__", str(hint))
  raise UserError(f"{where}: expected {wanted}, got {value!r}")
