"""The typed configuration of a run: frozen dataclasses, and the only way into them from dicts and flags.

`schema` holds `RunConfig` (a training) and `EvaluateConfig` (an evaluation) with all their parts, `sources`
one config for each kind of data source, `room_files` that of one kept in files, `augment` how pictures are
changed, `noise` which answers are made wrong, `mesh` the devices, `priors` what a model is told beside
pixels, `teachers` what losses ask, `probes` that of a comparison of encoders, `study` that of ways of
training, `explain` that of a look inside models, `field` that of a radiance field. `read` makes them of dicts
(`from_config_dict`), of dicts with a command line's settings (`override`), of a config and other values
(`changed`) and of a run's config.json, also an earlier version's (`from_stored`), and turns them into dicts
again (`to_dict`, `fingerprint`). A key that no class has, and a value of the wrong type, is a `UserError` by
its full name.

A config holds plain values only, and everything that a result depends on but the data and weights
themselves.
"""

from spatialvlm.config.augment import AugmentConfig
from spatialvlm.config.explain import ExplainConfig
from spatialvlm.config.field import FieldConfig, FolderViewsConfig, SceneViewsConfig
from spatialvlm.config.files import read_json, refuse_pointer
from spatialvlm.config.mesh import MeshConfig
from spatialvlm.config.noise import NoiseConfig
from spatialvlm.config.priors import PriorConfig
from spatialvlm.config.probes import ProbeConfig
from spatialvlm.config.read import (
  changed,
  check_dtype,
  fingerprint,
  from_config_dict,
  from_stored,
  nearest,
  override,
  overrides,
  to_dict,
)
from spatialvlm.config.room_files import RoomFilesConfig
from spatialvlm.config.schema import (
  DataConfig,
  EvalConfig,
  EvaluateConfig,
  LogConfig,
  LossConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  PhaseConfig,
  RunConfig,
  ScoreConfig,
  StageConfig,
  TrainConfig,
)
from spatialvlm.config.sources import (
  CVBenchConfig,
  HFConfig,
  LlavaConfig,
  PosedConfig,
  RgbdConfig,
  RoomsConfig,
  ScenesConfig,
  SkillsConfig,
  SourceConfig,
  StreamConfig,
  ViewsConfig,
  called,
)
from spatialvlm.config.study import CellConfig, StudyConfig, crossed
from spatialvlm.config.teachers import TeacherConfig

__all__ = [
  "AugmentConfig",
  "CVBenchConfig",
  "CellConfig",
  "DataConfig",
  "EvalConfig",
  "EvaluateConfig",
  "ExplainConfig",
  "FieldConfig",
  "FolderViewsConfig",
  "HFConfig",
  "LlavaConfig",
  "LogConfig",
  "LossConfig",
  "MeshConfig",
  "ModelConfig",
  "NoiseConfig",
  "OptimConfig",
  "PeftConfig",
  "PhaseConfig",
  "PosedConfig",
  "PriorConfig",
  "ProbeConfig",
  "RgbdConfig",
  "RoomFilesConfig",
  "RoomsConfig",
  "RunConfig",
  "SceneViewsConfig",
  "ScenesConfig",
  "ScoreConfig",
  "SkillsConfig",
  "SourceConfig",
  "StageConfig",
  "StreamConfig",
  "StudyConfig",
  "TeacherConfig",
  "TrainConfig",
  "ViewsConfig",
  "called",
  "changed",
  "check_dtype",
  "crossed",
  "fingerprint",
  "from_config_dict",
  "from_stored",
  "nearest",
  "override",
  "overrides",
  "read_json",
  "refuse_pointer",
  "to_dict",
]
