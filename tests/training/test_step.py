import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatialvlm.config import LossConfig, MeshConfig
from spatialvlm.core import axes
from spatialvlm.models.outputs import Wants
from spatialvlm.training import optim
from spatialvlm.training import state as state_lib
from spatialvlm.training import step as step_lib
from spatialvlm.training.objectives import Answer, Models, Objective, make_objectives
from spatialvlm.training.objectives.answer import AnswerSettings
from spatialvlm.types import Batch, UserError
from tests.training import fakes
from tests.training.helpers import make_config, make_parts


def losses_of(config, steps=4):
  """Losses of the first steps, and the programs that made them."""
  parts, state = make_parts(config)
  programs = step_lib.Programs(
    parts.train_step, parts.mesh, donate=True, out_shardings=(step_lib.state_shardings(state), None)
  )
  found = []
  for number in range(steps):
    batch, _ = parts.stream.batch(number)
    on_device = step_lib.to_devices(batch, parts.mesh, config.train.accumulation)
    program, _ = programs.get(state, parts.frozen, on_device)
    state, metrics = program.run(state, parts.frozen, on_device)
    found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
  return np.array(found), state, programs


def one_device():
  """The same computation with plain JAX and optax: no mesh, no accumulation, no clipping code of ours."""
  config = make_config(mesh=MeshConfig(data=1))
  model = fakes.TinyVlm()
  mesh = axes.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  split = state_lib.Split(model, fakes.trainable, mesh)
  rate = optim.schedule(config.optim, optim.span(config.optim, config.train.steps))
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.0))
  params, opt_state, found = split.params, tx.init(split.params), []

  @jax.jit
  def gradient(params, tokens_BT, supervised_BT):
    def loss(params):
      model = split.model(params, split.frozen)
      log_p_BTV = jax.nn.log_softmax(model.unembed(model.hidden(Batch(tokens_BT, None))))
      picked_BT = jnp.take_along_axis(log_p_BTV[:, :-1], tokens_BT[:, 1:, None], axis=2)[..., 0]
      return -(picked_BT * supervised_BT[:, 1:]).sum() / supervised_BT.sum()

    return jax.value_and_grad(loss)(params)

  update = jax.jit(tx.update)
  for number in range(4):
    batch, _ = fakes.Stream(16).batch(number)
    supervised = np.zeros(batch.tokens_BT.shape)
    rows, columns = np.nonzero(batch.target_index_BK > 0)
    supervised[rows, batch.target_index_BK[rows, columns]] = 1
    value, grads = gradient(params, batch.tokens_BT, supervised)
    found.append([float(value), float(optax.global_norm(grads))])
    updates, opt_state = update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
  return np.array(found)


@pytest.fixture(scope="module")
def truth():
  return one_device()


@pytest.mark.parametrize(
  ("mesh", "accumulation"),
  [
    (MeshConfig(data=8), 1),
    (MeshConfig(data=1, fsdp=8), 1),
    (MeshConfig(data=1, fsdp=1, tensor=8), 4),
    (MeshConfig(data=2, fsdp=2, tensor=2), 4),
  ],
  ids=lambda v: "x".join(map(str, (v.data, v.fsdp, v.tensor))) if isinstance(v, MeshConfig) else f"acc{v}",
)
def test_every_mesh_and_accumulation_agrees_with_one_device(truth, mesh, accumulation):
  # Answers differ in length between rows, so a mean of microbatch means would be wrong here.
  found, state, programs = losses_of(make_config(mesh=mesh, accumulation=accumulation))
  np.testing.assert_allclose(found, truth, rtol=2e-5)
  assert len(programs) == 1
  for name, value in state.params.items():
    for moment in jax.tree.leaves(state.opt_state):
      if moment.shape == value.shape and mesh.fsdp * mesh.tensor == 8 and value.ndim == 2:
        assert not moment.sharding.is_fully_replicated, name


def test_sharded_parameters_take_their_share_of_memory_only():
  _, state, _ = losses_of(make_config(mesh=MeshConfig(data=1, fsdp=8)), steps=1)
  kernel = state.params["up.kernel"]
  assert kernel.addressable_shards[0].data.size * 8 == kernel.size


def test_runs_of_other_lengths_share_their_programs():
  """And each goes by its own schedule."""
  of = lambda n, name: make_config(steps=n, optim={"schedule": name, "warmup_steps": 2})
  for name in optim.SCHEDULES:
    texts, rates = [], []
    for config in (of(9, name), of(30, name)):
      parts, state = make_parts(config)
      span = step_lib.everywhere(optim.span(config.optim, config.train.steps), parts.mesh)
      places = (step_lib.state_shardings(state), None)
      programs = step_lib.Programs(
        parts.train_step, parts.mesh, donate=True, out_shardings=places, given=(span,)
      )
      batch = step_lib.to_devices(parts.stream.batch(0)[0], parts.mesh)
      texts.append(programs.traced(state, parts.frozen, batch).lower().as_text())
      for _ in range(9):
        state, metrics = programs.get(state, parts.frozen, batch)[0].run(state, parts.frozen, batch)
      own = jax.jit(optim.schedule(config.optim, optim.span(config.optim, config.train.steps)))
      assert float(metrics["learning_rate"]) == pytest.approx(float(own(8)), rel=1e-5)
      rates.append(float(metrics["learning_rate"]))
    assert texts[0] == texts[1] and (rates[0] != rates[1]) == (name != "constant"), name


def test_frozen_stays_and_old_state_is_donated():
  parts, state = make_parts(make_config())
  jitted = jax.jit(parts.train_step, donate_argnums=0, out_shardings=(step_lib.state_shardings(state), None))
  batch = step_lib.to_devices(parts.stream.batch(0)[0], parts.mesh)
  assert set(parts.frozen) == {"base.kernel", "base.bias"}
  new, _ = jitted(state, parts.frozen, batch)
  assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
  assert not any(x.is_deleted() for x in parts.frozen.values())
  assert int(new.step) == 1


def test_two_weighted_terms_are_each_divided_by_their_own_weight():
  mesh = axes.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  split = state_lib.Split(fakes.TinyVlm(), fakes.trainable, mesh)

  class OddRows(Objective):
    wants = Wants(hidden=True)

    def __call__(self, outputs, models, batch, key):
      sizes = jnp.square(outputs.hidden).sum((1, 2))
      weight = (batch.tokens_BT[:, 0] % 2).astype(jnp.float32)
      return (sizes * weight).sum(), weight.sum(), {}

  terms = {"answer": (1.0, Answer()), "odd": (0.01, OddRows())}
  tx = optax.sgd(0.1)
  batch, _ = fakes.Stream(32).batch(0)
  results = []
  for accumulation in (1, 4):
    state = state_lib.init_state(split.params, tx, ema=False, mesh=mesh)
    step = step_lib.make_train_step(split, tx, terms, accumulation=accumulation)
    new, metrics = jax.jit(step)(state, split.frozen, step_lib.to_devices(batch, mesh, accumulation))
    results.append((new.params, metrics))
  (whole, a), (parts, b) = results
  assert float(a["loss"]) == pytest.approx(float(a["answer/loss"] + 0.01 * a["odd/loss"]), rel=1e-6)
  for name in whole:
    np.testing.assert_allclose(whole[name], parts[name], rtol=1e-5, atol=1e-6)
  assert float(b["odd/loss"]) == pytest.approx(float(a["odd/loss"]), rel=1e-5)


def test_gradients_are_clipped_to_the_norm_that_is_asked_for():
  """Plain SGD shows the scale that Adam hides: the step's length is the rate times the norm left over."""
  moved, norms = {}, {}
  for clip in (0.0, 0.1, 1e3):
    settings = {"name": "sgd", "learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0}
    parts, state = make_parts(make_config(optim={**settings, "clip_norm": clip}))
    batch = step_lib.to_devices(parts.stream.batch(0)[0], parts.mesh)
    new, metrics = jax.jit(parts.train_step)(state, parts.frozen, batch)
    moved[clip] = {name: np.asarray(new.params[name] - state.params[name]) for name in state.params}
    norms[clip] = float(metrics["grad_norm"])
  assert norms[0.0] == norms[0.1] == norms[1e3] > 0.2  # what is reported was not clipped yet
  length = lambda arrays: np.sqrt(sum(np.square(a).sum() for a in arrays.values()))
  assert length(moved[0.0]) == pytest.approx(norms[0.0], rel=1e-4)
  assert length(moved[0.1]) == pytest.approx(0.1, rel=1e-4)
  for name in moved[0.0]:
    np.testing.assert_array_equal(moved[1e3][name], moved[0.0][name])
    np.testing.assert_allclose(moved[0.1][name], moved[0.0][name] * 0.1 / norms[0.0], rtol=1e-3, atol=1e-6)


def test_moving_average_follows_its_formula():
  parts, state = make_parts(make_config(optim={"ema": 0.5}))
  average, jitted = state.params, jax.jit(parts.train_step)
  for number in range(3):
    state, _ = jitted(state, parts.frozen, step_lib.to_devices(parts.stream.batch(number)[0], parts.mesh))
    decay = min(0.5, (1 + number) / (10 + number))
    average = {name: decay * average[name] + (1 - decay) * state.params[name] for name in average}
  for name in average:
    np.testing.assert_allclose(state.ema[name], average[name], rtol=1e-5, atol=1e-7)
  assert state_lib.weights(state) is state.ema


def test_label_smoothing_and_z_loss_match_optax():
  split = state_lib.Split(
    fakes.TinyVlm(), fakes.trainable, axes.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  )
  batch = fakes.Stream(4).batch(0)[0]
  smoothed = Answer(AnswerSettings(label_smoothing=0.1, z_loss=1e-2))

  @jax.jit
  def run(batch):
    model = split.model(split.params, split.frozen)
    outputs = model.read(batch, smoothed.wants)
    return smoothed(outputs, Models(model), batch, jax.random.key(0)), model.unembed(model.hidden(batch))

  (total, weight, metrics), logits = run(batch)
  rows, columns = np.nonzero(batch.target_index_BK > 0)
  places, count = batch.target_index_BK[rows, columns], len(rows)
  logits_KV = logits[rows, places - 1]
  soft_KV = optax.smooth_labels(jax.nn.one_hot(batch.tokens_BT[rows, places], fakes.VOCAB), 0.1)
  expected = optax.softmax_cross_entropy(logits_KV, soft_KV).sum()
  expected += 1e-2 * (jax.nn.logsumexp(logits_KV, axis=-1) ** 2).sum()
  assert float(weight) == count
  assert float(total) == pytest.approx(float(expected), rel=1e-5)
  assert set(metrics) == {"accuracy", "nll"}


def test_unknown_losses_and_arguments_are_refused():
  with pytest.raises(UserError, match="did you mean 'answer'"):
    make_objectives({"a": LossConfig(kind="anwser")})
  with pytest.raises(UserError, match=r"a\.kwargs\.smooth: unknown key; did you mean 'label_smoothing'"):
    make_objectives({"a": LossConfig(kwargs={"smooth": 1.0})})
  with pytest.raises(UserError, match="no term"):
    make_objectives({"a": LossConfig(weight=0.0)})
  with pytest.raises(UserError, match=r"losses\.a\.kwargs\.z_loss: expected float, got 'much'"):
    make_objectives({"a": LossConfig(kwargs={"z_loss": "much"})})
  with pytest.raises(UserError, match=r"losses\.a\.target: a loss of kind 'answer' has no target"):
    make_objectives({"a": LossConfig(target="depth")})
  with pytest.raises(UserError, match=r"losses\.a/b: the name becomes part of a file's"):
    make_objectives({"a/b": LossConfig()})
