"""Distillation: the divergence, its memory, and teachers that are asked and never trained."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spatialvlm import peft
from spatialvlm.config import LossConfig, MeshConfig, PeftConfig
from spatialvlm.core import axes
from spatialvlm.models.outputs import Outputs, Wants
from spatialvlm.training import state as state_lib
from spatialvlm.training import teachers
from spatialvlm.training.objectives import Answer, Distil, Models
from spatialvlm.training.objectives.distil import DistilSettings, divergence
from spatialvlm.training.step import make_loss_step, make_train_step, to_devices
from spatialvlm.types import Batch, UserError
from tests import tiny_model
from tests.peft import support
from tests.training import fakes
from tests.training.helpers import make_config, make_parts, run, same
from tests.training.test_fit import rows

# A mixture is neither of both, a temperature other than 1, and a K that the chunk does not divide.
SETTINGS = DistilSettings(beta=0.3, temperature=1.7, chunk=3)
SETTLED = dict(steps=5, checkpoint_every=2, keep=2)


def term(**settings):
  return {"teach": (1.0, Distil(dataclasses.replace(SETTINGS, **settings)))}


def teacher():
  return {"teacher": fakes.TinyVlm(seed=5)}


class Head(nnx.Module):
  """A vocabulary product alone."""

  def __init__(self, width, vocab, seed):
    self.table = nnx.Param(jax.random.normal(jax.random.key(seed), (vocab, width)))

  def unembed(self, x):
    return x @ self.table[...].T


def value(hidden_BTD, *, chunk, vocab=6, more=0, beta=0.3, temperature=1.7):
  """(sum, weight, metrics) of hidden states that both models have, K = T - 1 targets a row, the last none."""
  B, T, D = hidden_BTD.shape
  index_BK = jnp.tile(jnp.arange(1, T).at[-1].set(-1), (B, 1))
  tokens_BT = jnp.zeros((B, T), jnp.int32)
  batch = Batch(tokens_BT=tokens_BT, valid_BT=tokens_BT == 0, target_index_BK=index_BK)
  objective = Distil(DistilSettings(beta=beta, temperature=temperature, chunk=chunk))
  other = {"teacher": Head(D, vocab + more, 1)}
  asked = {"teacher": Outputs(hidden=jax.lax.stop_gradient(hidden_BTD))}
  models = Models(Head(D, vocab, 0), None, other, asked)
  return objective(Outputs(hidden=hidden_BTD), models, batch, jax.random.key(0))


@pytest.mark.parametrize("beta", [0.0, 1.0, 0.25])
def test_chunks_change_nothing_and_a_larger_vocabulary_is_cut(beta):
  x_BTD = jax.random.normal(jax.random.key(3), (2, 9, 4))

  @functools.partial(jax.jit, static_argnames=("chunk", "more"))
  def both(x_BTD, chunk, more=0):
    total = lambda x_BTD: (lambda sum, *rest: (sum, rest))(*value(x_BTD, chunk=chunk, more=more, beta=beta))
    return jax.value_and_grad(total, has_aux=True)(x_BTD)

  (whole, (weight, metrics)), gradient = both(x_BTD, 0)
  (cut, (same_weight, same_metrics)), cut_gradient = both(x_BTD, 3)
  np.testing.assert_allclose(cut, whole, rtol=1e-5)
  np.testing.assert_allclose(cut_gradient, gradient, rtol=1e-4, atol=1e-6)
  assert weight == same_weight == 14 and metrics == same_metrics and 0 < metrics["agreement"][0] < 14
  larger, smaller = Head(4, 9, 1).unembed(x_BTD)[..., :6], Head(4, 6, 0).unembed(x_BTD)
  found = divergence(smaller, larger, beta, 1.7)[:, :-2].sum()
  np.testing.assert_allclose(both(x_BTD, 3, more=3)[0][0], found, rtol=1e-5)


def test_it_is_none_between_equals_and_grows_apart():
  logits = jax.random.normal(jax.random.key(0), (5, 7))
  other = logits + jnp.arange(7.0)
  for beta in (0.0, 0.5, 1.0):
    np.testing.assert_allclose(divergence(logits, logits + 3, beta, 0.9), 0, atol=1e-6)
    assert (divergence(logits, other, beta, 0.9) > 0.01).all()
  np.testing.assert_allclose(
    divergence(logits, other, 0.0, 2.0), divergence(other, logits, 1.0, 2.0), rtol=1e-6
  )


def test_memory_does_not_grow_with_the_targets():
  """Temporaries of the gradient, as XLA counts them: of one chunk, not of all."""

  def temporaries(targets, chunk):
    loss = lambda x: value(x, chunk=chunk, vocab=2048)[0]
    shape = jax.ShapeDtypeStruct((2, targets + 1, 8), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(shape).compile().memory_analysis().temp_size_in_bytes

  logits = 4 * 2 * 8 * 2048
  assert temporaries(64, 0) > 6 * logits  # of one model's alone there are 8
  assert temporaries(64, 8) < 12 * logits
  assert temporaries(256, 8) - temporaries(64, 8) < logits


def test_the_base_takes_no_memory_and_keeps_its_bits():
  """Only what is trained in full stands twice; adapters and their updates do not reach the base."""
  vlm = tiny_model.build()
  batch = support.batch()
  before = vlm.read(batch, Wants(hidden=True)).hidden
  config = PeftConfig(target=r".*text_model.*\.[qv]_proj", full=r"model\.connector\..*", options={"rank": 2})
  base = teachers.plain(vlm)
  peft.apply(vlm, config)
  mesh = axes.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  split = state_lib.Split(vlm, peft.trainable_filter(vlm, config), mesh, others={"base": base})
  own = [name for name in split.frozen if name.startswith("others.")]
  assert own == ["others.base.connector.proj.kernel"]
  moved = {name: x + 0.1 for name, x in split.params.items()}
  trainee = split.trainee(moved, split.frozen)
  assert np.array_equal(trainee.others["base"].read(batch, Wants(hidden=True)).hidden, before)
  assert not np.allclose(trainee.vlm.read(batch, Wants(hidden=True)).hidden, before, atol=1e-3)


def test_a_student_becomes_its_teacher(tmp_path):
  config = make_config(losses={"answer": LossConfig(weight=1e-6)}, steps=40, log_every=39)
  run(config, tmp_path, more_terms=term(), others=teacher)
  found = rows(tmp_path)
  assert found[-1]["teach/loss"] < 0.5 * found[0]["teach/loss"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_moving_average_teaches_as_it_stands_before_the_step(accumulation):
  """Against the divergence by hand; the average itself has no gradient, and says of itself what it says."""
  mesh = axes.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  split = state_lib.Split(fakes.TinyVlm(), fakes.trainable, mesh)
  taught = Distil(DistilSettings(teacher="slow", beta=0.3, chunk=0))
  terms = {"answer": (1.0, Answer()), "slow": (1.0, taught)}
  tx, slow = optax.sgd(0.3), frozenset({"slow"})
  step = jax.jit(make_train_step(split, tx, terms, ema=0.9, averaged=slow, accumulation=accumulation))
  state = state_lib.init_state(split.params, tx, ema=True, mesh=mesh)
  plain = fakes.Stream(4).batch(0)[0]
  batch = to_devices(plain, mesh, accumulation)
  found = []
  for _ in range(3):
    before, (state, metrics) = state, step(state, split.frozen, batch)
    found.append(float(metrics["slow/loss"]))
  assert found[0] == pytest.approx(0, abs=1e-6) and found[2] > 1e-4
  logits = lambda params: split.model(params, split.frozen).read(plain, Wants(logits=True)).logits
  apart_BK = divergence(logits(before.params), logits(before.ema), 0.3, 1.0)
  assert found[2] == pytest.approx(float(apart_BK[plain.target_index_BK > 0].mean()), rel=1e-4)
  sums = make_loss_step(split, terms, slow)(state, split.frozen, plain)
  assert float(sums["slow/loss"][0]) == pytest.approx(0, abs=1e-5) and float(sums["slow/loss"][1]) > 0


def test_interrupted_it_continues_bit_equal(tmp_path):
  config = make_config(**SETTLED)
  whole = run(config, tmp_path / "whole", more_terms=term(), others=teacher)

  def crash(number):
    if number == 3:
      raise InterruptedError

  with pytest.raises(InterruptedError):
    stream = fakes.Stream(16, at=crash)
    run(config, tmp_path / "cut", stream=stream, more_terms=term(), others=teacher)
  again = run(config, tmp_path / "cut", more_terms=term(), others=teacher)
  assert same(again.state.params, whole.state.params)
  assert not any(name.startswith("others.") for name in again.state.params)


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)], ids=str)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_mesh_and_accumulation_learns_the_same(tmp_path, mesh, accumulation):
  one = run(
    make_config(mesh=MeshConfig(data=1), steps=3), tmp_path / "one", more_terms=term(), others=teacher
  )
  many = make_config(mesh=mesh, accumulation=accumulation, steps=3)
  many = run(many, tmp_path / "many", more_terms=term(), others=teacher)
  for name, array in one.state.params.items():
    np.testing.assert_allclose(many.state.params[name], array, rtol=1e-4, atol=1e-5)


def test_a_teacher_on_another_mesh_teaches_the_same(tmp_path):
  """Every device has a share of the teacher's weights, and the whole of the student's."""
  config = make_config(mesh=MeshConfig(data=8), steps=3)
  one = run(config, tmp_path / "one", more_terms=term(), others=teacher)
  spread = dict(others=teacher, spread=MeshConfig(data=1, fsdp=8))
  many = run(config, tmp_path / "many", more_terms=term(), **spread)
  for name, array in one.state.params.items():
    np.testing.assert_allclose(many.state.params[name], array, rtol=1e-5, atol=1e-6)
  frozen = make_parts(config, more_terms=term(), **spread)[0].frozen
  share = lambda name: math.prod(frozen[name].addressable_shards[0].data.shape) * 8 == frozen[name].size
  assert share("others.teacher.up.kernel") and not share("base.kernel")


@pytest.mark.parametrize(
  "wrong", [dict(beta=1.5), dict(beta=-0.1), dict(temperature=0.0), dict(chunk=-1)], ids=str
)
def test_settings_without_sense(wrong):
  with pytest.raises(UserError, match=r"config\.losses\.kwargs: beta must be in \[0, 1\]"):
    Distil(DistilSettings(**wrong))
