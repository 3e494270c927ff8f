"""The typed configuration of a run, and the only way into it from an `ml_collections.ConfigDict`."""

from spatialvlm.config.files import read_json
from spatialvlm.config.probes import ProbeConfig
from spatialvlm.config.read import check_dtype, fingerprint, from_config_dict, nearest, override, to_dict
from spatialvlm.config.schema import (
  DataConfig,
  EvalConfig,
  EvaluateConfig,
  LogConfig,
  LossConfig,
  MeshConfig,
  ModelConfig,
  OptimConfig,
  PeftConfig,
  RunConfig,
  ScoreConfig,
  SourceConfig,
  StageConfig,
  TrainConfig,
)

__all__ = [
  "DataConfig",
  "EvalConfig",
  "EvaluateConfig",
  "LogConfig",
  "LossConfig",
  "MeshConfig",
  "ModelConfig",
  "OptimConfig",
  "PeftConfig",
  "ProbeConfig",
  "RunConfig",
  "ScoreConfig",
  "SourceConfig",
  "StageConfig",
  "TrainConfig",
  "check_dtype",
  "fingerprint",
  "from_config_dict",
  "nearest",
  "override",
  "read_json",
  "to_dict",
]
