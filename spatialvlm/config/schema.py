"""The typed configuration of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from spatialvlm.config.augment import AugmentConfig
from spatialvlm.config.mesh import MeshConfig
from spatialvlm.config.noise import NoiseConfig
from spatialvlm.config.priors import PriorConfig
from spatialvlm.config.sources import CVBenchConfig, ScenesConfig, SourceConfig
from spatialvlm.config.teachers import TeacherConfig

# Metadata of a field that takes all keys of its group that name no other field: the settings of whatever
# another field chooses, which the chosen reads and refuses by itself.
REST = "rest"
# Metadata of a field that chooses: the fields that, with the rest, belong to what is chosen.
SELECTS = "selects"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Which model, and in which numbers it computes.

  Attributes:
    path: local folder or hub id, in Hugging Face's format, or a model that comes with the project, by name;
      or a language model's GGUF file, or a folder that holds one (docs/gguf.md).
      With `encoders` also a language model by itself, which they are put before.
      Of an evaluation also a PEFT adapter's, which names its base, or a training run's workdir, or one of its
      `checkpoints/STEP`.
    revision: hub revision, None for the default branch.
    dtype: "float32" or "bfloat16", of base weights and activations.
    from_scratch: ignore the folder's weights (it need not have any) and draw them from `seed`.
    seed: of drawn weights: all with `from_scratch`, a fresh connector with `encoders`.
    attention: how the product is computed: "xla"; "blocked", in parts that fit a cache, which "xla" takes by
      itself where one CPU computes alone; "whole", never so; "cudnn", NVIDIA's kernels, in bfloat16;
      "splash", jax's kernel for TPUs, which writes no scores out.
    scan_layers: neighbouring blocks run as a loop, so that the compiler sees one of them, for a copy of the
      weights in the program's memory (docs/scale.md); numbers agree to rounding.
    max_tiles: tile budget of an image, the global view counted; None for the checkpoint's own.
    longest_edge: images are resized to this longest edge before they are split; None for the checkpoint's.
      SmolVLM's tiles alone have one.
    split_images: false: one tile an image; None for the checkpoint's own choice. PaliGemma never splits.
    enlarge: false: a small image is not enlarged to more tiles than it fills by itself. The published models
      were trained with true. SmolVLM alone enlarges.
    pixels: "exact", those of transformers bit for bit; "fast": a picture is enlarged, and its global view
      made, in one resize each, not the one out of the other. SmolVLM alone; docs/evaluation.md has what
      that changes and saves.
    layout: whose way of cutting pictures and laying out prompts: "own", the checkpoint's; "mtmd", that of
      llama.cpp, which a model written as GGUF will be shown (docs/edge.md).
    encoders: folders or hub ids of vision encoders that take the place of the model's own, joined by channels
      in this order behind a fresh connector; "own" is the model's own. Empty: the model as it is.
    encoder_size: with `encoders`: side of a tile in pixels; 0 for the one nearest to the model's (of a
      language model by itself: to the first encoder's) that the first encoder's patches and the connector's
      shuffle divide.
    connector: with `encoders`: the fresh connector, "linear" or "mlp" (two layers with a GELU between them),
      both behind a layer norm, or "smolvlm": SmolVLM's single layer without norm or bias. With that one a
      SigLIP before a Llama, SmolLM2, Qwen2 or Gemma is a SmolVLM, which transformers reads.
    connector_factor: with `encoders`: each square of so many by so many patches becomes one image token; 0
      for the model's own, of a language model by itself for about 8 x 8 tokens a tile.
    connector_from: with `encoders`: a safetensors file, or a model of the same parts, whose connector is
      taken in place of a fresh one.
    text_only: `path` must be a language model by itself; one that sees already is refused.
    quantize: keep frozen weights in few bits, for adapters to be trained over them (docs/quantised.md):
      "nf4", "int8", "q4_0" or "q8_0" (ggml's blocks, as a GGUF file holds them), or None for weights in
      full. Of a training run that is evaluated it is the run's.
    quantize_block: of nf4, how many weights share a scale; None for 64.
    quantize_double: of nf4, whether the scales are quantised too (double quantisation); None for false.
    quantize_target: which linear layers, as `peft.target`: a regex, or a list of the ends of names; None for
      those of the decoder's blocks. Never embeddings, norms or biases.
  """

  path: str = "checkpoints/smolvlm-tiny"
  revision: str | None = None
  dtype: str = "float32"
  from_scratch: bool = False
  seed: int = 0
  attention: str = "xla"
  scan_layers: bool = False
  max_tiles: int | None = None
  longest_edge: int | None = None
  split_images: bool | None = None
  enlarge: bool = True
  pixels: Literal["exact", "fast"] = "exact"
  layout: str = "own"
  encoders: tuple[str, ...] = ()
  encoder_size: int = 0
  connector: Literal["linear", "mlp", "smolvlm"] = "mlp"
  connector_factor: int = 0
  connector_from: str | None = None
  text_only: bool = False
  quantize: str | None = None
  quantize_block: int | None = None
  quantize_double: bool | None = None
  quantize_target: str | tuple[str, ...] | None = None

  @property
  def tiling(self) -> dict[str, Any]:
    """How images are cut, as keyword arguments of `processing.processor.load_processor`."""
    names = ("max_tiles", "longest_edge", "split_images", "enlarge", "pixels", "layout")
    return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class PeftConfig:
  """What is trained: regexes over Hugging Face module names, matched in full, or lists of the ends of names.

  Attributes:
    method: a key of `peft.METHODS`, "lora" and others; "none": only what `full` names is
      trained. Another one than a recipe's, from the command line, begins with its own target and options.
    target: layers that are adapted: a regex, or a list (`["q_proj", "v_proj"]`) as in PEFT; None for the
      method's own default.
    full: parameters trained in full, beside adapters (PEFT's modules_to_save): regex over names of
      parameters, or of modules at any height, or a list of their ends.
    resume_from: PEFT folder, of the same method, whose adapter is the start; None for a fresh one. Its layers
      and their shapes then hold, and of these settings `full`, `seed` and dropout.
    seed: of first values.
    options: the method's own settings by name, which `METHODS[method].Options` lists: LoRA's rank, alpha,
      dropout... In a recipe's mapping, on the command line and in config.json they stand beside the others
      (`--config.peft.rank=8`).
  """

  method: str = dataclasses.field(default="lora", metadata={SELECTS: ("target",)})
  target: str | tuple[str, ...] | None = None
  full: str | tuple[str, ...] = ""
  resume_from: str | None = None
  seed: int = 0
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict, metadata={REST: True})


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The training stream.

  Attributes:
    sources: by name, mixed by weight.
    validation: by name; a fixed held-out stream for the validation loss.
    validation_size: examples of that stream; fewer where one would come twice.
    lengths: sequence buckets, ascending; a longer example is refused.
    tiles: buckets of tiles per sample, ascending.
    targets: supervised positions kept per sample: the bucket grows by powers of two from this.
    packing: several conversations a row, each read as if it stood alone: the examples of a batch, and so its
      losses and gradients, stay the same, in fewer rows of these `lengths`.
    shuffle: whether sources with an end are shuffled (each epoch anew).
    seed: added to the run's: of the shuffles and of which source gives the next example.
    workers: threads that read and preprocess; 0 for none beside the training's own.
    processes: processes that read and preprocess the training stream in place of those threads; 0 for none.
    prefetch: batches that are prepared ahead.
    bad_rows: "refuse" ends a run at the first row that cannot be used; "skip" puts the next good row of its
      source in its place, and names the rows that were left out.
    leave_out: a file that `launch/leaks.py --output` wrote of these sources: rows in which it found a
      benchmark's pictures are not trained on. Empty for none.
    augment: how pictures of the training stream are changed; None for not at all. Held-out ones never are.
    noise: which of its answers are made wrong, to learn what good ones are worth; None for none.
  """

  sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
  validation: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
  validation_size: int = 256
  lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
  tiles: tuple[int, ...] = (1, 5, 13, 17)
  targets: int = 8
  packing: bool = False
  shuffle: bool = True
  seed: int = 0
  workers: int = 2
  processes: int = 0
  prefetch: int = 4
  bad_rows: Literal["refuse", "skip"] = "refuse"
  leave_out: str = ""
  augment: AugmentConfig | None = None
  noise: NoiseConfig | None = None


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Optimizer and schedule.

  Attributes:
    name: a key of `training.optim.OPTIMIZERS`: adamw, adafactor, lion, muon, schedule_free_adamw, sgd...
    learning_rate: the highest, which warm-up ends at.
    schedule: "cosine", "wsd" (warm-up, stable, linear decay) or "constant".
    schedule_steps: length of the schedule, 0 for `train.steps`. A longer one ends the run before the rate has
      come down, for a later run to go on from.
    warmup_steps: the rate rises linearly to `learning_rate` in so many steps, from a first one above zero.
    decay_fraction: share of the steps in which WSD decays.
    final_fraction: what cosine and WSD end at, as a share of `learning_rate`.
    weight_decay: per step and unit of rate; decoupled from the gradient where the optimizer has a decay of
      its own, else added to the gradient (L2).
    weight_decay_mask: regex over parameter names that decay; "matrices" for all of two or more axes.
    groups: rates of their own: regex over names of trained parameters, matched in full -> factor of
      `learning_rate` and of the decay that goes with it; the first that matches counts, others keep 1.
    clip_norm: gradients of a larger norm, the model's all taken together, are scaled down to it; 0 for never.
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
  groups: Mapping[str, float] = dataclasses.field(default_factory=dict)
  clip_norm: float = 1.0
  ema: float = 0.0
  kwargs: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """One weighted term of what is minimised: an objective (`docs/objectives.md`).

  Attributes:
    kind: a key of `training.objectives.OBJECTIVES`: "answer", "distil",
      "distil_hidden", "distil_relations", "words", "depth_probe", "grpo".
    target: the setting `target` of kinds that have one: which array of the data is predicted.
    weight: of the term in the sum; a term of weight 0 is left out.
    kwargs: further settings of the kind, e.g. those of `training.objectives.words.WordsSettings`.
  """

  kind: str = "answer"
  target: str = ""
  weight: float = 1.0
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PhaseConfig:
  """What is done to a batch between the stream and the step (`docs/objectives.md`).

  Attributes:
    kind: a key of `training.phases.PHASES`: "hard_examples", "rollouts".
    kwargs: settings of the kind, e.g. those of `training.phases.hard_examples.HardExamplesSettings`.
  """

  kind: str = ""
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop.

  Attributes:
    steps: optimizer steps of the run.
    batch_size: examples of one optimizer step, over all devices and microbatches.
    accumulation: microbatches that one step is divided into.
    log_every, validate_every, evaluate_every, checkpoint_every: in steps, 0 for never. Where there is
      validation, or evaluation on `eval.during` questions, the last step has it too; the last step, and one
      that a signal stops, is always saved.
    best: what tells the best step, whose parameters are then kept, scored and exported: "validation" (the
      lowest loss), or a score of the evaluation (the highest): "plain", "official", "macro", "task/Depth"...
      None: those of the last step are, and the validation loss says which checkpoint is kept beside it.
    keep: last checkpoints that stay, beside the best.
    patience: measurements without a better one before training stops early, with the best step's parameters,
      0 for never. They are validations, where `best` names no score.
    remat: recompute activations of decoder layers in the backward pass: less memory, more time.
    cache_vision: whether what a frozen vision tower makes of a picture is kept for when it comes again:
      "auto", where nothing trained stands before the connector and no loss reads the tower's layers; "on",
      the same, and refused where that is not so; "off" keeps nothing. It changes no bit of a run.
    cache_vision_mib: memory for that, in MiB of each process; what finds no room is made again.
    cache_vision_folder: folder in which it is kept for further runs too, with the same vision weights and
      numbers; None for none. For pictures of files: rendered ones are made anew sooner.
    export: write the PEFT adapter and the merged model into the workdir at the end.
  """

  steps: int = 100
  batch_size: int = 8
  accumulation: int = 1
  log_every: int = 10
  validate_every: int = 0
  evaluate_every: int = 0
  checkpoint_every: int = 100
  best: str | None = None
  keep: int = 2
  patience: int = 0
  remat: bool = False
  cache_vision: Literal["auto", "on", "off"] = "auto"
  cache_vision_mib: int = 2048
  cache_vision_folder: str | None = None
  export: bool = True


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
  """How multiple-choice questions are scored.

  Attributes:
    batch_size: prompts of one batch.
    limit: only the first so many questions, 0 for all.
    protocols: keys of `evaluation.asking.protocols.PROTOCOLS`; the first is the headline.
    controls: keys of `evaluation.asking.controls.CONTROLS`, under which the headline is asked again.
    new_tokens: cuts generated answers shorter than the protocols' own limits do; 0 for theirs alone.
    missing_priors: of pictures that lack what a prior of the model needs: "refuse" or "without", as
      `PriorConfig.missing`; "" for what the model was trained with.
    lengths: buckets of the text behind an image, in tokens, ascending; a longer text is refused.
    tiles: buckets of tiles per question, ascending.
    pool_tiles: encoded tiles kept on the device for further prompts with the same images; the least
      recently used go first.
    pool_prefixes: keys and values of images' prefixes kept on the device for further prompts, of each length
      apart; 0 for two batches.
    features: folder in which images' features are kept for further runs with the same vision weights, numbers
      and tiles; None keeps none. A full disk there ends no run.
    bootstrap: resamples of the intervals.
    text_forest: trees of the prior that is fitted on the texts (`evaluation.scoring.forest`), 0 for none.
    seed: of the resamples, folds and trees.
  """

  batch_size: int = 32
  limit: int = 0
  protocols: tuple[str, ...] = ("native",)
  controls: tuple[str, ...] = ()
  new_tokens: int = 0
  missing_priors: Literal["", "refuse", "without"] = ""
  lengths: tuple[int, ...] = (32, 64, 96, 128, 192, 256, 512, 1024, 2048)
  tiles: tuple[int, ...] = (1, 5, 13, 17)
  pool_tiles: int = 1024
  pool_prefixes: int = 0
  features: str | None = None
  bootstrap: int = 2000
  text_forest: int = 0
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class EvalConfig(ScoreConfig):
  """The evaluation that belongs to a training run.

  Attributes:
    source: where the questions come from: kind "cvbench" (parquet of its schema, or the hub), "scenes" or
      "hf".
    before: whether training scores the untrained model as well.
    after: whether training scores the trained model at its end; without it, where another run goes on from it
      and is scored.
    during: how many of these questions training asks every `train.evaluate_every` steps, the headline alone;
      drawn by `seed`, always the same. 0 for all.
  """

  source: SourceConfig = ScenesConfig(seed=1_000_000, size=1000)
  before: bool = True
  after: bool = True
  during: int = 256


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """Where a run's numbers go beside its metrics.jsonl.

  Attributes:
    tensorboard: into the workdir's folder `tensorboard`.
    wandb: to Weights & Biases (`pip install "spatialvlm[wandb]"`).
    wandb_project: the project there.
  """

  tensorboard: bool = True
  wandb: bool = False
  wandb_project: str = "spatialvlm"


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """What one stage of a run has of its own; None for what the run says.

  Attributes:
    peft: what is trained.
    data: the training stream.
    optim: optimizer and schedule.
    losses: all terms of the objective, by name.
    teachers: all models that losses ask, by name.
    phases: all phases of a step, by name.
    train: the loop.
  """

  peft: PeftConfig | None = None
  data: DataConfig | None = None
  optim: OptimConfig | None = None
  losses: Mapping[str, LossConfig] | None = None
  teachers: Mapping[str, TeacherConfig] | None = None
  phases: Mapping[str, PhaseConfig] | None = None
  train: TrainConfig | None = None


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """Everything that defines a run. Two runs of equal configs on equal machines give equal results.

  Attributes:
    name: of the run; the default workdir is named after it.
    seed: of the order of the data and of dropout.
    model: what is trained, or trained on.
    peft: which of its parameters.
    priors: what image tokens are told beside pixels, by names of one's own; empty for nothing. Their layers
      are trained beside what `peft` names.
    data: on what.
    optim: how parameters follow from gradients.
    losses: weighted terms of the objective, by the names that metrics give them.
    teachers: models that losses ask, by the names that the losses' settings call them.
    phases: what is done to each batch before its step, in the order of their names; empty for nothing.
    train: how long, and what happens on the way.
    mesh: on which devices.
    eval: None means that no questions are scored.
    log: who is told.
    stages: runs in the order of their names, each from the model of the one before; empty for one run.
  """

  name: str = "run"
  seed: int = 0
  model: ModelConfig = ModelConfig()
  peft: PeftConfig = PeftConfig()
  priors: Mapping[str, PriorConfig] = dataclasses.field(default_factory=dict)
  data: DataConfig = DataConfig()
  optim: OptimConfig = OptimConfig()
  losses: Mapping[str, LossConfig] = dataclasses.field(default_factory=lambda: {"answer": LossConfig()})
  teachers: Mapping[str, TeacherConfig] = dataclasses.field(default_factory=dict)
  phases: Mapping[str, PhaseConfig] = dataclasses.field(default_factory=dict)
  train: TrainConfig = TrainConfig()
  mesh: MeshConfig = MeshConfig()
  eval: EvalConfig | None = None
  log: LogConfig = LogConfig()
  stages: Mapping[str, StageConfig] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """An evaluation on its own (`launch/evaluate.py`).

  Attributes:
    name: of the evaluation; the default workdir is named after it.
    model: what is scored.
    adapter: PEFT folder that is laid over the model, None for the model alone.
    data: where the questions come from, kind "cvbench", "scenes" or "hf".
    score: how they are asked, and what is made of the answers.
    published: numbers in percent that others gave, by their names, set beside each protocol's.
    mesh: on which devices.
  """

  name: str = "evaluate"
  model: ModelConfig = ModelConfig()
  adapter: str | None = None
  data: SourceConfig = CVBenchConfig(split="test")
  score: ScoreConfig = ScoreConfig()
  published: Mapping[str, float] = dataclasses.field(default_factory=dict)
  mesh: MeshConfig = MeshConfig()
