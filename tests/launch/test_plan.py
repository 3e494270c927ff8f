"""`launch/plan.py`, with the compiler that is always there: this computer's processor as several devices."""

import json

import pytest

from spatialvlm.plan import targets

MESH = ["--config.mesh.data=4", "--config.mesh.fsdp=2", "--config.train.batch_size=8"]


@pytest.fixture
def planned(world, typed):
  return lambda *arguments: typed("plan", f"--config={world}/train.py", *arguments)


def test_a_plan_of_eight_devices(planned):
  done = planned("--topology=cpu:8", "--tiles=1", "--programs=train,decode", "--json", *MESH)
  assert done.code == 0, done.err
  train, decode = map(json.loads, done.out.splitlines())
  assert (train["program"], decode["program"]) == ("train", "decode")
  assert train["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1} and train["fits"]
  assert train["shapes"] == {"tiles": 1, "tokens": 96, "targets": 8, "batch": 8, "asked": 32}
  assert min(train["held"]["weights"], train["held"]["optimizer"], train["flops"], train["moved"]) > 0
  assert train["donated"] >= train["held"]["trained"] + train["held"]["optimizer"]
  assert train["collectives"]["all-gather"]["times"] > 0 and train["collectives"]["all-reduce"]["times"] > 0
  # LoRA's factors lie on every device: nothing of their rank, 2, is gathered.
  assert not [one for one in train["commonest"] if one["kind"] == "all-gather" and ",2]" in one["shape"]]
  # Nor is the head, for a few answers' logits.
  width, words = 24, 424
  assert not [
    one for one in (*train["commonest"], *decode["commonest"]) if one["shape"].endswith(f"[{width},{words}]")
  ]
  assert decode["held"]["cache"] > 0 and decode["rows"] == 32


def test_tables(planned):
  done = planned("--topology=cpu:2", "--tiles=0", "--length=16", "--programs=prefix")
  assert done.code == 0, done.err
  assert "prefix" in done.out and "cpu:2: 2 x CPU, data=2" in done.out


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--topology is missing; write --topology=v5e:2x4"),
    (["--topology=v5"], "--topology=v5: not known"),
    (["--topology=cpu:2", "--programs=trian"], "--programs: there is no 'trian'; did you mean 'train'"),
    (["--topology=cpu:2", "--workdir=x"], "--workdir: a plan runs nothing"),
    (["--topology=cpu:8", "--config.mesh.fsdp=3"], r"mesh data=-1, fsdp=3, tensor=1 does not fit 8 device"),
  ],
)
def test_what_users_get_wrong(planned, arguments, message):
  import re

  done = planned(*arguments)
  assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
  assert done.err.startswith("error: ") and re.search(message, done.err)


def test_a_compiler_that_is_not_installed(planned, monkeypatch):
  monkeypatch.setattr(targets, "_there", lambda module: False)
  done = planned("--topology=v5e:2x4")
  assert done.code == 2 and done.err.count("\n") == 1
  assert 'is not installed (libtpu): pip install "spatialvlm[plan]"' in done.err
