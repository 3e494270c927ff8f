"""On-policy distillation by the command line's config: a coin a batch, told teachers, exact resume."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm import cli
from spatialvlm.config import LossConfig, PhaseConfig, RunConfig
from spatialvlm.training import one_run, phases
from spatialvlm.training.fit import phase_key
from spatialvlm.types import UserError
from tests.launch import tiny
from tests.training import interrupted
from tests.training.helpers import make_config

pytestmark = pytest.mark.slow  # `make oracle` runs them

RECIPE = """
def get_config():
  source = dict(kind="llava", path="{folder}/data.jsonl")
  taught = lambda name: dict(kind="distil", kwargs=dict(teacher=name, beta=0.5, temperature=0.9))
  return dict(
    name="on-policy",
    seed=1,
    model=dict(path="{folder}/model", from_scratch=True),
    data=dict(sources=dict(own=source), lengths=(96,), tiles=(1,), workers=1),
    peft=dict(method="lora", rank=2, target=r".*(q|v|gate)_proj"),
    train=dict(steps=4, batch_size=8, accumulation=2, log_every=1, checkpoint_every=2),
    optim=dict(learning_rate=1e-2, warmup_steps=0),
    losses=dict(answer=dict(weight=0), base=taught("base"), told=taught("told")),
    teachers=dict(told=dict(prompt="{facts} {prompt}")),
    phases=dict(on_policy=dict(kind="on_policy", kwargs=dict(share=0.6, new_tokens=5, together=6))),
    log=dict(tensorboard=False),
  )
"""
SHOWN = ("sampled", "length", "truncated", "agreement", "loss")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("on_policy")
  tiny.write_model(folder / "model")
  file = tiny.write_data(folder)
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  file.write_text("".join(json.dumps(row | {"facts": "a red box"}) + "\n" for row in rows))
  (folder / "recipe.py").write_text(RECIPE.replace("{folder}", str(folder)))
  return folder


def settings(folder, *more):
  return cli.load(str(folder / "recipe.py"), more, RunConfig)


@pytest.fixture(scope="module")
def trained(folder):
  return folder / "w", one_run.train(settings(folder), folder / "w")


def metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_coin_a_batch_and_teachers_read_what_was_drawn(folder, trained):
  rows = metrics(trained[0])
  coin = lambda step: float(jax.random.uniform(jax.random.split(phase_key(1, step, 0))[0]))
  expected = [float(coin(step) < 0.6) for step in range(4)]
  assert expected[0] == 1 and 0 in expected
  assert [row["base/sampled"] for row in rows] == [row["told/sampled"] for row in rows] == expected
  first = rows[0]
  # A fresh adapter says what its base says, of whatever answer both read; who is told says something else.
  assert first["base/loss"] == pytest.approx(0, abs=1e-6) and first["base/agreement"] == 1
  assert first["told/loss"] > 1e-5 and first["grad_norm"] > 0
  # Weights that were drawn end an answer seldom: most are cut off, and data's answers are shorter.
  assert 0 < first["base/truncated"] <= 1 and 2 < first["base/length"] <= 5
  of_data = rows[expected.index(0)]
  assert of_data["base/truncated"] == 0 and of_data["base/length"] != first["base/length"]
  assert rows[3]["base/loss"] > 1e-6


def test_interrupted_it_ends_with_the_same_bits(folder, trained, tmp_path, monkeypatch):
  with interrupted.at_each_batch(monkeypatch):
    assert one_run.train(settings(folder), tmp_path / "w")["step"] == 1
  assert one_run.train(settings(folder), tmp_path / "w")["finished"]
  adapter = lambda workdir: load_file(workdir / "adapter" / "adapter_model.safetensors")
  whole, again = adapter(trained[0]), adapter(tmp_path / "w")
  assert all(np.array_equal(whole[name], again[name]) for name in whole)
  shown = lambda workdir: [[row[f"told/{name}"] for name in SHOWN] for row in metrics(workdir)]
  assert shown(trained[0]) == shown(tmp_path / "w")


def test_a_cache_knows_nothing_of_samples(folder, tmp_path):
  cached = [("teachers.told.cache", str(tmp_path / "c")), ("losses.told.kwargs.beta", "0.0")]
  message = r"config\.teachers\.told\.cache: config\.phases\.on_policy samples answers, of which no cache"
  with pytest.raises(UserError, match=message):
    one_run.train(settings(folder, *cached), tmp_path / "w")
  assert not (tmp_path / "w").exists() or not any((tmp_path / "w").iterdir())


TEACHES = {"t": LossConfig("distil", kwargs=dict(teacher="base"))}


@pytest.mark.parametrize(
  ("losses", "kwargs", "message"),
  [
    (TEACHES, {"share": 0.0}, r"config\.phases\.p\.kwargs\.share: 0\.0 is no share of the batches"),
    (TEACHES, {"share": 1.5}, r"kwargs\.share: 1\.5 is no share"),
    (TEACHES, {"new_tokens": 0}, r"kwargs\.new_tokens: 0 is less than 1"),
    (TEACHES, {"temperature": 0.0}, r"kwargs\.temperature: 0\.0 draws no two answers"),
    (TEACHES, {"top_p": 0.0}, r"kwargs\.top_p: 0\.0 is out of range"),
    (TEACHES, {"shar": 1.0}, r"kwargs\.shar: .*did you mean 'share'"),
    (TEACHES | {"a": LossConfig()}, {}, r"config\.losses\.a: would teach the answers that config\.phases\.p"),
    (
      {"d": LossConfig("depth_probe")},
      {},
      r"config\.phases\.p: answers are sampled, but no loss asks a teach",
    ),
  ],
)
def test_what_cannot_be_is_named(losses, kwargs, message):
  config = make_config(losses=losses, phases={"p": PhaseConfig("on_policy", kwargs)})
  with pytest.raises(UserError, match=message):
    one_run.check(dataclasses.replace(config, data=dataclasses.replace(config.data, sources={"a": None})))


def test_two_that_sample_are_refused():
  made = {"p": PhaseConfig("on_policy"), "r": PhaseConfig("rollouts")}
  with pytest.raises(UserError, match=r"config\.phases\.r: config\.phases\.p puts sampled answers in"):
    phases.make_phases(made)


@pytest.mark.parametrize("name", ["on-policy", "tiny-on-policy", "tiny-light", "tiny-told"])
def test_recipes(name):
  config = cli.load(f"distil:{name}", [], RunConfig)
  one_run.check(config)
  if "on-policy" not in name:
    (teacher,) = config.teachers.values()
    assert (
      teacher.plain == bool(config.data.augment) == (teacher.path == "ema") != ("{depth}" in teacher.prompt)
    )
    return
  (phase,) = phases.make_phases(config.phases)
  assert (
    phase.settings.share == 0.5 and config.losses.keys() == {"distil"} and config.teachers["teacher"].path
  )
