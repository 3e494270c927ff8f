"""A start that is made of a run's data is kept in its workdir, and a run that goes on takes it from there."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from spatialvlm import peft
from spatialvlm.config import ModelConfig, PeftConfig, RunConfig, from_config_dict
from spatialvlm.core import axes
from spatialvlm.training import start
from spatialvlm.training import state as state_lib
from spatialvlm.types import UserError
from tests import tiny_model
from tests.peft import test_eva


def test_a_start_of_data_is_made_once(tmp_path):
  folder, workdir = tmp_path / "model", tmp_path / "run"
  tiny_model.write_checkpoint(folder)
  settings = from_config_dict(test_eva.SETTINGS | {"full": ".*text_model.norm"}, PeftConfig)
  config = RunConfig(model=ModelConfig(path=str(folder)), peft=peft.completed(settings))
  mesh = axes.make_mesh({}, jax.devices()[:1])
  split = lambda model: state_lib.Split(model, peft.trainable_filter(model, config.peft), mesh)
  first = split(start.build_model(config, mesh, workdir, first=test_eva.batches))
  keep = functools.partial(start.keep, config, first, state_lib.TrainState(0, first.params, {}, {}), workdir)
  workdir.mkdir()
  keep()
  kept = (workdir / "start" / "adapter_model.safetensors").read_bytes()

  def never(count):
    raise AssertionError("the data was read again")

  again = split(start.build_model(config, mesh, workdir, first=never))
  assert set(again.params) == set(first.params) and len(again.params) > 4
  assert all(np.array_equal(value, first.params[name]) for name, value in again.params.items())
  keep()  # what is there stays
  assert (workdir / "start" / "adapter_model.safetensors").read_bytes() == kept

  (workdir / "start").rename(tmp_path / "elsewhere")
  (workdir / "checkpoints").mkdir()
  with pytest.raises(UserError, match=r"run/start: missing; the run began with the adapter there"):
    start.build_model(config, mesh, workdir, first=never)
  plain = dataclasses.replace(config, peft=peft.completed(PeftConfig()))
  start.keep(plain, first, state_lib.TrainState(0, first.params, {}, {}), tmp_path / "other")
  assert not (tmp_path / "other").exists()


def test_batches_are_the_first_of_a_stream_of_their_own():
  batches, info = test_eva.batches(2), object()
  opened = []

  def stream():
    opened.append(iter([(batch, info) for batch in batches]))
    return opened[-1]

  give = start.batches(stream, axes.make_mesh({}, jax.devices()[:1]), "lora")
  for _ in range(2):
    (found,) = give(1)
    assert np.array_equal(found.tokens_BT, batches[0].tokens_BT)
  assert len(opened) == 2
