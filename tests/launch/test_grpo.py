"""GRPO by the command line's config: sampled, rewarded, interrupted, on several devices, with and without."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm import cli
from spatialvlm.config import RunConfig
from spatialvlm.training import one_run, rewards, sampling
from spatialvlm.types import Batch, UserError
from tests.launch import tiny
from tests.training import interrupted

pytestmark = pytest.mark.slow  # `make oracle` runs them

RECIPE = """
def get_config():
  source = dict(kind="llava", path="{folder}/data.jsonl")
  return dict(
    name="grpo",
    model=dict(path="{folder}/model", from_scratch=True),
    data=dict(sources=dict(own=source), lengths=(96,), tiles=(1,), workers=1),
    peft=dict(method="lora", rank=2, target=r".*(q|v|gate)_proj", dropout=0.1),
    train=dict(steps=4, batch_size=8, accumulation=2, log_every=1, checkpoint_every=2),
    optim=dict(learning_rate=1e-2, warmup_steps=0, ema=0.5),
    losses=dict(grpo=dict(kind="grpo", kwargs=dict(kl=0.1, clip_high=0.28))),
    phases=dict(rollouts=dict(kind="rollouts", kwargs=dict(
      group=4, new_tokens=5, steps=2, oversample=2, together=6, temperature=0.9, top_p=0.95,
      rewards=dict(letters=dict(weight=2.0), format=dict(weight=0.5)),
    ))),
    log=dict(tensorboard=False),
  )
"""
SHOWN = {"reward", "reward_letters", "reward_format", "no_signal", "length", "truncated", "kl", "entropy"}


class Letters(rewards.Reward):
  """The share of Latin letters in an answer: something that a model of drawn weights says by chance."""

  Settings = rewards.FormatSettings

  def __call__(self, said):
    return len(re.findall("[A-Za-z]", said.output)) / max(len(said.output), 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("grpo")
  tiny.write_model(folder / "model")
  tiny.write_data(folder)
  (folder / "recipe.py").write_text(RECIPE.replace("{folder}", str(folder)))
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(rewards.REWARDS, "letters", Letters)
    yield folder


def settings(folder, *more):
  return cli.load(str(folder / "recipe.py"), more, RunConfig)


@pytest.fixture(scope="module")
def trained(folder):
  return folder / "w", one_run.train(settings(folder), folder / "w")


def metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def adapter(workdir):
  return load_file(workdir / "adapter" / "adapter_model.safetensors")


def test_what_was_sampled_is_shown(trained):
  rows = metrics(trained[0])
  assert all({f"grpo/{name}" for name in SHOWN} <= set(row) for row in rows) and len(rows) == 4
  first = rows[0]
  assert (
    0
    < first["grpo/reward"]
    == pytest.approx(2 * first["grpo/reward_letters"] + 0.5 * first["grpo/reward_format"], rel=1e-5)
  )
  assert first["grpo/no_signal"] < 1 and first["grad_norm"] > 0 and 0 < first["grpo/length"] <= 5
  # The run begins as its reference, and the first step with a batch is that of the model that drew it.
  assert first["grpo/kl"] == pytest.approx(0, abs=1e-3) and rows[3]["grpo/kl"] > first["grpo/kl"]
  # Two steps are taken with the same samples, and then two with others.
  means = [(row["grpo/reward"], row["grpo/length"]) for row in rows]
  assert means[0] == means[1] != means[2] == means[3]
  assert [row["samples"] for row in rows] == [8, 16, 24, 32]


def test_interrupted_it_ends_with_the_same_bits(folder, trained, tmp_path, monkeypatch):
  """A signal before the first step stops the run behind the second, when the samples are used up."""
  with interrupted.at_each_batch(monkeypatch):
    assert one_run.train(settings(folder), tmp_path / "w")["step"] == 2
  assert one_run.train(settings(folder), tmp_path / "w")["finished"]
  whole, again = adapter(trained[0]), adapter(tmp_path / "w")
  assert all(np.array_equal(whole[name], again[name]) for name in whole)
  shown = lambda workdir: [[row[f"grpo/{name}"] for name in sorted(SHOWN)] for row in metrics(workdir)]
  assert shown(trained[0]) == shown(tmp_path / "w")


@pytest.mark.slow
def test_eight_devices_draw_and_learn_as_one(folder, tmp_path):
  """Without dropout, whose masks are those of shards, and with plain steps, which do not magnify rounding."""
  same = [
    ("peft.dropout", "0.0"),
    ("train.batch_size", "16"),
    ("train.steps", "2"),
    ("train.accumulation", "1"),
  ]
  same += [("phases.rollouts.kwargs.oversample", "1"), ("phases.rollouts.kwargs.group", "2")]
  same += [("optim.name", "sgd"), ("optim.learning_rate", "0.1")]
  for name, mesh in (("one", []), ("many", [("mesh.data", "4"), ("mesh.fsdp", "2")])):
    assert one_run.train(settings(folder, *same, *mesh), tmp_path / name)["finished"]
  for one, many in zip(metrics(tmp_path / "one"), metrics(tmp_path / "many"), strict=True):
    for name in ("grpo/reward", "grpo/length", "grpo/entropy", "grad_norm"):
      assert one[name] == pytest.approx(many[name], rel=1e-3), name
  for name, value in adapter(tmp_path / "one").items():
    np.testing.assert_allclose(adapter(tmp_path / "many")[name], value, rtol=1e-3, atol=1e-5)


def test_a_reward_without_signal_ends_the_run_in_one_line(folder, tmp_path):
  none = [("phases.rollouts.kwargs.rewards", "{'exact': {}}"), ("phases.rollouts.kwargs.patience", "1")]
  message = r"step 1: config\.phases\.rollouts: for 1 steps all answers of each group had one reward.*is 0;"
  with pytest.raises(UserError, match=message):
    one_run.train(settings(folder, *none), tmp_path / "w")


def test_answers_stand_behind_their_prompts():
  """A bidirectional prefix, an image before the text, an answer that was cut off: of a batch on the host."""
  tokens = np.arange(1, 17, dtype=np.int32).reshape(2, 8)
  slots = np.full((2, 8), -1, np.int32)
  slots[:, 1:3] = [0, 1]
  causal = np.ones((2, 8), bool)
  causal[0, :5], causal[1, :4] = False, False
  texts = Batch(
    tokens_BT=tokens,
    valid_BT=np.ones((2, 8), bool),
    image_slot_BT=slots,
    mask_ar_BT=causal,
    target_index_BK=np.array([[5, 6, -1], [4, 5, 6]], np.int32),
  )
  samples = [
    sampling.Sample(np.array(said, np.int32), ended) for said, ended in (([50, 2], True), ([60] * 3, False))
  ]
  made = sampling.answered(texts, [1, 0], samples, 3, pad_id=99)
  assert made.tokens_BT.tolist() == [
    [9, 10, 11, 12, 50, 2, *[99] * 5],
    [1, 2, 3, 4, 5, 60, 60, 60, *[99] * 3],
  ]
  assert made.target_index_BK.tolist() == [[4, 5, -1], [5, 6, 7]] and made.valid_BT.sum(1).tolist() == [6, 8]
  assert (~made.mask_ar_BT).sum(1).tolist() == [4, 5] and made.image_slot_BT[:, 1:3].tolist() == [[0, 1]] * 2
  assert [sample.said.tolist() for sample in samples] == [[50], [60, 60, 60]]
  assert dataclasses.asdict(made)["pixels_NHWC"] is None
