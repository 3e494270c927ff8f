"""Other methods than LoRA together with what trains LoRA: a base in few bits, a teacher, rewards."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialvlm.training import one_run, rewards
from tests.launch import command, test_grpo, tiny
from tests.quantise.support import write_model

FEW = ["--config.model.quantize=nf4", "--config.model.quantize_block=32"]
# What begins as its base, and what does not.
METHODS = {"ia3": True, "houlsby": True, "prompt": False, "prefix": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return write_model(tmp_path_factory.mktemp("together") / "model")


def metrics(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_over_four_bits_with_a_teacher(method, world, model, tmp_path, capfd):
  """Held to what its base says, which a method that begins as its base says as well."""
  more = ["--config.losses.base.kind=distil", "--config.losses.base.kwargs.teacher=base"]
  base = [f"--config.model.path={model}", *FEW]
  arguments = [f"--config={world}/train.py", *base, f"--config.peft.method={method}", *more]
  arguments += ["--config.optim.learning_rate=0.05", f"--workdir={tmp_path}/run"]
  done = command.run(capfd, "train", *arguments)
  assert done.code == 0, done
  first, *_, last = metrics(tmp_path / "run")
  assert last["answer/loss"] < first["answer/loss"]
  assert (first["base/loss"] < 1e-6) == METHODS[method] and last["base/loss"] > 1e-6
  adapter = [f"--config={world}/evaluate.py", f"--config.adapter={tmp_path}/run/adapter"]
  done = command.run(capfd, "evaluate", *adapter, *base, f"--workdir={tmp_path}/scored")
  assert done.code == 0, done


@pytest.mark.slow
@pytest.mark.parametrize("method", ["houlsby", "prompt"])
def test_by_rewards(method, tmp_path, monkeypatch):
  """Samples are drawn with the adapter, the run begins as its reference, and two runs draw the same."""
  tiny.write_model(tmp_path / "model")
  tiny.write_data(tmp_path)
  recipe = test_grpo.RECIPE.replace("{folder}", str(tmp_path)).replace(', target=r".*(q|v|gate)_proj"', "")
  recipe = recipe.replace('method="lora", rank=2, dropout=0.1', f'method="{method}"')
  assert f'peft=dict(method="{method}")' in recipe
  (tmp_path / "recipe.py").write_text(recipe)
  monkeypatch.setitem(rewards.REWARDS, "letters", test_grpo.Letters)
  drawn = []
  for name in ("one", "again"):
    assert one_run.train(test_grpo.settings(tmp_path, ("train.steps", "2")), tmp_path / name)["finished"]
    rows = metrics(tmp_path / name)
    assert rows[0]["grpo/kl"] < 1e-6 and rows[0]["grad_norm"] > 0
    assert rows[-1]["grpo/kl"] > 1e-6
    drawn.append([(row["grpo/reward"], row["grpo/length"]) for row in rows])
  assert drawn[0] == drawn[1]
  one, again = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("one", "again"))
  assert all(np.array_equal(one[name], again[name]) for name in one)
