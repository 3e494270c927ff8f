"""Runs of the inner loop on the fake model."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

from spatialvlm import config as config_lib
from spatialvlm.config import LogConfig, LossConfig, MeshConfig, OptimConfig, RunConfig, TrainConfig
from spatialvlm.core import axes
from spatialvlm.training import objectives, optim, phases
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.training.fit import Outcome, Parts, fit
from tests.training.fakes import Stream, TinyVlm, trainable

TWO = MeshConfig(data=2)


def make_config(mesh: MeshConfig = TWO, optim=None, losses=None, phases=None, **train) -> RunConfig:
  train = {"steps": 8, "batch_size": 16, "log_every": 1, "checkpoint_every": 0, **train}
  return RunConfig(
    optim=OptimConfig(**{"learning_rate": 0.05, "warmup_steps": 2, **(optim or {})}),
    losses=losses or {"answer": LossConfig()},
    phases=phases or {},
    train=TrainConfig(**train),
    mesh=mesh,
    log=LogConfig(tensorboard=False),
  )


def make_parts(
  config: RunConfig, stream=None, validation=None, evaluate=None, more_terms=None, others=None, spread=None
):
  """The parts of `fit`, and a fresh state; `more_terms` are objectives beside those of the config, `others`
  the models that they ask, made anew for each run, and `spread` their mesh where it is another."""
  size = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
  mesh = axes.make_mesh(config.mesh, jax.devices()[:size])
  terms = objectives.make_objectives(config.losses) | (more_terms or {})
  heads = objectives.make_heads(terms, None, config.seed)
  others = others() if others else {}
  meshes = {name: axes.spread_anew(mesh, spread) for name in others} if spread else {}
  split = state_lib.Split(TinyVlm(), trainable, mesh, heads, others, meshes)
  rate = optim.schedule(config.optim, optim.span(config.optim, config.train.steps))
  tx = optim.make_optimizer(config.optim, rate, split.params)
  train_step = step_lib.train_step_of(config, split, terms)
  parts = Parts(
    mesh=mesh,
    train_step=train_step,
    loss_step=step_lib.make_loss_step(split, terms),
    frozen=split.frozen,
    prepares=phases.start(
      phases.make_phases(config.phases),
      phases.PhaseParts(split, mesh, config.train.accumulation, config.train.batch_size),
    ),
    stream=stream or Stream(config.train.batch_size),
    validation=validation,
    evaluate=evaluate,
  )
  return parts, state_lib.init_state(split.params, tx, ema=bool(config.optim.ema), mesh=mesh)


def run(config: RunConfig, folder: pathlib.Path, **kwargs) -> Outcome:
  folder.mkdir(parents=True, exist_ok=True)
  parts, state = make_parts(config, **kwargs)
  return fit(config, parts, state, folder, config_lib.to_dict(config))


def same(a, b) -> bool:
  """Whether two flat dicts of arrays are equal to the last bit."""
  return a.keys() == b.keys() and all(np.array_equal(np.asarray(a[k]), np.asarray(b[k])) for k in a)
